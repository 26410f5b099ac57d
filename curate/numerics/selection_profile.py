"""Profile of a selection: how similar the selected samples are, and where in the model the selected parameters are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def diversity(vectors: np.ndarray) -> float:
    """The mean of 1 - cosine over all pairs of vectors [N, D]; 0 for fewer than two.

    Uses  sum over pairs of u·w = (|sum of u|^2 - N) / 2  for unit vectors, so it costs N D rather than N^2 D.
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    u = np.asarray(vectors, np.float64)
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    total = u.sum(0)
    return 1 - (float(total @ total) - n) / (n * (n - 1))


@dataclass(frozen=True)
class Block:
    """One module of one layer. layer: its index, -1 outside the layers. numbers, chosen: its parameters, and those
    selected. share: the selected fraction; enrichment: that over the selected fraction of the whole model."""

    layer: int
    module: str
    numbers: int
    chosen: int
    share: float
    enrichment: float


def enrichment(sizes: Mapping[str, int], chosen: Mapping[str, Sequence[int] | np.ndarray]) -> list[Block]:
    """Where the selected parameters are, by layer and module. sizes: of all parameter tensors, by name; chosen: flat
    positions, by name."""
    numbers: dict[tuple[int, str], int] = {}
    selected: dict[tuple[int, str], int] = {}
    for name, size in sizes.items():
        key = place_of(name)
        numbers[key] = numbers.get(key, 0) + size
        selected[key] = selected.get(key, 0) + len(chosen.get(name, ()))
    overall = sum(selected.values()) / max(sum(numbers.values()), 1)
    return [
        Block(
            *key,
            numbers[key],
            selected[key],
            share := selected[key] / numbers[key],
            share / overall if overall else 0.0,
        )
        for key in sorted(numbers)
    ]


def place_of(name: str) -> tuple[int, str]:
    """The layer index of a parameter, -1 outside the layers, and its module there: (3, "self_attn.q_proj")."""
    match = _LAYER.search(name)
    module = name[match.end() :] if match else name.removeprefix("model.").removeprefix("transformer.")
    return int(match[1]) if match else -1, module.removesuffix(".weight")
