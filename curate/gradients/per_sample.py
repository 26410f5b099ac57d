"""Per-sample gradients of one parameter for B samples, kept in factored form until they are needed.

A layer that is linear in its parameter has the per-sample gradient  sum over t of  e_t x_t^T,  with x_t the layer's
input at token t and e_t the gradient of its output. Often only a product with it is needed, which can be computed from
the factors without forming the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curate.models.forward import wide

BLOCK = 1 << 26  # elements of per-sample gradients in memory at once
THIN = 64  # largest short side of a "thin" matrix, such as LoRA's (the rank)


@dataclass(frozen=True)
class PerSample(ABC):
    """Gradients [B, *shape] of the parameter `name`, in float32 or wider, and quantities computed without forming
    them."""

    name: str
    shape: tuple[int, ...]

    @abstractmethod
    def full(self) -> Tensor:
        """The gradients themselves, [B, *shape]."""

    @abstractmethod
    def total(self, weights: Tensor | None = None) -> Tensor:
        """Their sum over the samples, [*shape]. weights: per sample [B], or per token [B, T]; None: all 1."""

    @abstractmethod
    def squares(self) -> Tensor:
        """The squared L2 norm of each, [B]."""

    @abstractmethod
    def dot(self, directions: Tensor) -> Tensor:
        """Their inner products with K directions [K, *shape]: [B, K]."""

    @abstractmethod
    def finite(self) -> Tensor:
        """Whether each sample's gradient is finite, bool [B]."""

    def squares_flops(self) -> float:
        """FLOPs of `squares`."""
        return self.flops()

    @abstractmethod
    def of(self, some: Tensor) -> PerSample:
        """The gradients of some of the samples, by position (int64 tensor)."""

    def flops(self) -> float:
        """FLOPs of the matrix products that form the gradients."""
        return 0.0


@dataclass(frozen=True)
class Outer(PerSample):
    """Gradients of a matrix: sum over t of e_t x_t^T. x: [B, T, in], e: [B, T, out]; flipped: stored as [in, out]."""

    x: Tensor
    e: Tensor
    flipped: bool = False

    def thin(self) -> bool:
        """Whether per-sample gradients are smaller than these factors and one side of the matrix is at most THIN."""
        m, n = self.shape
        return min(m, n) <= THIN and m * n < self.e.shape[1] * (m + n)

    def sides(self) -> tuple[Tensor, Tensor]:
        """The factors belonging to the rows and to the columns of the stored matrix."""
        return (self.x, self.e) if self.flipped else (self.e, self.x)

    def full(self) -> Tensor:
        rows, columns = self.sides()
        return product(rows.transpose(1, 2), columns)

    def total(self, weights: Tensor | None = None) -> Tensor:
        rows, columns = replace(self, e=_weighted(self.e, weights)).sides()
        return product(rows.flatten(0, 1).T[None], columns.flatten(0, 1)[None])[0]

    def squares(self) -> Tensor:
        if self._by_pairs():  # sum over t, t' of (e_t . e_t') (x_t . x_t')
            return (product(self.e, self.e.transpose(1, 2)) * product(self.x, self.x.transpose(1, 2))).sum((1, 2))
        return torch.cat([part.full().square().sum((1, 2)) for part in self.blocks()])

    def _by_pairs(self) -> bool:
        """Whether going over pairs of tokens takes fewer FLOPs than forming the gradients."""
        length, width = self.e.shape[1:]
        return length * (width + self.x.shape[2]) < width * self.x.shape[2]

    def squares_flops(self) -> float:
        length = self.e.shape[1]
        return 2.0 * length * (self.e.numel() + self.x.numel()) if self._by_pairs() else self.flops()

    def dot(self, directions: Tensor) -> Tensor:
        if len(directions) == 1:  # sum over t of e_t . (Q x_t): no per-sample gradient is formed
            rows, columns = self.sides()
            image = product(columns, directions[0].T.to(columns.dtype)[None])
            return (image * wide(rows)).sum((1, 2))[:, None]
        flat = wide(directions.flatten(1)).T
        return torch.cat([part.full().flatten(1) @ flat for part in self.blocks()])

    def blocks(self) -> list[Outer]:
        """The same gradients a few samples at a time; one empty part if there are no samples."""
        n = len(self.e)
        size = max(1, BLOCK // (self.shape[0] * self.shape[1]))
        return [self.of(torch.arange(a, min(a + size, n))) for a in range(0, max(n, 1), size)]

    def of(self, some: Tensor) -> Outer:
        some = some.to(self.e.device)
        return Outer(self.name, self.shape, self.x[some], self.e[some], self.flipped)

    def flops(self) -> float:
        return 2.0 * self.e.numel() * self.x.shape[2]

    def finite(self) -> Tensor:
        return _finite(self.e) & _finite(self.x)


@dataclass(frozen=True)
class Thin(PerSample):
    """Gradients of a matrix so thin (such as LoRA's) that the per-sample gradients are smaller than their factors.

    g: [B, thin side, long side]. turned: whether the matrix is stored with the long side first, so g is transposed.
    """

    g: Tensor
    turned: bool

    @classmethod
    def made(cls, outer: Outer) -> Thin:
        """Form the gradients from factors, with the thin side first, which makes the products faster."""
        rows, columns = outer.sides()
        turned = outer.shape[0] > outer.shape[1]
        left, right = (columns, rows) if turned else (rows, columns)
        return cls(outer.name, outer.shape, product(left.transpose(1, 2), right), turned)

    def full(self) -> Tensor:
        return self.g.transpose(1, 2) if self.turned else self.g

    def blocks(self) -> list[Thin]:
        """The same gradients as a single part, as they are in memory already; see `Outer.blocks`."""
        return [self]

    def total(self, weights: Tensor | None = None) -> Tensor:
        total = self.g.sum(0) if weights is None else torch.tensordot(weights.to(self.g.dtype), self.g, 1)
        return total.T.contiguous() if self.turned else total  # fused optimizers expect contiguous gradients

    def squares(self) -> Tensor:
        return self.g.square().sum((1, 2))

    def dot(self, directions: Tensor) -> Tensor:
        return self.full().flatten(1) @ wide(directions.flatten(1)).T

    def finite(self) -> Tensor:
        return _finite(self.g)

    def of(self, some: Tensor) -> Thin:
        return replace(self, g=self.g[some.to(self.g.device)])


@dataclass(frozen=True)
class Scale(PerSample):
    """Gradients of a vector that scales each token's hidden state, or is added to it: sum over t of e_t u_t,
    elementwise.

    e: [B, T, D]. u: what the vector scales, [B, T, D]; None if it is added (a bias).
    """

    e: Tensor
    u: Tensor | None = None

    def full(self) -> Tensor:
        return (wide(self.e) if self.u is None else wide(self.e) * wide(self.u)).sum(1)

    def total(self, weights: Tensor | None = None) -> Tensor:
        return replace(self, e=_weighted(self.e, weights)).full().sum(0)

    def squares(self) -> Tensor:
        return self.full().square().sum(1)

    def dot(self, directions: Tensor) -> Tensor:
        return self.full() @ wide(directions).T

    def finite(self) -> Tensor:
        return _finite(self.e) if self.u is None else _finite(self.e) & _finite(self.u)

    def of(self, some: Tensor) -> Scale:
        some = some.to(self.e.device)
        return Scale(self.name, self.shape, self.e[some], None if self.u is None else self.u[some])


@dataclass(frozen=True)
class RowGradient(PerSample):
    """Gradients of an embedding: e_t is added to the row of token t. ids: int64 [B, T], e: [B, T, D]."""

    ids: Tensor
    e: Tensor

    def full(self) -> Tensor:
        n, length, width = self.e.shape
        gradients = wide(self.e).new_zeros(n, *self.shape)
        places = self.ids[:, :, None].expand(n, length, width)
        return gradients.scatter_add_(1, places, wide(self.e))

    def total(self, weights: Tensor | None = None) -> Tensor:
        e = wide(_weighted(self.e, weights))
        return e.new_zeros(self.shape).index_add_(0, self.ids.flatten(), e.flatten(0, 1))

    def squares_flops(self) -> float:
        return 2.0 * self.e.shape[1] * self.e.numel()

    def squares(self) -> Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return (product(self.e, self.e.transpose(1, 2)) * same).sum((1, 2))

    def dot(self, directions: Tensor) -> Tensor:
        return torch.stack([(wide(self.e) * wide(q[self.ids])).sum((1, 2)) for q in directions], dim=1)

    def dot_outer(self, other: Outer) -> Tensor:
        """Inner products with the output head's gradients of the same (tied) matrix, [B]: sum over t, s of
        (e_t . x_s) e'_s[id_t]."""
        gathered = torch.gather(wide(other.e), 2, self.ids[:, None, :].expand(-1, other.e.shape[1], -1))
        return (product(other.x, self.e.transpose(1, 2)) * gathered).sum((1, 2))

    def finite(self) -> Tensor:
        return _finite(self.e)

    def of(self, some: Tensor) -> RowGradient:
        some = some.to(self.e.device)
        return RowGradient(self.name, self.shape, self.ids[some], self.e[some])


@dataclass(frozen=True)
class Several(PerSample):
    """Gradients of a parameter used in several places, such as an embedding tied to the head: the sum of its parts."""

    parts: Sequence[PerSample]

    def full(self) -> Tensor:
        first, *remaining = self.parts
        gradients = first.full()
        for part in remaining:
            gradients += part.full()
        return gradients

    def total(self, weights: Tensor | None = None) -> Tensor:
        first, *remaining = self.parts
        total = first.total(weights)
        for part in remaining:
            total += part.total(weights)
        return total

    def squares(self) -> Tensor:
        kinds = [type(part) for part in self.parts]
        if sorted(kinds, key=str) == sorted([Outer, RowGradient], key=str):
            rows, outer = sorted(self.parts, key=lambda part: isinstance(part, Outer))
            assert isinstance(rows, RowGradient) and isinstance(outer, Outer)
            if not outer.flipped:
                return rows.squares() + outer.squares() + 2 * rows.dot_outer(outer)
        return self.full().flatten(1).square().sum(1)

    def dot(self, directions: Tensor) -> Tensor:
        return torch.stack([part.dot(directions) for part in self.parts]).sum(0)

    def finite(self) -> Tensor:
        return torch.stack([part.finite() for part in self.parts]).all(0)

    def squares_flops(self) -> float:
        pairs = [part for part in self.parts if isinstance(part, RowGradient)]
        return sum(part.squares_flops() for part in self.parts) + sum(2.0 * p.e.numel() * self._head() for p in pairs)

    def _head(self) -> int:
        """Number of tokens in the output head's part."""
        return next((part.x.shape[1] for part in self.parts if isinstance(part, Outer)), 0)

    def of(self, some: Tensor) -> Several:
        return Several(self.name, self.shape, [part.of(some) for part in self.parts])

    def flops(self) -> float:
        return sum(part.flops() for part in self.parts)


def _weighted(e: Tensor, weights: Tensor | None) -> Tensor:
    """Errors [B, T, n] times weights [B] or [B, T]; computed in float32 or wider, returned in their own dtype."""
    if weights is None:
        return e
    factors = weights if weights.ndim == 2 else weights[:, None]
    return (wide(e) * factors[:, :, None].to(wide(e).dtype)).to(e.dtype)


def _finite(x: Tensor) -> Tensor:
    """Whether all elements of a sample are finite, bool [B]; by their sum, which takes a single read."""
    return x.sum((1, 2), dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()


def product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product, accumulated in float32 or wider; half-precision factors on a GPU use its tensor cores."""
    if a.is_cuda and (half := {torch.bfloat16, torch.float16} & {a.dtype, b.dtype}):
        (dtype,) = half
        a, b = a.to(dtype), b.to(dtype)
        if len(b) == 1 < len(a):
            return product(a.flatten(0, 1)[None], b)[0].unflatten(0, a.shape[:2])
        return torch.bmm(a, b, out_dtype=torch.float32)
    return wide(a) @ wide(b)
