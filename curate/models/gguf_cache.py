"""What a GGUF file unpacks to, in transformers' own layout, kept in the user's cache: made once, then read as it is.

Reading a GGUF file takes transformers minutes of CPU for each GB, three times over (configuration, tokenizer, weights),
and every worker of every command would do it again. The weights are kept in float32, so nothing is rounded.

The cache is $CURATE_CACHE, or curate/ in $XDG_CACHE_HOME or ~/.cache; it may be removed at any time. Its folders are
named by the file's SHA-256 and the version of transformers that read it, and hold the SHA-256 of each of their files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from curate.models.choice import file_digest

CACHE = "CURATE_CACHE"
_SUMS = "sha256.json"  # the digests of a folder's files


def cache_folder() -> Path:
    """Where unpacked models are kept."""
    given, common = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(common) if common else Path.home() / ".cache") / "curate"


def unpacked(file: Path, name: str, unpack: Callable[[Path], None]) -> Path | None:
    """The folder `name` of what a GGUF file unpacks to. unpack: writes into the empty folder that it is given.

    None if the cache cannot be written (no room, read-only): then the file is read directly. Raises what `unpack`
    raises, other than OSError.
    """
    from filelock import FileLock  # of GGUF files alone

    folder = cache_folder() / "gguf" / f"{file_digest(file).hex()[:16]}-{version('transformers')}"
    final = folder / name
    if _is_whole(final):
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # another process may be unpacking it
            if not _is_whole(final):
                _fill(folder, final, unpack)
    except OSError:
        return None
    return final


def _fill(folder: Path, final: Path, unpack: Callable[[Path], None]) -> None:
    """Unpack beside, and then take the place of what is there (nothing, or damaged files)."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{final.name}.", ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        unpack(fresh)
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
    except (OSError, ValueError, AttributeError):  # not there, or damaged: unpacked again
        return False
