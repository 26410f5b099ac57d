"""What a GGUF file unpacks to, in transformers' own layout, kept in the user's cache: made once, then read as it is.

Reading a GGUF file takes transformers minutes of CPU for each GB, three times over (configuration, tokenizer, weights),
and every worker of every command would do it again. The weights are kept in float32, so nothing is rounded. The folders
are named by the file's SHA-256 and the version of transformers that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from curate.models.cache import cache_folder, file_digest, kept


def unpacked(file: Path, name: str, unpack: Callable[[Path], None]) -> Path | None:
    """The folder `name` of what a GGUF file unpacks to. unpack: writes into the empty folder that it is given.

    None if the cache cannot be written (no room, read-only): then the file is read directly. Raises what `unpack`
    raises, other than OSError.
    """
    folder = cache_folder() / "gguf" / f"{file_digest(file).hex()[:16]}-{version('transformers')}"
    try:
        return kept(folder / name, unpack)
    except OSError:
        return None
