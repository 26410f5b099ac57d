"""Folders of parts (tables or arrays as files), each part certified by a commit record.

A folder of parts looks like

    part-00000.parquet  part-00001.parquet …  _commit/part-00000.json  _commit/part-00001.json …

and a part without its record does not exist: readers skip it, writers replace it. The record, written last, holds the
part's size and SHA-256. Files contain no name, time, host or path, so equal work gives identical files, and two
writers of one part (one of them presumed dead) do not harm each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from safetensors.numpy import load, save

from curate.store.encoding import ROW_GROUP, arrow, arrow_of, digest, parquet, parquet_of, read_json, size, write_json
from curate.store.files import remove_leftovers, write_atomic
from curate.store.object_store import Location, ObjectPath, for_each

_DECODE = {".parquet": parquet_of, ".arrow": arrow_of, ".safetensors": load}


@dataclass(frozen=True)
class Parts:
    """One folder of committed parts, named by strings such as `part-00000`.

    lasting: whether a part must survive a power failure as soon as it is committed. If not (units, which only serve to
    resume a killed process), a part is trusted only after its checksum is verified, never by its record alone.
    """

    folder: Location
    suffix: str = ".parquet"
    lasting: bool = True

    def path(self, name: str) -> Location:
        """The file of a part."""
        return self.folder / f"{name}{self.suffix}"

    def record_path(self, name: str) -> Location:
        """The file of a part's commit record."""
        return self.folder / "_commit" / f"{name}.json"

    def names(self) -> list[str]:
        """The committed parts, in order."""
        return sorted(p.name.removesuffix(".json") for p in (self.folder / "_commit").glob("*.json"))

    def record(self, name: str) -> dict[str, Any] | None:
        """The commit record of a part; None if there is none, or it is truncated."""
        path = self.record_path(name)
        try:
            return read_json(path)
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            return None  # truncated by a power failure, so it certifies nothing

    def records(self) -> dict[str, dict[str, Any]]:
        """The commit records of all committed parts, by name, in order."""
        names = self.names()
        records = for_each(self.record, names, isinstance(self.folder, ObjectPath))
        return {name: record for name, record in zip(names, records, strict=True) if record}

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file that is named like a part, committed or not, by the part's name."""
        paths = [p for p in self.folder.glob(f"*{self.suffix}") if not p.name.startswith(".")]
        sizes = for_each(size, paths, isinstance(self.folder, ObjectPath))
        return {p.name.removesuffix(self.suffix): n for p, n in zip(paths, sizes, strict=True)}

    def commit(
        self, name: str, content: pa.Table | Mapping[str, np.ndarray], row_group: int = ROW_GROUP, **record: Any
    ) -> None:
        """Write a part and then its record. `content` is a table (Parquet, Arrow) or named arrays (safetensors)."""
        if isinstance(content, Mapping):
            data: bytes | memoryview = save({key: np.ascontiguousarray(a) for key, a in sorted(content.items())})
        else:
            data = arrow(content) if self.suffix == ".arrow" else parquet(content, row_group)
            record = {"rows": content.num_rows, "schema": _describe(content.schema), **record}
        self.record_path(name).unlink(missing_ok=True)  # a part that is being replaced must not appear committed
        write_atomic(self.path(name), data, flush=self.lasting)
        commit_record = {"sha256": digest(data), "bytes": len(data), **record}
        write_json(self.record_path(name), commit_record, flush=self.lasting)

    def read(self, name: str) -> Any:
        """A part's table or arrays; None if it is missing or its bytes do not match the SHA-256 in its record."""
        record = self.record(name)
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        if record is None or digest(data) != record["sha256"]:
            return None
        return _DECODE[self.suffix](data)

    def remove(self, name: str) -> None:
        """Remove a part: its record first, so that it never appears committed without its file."""
        self.record_path(name).unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed writer left: temporary files, parts without a record. Requires holding the lock."""
        committed = set(self.names())
        remove_leftovers(self.folder, mine=True)
        for path in self.folder.glob(f"*{self.suffix}"):
            if path.name.removesuffix(self.suffix) not in committed:
                path.unlink(missing_ok=True)


def _describe(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}
