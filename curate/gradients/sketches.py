"""Sketches of linear layers' gradients, each side projected to k dimensions: small enough to compare all samples of a
step.

A layer's per-sample gradient is  E^T X,  with E [T, m] the output gradients and X [T, n] the inputs of its tokens
(curate.gradients.per_sample). Its sketch is  P^T E^T X R,  with P [m, k] and R [n, k] random signs over sqrt(k); a side
of at most k dimensions is not projected. So  <sketch(g), sketch(h)>  equals  <g, h>  in expectation. The four
factors can be multiplied in several orders of different cost (for a LoRA matrix, the thin side first); the cheapest
is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from curate.gradients.per_sample import BLOCK, Outer, Thin, product
from curate.models.forward import wide
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.numerics.projections import Rademacher

if TYPE_CHECKING:
    from curate.gradients.backward import Backward


class Sketcher:
    """Sketches of the gradients of matrices (name -> shape). k: dimensions of a projected side; 0: no projection.

    A sketch is [r, c], rows and columns as the matrix is stored, each the smaller of k and the matrix's own.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], k: int, seed: int, device: torch.device):
        self.shapes, self._k, self._seed, self._device = dict(shapes), k, seed, device
        self._made: dict[tuple[str, int], Tensor] = {}

    def _side(self, name: str, axis: int) -> Tensor | None:
        """The projection of a matrix's rows (0) or columns (1), float32 [m, k]; None if that side is not projected."""
        size = self.shapes[name][axis]
        if not self._k or size <= self._k:
            return None
        if (name, axis) not in self._made:
            entries = Rademacher(self._k, self._seed).entries(f"{name} side {axis}", 0, size, self._device)
            self._made[name, axis] = entries
        return self._made[name, axis]

    def size(self, name: str) -> tuple[int, int]:
        """Shape (r, c) of a sketch."""
        m, n = self.shapes[name]
        return (min(m, self._k), min(n, self._k)) if self._k else (m, n)

    def whole(self, name: str, gradient: Tensor) -> Tensor:
        """Sketches [..., r, c] of explicit gradients [..., m, n]."""
        rows, columns = self._side(name, 0), self._side(name, 1)
        if columns is not None:
            gradient = wide(gradient) @ columns.to(wide(gradient).dtype)
        if rows is None:
            return gradient
        turned = wide(gradient).transpose(-1, -2) @ rows.to(wide(gradient).dtype)  # one product for the whole batch
        return turned.transpose(-1, -2).contiguous()

    def whole_flops(self, name: str) -> float:
        """FLOPs of `whole` for one matrix."""
        (m, n), (r, c) = self.shapes[name], self.size(name)
        return (2.0 * m * n * c if c < n else 0.0) + (2.0 * r * m * c if r < m else 0.0)

    def tokens(self, gradient: Outer) -> tuple[Tensor, Tensor]:
        """Both projected factors of every token, [B, T, r] and [B, T, c]; their outer product is the token's
        contribution to the sketch."""
        factors = [
            wide(side) if (p := self._side(gradient.name, axis)) is None else product(side, p.to(side.dtype)[None])
            for axis, side in enumerate(gradient.sides())
        ]
        return factors[0], factors[1]

    def tokens_flops(self, gradient: Outer) -> float:
        """FLOPs of `tokens`, and of forming the sketches from its result."""
        places, (m, n), (r, c) = gradient.e.shape[0] * gradient.e.shape[1], gradient.shape, self.size(gradient.name)
        sides = (2.0 * m * r if r < m else 0.0) + (2.0 * n * c if c < n else 0.0)
        return places * (sides + 2.0 * r * c)

    def of(self, gradient: Outer | Thin) -> Tensor:
        """Sketches of a batch of samples, [B, r, c], by the cheapest order of products."""
        if isinstance(gradient, Thin):
            return self.whole(gradient.name, gradient.full())
        order, _ = self._order(gradient)
        if order == "tokens":
            rows, columns = self.tokens(gradient)
            return product(rows.transpose(1, 2), columns)
        if order == "gradient":
            n = len(gradient.e)
            blocks = [gradient] if n * gradient.shape[0] * gradient.shape[1] <= BLOCK else gradient.blocks()
            return torch.cat([self.whole(gradient.name, part.full()) for part in blocks])
        p, r = self._side(gradient.name, 0), self._side(gradient.name, 1)
        rows, columns = gradient.sides()
        if order == "rows":
            assert p is not None
            sketches = product(product(rows, p.to(rows.dtype)[None]).transpose(1, 2), columns)
            return sketches if r is None else sketches @ r.to(sketches.dtype)
        assert r is not None
        sketches = product(rows.transpose(1, 2), product(columns, r.to(columns.dtype)[None]))
        return sketches if p is None else p.to(sketches.dtype).T @ sketches

    def flops(self, gradient: Outer | Thin) -> float:
        """FLOPs of `of`."""
        if isinstance(gradient, Thin):
            return len(gradient.g) * self.whole_flops(gradient.name)
        return self._order(gradient)[1]

    def _order(self, gradient: Outer) -> tuple[str, float]:
        batch, length = gradient.e.shape[:2]
        (m, n), (r, c) = gradient.shape, self.size(gradient.name)
        costs = {"gradient": 2.0 * length * m * n + self.whole_flops(gradient.name)}
        down, across = (2.0 * length * m * r if r < m else 0.0), (2.0 * length * n * c if c < n else 0.0)
        if r < m or c < n:
            costs["tokens"] = down + across + 2.0 * length * r * c
        if r < m:
            costs["rows"] = down + 2.0 * length * r * n + (2.0 * r * n * c if c < n else 0.0)
        if c < n:
            costs["columns"] = across + 2.0 * length * m * c + (2.0 * m * c * r if r < m else 0.0)
        order = min(costs, key=costs.__getitem__)
        return order, batch * costs[order]


def gram(model: Backward, encoded: Sequence[Encoded], k: int, seed: int = 0) -> tuple[np.ndarray, Usage]:
    """Inner products of per-sample gradients over all linear layers, each side projected to k dimensions (0: not
    projected), float64 [n, n] for the n samples that have a gradient; and the cost."""
    sketcher, usage = Sketcher(model.linear, k, seed, model.lm.device), model.lm.usage()
    sketches: dict[str, list[Tensor]] = {name: [] for name in model.linear}
    longest = max((len(sample.ids) for sample in encoded), default=1)
    size = max(1, model.lm.batch_tokens // longest)
    for start in range(0, len(encoded), size):
        phases = {phase: model.lm.usage() for phase in ("forward", "backward")}
        for gradient in model.gradients(encoded[start : start + size], phases).parameters:
            if gradient.name in sketches:
                assert isinstance(gradient, Outer | Thin)
                usage.flops += sketcher.flops(gradient)
                sketches[gradient.name].append(sketcher.of(gradient).flatten(1))
        for cost in phases.values():
            usage.add(cost)
    n = sum(map(len, next(iter(sketches.values()), [])))
    inner_products = torch.zeros(n, n, dtype=torch.float64, device=model.lm.device)
    for parts in sketches.values():
        if parts:
            flat = torch.cat(parts)
            inner_products += flat @ flat.T
            usage.flops += 2.0 * n * flat.numel()
    return inner_products.cpu().numpy(), usage
