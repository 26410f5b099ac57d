"""What is kept of per-sample gradients: their lengths, inner products, projections, or sums over samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.gradients.backward import At
from curate.gradients.per_sample import PerSample
from curate.gradients.projectors import Projector
from curate.passes import Arrays, Watcher


class Lengths(Watcher):
    """The length of each sample's whole gradient, float64: the column `length` [B]."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._flops = 0.0

    def take(self, gradient: PerSample) -> None:
        self._squares.append(gradient.squares().double())
        self._flops += gradient.flops()

    def columns(self) -> Mapping[str, np.ndarray]:
        if not self._squares:
            return {"length": np.zeros(0)}
        return {"length": torch.stack(self._squares).sum(0).sqrt().cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Dots(Watcher):
    """Inner products with K directions (name -> [K, *shape]), float64: the column `dot` [B, K]."""

    def __init__(self, directions: Mapping[str, Tensor]):
        self._directions, self._flops = directions, 0.0
        self._found: list[Tensor] = []

    def take(self, gradient: PerSample) -> None:
        q = self._directions[gradient.name]
        self._found.append(gradient.dot(q).double())
        self._flops += gradient.flops() + (2.0 * len(self._found[-1]) * q.numel() if len(q) > 1 else 0.0)

    def columns(self) -> Mapping[str, np.ndarray]:
        if not self._found:
            return {"dot": np.zeros((0, len(next(iter(self._directions.values())))))}
        return {"dot": torch.stack(self._found).sum(0).cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Totals(Watcher):
    """Sums of the gradients over K groups of samples: KEY + the parameter's name -> [K, *shape].

    groups: which group each sample of the batch is of, int64 [B]. weights: what each group's samples count, [K].
    """

    def __init__(self, groups: np.ndarray, weights: Sequence[float], key: str = ""):
        self._groups, self._weights, self._key = groups, weights, key
        self._sums: dict[str, Tensor] = {}
        self._flops = 0.0

    def take(self, gradient: PerSample) -> None:
        found = None
        for group in np.unique(self._groups):
            some = gradient.of(torch.from_numpy(np.flatnonzero(self._groups == group)))
            total = some.total() * self._weights[group]
            found = total.new_zeros(len(self._weights), *gradient.shape) if found is None else found
            found[group] = total
        if found is not None:
            self._sums[self._key + gradient.name] = found
        self._flops += gradient.flops()

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums

    def flops(self) -> float:
        return self._flops


class Projected(Watcher):
    """Each sample's gradient, transformed parameter by parameter, and projected: the column `vector` [B, D].

    transform(name, gradients [B, n], which it may write into) -> [B, n].
    """

    def __init__(self, at: At, count: int, projector: Projector, transform: Callable[[str, Tensor], Tensor]):
        self._into = torch.zeros(count, projector.dim, dtype=at.dtype, device=at.device)
        self._projector, self._transform, self._flops = projector, transform, 0.0

    def take(self, gradient: PerSample) -> None:
        made = self._transform(gradient.name, gradient.full().flatten(1))
        self._projector.add(self._into, gradient.name, made)
        self._flops += gradient.flops() + self._projector.flops(made.shape[1]) * len(made)

    def columns(self) -> Mapping[str, np.ndarray]:
        return {"vector": self._into.cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Directions:
    """Directions from a pass's state, by their keys: as tensors on the device where they are wanted, kept there."""

    def __init__(self, arrays: Arrays):
        self._arrays, self._there = arrays, dict[str, dict[str, Tensor]]()

    def on(self, at: At, key: str = "") -> Mapping[str, Tensor]:
        """name -> [K, *shape]; key: what stands before the names."""
        if key not in self._there:
            self._there = {key: {n: torch.from_numpy(self._arrays[key + n]).to(at.device, at.dtype) for n in at.shapes}}
        return self._there[key]

    def length(self) -> float:
        """Of all numbers together."""
        return float(np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in self._arrays.values())))


def added(partials: Iterable[Arrays]) -> Arrays:
    """Sums of several ranges of samples as one."""
    found: dict[str, Any] = {}
    for partial in partials:
        for name, value in partial.items():
            found[name] = found.get(name, 0.0) + value.astype(np.float64)
    return {name: value.astype(np.float32) for name, value in found.items()}
