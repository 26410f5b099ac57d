"""Where bytes lie: below a folder (pathlib.Path) or below a prefix of an object store (ObjectPath, `s3://…`).

Both have the face of pathlib, as far as a workspace needs it. What differs is how a file appears whole or not at
all: a folder has renames, so a file is written under a temporary name, flushed and renamed; an object store has
none, but shows an object only once it is complete, so it is written once, under its final name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from curate.machine import lives, machine
from curate.store.object_store import Location, ObjectPath, for_each


def write_atomic(path: Location, data: bytes | memoryview, flush: bool = True) -> None:
    """Write a whole file. flush: whether it must outlive a loss of power at once, not only the process."""
    if isinstance(path, ObjectPath):
        path.write_bytes(bytes(data))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{machine()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            if flush:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Location, mine: bool = False) -> None:
    """Remove the temporaries below a folder whose writer is dead; all but this process's where the folder is `mine`.

    mine: nothing living writes there, since this process holds the lock on it.
    """
    if isinstance(folder, ObjectPath):
        return  # an object half written was never there
    for path in folder.rglob(".*.tmp"):
        host, process = path.name.split(".")[-3:-1]
        if mine and int(process) != os.getpid() or host == machine() and not lives(int(process)):
            path.unlink(missing_ok=True)


def remove_tree(folder: Location, marker: str | None = None) -> None:
    """Remove a folder. marker: the file without which it counts for nothing, so that a kill half-way leaves nothing
    that looks whole: a folder that has one is renamed first, of a prefix the marker goes first."""
    if isinstance(folder, ObjectPath):
        if marker:
            (folder / marker).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.store.delete_dir(folder.key)
    elif marker and folder.exists():
        shutil.rmtree(_aside(folder), ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def replace_tree(new: Location, old: Location, marker: str) -> None:
    """Put the folder `new` in the place of `old`. Interrupted, it is finished by being called again.

    In a store without rename every file is copied, the `marker`, without which the tree counts for nothing, last.
    """
    if isinstance(new, ObjectPath) and isinstance(old, ObjectPath):
        if (new / marker).exists():  # else it was copied already, and this much was left to do
            remove_tree(old, marker)
            files = [p for p in new.rglob("*") if p != new / marker and not p.is_dir()]
            for_each(lambda p: p.store.copy_file(p.key, old.key + p.key.removeprefix(new.key)), files, remote=True)
            new.store.copy_file(f"{new.key}/{marker}", f"{old.key}/{marker}")
        remove_tree(new, marker)
    elif isinstance(new, Path) and isinstance(old, Path) and new.exists():
        aside = _aside(old) if old.exists() else None
        os.replace(new, old)
        _flush_folder(old.parent)
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """The folder under a name that says it is to be removed; see `sweep_dropped`."""
    doomed = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    return doomed


def sweep_dropped(folder: Location) -> None:
    """Finish the removals in a folder that were cut short."""
    if isinstance(folder, Path):
        for doomed in folder.glob(".*.dropped"):
            shutil.rmtree(doomed, ignore_errors=True)
