"""What `ingest` and `target` are given, as inputs: paths, and data of this process.

    a path, a folder, a glob, a hub id        its files
    - or an open binary file                  JSON Lines: plain, gzip or zstd
    datasets, Arrow, polars, DuckDB           the rows of its Arrow tables, as of the same table in a Parquet file
    pandas                                    its columns, as Arrow has them; what is missing (NaN, NA, NaT) is null
    a list, or any iterable, of dictionaries  as of the same rows in a JSON Lines file

What can be read twice has a key, made of its content, by which an ingest recognises it; an iterator, a stream or an
`IterableDataset` has none, and is read once, in bounded memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Protocol, TypeAlias

import pyarrow as pa

from curate import exact_json
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.arrow_rows import decoded_rows, readable_rows
from curate.store.dataset_inputs import one_split
from curate.store.given_rows import GivenRows, plain, plain_row
from curate.store.input_files import Found, Input, find_inputs
from curate.store.input_limits import InputLimits
from curate.store.json_rows import json_lines
from curate.store.packed import unpacked

MEMORY = "memory"  # the source of rows that no path names
STDIN = "stdin"
_BATCH = 512  # rows converted to Python objects at a time
_BLOCK = 4096  # rows hashed at a time


class SupportsArrow(Protocol):
    """Whatever gives its rows by Arrow's stream protocol: tables of pyarrow, polars, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule of an ArrowArrayStream."""
        ...


class SupportsCollect(Protocol):
    """A query of polars that has not run."""

    def collect(self) -> Any:
        """Its result."""
        ...


Data: TypeAlias = str | os.PathLike[str] | SupportsArrow | SupportsCollect | Iterable[Any]


def find_given(data: Data, split: str | None = None, limits: InputLimits | None = None) -> Found:
    """The inputs that a path, data of this process, or a list of such denotes. split: of a folder, or of datasets.

    limits: what text may cost. Raises CurateError for what is none of these, or a split that there is not.
    """
    limits = limits or InputLimits()
    if isinstance(data, str) and data == "-":
        return _stream(sys.stdin.buffer, "standard input", STDIN, limits)
    if isinstance(data, str | os.PathLike):
        return find_inputs(os.fspath(data), split, limits)
    if (found := _table(data, split)) is not None:
        if split and not _is(data, "datasets", "DatasetDict", "IterableDatasetDict"):
            raise CurateError(f"{found.inputs[0].path} has no splits; leave out the split '{split}'.")
        return found
    if isinstance(data, io.TextIOBase):
        raise CurateError("a file of rows is read as bytes; open it in the mode 'rb', or give its path.")
    if hasattr(data, "read"):
        return _stream(data, str(getattr(data, "name", "an open file")), MEMORY, limits)  # type: ignore[arg-type]
    if isinstance(data, Mapping | bytes | bytearray) or not isinstance(data, Iterable):
        raise CurateError(_wrong(data))
    return _several(data, split, limits)


def _wrong(data: Any) -> str:
    one = "; a dictionary is one row, so put it into a list" if isinstance(data, Mapping) else ""
    return (
        "samples are given as paths, as a table (datasets, Arrow, polars, pandas), or as an iterable of dictionaries, "
        f"not as {repr(data)[:60]} ({type(data).__name__}){one}."
    )


def _several(data: Iterable[Any], split: str | None, limits: InputLimits) -> Found:
    """A list or an iterator: of rows if the first is one, else of paths and tables."""
    is_list = isinstance(data, list | tuple)
    rows = GivenRows("a list of rows" if is_list else "an iterator of rows", data)
    first = list(rows.look(1))
    if is_list and not first:
        return Found([])
    if not first or isinstance(first[0], Mapping):
        key = _rows_key(data) if is_list else ""
        return _found(rows.label, map(plain_row, data) if is_list else _plain_rows(rows), key)
    if not is_list and not isinstance(first[0], str | os.PathLike):
        raise CurateError(_wrong(first[0]))
    found = [find_given(one, split, limits) for one in data] if is_list else _each(rows, split, limits)
    return Found([i for one in found for i in one.inputs], [note for one in found for note in one.notes])


def _each(paths: GivenRows, split: str | None, limits: InputLimits) -> list[Found]:
    found = [find_given(path, split, limits) for _, path in paths.read()]
    paths.refuse_if_stopped("nothing is read")
    return found


def _plain_rows(rows: GivenRows) -> Iterator[Any]:
    for _, row in rows.read():
        yield plain_row(row)
    if rows.error is not None:
        raise rows.error


def _found(label: str, rows: Iterable[Any], key: str = "") -> Found:
    return _input(GivenRows(label, rows), MEMORY, key)


def _input(given: GivenRows, source: str, key: str = "") -> Found:
    there = any(True for _ in given.look(1)) or given.error is not None
    return Found([Input(given.label, source, "memory" if there else "empty", key, rows=given)])


def _rows_key(rows: Iterable[Any]) -> str:
    """A key of rows by their JSON; '' if one of them has none."""
    digest = hashlib.sha256()
    try:
        for row in rows:
            digest.update(exact_json.dumps(row).encode() + b"\n")
    except (TypeError, ValueError, RecursionError):
        return ""
    return fingerprint("rows", digest.hexdigest())


# --- tables ----------------------------------------------------------------------------------------------


def _is(data: Any, library: str, *names: str) -> bool:
    """Whether the data's class is one of a library's, or of its kind; nothing is imported for it."""
    return any(c.__name__ in names and c.__module__.partition(".")[0] == library for c in type(data).__mro__)


def _table(data: Any, split: str | None) -> Found | None:
    """The rows of a table; None if the data is none."""
    label = f"a {type(data).__module__.partition('.')[0]} {type(data).__name__}"
    if _is(data, "datasets", "DatasetDict", "IterableDatasetDict"):
        return _table(one_split(label, data, split), None)
    if _is(data, "datasets", "Dataset"):
        arrow = data.with_format("arrow")
        return _arrow(label, lambda size: arrow.iter(batch_size=size))
    if _is(data, "datasets", "IterableDataset"):
        return _found(label, _streamed(data))
    if _is(data, "pandas", "DataFrame"):
        _refuse_columns(label, list(data.columns))
        return _found(label, _pandas_rows(data), _rows_key(_pandas_rows(data)))
    if _is(data, "polars", "LazyFrame"):
        data = data.collect()
    if _is(data, "pyarrow", "RecordBatchReader"):
        return _found(label, _rows_of(data))
    if not hasattr(data, "__arrow_c_stream__"):
        return None
    if _is(data, "polars", "DataFrame") and (held := [n for n, kind in data.schema.items() if str(kind) == "Object"]):
        raise CurateError(f"{label} cannot be read as Arrow: its column '{held[0]}' holds Python objects; change it.")
    try:
        table = pa.table(data)
    except Exception as error:  # each library raises its own  # noqa: BLE001
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CurateError(f"{label} cannot be read as Arrow ({told}); change the column that cannot.") from None
    _refuse_columns(label, table.column_names)
    return _arrow(label, lambda size: (table.slice(i, size) for i in range(0, table.num_rows, size)))


def _refuse_columns(label: str, names: list[Any]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CurateError(f"{label} has two columns of the name '{twice}'; rename one of them.")


def _arrow(label: str, blocks: Any) -> Found:
    """Arrow tables as an input. blocks: size -> the rows in tables of that size."""
    digest = hashlib.sha256()
    for block in blocks(_BLOCK):
        block = block.replace_schema_metadata(None).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, block.schema) as writer:
            writer.write_table(block)
        digest.update(sink.getvalue())
    return _found(label, _rows_of(blocks(_BATCH)), fingerprint("arrow", digest.hexdigest()))


def _rows_of(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            yield from readable_rows(batch.slice(start, _BATCH))


def _streamed(data: Any) -> Iterator[Any]:
    """The rows of an IterableDataset: of its Arrow tables if it reads some, else of Python, as it has them.

    Where it has features, its structs have the same members in every row, as in a table.
    """
    if getattr(getattr(data, "_ex_iterable", None), "iter_arrow", None):
        return _rows_of(data.with_format("arrow").iter(batch_size=_BATCH))
    rows = map(plain_row, data)
    return iter(rows if data.features is None else decoded_rows(rows, data.features.arrow_schema))


def _pandas_rows(data: Any) -> Iterator[Any]:
    names = [str(name) for name in data.columns]
    for start in range(0, len(data), _BATCH):
        part = data.iloc[start : start + _BATCH]
        columns = [_column(name, part.iloc[:, i]) for i, name in enumerate(names)]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))


def _column(name: str, values: Any) -> list[Any]:
    """The values of a column of pandas; of one of Python objects these, without pandas' signs for what is missing."""
    if values.dtype == object:
        return [None if _is_missing(value) else plain(value) for value in values]
    table = pa.table({name: pa.array(values, from_pandas=True)})
    return [row[name] if isinstance(row, dict) else row for row in readable_rows(table)]


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType") or isinstance(value, float) and value != value


# --- streams ---------------------------------------------------------------------------------------------


class _Rejoined(io.RawIOBase):
    """A stream with its first bytes, which were read, put back."""

    def __init__(self, head: bytes, rest: IO[bytes]):
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer)) or b""
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _stream(raw: IO[bytes], label: str, source: str, limits: InputLimits) -> Found:
    """JSON Lines of an open binary file, which may be a pipe."""
    head = b""
    while len(head) < 4 and (more := raw.read(4 - len(head))):
        head += more
    stream = unpacked(head, io.BufferedReader(_Rejoined(head, raw)), limits, label)
    return _input(GivenRows(label, json_lines(stream, limits), numbered=True), source)
