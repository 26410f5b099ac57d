"""What a workspace holds, recorded apart from it: contents.json lists every score, vectors, manifest, mask,
run and trial.

An object exists by its own file (its marker: score.json, NAME.json, run.json …). It is entered here after that is
written, with the marker's SHA-256, and taken out before it is replaced or removed; so what is entered and is gone, or
has another marker, was lost or damaged, and a killed writer leaves at worst an object that is not entered yet, which
the next writer enters. Whatever reads a marker holds it to its SHA-256: with one bit flipped most still parse.

A workspace of format 1 has no such record, and no lists of parts (curate.store.commits). Its first writer makes them,
and then writes format 2 into workspace.json; if it is killed before, the next one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from curate.errors import DamagedError
from curate.store.commits import Parts
from curate.store.encoding import digest, read_json, write_json
from curate.store.locks import FOREVER, lock
from curate.store.object_store import Location
from curate.store.workspace import FORMAT, MARKER, TABLES, Workspace, read_marker, recipe_file

CONTENTS = "contents.json"
KINDS = (*TABLES, "manifest", "mask", "run", "trial")


@dataclass(frozen=True)
class Lost:
    """An object that was entered, and is gone or has another marker."""

    kind: str
    name: str
    what: str


def marker_of(ws: Workspace, kind: str, name: str) -> Location:
    """The file by which an object exists."""
    if kind in TABLES:
        return ws.table_folder(kind, name) / recipe_file(kind)
    if kind == "run":
        return ws.run_folder(name) / "run.json"
    if kind == "trial":
        return ws.trial_folder(name) / "trial.json"
    return ws.mask_path(name) if kind == "mask" else ws.manifest_path(name).with_suffix(".json")


def entered(ws: Workspace) -> dict[str, dict[str, str]]:
    """Kind -> name -> SHA-256 of the marker, of all that is entered. Raises DamagedError if it cannot be read."""
    path = ws.path / CONTENTS
    try:
        stored = read_json(path)
        if stored["sha256"] == _digest_of(stored["contents"]):
            return stored["contents"]
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    raise DamagedError(
        f"{path} is damaged, which lists what the workspace holds; `curate verify --repair` makes it again from what "
        "is there."
    )


def enter(ws: Workspace, kind: str, name: str) -> None:
    """Enter an object whose marker was written, and any others that are not entered yet."""
    sha256 = digest(marker_of(ws, kind, name).read_bytes())
    if entered(ws).get(kind, {}).get(name) == sha256:
        return
    with lock(ws, "contents", wait=FOREVER):
        contents = entered(ws)
        contents.setdefault(kind, {}).pop(name, None)
        _write(ws, contents)
        _bring_to_format(ws)


def take_out(ws: Workspace, kind: str, name: str) -> None:
    """Take an object out, before its marker is replaced or removed."""
    with lock(ws, "contents", wait=FOREVER):
        contents = entered(ws)
        if contents.get(kind, {}).pop(name, None) is not None:
            _write(ws, contents, fill=False)


def lost(ws: Workspace) -> Iterator[Lost]:
    """What was entered, and is gone or is not what was written."""
    for kind, markers in entered(ws).items():
        for name, sha256 in markers.items():
            path = marker_of(ws, kind, name)
            if not path.exists():
                yield Lost(kind, name, "is gone, but contents.json lists it")
            elif digest(path.read_bytes()) != sha256:
                yield Lost(kind, name, "has other bytes than were written (its SHA-256 differs)")


def require_intact(ws: Workspace, kind: str, name: str) -> None:
    """Raises DamagedError if an object was entered, and its marker has other bytes than were written."""
    marker, before = marker_of(ws, kind, name), ("", "")
    while True:
        try:
            expected, found = entered(ws).get(kind, {}).get(name), digest(marker.read_bytes())
        except (DamagedError, FileNotFoundError):  # the list is damaged, which `status` says; or it was just removed
            return
        if expected in (None, found):
            return
        if (expected, found) == before:  # not just replaced by another process
            raise DamagedError(
                f"{marker} has other bytes than were written (its SHA-256 differs): it is damaged or was edited; put "
                f"a copy of it back, or `curate drop {name} --force` removes the {kind}."
            )
        before = (expected, found)


def missing(ws: Workspace, kind: str) -> list[str]:
    """The names of a kind that were entered, and are gone; none if contents.json is damaged, which `status` says."""
    try:
        return sorted(entered(ws).get(kind, {}).keys() - ws.having(kind))
    except DamagedError:
        return []


def require_none_missing(ws: Workspace, kind: str, names: Sequence[str] | None = None) -> None:
    """Raises DamagedError if one of a kind is gone, so that nothing is shown as all of them. names: those that are gone
    and matter; default: all."""
    if gone := missing(ws, kind) if names is None else names:
        raise DamagedError(
            f"{ws.path}: the {kind} '{gone[0]}' is gone, though contents.json lists it; put a copy of its "
            f"{marker_of(ws, kind, gone[0]).name} back, or `curate drop {gone[0]} --force` forgets it."
        )


def rebuild(ws: Workspace) -> None:
    """Write contents.json anew, of what is there."""
    with lock(ws, "contents", wait=FOREVER):
        _write(ws, {})


def bring_to_format(ws: Workspace) -> None:
    """Make the lists that a workspace of an earlier format has not. Requires that nothing in it is damaged."""
    if read_marker(ws.path).get("format") != FORMAT:
        with lock(ws, "contents", wait=FOREVER):
            _write(ws, entered(ws))
            _bring_to_format(ws)


def _bring_to_format(ws: Workspace) -> None:
    marker = read_marker(ws.path)
    if marker.get("format") == FORMAT:
        return
    ws.pool.certify()
    for parts in all_parts(ws):
        with suppress(DamagedError):  # which every command says that uses it, and `verify`
            parts.certify()
    write_json(ws.path / MARKER, {**marker, "format": FORMAT})


def all_parts(ws: Workspace) -> Iterator[Parts]:
    """All folders of parts that are held to a list."""
    yield ws.pool
    yield ws.targets
    for kind in TABLES:
        for name in ws.table_names(kind):
            yield Parts(ws.table_folder(kind, name))
            yield Parts(ws.table_folder(kind, name) / "targets")
    for name in ws.run_names():
        for folder in ("metrics", "trained", "evaluations", "checkpoints"):
            yield Parts(ws.run_folder(name) / folder)
    for name in ws.trial_names():
        for folder in ("drawn", "losses", "counterfactuals"):
            yield Parts(ws.trial_folder(name) / folder)


def _write(ws: Workspace, contents: dict[str, dict[str, str]], fill: bool = True) -> None:
    """Write the contents; fill: with everything that exists and is not entered."""
    for kind in KINDS if fill else ():
        markers = contents.setdefault(kind, {})
        for name in ws.having(kind):
            if name not in markers:
                markers[name] = digest(marker_of(ws, kind, name).read_bytes())
    if isinstance(ws.path, Path):
        for torn in ws.path.glob(f".{CONTENTS}.*.tmp"):  # of a killed writer, as this one holds the lock
            torn.unlink(missing_ok=True)
    write_json(ws.path / CONTENTS, {"sha256": _digest_of(contents), "contents": contents})


def _digest_of(contents: dict[str, dict[str, str]]) -> str:
    return digest(orjson.dumps(contents, option=orjson.OPT_SORT_KEYS))
