"""Products between the updates of an audit's stages, read from the models before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def update_products(first: Path, before: Path, after: Path) -> dict[str, float]:
    """'uu', 'uv', 'vv' of a stage's update u = after - before and all updates before v = before - first; each a folder
    with a whole model's safetensors. On whole matrices, since LoRA's factors can be turned without any change."""
    sums = {"uu": 0.0, "uv": 0.0, "vv": 0.0}
    one, two, three = (_tensors(folder) for folder in (first, before, after))
    for name in three:
        middle = two[name]().astype(np.float64)
        u, v = three[name]().astype(np.float64) - middle, middle - one[name]().astype(np.float64)
        for key, (x, y) in {"uu": (u, u), "uv": (u, v), "vv": (v, v)}.items():
            sums[key] += float(np.vdot(x, y))
    return sums


def _tensors(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Every tensor of a model, read when it is asked for."""
    from functools import partial

    from safetensors import safe_open

    def read(file: Path, name: str) -> np.ndarray:
        with safe_open(file, "np") as f:
            return f.get_tensor(name)

    found: dict[str, Callable[[], np.ndarray]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as f:
            found |= {name: partial(read, file, name) for name in f.keys()}  # noqa: SIM118
    return found
