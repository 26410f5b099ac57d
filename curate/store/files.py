"""Atomic file operations, in a folder (pathlib.Path) or under a prefix of an object store (ObjectPath, `s3://…`).

Both offer the pathlib interface that a workspace needs. They differ in how a file appears completely or not at all: a
file system can rename, so a file is written under a temporary name, flushed and renamed; an object store cannot, but
shows an object only once it is complete, so it is written once, under its final name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from pathlib import Path

from curate.machine import lives, machine
from curate.store.object_store import Location, ObjectPath, for_each


def write_atomic(path: Location, data: bytes | memoryview, flush: bool = True) -> None:
    """Write a file atomically. flush: whether it must survive a power failure, not only the end of the process."""
    if isinstance(path, ObjectPath):
        path.write_bytes(bytes(data))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as f:
            f.write(data)
            if flush:
                f.flush()
                os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        _flush_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A name beside a file or folder for what is to become it, which says whose it is (see `leftovers`)."""
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}.tmp")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Location, mine: bool = False) -> None:
    """Remove temporary files below a folder whose writer is dead; if `mine`, all except those of this process.

    mine: this process holds the lock on the folder, so no other live process writes there.
    """
    for path in leftovers(folder, mine):
        _remove(path)


def leftovers(folder: Location, mine: bool = False) -> list[Path]:
    """Temporary files and folders below a folder whose writer is dead; if `mine`, all except those of this process."""
    if isinstance(folder, ObjectPath):
        return []  # a partially written object is never visible
    return [path for path in folder.rglob(".*.tmp") if _is_left(path, mine)]


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files and folders beside a file or folder that dead processes would have made into it."""
    for beside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _is_left(beside, mine=False):
            _remove(beside)


def _is_left(path: Path, mine: bool) -> bool:
    *_, host, process, _ = ["", "", *path.name.split(".")]
    if not process.isdigit():
        return False
    return mine and int(process) != os.getpid() or host == machine() and not lives(int(process))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Location, marker: str | None = None) -> None:
    """Remove a folder. marker: the file without which the folder is invalid. So that an interrupted removal leaves
    nothing that looks complete, a folder with a marker is renamed first; in an object store its marker goes first."""
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
    """Replace the folder `old` by `new`. If interrupted, call it again to finish.

    An object store cannot rename, so every file is copied; the `marker`, without which the tree is invalid, comes last.
    """
    if isinstance(new, ObjectPath) and isinstance(old, ObjectPath):
        if (new / marker).exists():  # else all was copied already, and only the removal below is left
            remove_tree(old, marker)
            files = [p for p in new.rglob("*") if p != new / marker and not p.is_dir()]
            for_each(lambda p: p.store.copy_file(p.key, old.key + p.key.removeprefix(new.key)), files, remote=True)
            new.store.copy_file(f"{new.key}/{marker}", f"{old.key}/{marker}")
        remove_tree(new, marker)
    elif isinstance(new, Path) and isinstance(old, Path) and new.exists():
        moved = _aside(old) if old.exists() else None
        new.replace(old)
        _flush_folder(old.parent)
        if moved:
            shutil.rmtree(moved, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Rename a folder to a name that marks it for removal (see `sweep_dropped`); returns the new path."""
    doomed = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    return doomed


def sweep_dropped(folder: Location) -> None:
    """Finish the interrupted removals in a folder."""
    if isinstance(folder, Path):
        for doomed in folder.glob(".*.dropped"):
            shutil.rmtree(doomed, ignore_errors=True)
