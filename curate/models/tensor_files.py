"""Files of tensors (safetensors): their headers, or all of them; a damaged one is refused by a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import CurateError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of each tensor of a file; the tensors are not read. Raises CurateError."""
    from safetensors import safe_open

    with _readable(file), safe_open(file, "np") as f:
        slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
        return {name: (list(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises CurateError."""
    from safetensors.torch import load_file

    with _readable(file):
        return load_file(file)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as NumPy's arrays, by name. Raises CurateError."""
    from safetensors.numpy import load_file

    with _readable(file):
        return load_file(str(file))


def array_readers(file: Path) -> dict[str, Callable[[], np.ndarray]]:
    """For each tensor of a file, what reads it alone, as NumPy's array. Raises CurateError, as do the readers."""

    def read(name: str) -> np.ndarray:
        from safetensors import safe_open

        with _readable(file), safe_open(file, "np") as f:
            return f.get_tensor(name)

    return {name: partial(read, name) for name in header(file)}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CurateError(f"{file} cannot be read as safetensors ({reason}); fetch or save it again.") from None
