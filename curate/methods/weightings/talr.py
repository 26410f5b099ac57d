from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Talr(Weighting):
    """Up-weights what the model finds easy now, relative to each step's median loss (TALR).

    Formula, with l a sample's mean loss:

        w = max(exp(-l / tau), floor),   tau = the median of l over the whole step

    Up to the floor and a factor, these are the weights on the simplex that minimise  sum of w l + tau sum of w log w.

    Cost: nothing extra; with gradient accumulation one more forward pass, as for every weighting that needs the whole
    step.

    Departures and choices: the sources differ on whether the median is over tokens or over samples' means (here the
    latter) and do not say whether w is normalised to sum to 1 before the floor (here not). The paper does not give the
    floor's value. They train with a small learning rate, 1e-6.

    Reference: "SFT Doesn't Always Hurt General Capabilities: Revisiting Domain-Specific Fine-Tuning in LLMs"
    (Token-Adaptive Loss Reweighting), 2025.

    >>> Talr().update(Step(1, loss=np.array([1.0, 2.0, 80.0])), {})[0].values.round(3).tolist()
    [0.607, 0.368, 0.01]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)

    floor: float = 0.01
    """No weight is below this; our choice, as the paper's value is not known."""

    def __post_init__(self) -> None:
        require(f"talr.floor={self.floor}", 0 <= self.floor <= 1, "between 0 and 1")

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.loss is not None
        tau = max(float(np.median(step.loss)) if len(step.loss) else 1.0, np.finfo(np.float64).tiny)
        return Weights(np.maximum(np.exp(-step.loss / tau), self.floor), step.loss), state
