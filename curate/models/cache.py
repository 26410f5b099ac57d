"""What models' files are turned into, kept in the user's cache: made once, whole or not at all, then read as it is.

The cache is $CURATE_CACHE, or curate/ in $XDG_CACHE_HOME or ~/.cache; it may be removed at any time. Each folder holds
the SHA-256 of each of its files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE = "CURATE_CACHE"
_SUMS = "sha256.json"  # the digests of a folder's files


def cache_folder() -> Path:
    """Where it is kept."""
    given, common = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(common) if common else Path.home() / ".cache") / "curate"


def kept(final: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `final`, filled if it is not there or not whole. fill: writes into the empty folder that it is given.

    Raises OSError if the cache cannot be written, and what `fill` raises.
    """
    from filelock import FileLock  # which few commands need

    if _is_whole(final):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / f".{final.name}.lock"):  # another process may be at it
        if not _is_whole(final):
            _fill(final, fill)
    return final


def _fill(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside, and then take the place of what is there (nothing, or damaged files)."""
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.", ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        fill(fresh)
        sums = {file.name: file_digest(file).hex() for file in sorted(fresh.iterdir())}
        (fresh / _SUMS).write_text(json.dumps(sums, indent=1))
        if final.exists():
            final.rename(Path(scratch) / "damaged")
        fresh.rename(final)


def _is_whole(folder: Path) -> bool:
    """Whether a folder has the files that were written, byte for byte."""
    try:
        sums = json.loads((folder / _SUMS).read_text())
        return all(file_digest(folder / name).hex() == sha256 for name, sha256 in sums.items())
    except (OSError, ValueError, AttributeError):  # not there, or damaged: made again
        return False


def file_digest(file: Path) -> bytes:
    """The SHA-256 of a file, 32 bytes; not read again while its size and modification time are the same."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _digest(file: Path, size: int, changed: int) -> bytes:
    """The SHA-256 of a file; cached until its size or modification time changes."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
