"""From paths to records: which files a path denotes, their formats (detected from their bytes, not their names, but for
CSV and TSV), and their contents, row by row, in bounded memory.
"""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.arrow_rows import readable_rows
from curate.store.dataset_inputs import (
    DESCRIPTIONS,
    HubDataset,
    is_empty,
    is_saved,
    load_saved,
    mixed_splits,
    of_split,
)
from curate.store.given_rows import GivenRows
from curate.store.input_limits import BLANKS, InputLimits
from curate.store.json_rows import damaged, first_line, json_array, parsed, unparsed_lines
from curate.store.packed import BROKEN, open_input, other_packing
from curate.store.separated_values import DELIMITERS, rows_of

FILES = ("jsonl", "json", "parquet", "arrow", *DELIMITERS)  # kinds of inputs that are one file
_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", *DELIMITERS)
_PACKED = (".gz", ".zst")
_BATCH = 512  # rows converted to Python objects at a time
_PIECE = 1 << 16
# What readers of tables raise for damaged ones: errors of theirs, and Python's for sizes that make no sense.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
_LIMITS = InputLimits()


@dataclass(frozen=True)
class Input:
    """One file, dataset folder or hub dataset to read, or rows in memory.

    path: where it is; of rows in memory, what they are. kind: 'jsonl', 'json' (an array), '.csv', '.tsv', 'parquet',
    'arrow', 'dataset', 'hub', 'memory' or 'empty'. key: a fingerprint of the content, by which an ingest recognises it;
    '' for what can be read only once. split: of a dataset; None: train. rows: those in memory, which are read once.
    limits: what its text may cost.
    """

    path: str
    source: str
    kind: str
    key: str
    split: str | None = None
    rows: GivenRows | None = field(default=None, compare=False, repr=False)
    limits: InputLimits = _LIMITS


@dataclass(frozen=True)
class Found:
    """What a path denotes. notes: what of it is not read, and why."""

    inputs: list[Input]
    notes: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """The notes, and one on files of several splits."""
        files = [Path(item.path) for item in self.inputs if item.kind in FILES]
        return [*self.notes, *filter(None, [mixed_splits(files)])]


def find_inputs(given: str, split: str | None = None, limits: InputLimits = _LIMITS) -> Found:
    """The inputs denoted by a path, folder, glob or hub id. split: of a folder or dataset; None: train.

    Raises CurateError if it is nothing readable, or has no such split.
    """
    path = Path(given)
    source = source_name(given)
    if path.is_dir():
        return _folder(path, source, split, limits)
    # not Path.glob, which takes no absolute pattern
    globbed = [Path(p) for p in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207
    files = [path] if path.is_file() else [p for p in globbed if p.is_file()]
    if files:
        if split:
            raise CurateError(f"{given}: a file has no splits; leave out --split {split}, or name its folder.")
        return Found([_file(p, source, limits) for p in files])
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


def _folder(folder: Path, source: str, split: str | None, limits: InputLimits) -> Found:
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
    return Found([*(_file(p, source, limits) for p in kept), *datasets], [note] if note else [])


def _saved(folder: Path, source: str, split: str | None) -> Input:
    if is_empty(folder):
        return Input(str(folder), source, "empty", "")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    key = fingerprint([_digest(p) for p in files], *([split] if split else []))
    return Input(str(folder), source, "dataset", key, split)


def _file(path: Path, source: str, limits: InputLimits) -> Input:
    try:
        f"{path}{source}".encode()
    except UnicodeEncodeError:
        raise CurateError(f"{str(path)!r}: this file's name is not valid UTF-8; rename it.") from None
    return Input(str(path), source, _kind(path, limits), _digest(path), limits=limits)


def _hub(hub: HubDataset, given: str, source: str, split: str | None) -> Input:
    """A hub dataset, identified by the bytes of its files: another revision is another input."""
    data = hub.load(split)
    digests = [_digest(Path(file["filename"])) for file in data.cache_files]
    return Input(given, source, "hub", fingerprint(digests or [given, split]), split)


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _kind(path: Path, limits: InputLimits) -> str:
    """The format of a file, detected from its first bytes; CSV and TSV, which look like any text, from its ending."""
    with path.open("rb") as f:
        head = f.read(8)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or head.startswith(b"\xff\xff\xff\xff"):
        return "arrow"
    if packing := other_packing(head):
        raise CurateError(f"{path}: this file is packed as {packing}; unpack it, or pack it as gzip or zstd.")
    first = _first_byte(path, limits)
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


def _first_byte(path: Path, limits: InputLimits) -> bytes:
    """The first byte that is neither white space nor part of a byte-order mark, after decompression."""
    looked_at = 0
    try:
        with open_input(path, limits) as f:
            while piece := f.read(_PIECE):
                if text := piece.lstrip(b" \t\r\n\xef\xbb\xbf"):
                    return text[:1]
                looked_at += len(piece)
                if looked_at > BLANKS:
                    raise CurateError(f"{path}: begins with more than {BLANKS:,} blanks; remove them.")
    except BROKEN as error:
        raise CurateError(f"{path}: cannot be unpacked ({first_line(error)}); fetch the file again.") from None
    return b""


def records(source: Input, skip: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields (line or row number from 1, record or Unreadable), after skipping `skip` rows."""
    rows = unparsed(source, skip)
    return ((number, parsed(line)) for number, line in rows) if source.kind == "jsonl" else rows


def unparsed(source: Input, skip: int = 0) -> Iterator[tuple[int, Any]]:
    """As `records`, but with the lines of JSON Lines as they are, for `json_rows.parsed`."""
    path = Path(source.path)
    if source.rows is not None:
        yield from source.rows.read(skip)
    elif source.kind == "jsonl":
        with open_input(path, source.limits) as f:
            yield from unparsed_lines(f, source.limits, skip)
    elif source.kind == "json":
        yield from islice(_json_array(path, source.limits), skip, None)
    elif source.kind in DELIMITERS:
        yield from ((n, row) for n, row in _separated(path, DELIMITERS[source.kind], source.limits) if n > skip)
    elif source.kind != "empty":
        yield from islice(_table_rows(source), skip, None)


def first_records(source: Input, most: int) -> Iterator[tuple[int, Any]]:
    """The first records, as `records` has them; those in memory are still there afterwards."""
    if source.rows is not None:
        return enumerate(source.rows.look(most), 1)
    return islice(records(source), most)


def _json_array(path: Path, limits: InputLimits) -> Iterator[tuple[int, Any]]:
    with (
        open_input(path, limits) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape") as stream,
    ):
        yield from json_array(stream, limits)


def _separated(path: Path, delimiter: str, limits: InputLimits) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with open_input(path, limits) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
            for number, row in rows_of(stream, delimiter, str(path), limits):
                yield number, row
    except BROKEN as error:
        yield number + 1, damaged(error)


def _table_rows(source: Input) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for batch in _batches(source):
            for row in readable_rows(batch):
                number += 1
                yield number, row
    except _UNREADABLE as error:
        if number == 0:
            raise CurateError(f"{source.path}: cannot be read as {source.kind} ({first_line(error)}).") from None
        yield number + 1, damaged(error)


def _batches(source: Input) -> Iterator[pa.RecordBatch | pa.Table]:
    if source.kind == "parquet":
        with pq.ParquetFile(source.path) as f:
            _refuse_expanding(source, f.metadata)
            yield from f.iter_batches(batch_size=_BATCH)
    elif source.kind == "arrow":
        with pa.OSFile(source.path) as f:  # not mapped: of a damaged file a map is read beyond its end, which kills
            yield from _sliced(_arrow_batches(f))
    else:
        data = load_saved(source.path, source.split) if source.kind == "dataset" else _from_hub(source)
        yield from data.with_format("arrow").iter(batch_size=_BATCH)


def _refuse_expanding(source: Input, metadata: pq.FileMetaData) -> None:
    """Raises CurateError for a Parquet file that says it unpacks to more than the limits."""
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if exceeded := source.limits.exceeded(Path(source.path).stat().st_size, max(unpacked, metadata.num_rows)):
        raise CurateError(f"{source.path} {exceeded}.")


def _arrow_batches(f: pa.NativeFile) -> Iterator[pa.RecordBatch]:
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
