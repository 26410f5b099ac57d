from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest


@dataclass(frozen=True)
class RhoWeight(Weighting):
    """Trains only on the tokens that a reference model knows and this one does not yet (Rho-1).

    Formula, for every supervised token of a step, with l its loss now and l0 its loss under the reference:

        excess = l - l0
        w = 1 for the `share` of the step's tokens with the highest excess, of equals the first; else 0
        loss = sum of w (token loss) / sum of w

    The reference is --reference M, ideally a model trained on a little of the data that is wanted; without one it is
    the model that training starts from, and excess is how much training has made a token worse.

    Cost: one forward pass of the reference over the training set before the first step, 2N FLOPs per token; 8 bytes per
    token are kept. With gradient accumulation one more forward pass per step, as for all weightings that need the whole
    step.

    Departures: none known; the paper pretrains, so there every token is supervised.

    Reference: Lin, Gou et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024, arXiv:2404.07965, Equations 3
    to 5 (selective language modelling).

    >>> step = Step(1, counts=np.array([3, 1]), token_loss=np.array([3.0, 3.0, 0.5, 0.1]),
    ...             base_token_loss=np.array([2.9, 0.4, 0.1, 0.1]))
    >>> RhoWeight(share=0.5).update(step, {})[0].values.tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("token_loss", "base_token_loss")

    share: float = 0.6
    """Share of a step's tokens that are trained on; the paper's for its model of 1.1B parameters (0.7 for 7B)."""
    normalize: Literal["none", "mean1"] = "mean1"
    """mean1: the loss is averaged over the tokens that are trained on, as in the paper; none: over all."""

    def __post_init__(self) -> None:
        require(f"rho_weight.share={self.share}", 0 < self.share <= 1, "above 0 and at most 1")

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.token_loss is not None and step.base_token_loss is not None
        excess = step.token_loss - step.base_token_loss
        weights = np.zeros(len(excess))
        weights[highest(excess, int(np.ceil(self.share * len(excess))))] = 1.0
        return Weights(weights), state
