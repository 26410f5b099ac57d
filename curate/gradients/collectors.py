"""What is kept of per-sample gradients: their norms, inner products, projections, or sums over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError
from curate.gradients.backward import CheckpointView
from curate.gradients.per_sample import BLOCK, PerSample
from curate.kinds.passes import Arrays, GradientCollector
from curate.numerics.projections import Projector


class Lengths(GradientCollector):
    """The L2 norm of each sample's whole gradient, float64: the column `length` [B]."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._flops = 0.0

    def take(self, gradient: PerSample) -> None:
        self._squares.append(gradient.squares().double())
        self._flops += gradient.squares_flops()

    def columns(self) -> Mapping[str, np.ndarray]:
        if not self._squares:
            return {"length": np.zeros(0)}
        return {"length": torch.stack(self._squares).sum(0).sqrt().cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Dots(GradientCollector):
    """Inner products of gradients with K directions (name -> [K, *shape]), times `scale`, float64: column `dot`
    [B, K]."""

    def __init__(self, directions: Mapping[str, Tensor], scale: float = 1.0):
        self._directions, self._scale, self._flops = directions, scale, 0.0
        self._found: list[Tensor] = []

    def take(self, gradient: PerSample) -> None:
        q = self._directions[gradient.name]
        self._found.append(gradient.dot(q).double())
        self._flops += gradient.flops() + (2.0 * len(self._found[-1]) * q.numel() if len(q) > 1 else 0.0)

    def columns(self) -> Mapping[str, np.ndarray]:
        if not self._found:
            return {"dot": np.zeros((0, len(next(iter(self._directions.values()), [0]))))}
        return {"dot": torch.stack(self._found).sum(0).mul_(self._scale).cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Totals(GradientCollector):
    """Sums of the gradients over K groups of samples, as KEY + parameter name -> [K, *shape]; and the number of samples
    per group, as KEY + count -> [K].

    groups: the group of each sample of the batch, int64 [B].
    """

    def __init__(self, groups: np.ndarray, k: int, key: str, count: str):
        self._k, self._key = k, key
        self._members = {int(group): torch.from_numpy(np.flatnonzero(groups == group)) for group in np.unique(groups)}
        self._sums = {key + count: torch.from_numpy(np.bincount(groups, minlength=k))}
        self._flops = 0.0

    def take(self, gradient: PerSample) -> None:
        sums = None
        for group, members in self._members.items():
            total = gradient.of(members).total()
            if sums is None:
                sums = total.new_zeros(self._k, *gradient.shape)
                self._members = {key: places.to(total.device) for key, places in self._members.items()}
            sums[group] = total
        if sums is not None:
            self._sums[self._key + gradient.name] = sums
        self._flops += gradient.flops()

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums

    def flops(self) -> float:
        return self._flops


class Squares(GradientCollector):
    """Elementwise sums of squared gradients, as KEY + parameter name -> [1, *shape]; and their number, as KEY + count
    -> [1]."""

    def __init__(self, n: int, key: str, count: str):
        self._n, self._key, self._flops = n, key, 0.0
        self._sums = {key + count: torch.tensor([n])}

    def take(self, gradient: PerSample) -> None:
        size = max(1, BLOCK // int(np.prod(gradient.shape)))
        for start in range(0, self._n, size):
            block = gradient if size >= self._n else gradient.of(torch.arange(start, min(start + size, self._n)))
            squares, name = block.full().square_().sum(0)[None], self._key + gradient.name
            self._sums[name] = self._sums[name] + squares if name in self._sums else squares
        self._flops += gradient.flops()

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums

    def flops(self) -> float:
        return self._flops


class Moved(GradientCollector):
    """Difference of the parameters from another model's, added once per batch, as KEY + parameter name -> [1, *shape];
    and the number of batches, as KEY + count -> [1]."""

    def __init__(self, at: CheckpointView, role: str, key: str, count: str):
        reference = at.others.get(role, {})
        if missing := [name for name in at.shapes if name not in reference or reference[name].shape != at.shapes[name]]:
            raise CurateError(
                f"the model in the role {role} has no {missing[0]} of shape {list(at.shapes[missing[0]])}, so how far "
                "training has moved it is unknown; name the model that this training began with."
            )
        moved = {
            name: (at.parameters[name].detach() - reference[name].detach().to(at.device))[None] for name in at.shapes
        }
        self._sums = {key + name: value for name, value in moved.items()} | {key + count: torch.tensor([1])}

    def take(self, gradient: PerSample) -> None:
        """Does nothing: this collector does not use the gradients."""

    def sums(self) -> Mapping[str, Tensor]:
        return self._sums


class Projected(GradientCollector):
    """Each sample's gradient, transformed per parameter and then projected: the column `vector` [B, D].

    transform(name, gradients [B, n]) -> [B, n]; it may modify its argument in place.
    """

    def __init__(
        self, at: CheckpointView, count: int, projector: Projector, transform: Callable[[str, Tensor], Tensor]
    ):
        self._into = torch.zeros(count, projector.dim, dtype=at.dtype, device=at.device)
        self.projector, self._transform, self._flops = projector, transform, 0.0

    def take(self, gradient: PerSample) -> None:
        n, count = int(np.prod(gradient.shape)), len(self._into)
        size = max(1, BLOCK // n)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            block = gradient if size >= count else gradient.of(torch.arange(rows.start, rows.stop))
            transformed = self._transform(gradient.name, block.full().flatten(1))
            self.projector.add(self._into[rows], gradient.name, transformed)
        self._flops += gradient.flops() + self.projector.flops(n) * count

    def columns(self) -> Mapping[str, np.ndarray]:
        return {"vector": self._into.cpu().numpy()}

    def flops(self) -> float:
        return self._flops


class Directions:
    """Directions from a pass's state, KEY + parameter name -> [K, *shape], as tensors that are cached on the device."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        self._there: tuple[str, dict[str, Tensor]] = ("", {})
        self._single: dict[str, Tensor] = {}
        self.keys = {name.partition("/")[0] + "/" for name in arrays}

    def on(
        self, at: CheckpointView, key: str, made: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    ) -> Mapping[str, Tensor]:
        """The directions of one key, name -> [K, *shape]; only the last key's are cached. made(name, tensor): a
        transformation applied to each."""
        if self._there[0] != key:
            arrays = {name: self._arrays[key + name] for name in at.shapes if key + name in self._arrays}
            tensors = {name: torch.from_numpy(array).to(at.device, at.dtype) for name, array in arrays.items()}
            self._there = (key, {name: made(name, tensor) for name, tensor in tensors.items()})
        return self._there[1]

    def one(self, at: CheckpointView, name: str) -> Tensor:
        """A single array by its whole name."""
        if name not in self._single:
            self._single[name] = torch.from_numpy(self._arrays[name]).to(at.device, at.dtype)
        return self._single[name]

    def count(self, name: str) -> float:
        """The first entry of one of the state's arrays, such as a number of samples."""
        return float(self._arrays[name][0])

    def shares(self, count: str) -> np.ndarray:
        """The share of each of the K groups among the samples with a gradient, float64 [K]; count: the key of the
        counts in the state."""
        counts = self._arrays[min(self.keys) + count].astype(np.float64)
        return counts / counts.sum()

    def length(self) -> float:
        """The L2 norm over all parameters (and all K directions) together."""
        arrays = [array for array in self._arrays.values() if array.ndim > 1]
        return float(np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)))
