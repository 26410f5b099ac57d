"""Inner products between the parameter updates of an audit's stages, from the models before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from curate.errors import CurateError
from curate.models.tensor_files import array_readers


def update_products(first: Path, before: Path, after: Path) -> dict[str, float]:
    """Inner products 'uu', 'uv', 'vv' of a stage's update u = after - before and all earlier ones v = before - first.

    Each argument is a folder with a whole model's safetensors. Uses whole matrices, as LoRA's factors can be rotated
    without changing their product. Raises CurateError for a file that cannot be read, or models of other tensors.
    """
    sums = {"uu": 0.0, "uv": 0.0, "vv": 0.0}
    first_tensors, before_tensors, after_tensors = (_tensors(folder) for folder in (first, before, after))
    for folder, tensors in ((first, first_tensors), (before, before_tensors)):
        if tensors.keys() != after_tensors.keys():
            raise CurateError(f"{folder} and {after} have other tensors, so they are not two stages of one model.")
    for name in after_tensors:
        previous = before_tensors[name]().astype(np.float64)
        u, v = after_tensors[name]().astype(np.float64) - previous, previous - first_tensors[name]().astype(np.float64)
        for key, (x, y) in {"uu": (u, u), "uv": (u, v), "vv": (v, v)}.items():
            sums[key] += float(np.vdot(x, y))
    return sums


def _tensors(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """A reader for every tensor of a model, by name; a tensor is loaded when its reader is called."""
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        readers |= array_readers(file)
    return readers
