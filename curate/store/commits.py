"""Folders of parts (tables or arrays as files), each part certified by a commit record.

A folder of parts looks like

    part-00000.parquet  part-00001.parquet …  _commit/part-00000.json  _commit/part-00001.json …  _parts.json

and a part without its record does not exist: readers skip it, writers replace it. The record, written last, holds the
part's size and SHA-256. Files contain no name, time, host or path, so equal work gives identical files, and two
writers of one part (one of them presumed dead) do not harm each other.

A folder of tables is held to a list, `_parts.json`: the records of its parts, with a digest of them all. A part is in
the list only while its record exists, so a killed writer leaves at worst a record that is not listed yet, and the next
writer lists it. What is listed and has no record was lost: every reader says so, instead of going on with fewer rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from safetensors.numpy import load, save

from curate.errors import DamagedError
from curate.store.encoding import ROW_GROUP, arrow, arrow_of, digest, parquet, parquet_of, read_json, size, write_json
from curate.store.files import remove_leftovers, write_atomic
from curate.store.object_store import Location, ObjectPath, for_each

_OWN = "record_sha256"  # of a record that no list has, so that a flipped bit of it is not believed
LIST = "_parts.json"
_TRIES = 3  # readings of a list and its folder, which a writer may change in between
_UNLISTED = 64  # parts per one that may be unlisted: a list of many is not written anew for each
_DECODE = {".parquet": parquet_of, ".arrow": arrow_of, ".safetensors": load}


@dataclass(frozen=True)
class Parts:
    """One folder of committed parts, named by strings such as `part-00000`.

    lasting: whether a part must survive a power failure as soon as it is committed. If not (units, which only serve to
    resume a killed process), a part is trusted only after its checksum is verified, never by its record alone.
    numbered: whether the parts are part-00000, part-00001, … without a gap. pinned: the records at some moment, which
    a reader keeps to while another process writes.
    """

    folder: Location
    suffix: str = ".parquet"
    lasting: bool = True
    numbered: bool = False
    pinned: Mapping[str, dict[str, Any]] | None = field(default=None, compare=False, repr=False)

    def path(self, name: str) -> Location:
        """The file of a part."""
        return self.folder / f"{name}{self.suffix}"

    def record_path(self, name: str) -> Location:
        """The file of a part's commit record."""
        return self.folder / "_commit" / f"{name}.json"

    def names(self) -> list[str]:
        """The committed parts, in order, as far as their records are there."""
        if self.pinned is not None:
            return list(self.pinned)
        return sorted(p.name.removesuffix(".json") for p in (self.folder / "_commit").glob("*.json"))

    def record(self, name: str) -> dict[str, Any] | None:
        """The commit record of a part; None if there is none, or it is truncated."""
        path = self.record_path(name)
        try:
            record = read_json(path)
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            return None  # truncated by a power failure, so it certifies nothing
        if not isinstance(record, dict):
            return None
        own = record.pop(_OWN, None)
        return record if own in (None, _digest_of(record)) else None

    def records(self, lost_ok: bool = False) -> dict[str, dict[str, Any]]:
        """The commit records of all committed parts, by name, in order. lost_ok: without those that were lost.

        Raises DamagedError if a part was lost, or a record cannot be read, in a folder that is held to a list.
        """
        if self.pinned is not None:
            return dict(self.pinned)
        names, listed = self._found()
        if listed is None:  # intermediate results: what is not certified is computed again
            read = for_each(self.record, names, isinstance(self.folder, ObjectPath))
            return {name: record for name, record in zip(names, read, strict=True) if record}
        unlisted = [name for name in names if name not in listed]
        read = dict(zip(unlisted, for_each(self.record, unlisted, isinstance(self.folder, ObjectPath)), strict=True))
        unread = [name for name, record in read.items() if not record]
        if not lost_ok and (lost := {*(listed.keys() - names), *unread, *self.gaps(names)}):
            raise self._lost(sorted(lost))
        known = {**listed, **read}
        return {name: record for name in names if (record := known.get(name))}

    @property
    def is_listed(self) -> bool:
        """Whether the folder is held to a list: arrays (partial sums, states) and units can be computed again."""
        return self.lasting and self.suffix == ".parquet"

    def listed(self) -> dict[str, dict[str, Any]]:
        """The records in the list; {} before there is one. Raises DamagedError if the list cannot be read."""
        return read_list(self.folder) or {}

    def certify(self) -> None:
        """Write the list of all committed parts, if it is another. Requires holding the lock. Raises DamagedError."""
        if self.is_listed and (records := self.records()) != self.listed():
            self._write_list(records)

    def forget(self, names: Iterable[str]) -> None:
        """Take parts off the list, before their records are removed. Requires holding the lock."""
        if self.is_listed and (gone := set(names)) & (listed := self.listed()).keys():
            self._write_list({name: record for name, record in listed.items() if name not in gone})

    def discard(self, name: str) -> None:
        """Remove a damaged part, and leave it on the list: it counts as lost until it is made again."""
        self.record_path(name).unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def restore(self, name: str) -> None:
        """Write a part's record again as the list has it. Requires holding the lock."""
        write_json(self.record_path(name), self.listed()[name], flush=self.lasting)

    def relist(self) -> None:
        """Make a damaged list again from the records. Requires holding the lock. Raises DamagedError if they are
        damaged, too."""
        (self.folder / LIST).unlink(missing_ok=True)
        self.certify()

    def _write_list(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        write_list(self.folder, records, flush=self.lasting)

    def _found(self) -> tuple[list[str], dict[str, dict[str, Any]] | None]:
        """The names that have records, and the list (None without one). A writer may take a part off both between the
        two readings, or put it on: what seems lost is looked up again."""
        if not self.is_listed:
            return self.names(), None
        for _ in range(_TRIES):
            names, listed = self.names(), self.listed()
            if not listed.keys() - names:
                break
        return names, listed

    def gaps(self, names: Sequence[str]) -> list[str]:
        """The numbers that are missing below the highest."""
        if not self.numbered or not names:
            return []
        return sorted({f"part-{i:05d}" for i in range(int(names[-1].removeprefix("part-")))} - set(names))

    def _lost(self, names: Sequence[str]) -> DamagedError:
        shown = ", ".join([*names[:5], "…"] if len(names) > 5 else names)
        parts = f"the part {shown} was" if len(names) == 1 else f"{len(names)} parts were"
        which = "" if len(names) == 1 else f" ({shown})"
        return DamagedError(
            f"{self.folder}: {parts} committed{which}, and no record in _commit that can be read says so any more; "
            "nothing goes on with fewer rows. `curate verify` lists all damage, and what can be done."
        )

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file that is named like a part, committed or not, by the part's name."""
        paths = [p for p in self.folder.glob(f"*{self.suffix}") if not p.name.startswith(".")]
        sizes = for_each(size, paths, isinstance(self.folder, ObjectPath))
        return {p.name.removesuffix(self.suffix): n for p, n in zip(paths, sizes, strict=True)}

    def commit(
        self,
        name: str,
        content: pa.Table | Mapping[str, np.ndarray],
        row_group: int = ROW_GROUP,
        listed: bool = True,
        **record: Any,
    ) -> None:
        """Write a part and then its record. `content` is a table (Parquet, Arrow) or named arrays (safetensors).

        listed: whether to put it on the list, too; not where several processes write parts of one folder: then the one
        that holds the lock must `certify` them.
        """
        if isinstance(content, Mapping):
            data: bytes | memoryview = save({key: np.ascontiguousarray(a) for key, a in sorted(content.items())})
        else:
            data = arrow(content) if self.suffix == ".arrow" else parquet(content, row_group)
            record = {"rows": content.num_rows, "schema": described(content.schema), **record}
        if listed and self.record_path(name).exists():
            self.forget([name])
        self.record_path(name).unlink(missing_ok=True)  # a part that is being replaced must not appear committed
        write_atomic(self.path(name), data, flush=self.lasting)
        commit_record = {"sha256": digest(data), "bytes": len(data), **record}
        self.put(name, commit_record, listed)

    def put(self, name: str, record: Mapping[str, Any], listed: bool = True) -> None:
        """Write the record of a part that was written, and the list if too much is unlisted."""
        own = {} if self.is_listed else {_OWN: _digest_of(record)}
        write_json(self.record_path(name), {**record, **own}, flush=self.lasting)
        if listed:
            self.catch_up()

    def catch_up(self) -> None:
        """Write the list if many parts, by the number of all, are not on it yet. Requires holding the lock."""
        if self.is_behind():
            self.certify()

    def is_behind(self) -> bool:
        """Whether many parts, by the number of all, are not on the list yet, and none is lost."""
        if not self.is_listed:
            return False
        names, known = self.names(), self.listed().keys()
        return not known - set(names) and len(names) - len(known) >= max(1, len(known) // _UNLISTED)

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

    def intact(self, name: str) -> Location:
        """The file of a part, whose bytes are those that were written. Raises DamagedError if they are not.

        A file is read once for each of its states; in an object store, which looks after its bytes itself, never.
        """
        path, record = self.path(name), self.listed().get(name) or self.record(name)
        if record is None or isinstance(path, ObjectPath):
            return path
        try:
            state = path.stat()
            whole = _matches(path, state.st_mtime_ns, state.st_size, record["sha256"])
        except FileNotFoundError:
            whole = False
        if not whole:
            raise DamagedError(
                f"{path} is not what was written there (its SHA-256 differs), or is gone; `curate verify` lists all "
                "damage, and what can be done."
            )
        return path

    def remove(self, name: str) -> None:
        """Remove a part: its record first, so that it never appears committed without its file."""
        self.forget([name])
        self.record_path(name).unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def remove_leftovers(self, lost_ok: bool = False) -> None:
        """Remove what a killed writer left: temporary files, parts without a record. Requires holding the lock.
        lost_ok: also those of parts that were lost, which are then made again.

        Raises DamagedError if a part was lost; then nothing is removed.
        """
        committed = set(self.records(lost_ok) if self.is_listed else self.names())
        remove_leftovers(self.folder, mine=True)
        for path in self.folder.glob(f"*{self.suffix}"):
            if path.name.removesuffix(self.suffix) not in committed:
                path.unlink(missing_ok=True)
        if not lost_ok:
            self.certify()


@functools.lru_cache(1 << 16)
def _matches(path: Path, mtime: int, size: int, sha256: str) -> bool:
    return digest(path.read_bytes()) == sha256


def read_list(folder: Location) -> dict[str, dict[str, Any]] | None:
    """The records in a folder's list, by name; None before there is one. Raises DamagedError if it cannot be read."""
    path = folder / LIST
    try:
        stored = read_json(path)
        if stored["sha256"] == _digest_of(stored["records"]):
            return stored["records"]
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    raise DamagedError(
        f"{path} is damaged, which lists the parts that must be here; `curate verify` lists all damage, and --repair "
        "makes it again from what is there."
    )


def write_list(folder: Location, records: Mapping[str, Mapping[str, Any]], flush: bool = True) -> None:
    """Write a folder's list, with a digest of it. Requires holding the lock. flush: as for `write_atomic`."""
    write_json(folder / LIST, {"sha256": _digest_of(records), "records": records}, flush)


def _digest_of(records: Mapping[str, Any]) -> str:
    return digest(orjson.dumps(records, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY))


def described(schema: pa.Schema) -> dict[str, str]:
    """Column -> type, as commit records have it."""
    return {field.name: str(field.type) for field in schema}
