"""The files of the ledger, in the order in which entries were appended.

    ledger/part-….parquet               one entry, whose name is the file's
           rows-00000000-00000256.parquet   entries merged into one file, with the columns `entry` and `sequence`
           _parts.json                  the list of these files, with their SHA-256

Every entry has a sequence number: 0, 1, … in the order of appending, whatever the clock says. A writer, which holds the
lock `ledger` for a moment, writes its file and then the list; and once more than SMALL files have one entry, it writes
them as one file, then the list, and then removes them. So whatever a killed writer leaves, no entry is lost or read
twice: what is not listed counts as far as no other file has its entries, and the next writer lists or removes it.

What is listed and is gone or has other bytes was lost. Whoever reads is told so, and gets the other entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import DamagedError
from curate.store.commits import LIST, read_list, write_list
from curate.store.encoding import digest, parquet, parquet_of
from curate.store.files import write_atomic
from curate.store.locks import FOREVER, lock
from curate.store.object_store import Location, ObjectPath, for_each
from curate.store.schema import LEDGER, LEDGER_ROWS

SMALL = 256  # files of one entry each, after which they are merged
_MERGED = 65_536  # entries, after which a file is not merged with later ones
_TRIES = 3  # readings of a list and its files, which a writer may change in between

_List = dict[str, dict[str, Any]]  # file's name without its ending -> sha256, bytes, rows, sequence (first), end


@dataclass(frozen=True)
class Entries:
    """The entries of a ledger, as schema.LEDGER_ROWS, in order of their sequence. lost: name of a file -> what is wrong
    with it."""

    table: pa.Table
    lost: dict[str, str] = field(default_factory=dict)

    def problem(self, folder: Location) -> str:
        """What is lost, in a sentence; '' if nothing is."""
        if not self.lost:
            return ""
        names = ", ".join([*list(self.lost)[:3], "…"] if len(self.lost) > 3 else self.lost)
        return (
            f"{folder}: {len(self.lost)} of the files of the ledger cannot be read or are gone ({names}), and what "
            "they say of costs is missing; `curate verify` lists them, and --repair goes on without them."
        )


def folder_of(workspace: Location) -> Location:
    """The folder of a workspace's ledger."""
    return workspace / "ledger"


def read_entries(workspace: Location) -> Entries:
    """All entries that can be read, and what cannot."""
    folder = folder_of(workspace)
    for _ in range(_TRIES):
        listed, found, problem = _found(folder)
        tables, lost = _read_listed(folder, listed)
        if not lost or _found(folder)[0] == listed:  # else a writer has merged files in between
            break
    strays = {name: table for name, table in found.items() if table is not None}
    lost |= {name: "cannot be read" for name, table in found.items() if table is None}
    placed = _placed(strays, _next(listed))
    return Entries(_in_order([*tables.values(), *placed.values()]), lost | problem)


def append(workspace: Location, name: str, row: Mapping[str, Any], again: bool = False) -> None:
    """Append an entry. again: it may be there already, and then nothing is done."""
    folder = folder_of(workspace)
    with lock(workspace, "ledger", wait=FOREVER):
        if again and name in read_entries(workspace).table["entry"].to_pylist():
            return
        listed, found, problem = _found(folder)
        listed = {} if problem else _adopted(folder, listed, found)
        table = pa.Table.from_pylist([{**row, "entry": name, "sequence": _next(listed)}], schema=LEDGER_ROWS)
        if problem:  # a list that is damaged stays as it is, for `verify` to find; what is not listed counts
            write_atomic(_file(folder, name), parquet(table.drop_columns("sequence")))
            return
        if not listed:
            write_list(folder, {})  # so that a file with a number and no list at all is one whose list was lost
        listed[name] = _written(folder, name, table)
        write_list(folder, listed)
        if sum(name.startswith("part-") for name in listed) > SMALL:
            _merge(folder, listed)


def next_sequence(workspace: Location) -> int | None:
    """The sequence number of the next entry; None if that cannot be told, as the list is damaged."""
    folder = folder_of(workspace)
    with lock(workspace, "ledger", wait=FOREVER):
        before, found, problem = _found(folder)
        if problem:
            return None
        listed = _adopted(folder, before, found)
        if listed != before:
            write_list(folder, listed)
        return _next(listed)


def relist(workspace: Location, without: Sequence[str]) -> None:
    """Make the list anew of the files that are there, and set aside those of these names."""
    folder = folder_of(workspace)
    with lock(workspace, "ledger", wait=FOREVER):
        for name in without:
            path = _file(folder, name)
            if path.exists():
                write_atomic(folder / "set-aside" / path.name, path.read_bytes())
                path.unlink()
        listed, found, _ = _found(folder)
        kept = {name: record for name, record in listed.items() if name not in without}
        write_list(folder, _adopted(folder, kept, found))


def _file(folder: Location, name: str) -> Location:
    return folder / f"{name}.parquet"


def names_of(folder: Location) -> list[str]:
    """The names of all files with entries, listed or not."""
    files = [*folder.glob("part-*.parquet"), *folder.glob("rows-*.parquet")]
    return sorted(path.name.removesuffix(".parquet") for path in files)


def _found(folder: Location) -> tuple[_List, dict[str, pa.Table | None], dict[str, str]]:
    """The list, {} before there is one; the files that are not listed (those of an earlier version, or of a killed
    writer), None for what cannot be read; and what is wrong with the list."""
    problem, listed = {}, None
    try:
        listed = read_list(folder)
    except DamagedError:
        problem = {LIST: "cannot be read, or is not as it was written"}
    names = [name for name in names_of(folder) if name not in (listed or {})]
    read = for_each(lambda name: _table(folder, name), names, isinstance(folder, ObjectPath))
    found = {
        name: table
        for name, table in zip(names, read, strict=True)
        if table is not None or _file(folder, name).exists()
    }
    if listed is None and any(table is not None and "sequence" in table.column_names for table in found.values()):
        problem = problem or {LIST: "is gone"}
    return listed or {}, found, problem


def _table(folder: Location, name: str) -> pa.Table | None:
    """The entries of a file, with their names; None if it cannot be read."""
    try:
        table = _aligned(parquet_of(_file(folder, name).read_bytes()), name)
    except (OSError, pa.ArrowException):
        return None
    return table if table.num_rows else None


def _aligned(table: pa.Table, name: str) -> pa.Table:
    """A file's rows with all columns in their order: those that earlier versions lack are null. `sequence` stays away
    from a file that has none."""
    columns = {}
    for column in LEDGER_ROWS:
        if column.name in table.column_names:
            columns[column.name] = table[column.name].cast(column.type)
        elif column.name == "entry":
            columns["entry"] = pa.array([name] * table.num_rows, pa.string())
        elif column.name in LEDGER.names:
            columns[column.name] = pa.nulls(table.num_rows, column.type)
    return pa.table(columns)


def _read_listed(folder: Location, listed: _List) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """The tables of the listed files, with numbers, and what is wrong with those that have none."""
    tables, lost = {}, {}

    def read(name: str) -> tuple[str, pa.Table | str]:
        return name, _vouched(folder, name, listed[name])

    for name, table in for_each(read, list(listed), isinstance(folder, ObjectPath)):
        if isinstance(table, str):
            lost[name] = table
        else:
            tables[name] = table
    return tables, lost


def _vouched(folder: Location, name: str, record: Mapping[str, Any]) -> pa.Table | str:
    """The table of a listed file, or what is wrong with it."""
    try:
        data = _file(folder, name).read_bytes()
    except FileNotFoundError:
        return "is not there"
    if digest(data) != record["sha256"]:
        return "has other bytes than were written (its SHA-256 differs)"
    return _numbered(_aligned(parquet_of(data), name), record["sequence"])


def _numbered(table: pa.Table, first: int) -> pa.Table:
    if "sequence" in table.column_names:
        return table
    return table.append_column("sequence", pa.array(np.arange(first, first + table.num_rows)))


def _next(listed: _List) -> int:
    return max((record["end"] for record in listed.values()), default=0)


def _placed(strays: Mapping[str, pa.Table], following: int) -> dict[str, pa.Table]:
    """Files that are not listed, with numbers: their own; the others follow on those that are listed, by time."""
    placed = {name: table for name, table in strays.items() if "sequence" in table.column_names}
    others = [name for name in strays if name not in placed]
    for name in sorted(others, key=lambda name: (str(strays[name]["at"][0]), name)):
        placed[name] = _numbered(strays[name], following)
        following += strays[name].num_rows
    return placed


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """All entries by their number, each once."""
    if not tables:
        return LEDGER_ROWS.empty_table()
    table = pa.concat_tables(tables).select(LEDGER_ROWS.names).combine_chunks()
    table = table.sort_by([("sequence", "ascending"), ("entry", "ascending")])
    if len(table["entry"].unique()) < table.num_rows:
        _, first = np.unique(np.array(table["entry"].to_pylist(), object), return_index=True)
        table = table.take(pa.array(np.sort(first)))
    return table


def _adopted(folder: Location, listed: _List, unlisted: Mapping[str, pa.Table | None]) -> _List:
    """The list with the files that are not listed; those are removed whose entries other files have. Requires holding
    the lock."""
    found = {name: table for name, table in unlisted.items() if table is not None}
    if not found:
        return listed
    merged = {name: record for name, record in listed.items() if record["rows"] > 1}
    known = {entry for table in _read_listed(folder, merged)[0].values() for entry in table["entry"].to_pylist()}
    adopted, known = dict(listed), known | listed.keys()
    by_size = sorted(found, key=lambda name: -found[name].num_rows)  # merged files first: others repeat their entries
    for name in by_size:
        entries = set(found[name]["entry"].to_pylist())
        if entries <= known:
            _file(folder, name).unlink(missing_ok=True)
            del found[name]
        known |= entries
    for name, table in sorted(_placed(found, _next(listed)).items(), key=lambda item: item[1]["sequence"][0].as_py()):
        data = _file(folder, name).read_bytes()
        adopted[name] = _record(data, table)
    return adopted


def _record(data: bytes | memoryview, table: pa.Table) -> dict[str, Any]:
    first, last = table["sequence"][0].as_py(), table["sequence"][-1].as_py()
    size = {"bytes": len(data), "rows": table.num_rows}
    return {"sha256": digest(data), **size, "sequence": first, "end": last + 1}


def _written(folder: Location, name: str, table: pa.Table) -> dict[str, Any]:
    """Write a file; returns its record for the list."""
    data = parquet(table)
    write_atomic(_file(folder, name), data)
    return _record(data, table)


def _merge(folder: Location, listed: _List) -> None:
    """Write the files of one entry, and the last one of several unless it is large, as one file. Requires the lock."""
    last = [name for name, record in listed.items() if name.startswith("rows-") and record["rows"] < _MERGED][-1:]
    wanted = {name: listed[name] for name in [*last, *(name for name in listed if name.startswith("part-"))]}
    tables, _ = _read_listed(folder, wanted)  # what is damaged stays on the list
    if len(tables) < 2:
        return
    table = _in_order(list(tables.values()))
    first, end = table["sequence"][0].as_py(), table["sequence"][-1].as_py()
    name = f"rows-{first:08d}-{end:08d}"
    merged = {name: _written(folder, name, table)}
    write_list(folder, {**{n: r for n, r in listed.items() if n not in tables}, **merged})
    for old in tables:
        _file(folder, old).unlink(missing_ok=True)
