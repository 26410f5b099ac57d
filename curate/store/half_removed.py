"""What a killed removal left in an object store: a table or run without the file by which it exists.

A folder on a disk is renamed before it is removed, so that the rest of it is found by its name (curate.store.files). In
a store its marker goes first, and objects one by one after it. What was lost, not removed, is in contents.json still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from curate.errors import DamagedError, WorkspaceBusy
from curate.store.contents import CONTENTS, entered
from curate.store.files import remove_tree
from curate.store.locks import lock
from curate.store.object_store import Location, ObjectPath
from curate.store.workspace import TABLES, Workspace, recipe_file


def half_removed(ws: Workspace) -> list[Location]:
    """The folders of which a killed removal left something. Empty on a disk, and where contents.json is damaged."""
    return [folder for _, folder in _found(ws)]


def finish_removals(ws: Workspace) -> list[Location]:
    """Remove the rest of these, but those that another process writes; returns them."""
    removed: list[Location] = []
    for what, folder in _found(ws):
        with suppress(WorkspaceBusy), lock(ws, what, wait=0.0):
            if any(folder == found for _, found in _found(ws)):  # else somebody made it anew meanwhile
                remove_tree(folder)
                removed.append(folder)
    return removed


def _found(ws: Workspace) -> Iterator[tuple[str, Location]]:
    """What is locked for each, and its folder."""
    if not isinstance(ws.path, ObjectPath) or not (ws.path / CONTENTS).exists():
        return
    try:
        known = entered(ws)
    except DamagedError:
        return
    markers = {kind: (room, recipe_file(kind)) for kind, room in TABLES.items()} | {
        "run": ("runs", "run.json"),
        "trial": ("trials", "trial.json"),
    }
    for kind, (room, marker) in markers.items():
        for folder in (ws.path / room).iterdir():
            name = folder.name.removeprefix(".").removesuffix(".fresh") if folder.name[0] == "." else folder.name
            lost = folder.name in known.get(kind, {})
            if not lost and not (folder / marker).exists() and any(path.is_file() for path in folder.rglob("*")):
                yield f"{kind} {name}", folder
