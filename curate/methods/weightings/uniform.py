from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Uniform(Weighting):
    """Every sample has the same weight: plain training.

    Formula: w = 1. The weights of a manifest still apply: they multiply those of every weighting.

    Cost: none.

    Reference: the baseline of every reweighting paper. LinUpper's published snippet for "uniform" is softmax(h / r),
    which is uniform for a large r only; here it is the constant.

    >>> Uniform().update(Step(1, loss=np.array([3.0, 1.0])), {})[0].values.tolist()
    [1.0, 1.0]
    """

    needs: ClassVar = ("loss",)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.loss is not None
        return Weights(np.ones(len(step.loss))), state
