from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._gates import boltzmann, spread, strength


@dataclass(frozen=True)
class Linear(Weighting):
    """Weights a sample by its scaled loss: the harder the sample, the higher the weight.

    Formula, with l a sample's mean loss, min and max over the whole step (all processes and micro-batches):

        h = 2 (l - min) / (max - min) - 1      in [-1, 1]
        f = h
        w = B exp(f / r) / sum exp(f / r)      (their mean is 1)

    Cost: nothing extra where the step is one forward pass in each process. With gradient accumulation the losses of all
    micro-batches must be known before the first backward pass, so each goes through the model once more, 2N FLOPs per
    token, a separate phase in the ledger.

    Departures and choices: the GPT-2 repository calls it "upper", with f = (h + 1) / 2: the same at twice the r. Equal
    losses get equal weights. The authors use r = 100 for the first 2,000 steps (first_r, first_steps); a run shorter
    than that would be plain training, so first_steps is 0 here. Their loss is averaged over each sample and then over
    samples (--set reduction=sample); one of their trainers averages over tokens, the default here.

    Reference: Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (ICLR
    2025).

    >>> import numpy as np
    >>> w = Linear().update(Step(1, loss=np.array([1.0, 2.0, 3.0])), {})[0].values
    >>> (w / w.max()).round(3).tolist()
    [0.135, 0.368, 1.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)

    r: float = 1.0
    """Temperature: a smaller r follows the loss more closely, a large one is nearly uniform."""
    first_r: float = 100.0
    """r during the first steps."""
    first_steps: int = 0
    """Number of steps that use first_r."""

    def __post_init__(self) -> None:
        require("linear.r and linear.first_r", self.r > 0 and self.first_r > 0, "above 0")

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.loss is not None
        h = spread(step.loss)
        weights = boltzmann(h, strength(step.number, self.r, self.first_r, self.first_steps))
        return Weights(weights, step.loss), state
