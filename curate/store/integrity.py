"""Files against what was recorded of them: the checks that `curate verify` consists of, for any folder of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from curate.errors import DamagedError
from curate.store.commits import LIST, Parts
from curate.store.encoding import digest
from curate.store.locks import Place, lock
from curate.store.object_store import Location


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written, or is gone. remedy: how to fix it, if `repair` did not."""

    kind: str  # pool, rejects, copies, target, score, vectors, prepared, tokens, manifest, mask, run, trial, ledger, …
    name: str  # of the score, target, manifest, run or folder
    part: str
    what: str
    remedy: str
    repaired: bool = False


Seen: TypeAlias = Iterator[int | Damage]  # the size of an intact file in bytes, or its damage
_RECORD_LOST = "is whole, but its commit record is gone, cannot be read, or is another than the list's"


@dataclass(frozen=True)
class Part:
    """A part that was looked at: its bytes, and what is wrong with it ('' if nothing). record: what certifies it.
    restorable: whether its record alone is wrong, and the list has it. left_over: whether it was never committed."""

    name: str
    problem: str
    data: bytes = b""
    record: Mapping[str, Any] | None = None
    restorable: bool = False
    left_over: bool = False


def wrong(data: bytes, sha256: str, size: int | None = None) -> str:
    """What is wrong with a file's bytes; '' if they are those that were written."""
    if size is not None and len(data) != size:
        return f"has {len(data)} bytes, not the {size} that were written"
    return "" if digest(data) == sha256 else "has other bytes than were written (its SHA-256 differs)"


def wrong_file(path: Location, sha256: str, size: int | None = None) -> tuple[str, bytes]:
    """The same for a file, with its bytes."""
    if not path.exists():
        return "is not there", b""
    data = path.read_bytes()
    return wrong(data, sha256, size), data


def list_damage(parts: Parts, kind: str, name: str, ws: Place, what: str, repair: bool) -> list[Damage]:
    """The damage of a list of parts. what: to be locked for its repair, from the parts' records."""
    try:
        parts.listed()
    except DamagedError:
        damage = Damage(kind, name, LIST, "cannot be read, or is not as it was written", "--repair makes it again")
        if not repair:
            return [damage]
        with lock(ws, what):
            try:
                parts.relist()
            except DamagedError as error:
                return [replace(damage, remedy=str(error).rstrip("."))]
        return [replace(damage, repaired=True)]
    return []


def looked_at(parts: Parts) -> Iterator[Part]:
    """Every part that has a file, a record, an entry in the list, or a number below another's; one in memory at a
    time."""
    try:
        listed = parts.listed() if parts.is_listed else {}
    except DamagedError:
        listed = {}
    recorded = parts.names()
    for name in sorted({*recorded, *parts.sizes(), *listed, *parts.gaps(recorded)}):
        yield _looked_at(parts, name, listed.get(name), bool(listed) and name not in parts.gaps(recorded))


def _looked_at(parts: Parts, name: str, listed: Mapping[str, Any] | None, listed_any: bool) -> Part:
    path, own = parts.path(name), parts.record(name)
    record = listed or own
    if record is None:
        never = bool(listed_any) and not parts.record_path(name).exists()
        return Part(name, "has no commit record that can be read" if path.exists() else "is not there", left_over=never)
    if not path.exists():
        return Part(name, "is not there, but its commit record is", record=record)
    data = path.read_bytes()
    try:
        problem = wrong(data, record["sha256"], record.get("bytes"))
    except (KeyError, TypeError):
        problem = "has a commit record without its SHA-256"
    if not problem and listed is not None and own != listed:
        return Part(name, _RECORD_LOST, data, record, restorable=True)
    return Part(name, problem, data, record)


def restored(parts: Parts, part: Part, damage: Damage, ws: Place, what: str, repair: bool) -> Damage:
    """The damage of a part whose record alone was lost; written again from the list if `repair`. what: to be locked."""
    damage = replace(damage, what=_RECORD_LOST, remedy="--repair writes the record again, from the list of parts")
    if not repair:
        return damage
    with lock(ws, what):
        parts.restore(part.name)
    return replace(damage, repaired=True)
