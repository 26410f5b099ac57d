"""Named arrays in several safetensors files, as one mapping from which only what is asked for is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from curate.errors import CurateError
from curate.models.tensor_files import array_readers
from curate.store.encoding import damaged, read_arrays
from curate.store.object_store import Location


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays of all files by name; of two with one name that of the later file. Files elsewhere than on a disk are
    read as a whole, and kept. Raises DamagedError."""

    def __init__(self, paths: Sequence[Location]):
        self._readers = {name: (path, read) for path in paths for name, read in _readers(path).items()}

    def __getitem__(self, name: str) -> np.ndarray:
        path, read = self._readers[name]
        try:
            return read()
        except CurateError as error:
            raise damaged(path, error) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _readers(path: Location) -> dict[str, Callable[[], np.ndarray]]:
    if not isinstance(path, Path):
        return {name: partial(_same, array) for name, array in read_arrays(path).items()}
    try:
        return array_readers(path)
    except CurateError as error:
        raise damaged(path, error) from None


def _same(array: np.ndarray) -> np.ndarray:
    return array
