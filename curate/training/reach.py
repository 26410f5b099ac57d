"""How far a first-order prediction of the validation loss holds: along a direction, what it says and what happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curate.training.realised import Validation

SEEN = 1e-5  # the part of the loss that a predicted decrease has to be, a hundred times the rounding of float32
DISPLACEMENTS = tuple(float(f"{mantissa}e{power}") for power in range(-6, -1) for mantissa in (1, 3))


@dataclass(frozen=True)
class Reach:
    """displacements: ascending. ratio: of each, the decrease of the validation loss over the predicted one, float64;
    NaN where the predicted one is too small a part of the loss to be seen in float32."""

    displacements: Sequence[float]
    ratio: np.ndarray

    def within(self, low: float, high: float) -> float:
        """The largest displacement up to which every known ratio is between low and high; 0 if the first is not."""
        far = 0.0
        for displacement, ratio in zip(self.displacements, self.ratio, strict=True):
            if np.isnan(ratio):
                continue
            if not low <= ratio <= high:
                break
            far = displacement
        return far


def reach(
    validation: Validation,
    gradient: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    displacements: Sequence[float] = DISPLACEMENTS,
) -> Reach:
    """The validation loss at theta - t d against what its gradient v predicts, t <v, d>, for each displacement t.

    gradient, direction: v and d of every parameter, name -> its shape. The parameters are as before afterwards.
    """
    parameters = validation.model.parameters
    before = {name: p.detach().clone() for name, p in parameters.items()}
    slope = sum(float((gradient[name].double() * direction[name].double()).sum()) for name in parameters)
    start, ratios = validation.value(), list[float]()
    try:
        for t in displacements:
            if abs(t * slope) < SEEN * start:
                ratios.append(float("nan"))
                continue
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(before[name] - t * direction[name].to(p))
            ratios.append((start - validation.value()) / (t * slope))
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
    return Reach(displacements, np.array(ratios))
