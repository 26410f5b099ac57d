"""Paths in an object store (S3 and similar), with the pathlib methods that a workspace needs."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from curate.errors import CurateError

_AT_ONCE = 32  # concurrent requests to an object store


@dataclass(frozen=True)
class ObjectPath:
    """One key, or the keys below a prefix, of an object store that pyarrow.fs supports; methods as in pathlib.Path.

    scheme: `s3`, `gs`, `abfs`. key: bucket/prefix/…. options: what follows `?` in the address, as in
    s3://bucket/ws?endpoint_override=localhost:9000&scheme=http. Plain data, so it can be sent to other machines.
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
        """The pyarrow file system; one per process."""
        return _store(self.scheme, self.key.split("/")[0], self.options)

    def filesystem(self) -> Any:
        """The store as an fsspec file system, for DuckDB, whose own client would have to be downloaded first."""
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
        """The time of the last write by the store's clock, in seconds since the epoch; None if it does not exist."""
        modified = self._info().mtime
        return modified.timestamp() if modified else None

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
        """Does nothing: a prefix exists as soon as a key below it does."""

    def iterdir(self) -> Iterator[ObjectPath]:
        yield from self._list(recursive=False)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Direct children whose name matches the pattern."""
        yield from (p for p in self._list(recursive=False) if fnmatch.fnmatchcase(p.name, pattern))

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        yield from (p for p in self._list(recursive=True) if fnmatch.fnmatchcase(p.name, pattern))

    def _list(self, recursive: bool) -> list[ObjectPath]:
        from pyarrow.fs import FileSelector

        infos = self.store.get_file_info(FileSelector(self.key, recursive=recursive, allow_not_found=True))
        return sorted(ObjectPath(self.scheme, info.path, self.options) for info in infos)


Location: TypeAlias = Path | ObjectPath


@functools.lru_cache
def _store(scheme: str, bucket: str, options: str) -> Any:
    from pyarrow.fs import FileSystem

    # Without a region the client would ask the store for it, and only Amazon's own answers.
    if scheme == "s3" and os.environ.get("AWS_DEFAULT_REGION"):
        os.environ.setdefault("AWS_REGION", os.environ["AWS_DEFAULT_REGION"])
    return FileSystem.from_uri(f"{scheme}://{bucket}{'?' + options if options else ''}")[0]


def location(address: str | os.PathLike[str] | Location) -> Location:
    """The path of a folder, or of an object-store address such as s3://bucket/ws. Raises CurateError for others."""
    if isinstance(address, Path | ObjectPath):
        return address
    text = os.fspath(address)
    scheme, separator, path = text.partition("://")
    if not separator:
        return Path(text)
    key, _, options = path.partition("?")
    if scheme not in ("s3", "gs", "gcs", "abfs", "abfss") or not key.strip("/"):
        raise CurateError(f"{text} is no place for a workspace: name a folder, or s3://BUCKET/PREFIX (also gs, abfs).")
    return ObjectPath(scheme, key.strip("/"), options)


def for_each(function: Any, items: Sequence[Any], remote: bool) -> list[Any]:
    """[function(item) for item in items]; concurrently if `remote`, as each is then a request to an object store."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))
