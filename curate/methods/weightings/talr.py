from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Talr(Weighting):
    """Down-weights the tokens that the model finds hard now, relative to each step's median loss (TALR).

    Formula, with l the loss of a supervised token, and p = exp(-l) its probability:

        w = max(exp(-l / tau), floor) = max(p^(1 / tau), floor)
        tau = the median over the whole step's samples of each one's mean loss    (median=samples)
              the median over all of its tokens of their losses                   (median=tokens)
        loss = sum of w l / (all tokens of the step)

    unit=sample: a sample's tokens share one weight, with its mean loss as l; this is what `curate weigh` can give, from
    a column. Up to the floor and a factor, the weights are those on the simplex that minimise  sum of w l + tau sum of
    w log w. No gradient goes through them.

    Cost: nothing extra; with gradient accumulation one more forward pass, as for every weighting that needs the whole
    step.

    Departures and choices: known from summaries and reviews of the paper, as its text and code were not found: hard
    tokens weigh less in closed form, tau is recomputed for every batch as a median of its losses, and 1e-6 is the
    recommended learning rate. They differ on whether the median is over tokens or over samples' means; an independent
    implementation (shankarp8/distillation-retains-capabilities) has the latter, divides by the number of tokens, and
    has the floor 0.01. Not known: the paper's floor, and whether w is normalised to sum to 1 before it (here not).

    Reference: Lin et al., "SFT Doesn't Always Hurt General Capabilities: Revisiting Domain-Specific Fine-Tuning in
    LLMs" (Token-Adaptive Loss Reweighting), 2025, arXiv:2509.20758.

    >>> step = Step(1, np.array([1.0, 2.0]), counts=np.array([2, 1]), token_loss=np.array([0.0, 2.0, 2.0]))
    >>> Talr().update(step, {})[0].values.round(3).tolist()  # tau = 1.5
    [1.0, 0.264, 0.264]
    >>> Talr(unit="sample").update(Step(1, loss=np.array([1.0, 2.0, 80.0])), {})[0].values.round(3).tolist()
    [0.607, 0.368, 0.01]
    """

    version: ClassVar = 2  # 1 weighted samples
    scope: ClassVar = "batch"
    needs: ClassVar = ("loss", "token_loss")

    floor: float = 0.01
    """No weight is below this; our choice, as the paper's value is not known."""
    unit: Literal["token", "sample"] = "token"
    """What has a weight of its own: every token, as the method's name says, or every sample."""
    median: Literal["samples", "tokens"] = "samples"
    """Of what tau is the median: of samples' mean losses, or of tokens' losses."""

    def __post_init__(self) -> None:
        require(f"talr.floor={self.floor}", 0 <= self.floor <= 1, "between 0 and 1")
        if (self.unit, self.median) == ("sample", "samples"):
            object.__setattr__(self, "needs", ("loss",))  # so that a column will do, as for `curate weigh`

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        losses, of_tau = step.loss, step.loss
        if self.unit == "token":
            losses = step.token_loss
        if self.median == "tokens":
            of_tau = step.token_loss
        assert losses is not None and of_tau is not None
        tau = max(float(np.median(of_tau)) if len(of_tau) else 1.0, np.finfo(np.float64).tiny)
        return Weights(np.maximum(np.exp(-losses / tau), self.floor), step.loss), state
