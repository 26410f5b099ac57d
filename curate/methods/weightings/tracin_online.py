from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class TracinOnline(Weighting):
    """Chooses samples by their gradient's inner product with the target's, each independently (online TracIn).

    Formula, with g_i a candidate's gradient and g_val that of the target's mean loss:

        a_i = <g_i, g_val>;   the highest fill the batch

    It is TracIn at one checkpoint, the current model; and each candidate's first-order Shapley value.

    Where no candidate aligns with the target the step trains on these all the same, which the run's metrics count
    (fallback).

    Cost: forward and backward over candidates and target batch, without weight gradients: 4N FLOPs per token; 2N per
    token of the chosen. Bottleneck: those passes.

    Departures and choices: the learning rate is the same for all, so it is left out. hessian=kfac_target and
    hessian=kfac_candidates are ours: the influence  <g_i, H^-1 g_val>  with a damped Kronecker-factored curvature H of
    the target's batch or of the candidates, in the projected space. (Filter-then-Weight's appendix multiplies by H
    itself: greats with form=shapley and hessian=kfac_target.)

    Reference: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent" (NeurIPS 2020).

    >>> import numpy as np
    >>> from curate.kinds.signals import Products
    >>> products = Products(np.eye(3), np.array([0.9, -0.8, 0.1]), 1.0)
    >>> TracinOnline().update(Step(1, products=products, room=2), {})[0].values.tolist()
    [1.0, 0.0, 1.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    uses_target: ClassVar = True
    chooses: ClassVar = True

    hessian: Literal["identity", "kfac_target", "kfac_candidates"] = "identity"
    """H, whose inverse is applied between the gradients: the identity, or a Kronecker-factored curvature."""
    damping: float = 0.1
    """Added to the curvature's factors, as a multiple of their mean diagonals; no published value."""

    def __post_init__(self) -> None:
        require(f"tracin_online.damping={self.damping}", self.damping > 0, "above 0")

    def matching(self) -> Matching:
        return Matching(
            curvature="none" if self.hessian == "identity" else "inverse",
            factors="target" if self.hessian == "kfac_target" else "candidates",
            damping=self.damping,
        )

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None
        values = step.products.aligned if self.hessian == "identity" else step.products.influence
        assert values is not None
        chosen = highest(values, step.room)
        fallback = not (values[chosen] > 0).any()
        return Weights(weighing(chosen, len(values)), values, fallback=fallback), state
