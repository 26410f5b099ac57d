"""How files come to be: written under a temporary name, flushed, renamed, and then vouched for by a record.

A folder of parts looks like

    part-00000.parquet  part-00001.parquet …  _commit/part-00000.json  _commit/part-00001.json …

and a part without its record does not exist: readers skip it, writers replace it. Bytes hold no name, time,
host or path, so equal work gives equal files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save

from curate.errors import CurateError

ROW_GROUP = 65_536


def write_bytes(path: Path, data: bytes) -> str:
    """Write a whole file so that it is there completely or not at all. Returns its SHA-256."""
    return _publish(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> str:
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return write_bytes(path, orjson.dumps(value, option=options))


def read_json(path: Path) -> Any:
    return orjson.loads(path.read_bytes())


def write_table(path: Path, table: pa.Table, row_group: int = ROW_GROUP) -> str:
    """Write Parquet whose bytes depend on the rows alone, not on how they were chunked. Returns its SHA-256."""
    table = table.combine_chunks().replace_schema_metadata(None)
    return _publish(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", row_group_size=row_group)
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, all of it or some columns."""
    with pq.ParquetFile(path) as f:
        return f.read(columns=list(columns) if columns else None)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write named arrays as safetensors. Returns its SHA-256."""
    return write_bytes(path, save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)


def _publish(path: Path, write: Callable[[Path], Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)
    return digest


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Parts:
    """One folder of committed parts, named by strings such as `part-00000`."""

    def __init__(self, folder: Path, suffix: str = ".parquet"):
        self.folder = folder
        self.suffix = suffix

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def record_path(self, name: str) -> Path:
        return self.folder / "_commit" / f"{name}.json"

    def names(self) -> list[str]:
        """The committed parts, in order."""
        return sorted(p.stem for p in (self.folder / "_commit").glob("*.json"))

    def record(self, name: str) -> dict[str, Any] | None:
        path = self.record_path(name)
        return read_json(path) if path.exists() else None

    def records(self) -> dict[str, dict[str, Any]]:
        return {name: read_json(self.record_path(name)) for name in self.names()}

    def commit(self, name: str, content: pa.Table | Mapping[str, np.ndarray], **record: Any) -> None:
        """Write a part and then its record. `content` is a table (Parquet) or named arrays (safetensors)."""
        self.record_path(name).unlink(missing_ok=True)  # a part being replaced does not exist meanwhile
        if isinstance(content, Mapping):
            digest = write_arrays(self.path(name), content)
        else:
            digest = write_table(self.path(name), content)
            record = {"rows": content.num_rows, "schema": _describe(content.schema), **record}
        write_json(self.record_path(name), {"sha256": digest, **record})

    def remove(self, name: str) -> None:
        self.record_path(name).unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed writer left: temporaries, parts without a record. Only for the claim's holder."""
        committed = set(self.names())
        sweep(self.folder)
        for path in self.folder.glob(f"*{self.suffix}"):
            if path.stem not in committed:
                path.unlink()


def sweep(folder: Path) -> None:
    """Remove the temporaries below a folder whose writer is dead."""
    for path in folder.rglob(".*.tmp"):
        if not _lives(int(path.name.split(".")[-2])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def remove_tree(folder: Path) -> None:
    """Remove a folder so that a kill half-way leaves nothing that looks whole: it is renamed first."""
    doomed = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


@contextlib.contextmanager
def claim(workspace: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a part of a workspace (`pool`, `score bm25`, …) for writing; a second process is told who holds it.

    The claim is an advisory lock of the operating system, which falls with its holder: what a dead process
    held is free at once. The file's text is for people only.
    """
    path = workspace / ".claims" / what.replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            f.seek(0)
            holder = f.read().strip() or "another process"
            raise CurateError(
                f"{workspace}: {holder} is writing the {what}; wait for it to end, or stop it and run this again."
            ) from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()}")
        f.flush()
        yield
        f.truncate(0)
