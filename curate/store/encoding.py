"""Values as bytes: JSON, Parquet, Arrow and safetensors, with digests, and an error message for damaged files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load

from curate.errors import DamagedError, MissingError
from curate.store.files import write_atomic
from curate.store.object_store import Location, ObjectPath
from curate.store.schema import LATER

if TYPE_CHECKING:
    import pyarrow.parquet as pq

ROW_GROUP = 65_536


def digest(data: bytes | memoryview) -> str:
    """The SHA-256 of the data, as commit records hold it."""
    return hashlib.sha256(data).hexdigest()


def write_json(path: Location, value: Any, flush: bool = True) -> None:
    """Write a value as indented JSON, atomically. flush: as for `write_atomic`."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_atomic(path, orjson.dumps(value, option=options), flush)


LASTING = (b"shares",)  # the only schema metadata that is written: the share of each part of vectors


def read_json(path: Location) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, or orjson.JSONDecodeError for invalid JSON."""
    return orjson.loads(path.read_bytes())


def write_table(path: Location, table: pa.Table, row_group: int = ROW_GROUP) -> str:
    """Write Parquet whose bytes depend on the rows alone, not on how they were chunked. Returns its SHA-256."""
    data = parquet(table, row_group)
    write_atomic(path, data)
    return digest(data)


def parquet(table: pa.Table, row_group: int = ROW_GROUP) -> memoryview:
    """The bytes of a table's Parquet file."""
    import pyarrow.parquet as pq

    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key in LASTING}
    table = table.combine_chunks().replace_schema_metadata(metadata or None)
    sink = pa.BufferOutputStream()
    repeating = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]  # not vectors
    dictionary: Any = repeating if len(repeating) < table.num_columns else True
    pq.write_table(
        table, sink, compression="zstd", row_group_size=row_group, use_dictionary=dictionary, write_page_checksum=True
    )
    return memoryview(sink.getvalue())


def read_table(path: Location, columns: Sequence[str] | None = None, rows: tuple[int, int] | None = None) -> pa.Table:
    """Read a Parquet file, all of it or some columns, or the rows from `rows[0]` up to `rows[1]`.

    Only the row groups that contain those rows are read. The columns are in the order of `columns`. A named column that
    samples have only since a later version (schema.LATER) is null where the file lacks it. Raises DamagedError if the
    file is damaged, and MissingError, which is one, if it is gone.
    """
    table = _read_table(path, columns, rows)
    for name in columns or ():
        if name in LATER and name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, LATER[name]))
    return table.select(list(columns)) if columns else table


def _read_table(path: Location, columns: Sequence[str] | None, rows: tuple[int, int] | None) -> pa.Table:
    try:
        with _opened(path) as f:
            names = list(columns) if columns else None
            if rows is None:
                return f.read(columns=names)
            ends = _group_ends(f)
            first, last = int(np.searchsorted(ends, rows[0], "right")) - 1, int(np.searchsorted(ends, rows[1], "left"))
            table = f.read_row_groups(list(range(first, last)), columns=names)
            return table.slice(rows[0] - int(ends[first]), rows[1] - rows[0])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise damaged(path, error) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise MissingError(
                f"{path} is gone, which was stored; `curate verify` lists all damage, and what can be done."
            ) from None
        if error.errno:
            raise
        raise damaged(path, error) from None  # Arrow raises OSError without errno for pages that do not decompress


def row_groups(path: Location) -> list[int]:
    """The boundaries of the row groups of a Parquet file, as row positions: 0, …, number of rows."""
    with _opened(path) as f:
        return _group_ends(f).tolist()


def _group_ends(file: pq.ParquetFile) -> np.ndarray:
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return np.cumsum([0, *sizes])


def parquet_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, read in this thread only.

    If one of Arrow's threads still held the bytes, which Python owns, at interpreter exit, the process would be killed
    by SIGABRT (apache/arrow#34314); pq.read_table starts such threads too.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as f:
        return f.read(columns=list(columns) if columns else None, use_threads=False)


def arrow(table: pa.Table) -> memoryview:
    """The bytes of a table as an Arrow file: fast to write and read, for tables that will soon be merged."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as f:
        f.write_table(table)
    return memoryview(sink.getvalue())


def arrow_of(data: bytes) -> pa.Table:
    """The table in the bytes of an Arrow file."""
    with pa.ipc.open_file(data) as f:
        return f.read_all()


def _opened(path: Location) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # with Arrow's file systems: what only lists and asks reads no such file

    if isinstance(path, ObjectPath):
        return pq.ParquetFile(path.store.open_input_file(path.key), pre_buffer=True, page_checksum_verification=True)
    return pq.ParquetFile(path, page_checksum_verification=True)


def damaged(path: Location, error: Exception) -> DamagedError:
    """The error for a stored file that cannot be read."""
    first = str(error).strip().splitlines()[0].rstrip(".")
    return DamagedError(f"{path} is damaged ({first}); `curate verify` lists all damage, and what can be done.")


def read_arrays(path: Location) -> dict[str, np.ndarray]:
    """The named arrays in a safetensors file. Raises DamagedError."""
    try:
        return load(path.read_bytes())
    except (SafetensorError, FileNotFoundError) as error:
        raise damaged(path, error) from None


def size(path: Location) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    if isinstance(path, ObjectPath):
        return path.size()
    return path.stat().st_size if path.exists() else 0
