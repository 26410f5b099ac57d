"""From paths to records: which files a path denotes, their formats (detected from their bytes, not their names, but for
CSV and TSV), and their contents, row by row, in bounded memory.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import exact_json
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.arrow_rows import readable_rows
from curate.store.dataset_inputs import (
    DESCRIPTIONS,
    HubDataset,
    is_empty,
    is_saved,
    load_saved,
    of_split,
)
from curate.store.given_rows import GivenRows
from curate.store.input_formats import RAW_CUT, Unreadable
from curate.store.separated_values import DELIMITERS, rows_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", *DELIMITERS)
_PACKED = (".gz", ".zst")
_BATCH = 512  # rows converted to Python objects at a time
_CHUNK = 1 << 20
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)


@dataclass(frozen=True)
class Input:
    """One file, dataset folder or hub dataset to read, or rows in memory.

    path: where it is; of rows in memory, what they are. kind: 'jsonl', 'json' (an array), '.csv', '.tsv', 'parquet',
    'arrow', 'dataset', 'hub', 'memory' or 'empty'. key: a fingerprint of the content, by which an ingest recognises it;
    '' for what can be read only once. split: of a dataset; None: train. rows: those in memory, which are read once.
    """

    path: str
    source: str
    kind: str
    key: str
    split: str | None = None
    rows: GivenRows | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Found:
    """What a path denotes. notes: what of it is not read, and why."""

    inputs: list[Input]
    notes: list[str] = field(default_factory=list)


def find_inputs(given: str, split: str | None = None) -> Found:
    """The inputs denoted by a path, folder, glob or hub id. split: of a folder or dataset; None: train.

    Raises CurateError if it is nothing readable, or has no such split.
    """
    path = Path(given)
    source = source_name(given)
    if path.is_dir():
        return _folder(path, source, split)
    # not Path.glob, which takes no absolute pattern
    globbed = [Path(p) for p in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207
    files = [path] if path.is_file() else [p for p in globbed if p.is_file()]
    if files:
        if split:
            raise CurateError(f"{given}: a file has no splits; leave out --split {split}, or name its folder.")
        return Found([_file(p, source) for p in files])
    hub = HubDataset.of(given)
    if hub and not given.endswith((*_ENDINGS, *_PACKED)):
        return Found([_hub(hub, given, source, split)])
    raise CurateError(f"{given}: there is no such file or folder; check the path.")


def source_name(given: str) -> str:
    """The source name derived from a path, without extensions: data/p3.jsonl.gz -> p3, data/*.json -> data."""
    path = Path(re.sub(r"(?<=\w)[:@#].*", "", given.removeprefix("hf:")) if HubDataset.of(given) else given)
    name = path.name.split(".")[0] if path.suffix in (*_ENDINGS, *_PACKED) else path.name
    name = re.sub(r"[-_.]*[*?\[\]]+.*", "", name)
    return name or (path.parent.name if path.parent != path else "") or "pool"


def _folder(folder: Path, source: str, split: str | None) -> Found:
    if is_saved(folder):
        return Found([_saved(folder, source, split)])
    every = sorted(p for p in folder.rglob("*") if p.is_file())
    saved = [p for p in sorted(folder.rglob("*")) if p.is_dir() and is_saved(p) and not is_saved(p.parent)]
    files = [p for p in every if p.name.endswith((*_ENDINGS, *_PACKED)) and p.name not in DESCRIPTIONS]
    files = [p for p in files if not any(p.is_relative_to(dataset) for dataset in saved)]
    if not files and not saved:
        raise CurateError(f"{folder}: no file in this folder ends in {', '.join(_ENDINGS)} (or these with .gz, .zst).")
    kept, note = of_split(folder, files, split) if files else ([], "")
    datasets = [_saved(p, source, split) for p in saved]
    return Found([*(_file(p, source) for p in kept), *datasets], [note] if note else [])


def _saved(folder: Path, source: str, split: str | None) -> Input:
    if is_empty(folder):
        return Input(str(folder), source, "empty", "")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    key = fingerprint([_digest(p) for p in files], *([split] if split else []))
    return Input(str(folder), source, "dataset", key, split)


def _file(path: Path, source: str) -> Input:
    try:
        f"{path}{source}".encode()
    except UnicodeEncodeError:
        raise CurateError(f"{str(path)!r}: this file's name is not valid UTF-8; rename it.") from None
    return Input(str(path), source, _kind(path), _digest(path))


def _hub(hub: HubDataset, given: str, source: str, split: str | None) -> Input:
    """A hub dataset, identified by the bytes of its files: another revision is another input."""
    data = hub.load(split)
    digests = [_digest(Path(file["filename"])) for file in data.cache_files]
    return Input(given, source, "hub", fingerprint(digests or [given, split]), split)


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _kind(path: Path) -> str:
    """The format of a file, detected from its first bytes; CSV and TSV, which look like any text, from its ending."""
    with path.open("rb") as f:
        head = f.read(8)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or head.startswith(b"\xff\xff\xff\xff"):
        return "arrow"
    first = _first_byte(path)
    if first == b"":
        return "empty"
    ending = Path(path.stem if path.suffix in _PACKED else path.name).suffix.lower()
    if ending in DELIMITERS:
        if first in (b"\xff", b"\xfe"):
            raise CurateError(f"{path}: this is UTF-16 text; save it as UTF-8 (in a spreadsheet: CSV UTF-8).")
        return ending
    if first in (b"{", b"["):
        return "jsonl" if first == b"{" else "json"
    raise CurateError(
        f"{path}: this is no JSON, Parquet or Arrow file (its first byte is {first!r}), and its ending is neither .csv "
        "nor .tsv; convert it to JSONL first."
    )


def _first_byte(path: Path) -> bytes:
    """The first byte that is neither white space nor part of a byte-order mark, after decompression."""
    try:
        with _open(path) as f:
            while byte := f.read(1):
                if byte not in b" \t\r\n\xef\xbb\xbf":
                    return byte
    except _BROKEN as error:
        raise CurateError(f"{path}: cannot be unpacked ({_first_line(error)}); fetch the file again.") from None
    return b""


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as f:
        unpack = _unpacking(f.read(4))
    return unpack(path, "rb") if unpack else path.open("rb")


def unpacked(head: bytes, stream: IO[bytes]) -> IO[bytes]:
    """What a stream holds, unpacked if it is gzip or zstd. head: its first four bytes, which it still gives."""
    unpack = _unpacking(head)
    return unpack(stream, "rb") if unpack else stream


def _unpacking(head: bytes) -> Callable[..., Any] | None:
    """What opens a file that begins so, if it is packed."""
    if head.startswith(b"\x1f\x8b"):
        return gzip.open
    if head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # a skippable frame
        return zstd.open
    return None


def records(source: Input, skip: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields (line or row number from 1, record or Unreadable), after skipping `skip` rows."""
    path = Path(source.path)
    if source.rows is not None:
        yield from source.rows.read(skip)
    elif source.kind == "jsonl":
        yield from _json_lines(path, skip)
    elif source.kind == "json":
        yield from islice(_json_array(path), skip, None)
    elif source.kind in DELIMITERS:
        yield from ((n, row) for n, row in _separated(path, DELIMITERS[source.kind]) if n > skip)
    elif source.kind != "empty":
        yield from islice(_table_rows(source), skip, None)


def first_records(source: Input, most: int) -> Iterator[tuple[int, Any]]:
    """The first records, as `records` has them; those in memory are still there afterwards."""
    if source.rows is not None:
        return enumerate(source.rows.look(most), 1)
    return islice(records(source), most)


def json_lines(stream: IO[bytes], skip: int = 0) -> Iterator[tuple[int, Any]]:
    """The records of a JSON Lines stream, which need not be a file: (line number, record or Unreadable)."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            if number > skip and not line.isspace():
                yield number, _parsed(line)
    except _BROKEN as error:
        yield number + 1, _damaged(error)


def _json_lines(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    with _open(path) as f:
        yield from json_lines(f, skip)


def _separated(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with _open(path) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
            for number, row in rows_of(stream, delimiter, str(path)):
                yield number, row
    except _BROKEN as error:
        yield number + 1, _damaged(error)


def _parsed(line: bytes) -> Any:
    line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return exact_json.loads(line)
    except ValueError as error:
        return Unreadable(f"is not JSON ({error})", line[:RAW_CUT].decode("utf-8", "replace"))


def _json_array(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON array, parsed one at a time from a buffer of little more than one element."""
    decode = exact_json.DECODER.raw_decode
    number, buffer, position, read_size, opened = 0, "", 0, _CHUNK, False
    with _open(path) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")
        while True:
            try:
                chunk = stream.read(read_size)
            except _BROKEN as error:
                yield number + 1, _damaged(error)
                return
            buffer, position = buffer[position:] + chunk, 0
            while True:
                position = _end(_SEPARATOR if opened else _OPENING, buffer, position)
                opened = opened or position > 0
                if position < len(buffer) and buffer[position] == "]":
                    trailing = (buffer[position + 1 :] + stream.read(RAW_CUT)).lstrip()
                    if trailing:
                        yield (
                            number + 1,
                            Unreadable("more text stands behind the end of the JSON array", trailing[:RAW_CUT]),
                        )
                    return
                try:
                    element, end = _element(decode, buffer, position, last=not chunk)
                except json.JSONDecodeError as error:
                    broken = error
                    break
                number, position = number + 1, end
                yield number, element
            if not chunk or not _unfinished(broken, len(buffer)):
                yield number + 1, _rest_of_array(buffer, position, broken)
                return
            read_size = max(_CHUNK, len(buffer) - position)  # doubles for a large element: linear in its size


def _element(decode: Callable[..., Any], buffer: str, position: int, last: bool) -> tuple[Any, int]:
    """The element at a position and its end, which is certain only if a comma or bracket follows."""
    try:
        element, end = decode(buffer, position)
    except RecursionError:
        raise json.JSONDecodeError("Nested too deeply", buffer, position) from None
    next_position = _end(_SPACE, buffer, end)
    if buffer[next_position : next_position + 1] not in (",", "]") and not (last and next_position == len(buffer)):
        raise json.JSONDecodeError("Expecting ',' delimiter", buffer, next_position)
    return element, end


def _unfinished(error: json.JSONDecodeError, length: int) -> bool:
    """Whether more input could fix the error: it is inside a string, or within an escape's length of the end."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


_SPACE, _SEPARATOR, _OPENING = re.compile(r"\s*"), re.compile(r"[\s,]*"), re.compile(r"\s*\[\s*")


def _end(pattern: re.Pattern[str], buffer: str, position: int) -> int:
    """The end of a pattern's match at a position; the position itself if there is no match."""
    match = pattern.match(buffer, position)
    return match.end() if match else position


def _damaged(error: Exception) -> Unreadable:
    return Unreadable(f"the file is cut or damaged from here on ({_first_line(error)})")


def _rest_of_array(buffer: str, position: int, broken: json.JSONDecodeError) -> Unreadable:
    reason = broken.msg if position < len(buffer) else "it has no closing bracket"
    raw = buffer[position : position + RAW_CUT].encode("utf-8", "replace").decode()
    return Unreadable(f"the JSON array cannot be read from here on ({reason})", raw)


def _table_rows(source: Input) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for batch in _batches(source):
            for row in readable_rows(batch):
                number += 1
                yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        if number == 0:
            raise CurateError(f"{source.path}: cannot be read as {source.kind} ({_first_line(error)}).") from None
        yield number + 1, _damaged(error)


def _batches(source: Input) -> Iterator[pa.RecordBatch | pa.Table]:
    if source.kind == "parquet":
        with pq.ParquetFile(source.path) as f:
            yield from f.iter_batches(batch_size=_BATCH)
    elif source.kind == "arrow":
        with pa.memory_map(source.path) as f:
            yield from _sliced(_arrow_batches(f))
    else:
        data = load_saved(source.path, source.split) if source.kind == "dataset" else _from_hub(source)
        yield from data.with_format("arrow").iter(batch_size=_BATCH)


def _arrow_batches(f: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    magic = f.read(6)
    f.seek(0)
    if magic != b"ARROW1":
        yield from pa.ipc.open_stream(f)
        return
    reader = pa.ipc.open_file(f)
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


def _sliced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _from_hub(source: Input) -> Any:
    hub = HubDataset.of(source.path)
    assert hub is not None
    return hub.load(source.split)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
