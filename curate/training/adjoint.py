"""An optimizer step backwards: from the derivatives of a later loss with respect to what the step left behind, those
with respect to what it began from, and to the gradient it was given.

With g the step's gradient, c the norm it is clipped to and t AdamW's count of steps, the step is

    h = min(1, c / (|g| + 1e-6)) g                                       clipping
    m' = b1 m + (1 - b1) h        v' = b2 v + (1 - b2) h^2               the moments
    w' = (1 - lr decay) w - lr / (1 - b1^t) m' / (sqrt(v' / (1 - b2^t)) + eps)

Everything but |g| is elementwise, so its derivatives are written down here rather than found by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BESIDE_NORM = 1e-6  # torch's clip_grad_norm_ adds it to the norm


@dataclass(frozen=True)
class Taken:
    """A step that was taken: per parameter name, in its shape, the `gradient` that AdamW was given (clipped), and the
    moments `mean` and `square` that it left. count: AdamW's number of steps, this one included. norm: the gradient's
    before clipping. lr: the learning rate."""

    gradient: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    count: float
    norm: float
    lr: float


@dataclass(frozen=True)
class Adjoint:
    """The derivatives of a later loss with respect to the parameters and the moments, each by parameter name and in its
    shape."""

    weight: dict[str, Tensor]
    mean: dict[str, Tensor]
    square: dict[str, Tensor]

    @classmethod
    def of(cls, gradient: dict[str, Tensor]) -> Adjoint:
        """After the last step, where the moments no longer matter. gradient: of the loss."""
        zeros = ({name: torch.zeros_like(g) for name, g in gradient.items()} for _ in range(2))
        return cls(gradient, *zeros)

    def undo(self, step: Taken, groups: Mapping[str, Mapping[str, Any]], clip: float) -> dict[str, Tensor]:
        """Become the derivatives with respect to what the step began from, its gradient held fixed; returns those with
        respect to that gradient, before clipping. groups: AdamW's settings of each parameter. clip: 0 for none."""
        given = {name: self._through_adamw(name, step, group) for name, group in groups.items()}
        return through_clipping(given, step.gradient, step.norm, clip)

    def _through_adamw(self, name: str, step: Taken, group: Mapping[str, Any]) -> Tensor:
        after, mean, square = self.weight[name], step.mean[name], step.square[name]
        (beta1, beta2), gradient = group["betas"], step.gradient[name]
        corrected = 1 - beta2**step.count
        root = (square / corrected).sqrt()
        divisor = root + group["eps"]
        by_ratio = after * (-step.lr / (1 - beta1**step.count))
        by_mean = self.mean[name] + by_ratio / divisor
        # The root's derivative is infinite at v' = 0. That is where every gradient so far has been 0 (rows of an
        # embedding whose tokens have not occurred), so m' = 0, and to first order the ratio is m' / eps whatever v' is.
        by_root = -by_ratio * mean / divisor**2
        by_square = self.square[name] + torch.where(square > 0, by_root / (2 * corrected * root), 0)
        self.weight[name] = after * (1 - step.lr * group["weight_decay"])
        self.mean[name], self.square[name] = beta1 * by_mean, beta2 * by_square
        return (1 - beta1) * by_mean + 2 * (1 - beta2) * gradient * by_square


def through_clipping(
    given: Mapping[str, Tensor], clipped: Mapping[str, Tensor], norm: float, clip: float
) -> dict[str, Tensor]:
    """From the derivatives with respect to a clipped gradient to those with respect to it before. norm: before."""
    factor = clip / (norm + _BESIDE_NORM)
    if not clip or factor >= 1:
        return dict(given)
    along = sum(float((by * clipped[name]).sum(dtype=torch.float64)) for name, by in given.items())
    return {name: factor * by - (along / (clip * norm)) * clipped[name] for name, by in given.items()}
