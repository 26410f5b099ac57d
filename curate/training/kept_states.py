"""Tensors that are kept for a while, on the CPU or in files: snapshots of a training that is gone back through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from curate.models.tensor_files import read_tensors


class KeptStates:
    """Tensors by name, each put once and taken once; in memory, or in files of a folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._held: dict[str, dict[str, Tensor]] = {}
        self._files: set[Path] = set()

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors on the CPU."""
        if self.folder is None:
            self._held[key] = tensors
            return
        from safetensors.torch import save_file

        file = self._file(key)
        self._files.add(file)
        save_file(tensors, file)

    def take(self, key: str) -> dict[str, Tensor]:
        """The tensors of a key, which are no longer kept."""
        if self.folder is None:
            return self._held.pop(key)
        file = self._file(key)
        tensors = read_tensors(file)
        self._remove(file)
        return tensors

    def clear(self) -> None:
        """Remove what has not been taken."""
        self._held.clear()
        for file in list(self._files):
            self._remove(file)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key.replace(' ', '-')}.safetensors"

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._files.discard(file)


@contextmanager
def kept_states(folder: Path | None) -> Iterator[KeptStates]:
    """Somewhere to keep tensors, of which nothing is left in the end. folder: None for memory."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    states = KeptStates(folder)
    try:
        yield states
    finally:
        states.clear()
