"""Where bytes lie: below a folder (pathlib.Path) or below a prefix of an object store (ObjectPath, `s3://…`).

Both have the face of pathlib, as far as a workspace needs it. What differs is how a file appears whole or not at
all: a folder has renames, so a file is written under a temporary name, flushed and renamed; an object store has
none, but shows an object only once it is complete, so it is written once, under its final name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from curate.errors import CurateError

_AT_ONCE = 32  # requests to an object store under way together


@dataclass(frozen=True)
class ObjectPath:
    """One key, or the keys below a prefix, of an object store that pyarrow.fs speaks to.

    scheme: `s3`, `gs`, `abfs`. key: bucket/prefix/…. options: what stands behind `?` in the address, as in
    s3://bucket/ws?endpoint_override=localhost:9000&scheme=http. Plain data, so a task can carry it to another machine.
    """

    scheme: str
    key: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.scheme, f"{self.key}/{name}", self.options)

    def __lt__(self, other: ObjectPath) -> bool:
        return self.key < other.key

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.scheme, self.key.rpartition("/")[0], self.options)

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> ObjectPath:
        return self.parent / f"{self.stem}{suffix}"

    def absolute(self) -> ObjectPath:
        return self

    @property
    def store(self) -> Any:
        """The pyarrow file system; one in each process."""
        return _store(self.scheme, self.key.split("/")[0], self.options)

    def filesystem(self) -> Any:
        """The store as DuckDB takes one; its own client would have to be downloaded first."""
        from fsspec.implementations.arrow import ArrowFSWrapper

        return type("Store", (ArrowFSWrapper,), {"protocol": self.scheme})(self.store)

    def _info(self) -> Any:
        return self.store.get_file_info(self.key)

    def exists(self) -> bool:
        return self._info().type.name != "NotFound"

    def is_dir(self) -> bool:
        return self._info().type.name == "Directory"

    def is_file(self) -> bool:
        return self._info().type.name == "File"

    def size(self) -> int:
        return self._info().size or 0

    def written(self) -> float | None:
        """When it was last written, by the store's own clock, in seconds; null where it is not there."""
        at = self._info().mtime
        return at.timestamp() if at else None

    def read_bytes(self) -> bytes:
        with self.store.open_input_file(self.key) as f:
            return f.read()

    def write_bytes(self, data: bytes) -> None:
        with self.store.open_output_stream(self.key) as f:
            f.write(data)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.store.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a prefix is there once a key below it is."""

    def iterdir(self) -> Iterator[ObjectPath]:
        yield from self._list(recursive=False)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Keys just below whose name matches."""
        yield from (p for p in self._list(recursive=False) if fnmatch.fnmatchcase(p.name, pattern))

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        yield from (p for p in self._list(recursive=True) if fnmatch.fnmatchcase(p.name, pattern))

    def _list(self, recursive: bool) -> list[ObjectPath]:
        from pyarrow.fs import FileSelector

        found = self.store.get_file_info(FileSelector(self.key, recursive=recursive, allow_not_found=True))
        return sorted(ObjectPath(self.scheme, info.path, self.options) for info in found)


Location: TypeAlias = Path | ObjectPath


@functools.lru_cache
def _store(scheme: str, bucket: str, options: str) -> Any:
    from pyarrow.fs import FileSystem

    # Without a region the client asks the store for it, which only Amazon's own answers.
    if scheme == "s3" and os.environ.get("AWS_DEFAULT_REGION"):
        os.environ.setdefault("AWS_REGION", os.environ["AWS_DEFAULT_REGION"])
    return FileSystem.from_uri(f"{scheme}://{bucket}{'?' + options if options else ''}")[0]


def location(address: str | os.PathLike[str] | Location) -> Location:
    """A folder's path, or an object store's address such as s3://bucket/ws. Raises CurateError for other addresses."""
    if isinstance(address, Path | ObjectPath):
        return address
    text = os.fspath(address)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    key, _, options = rest.partition("?")
    if scheme not in ("s3", "gs", "gcs", "abfs", "abfss") or not key.strip("/"):
        raise CurateError(f"{text} is no place for a workspace: name a folder, or s3://BUCKET/PREFIX (also gs, abfs).")
    return ObjectPath(scheme, key.strip("/"), options)


def for_each(function: Any, items: Sequence[Any], remote: bool) -> list[Any]:
    """[function(item) for item in items]; many at once where each is a request to an object store."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


# --- files that are there completely or not at all -------------------------------------------------------


@functools.cache
def machine() -> str:
    """A name for this machine that another one, even of the same host name, does not bear."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    return f"{host}-{boot.read_text()[:8]}" if boot.exists() else host


def put(path: Location, data: bytes | memoryview, flush: bool = True) -> None:
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


def sweep(folder: Location, mine: bool = False) -> None:
    """Remove the temporaries below a folder whose writer is dead; all but this process's where the folder is `mine`.

    mine: nothing living writes there, since this process holds the claim on it.
    """
    if isinstance(folder, ObjectPath):
        return  # an object half written was never there
    for path in folder.rglob(".*.tmp"):
        host, process = path.name.split(".")[-3:-1]
        if mine and int(process) != os.getpid() or host == machine() and not lives(int(process)):
            path.unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- trees -----------------------------------------------------------------------------------------------


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
