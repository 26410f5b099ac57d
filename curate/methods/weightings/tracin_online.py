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
    """Chooses the samples whose gradient lies along the target's, each by itself (TracIn within the step).

    Formula, with g_i a candidate's gradient and g_val that of the target's mean loss:

        a_i = <g_i, g_val>;   as many of the highest as a batch has room for

    It is TracIn at one checkpoint, the model as it is; and each candidate's first-order Shapley value.

    Where no candidate goes the target's way these are learnt all the same, which the run's metrics count (fallback).

    Cost: forward and backward over candidates and target batch, without the gradients of matrices: 4N FLOPs a token;
    2N a token of the chosen. Limit: that of the passes.

    Departures and choices: the learning rate is the same for all, so it is left out. hessian=kfac is the appendix's
    second-order score of Filter-then-Weight,  <g_i, H^-1 g_val>  with a Kronecker-factored curvature H of candidates in
    the projection's numbers: how the paper computes its factors could not be checked.

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

    hessian: Literal["identity", "kfac"] = "identity"
    """H: the identity, or a Kronecker-factored curvature, whose inverse stands between the gradients."""
    damping: float = 0.1
    """Added to the curvature's factors, times their mean diagonals; no published value."""

    def __post_init__(self) -> None:
        require(f"tracin_online.damping={self.damping}", self.damping > 0, "above 0")

    def matching(self) -> Matching:
        return Matching(curvature="inverse" if self.hessian == "kfac" else "none", damping=self.damping)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None
        values = step.products.influence if self.hessian == "kfac" else step.products.aligned
        assert values is not None
        chosen = highest(values, step.room)
        fallback = not (values[chosen] > 0).any()
        return Weights(weighing(chosen, len(values)), values, fallback=fallback), state
