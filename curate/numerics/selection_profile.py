"""What a choice looks like: how alike the chosen samples are, and where in the model the chosen numbers lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def diversity(vectors: np.ndarray) -> float:
    """The mean of 1 - cosine over all pairs of different vectors [N, D]; 0 for fewer than two.

    By  sum over pairs of u·w = (|sum of u|^2 - N) / 2  of unit vectors, so in N D and not in N^2 D.
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
    """One module of one layer. layer: its number, -1 outside the layers. share: the part of its numbers that was
    chosen; enrichment: that over the part of all numbers."""

    layer: int
    module: str
    numbers: int
    chosen: int
    share: float
    enrichment: float


def enrichment(sizes: Mapping[str, int], chosen: Mapping[str, Sequence[int] | np.ndarray]) -> list[Block]:
    """Where the chosen numbers lie, by layer and module. sizes: of all parameters, by name."""
    numbers: dict[tuple[int, str], int] = {}
    mine: dict[tuple[int, str], int] = {}
    for name, size in sizes.items():
        key = place_of(name)
        numbers[key] = numbers.get(key, 0) + size
        mine[key] = mine.get(key, 0) + len(chosen.get(name, ()))
    overall = sum(mine.values()) / max(sum(numbers.values()), 1)
    return [
        Block(*key, numbers[key], mine[key], share := mine[key] / numbers[key], share / overall if overall else 0.0)
        for key in sorted(numbers)
    ]


def place_of(name: str) -> tuple[int, str]:
    """The layer of a parameter, -1 outside the layers, and its module there: (3, "self_attn.q_proj")."""
    found = _LAYER.search(name)
    rest = name[found.end() :] if found else name.removeprefix("model.").removeprefix("transformer.")
    return int(found[1]) if found else -1, rest.removesuffix(".weight")
