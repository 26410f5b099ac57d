"""What is kept of gradients to approximate a Fisher matrix per linear layer: the two factors of its Kronecker product
(K-FAC), and its diagonal in their eigenbasis (EK-FAC) or in the elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from curate.gradients.per_sample import BLOCK, Outer, PerSample, Several, product
from curate.kinds.passes import GradientCollector
from curate.models.forward import wide

Gradient = TypeVar("Gradient", bound=PerSample)


class Factors(GradientCollector):
    """Second moments of both factors of the named matrices' gradients, sum over t of e_t x_t^T as they are stored,
    summed over tokens: KEY + rows/NAME [m, m], KEY + columns/NAME [n, n]; KEY + tokens/NAME [1] and KEY + samples [1],
    their numbers. Only tokens that the loss depends on count, also where a layer's error is 0, or rounding alone, as of
    the query of a sequence's first token."""

    def __init__(self, names: Sequence[str], n: int, key: str):
        self._names, self._key, self._flops = frozenset(names), key, 0.0
        self._sums: dict[str, Tensor] = {key + "samples": torch.tensor([n])}
        self._used = torch.zeros(0)

    def begin(self, used: np.ndarray) -> None:
        self._used = torch.from_numpy(used)

    def take(self, gradient: PerSample) -> None:
        if gradient.name not in self._names:
            return
        for part in _parts(gradient):
            counts = torch.arange(part.x.shape[1], device=part.x.device) < self._used.to(part.x.device)[:, None]
            x = part.x * counts[..., None]
            rows, columns = (x, part.e) if part.flipped else (part.e, x)
            for side, values in (("rows", rows), ("columns", columns)):
                flat = values.flatten(0, 1)
                self._add(f"{side}/{gradient.name}", product(flat.T[None], flat[None])[0])
                self._flops += 2.0 * flat.numel() * flat.shape[1]
            self._add(f"tokens/{gradient.name}", counts.sum()[None])

    def foreseen(self, shapes: Mapping[str, tuple[int, ...]], tokens: int) -> float:
        """The FLOPs for gradients of so many tokens, from the matrices' shapes."""
        return 2.0 * tokens * sum(a * a + b * b for name, (a, b) in shapes.items() if name in self._names)

    def _add(self, name: str, value: Tensor) -> None:
        key = self._key + name
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums

    def flops(self) -> float:
        return self._flops


class Rotated(GradientCollector):
    """Elementwise sums of the squared gradients of the named matrices, after `turned`, over the samples: KEY + NAME
    [m, n]; KEY + samples [1], their number. bases: name -> (rows [m, m], columns [n, n]), whose columns the gradient is
    expressed in; None: its elements as they are."""

    def __init__(self, names: Sequence[str], bases: Callable[[str], tuple[Tensor, Tensor]] | None, n: int, key: str):
        self._names, self._bases, self._n, self._key, self._flops = frozenset(names), bases, n, key, 0.0
        self._sums: dict[str, Tensor] = {key + "samples": torch.tensor([n])}

    def take(self, gradient: PerSample) -> None:
        if gradient.name not in self._names:
            return
        if self._bases:
            rows, columns = self._bases(gradient.name)
            gradient = _turned(gradient, rows, columns)
            self._flops += 2.0 * sum(p.e.numel() * p.e.shape[2] + p.x.numel() * p.x.shape[2] for p in _parts(gradient))
        size, key = max(1, BLOCK // (gradient.shape[0] * gradient.shape[1])), self._key + gradient.name
        for start in range(0, self._n, size):
            some = torch.arange(start, min(start + size, self._n))
            block = gradient if size >= self._n else gradient.of(some)
            squares = block.full().square_().sum(0)
            self._sums[key] = self._sums[key] + squares if key in self._sums else squares
        self._flops += gradient.flops()

    def foreseen(self, shapes: Mapping[str, tuple[int, ...]], tokens: int) -> float:
        """As of `Factors`."""
        of = [shape for name, shape in shapes.items() if name in self._names]
        turned = 2.0 * tokens * sum(a * a + b * b for a, b in of) if self._bases else 0.0
        return turned + 2.0 * tokens * sum(a * b for a, b in of)

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums

    def flops(self) -> float:
        return self._flops


class Only(GradientCollector):
    """Passes the gradients of the named parameters on to another collector."""

    def __init__(self, names: Sequence[str], into: GradientCollector):
        self._names, self._into = frozenset(names), into

    def begin(self, used: np.ndarray) -> None:
        self._into.begin(used)

    def take(self, gradient: PerSample) -> None:
        if gradient.name in self._names:
            self._into.take(gradient)

    def columns(self) -> Mapping[str, object]:
        return self._into.columns()

    def sums(self) -> Mapping[str, object]:
        return self._into.sums()

    def flops(self) -> float:
        return self._into.flops()


def _parts(gradient: PerSample) -> list[Outer]:
    """The factored gradients of a matrix, one for each place that it is used in."""
    parts = gradient.parts if isinstance(gradient, Several) else [gradient]
    assert all(isinstance(part, Outer) for part in parts)
    return [part for part in parts if isinstance(part, Outer)]


def _turned(gradient: Gradient, rows: Tensor, columns: Tensor) -> Gradient:
    """rows^T G columns of each gradient, by its factors."""
    if isinstance(gradient, Several):
        return replace(gradient, parts=[_turned(part, rows, columns) for part in gradient.parts])
    assert isinstance(gradient, Outer)
    of_x, of_e = (rows, columns) if gradient.flipped else (columns, rows)
    x, e = (product(wide(side), basis[None].to(wide(side))) for side, basis in ((gradient.x, of_x), (gradient.e, of_e)))
    return replace(gradient, x=x, e=e)
