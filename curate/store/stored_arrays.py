"""Named arrays in several safetensors files, as one mapping from which only what is asked for is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from curate.store.encoding import damaged, read_arrays
from curate.store.object_store import Location


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays of all files by name; of two with one name that of the later file. Files elsewhere than on a disk are
    read as a whole, one at a time. Raises DamagedError."""

    def __init__(self, paths: Sequence[Location]):
        self._paths = {name: path for path in paths for name in _names(path)}
        self._last: tuple[Location, Mapping[str, np.ndarray]] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._paths[name]
        if isinstance(path, Path):
            try:
                with safe_open(str(path), framework="numpy") as file:
                    return file.get_tensor(name)
            except (SafetensorError, FileNotFoundError) as error:
                raise damaged(path, error) from None
        if self._last is None or self._last[0] != path:
            self._last = (path, read_arrays(path))
        return self._last[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _names(path: Location) -> list[str]:
    if not isinstance(path, Path):
        return list(read_arrays(path))
    try:
        with safe_open(str(path), framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, FileNotFoundError) as error:
        raise damaged(path, error) from None
