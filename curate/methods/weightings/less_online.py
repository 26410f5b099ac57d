from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class LessOnline(Weighting):
    """Chooses the samples whose Adam step goes the target's way, each by itself (LESS within the step).

    Formula, with g_i a candidate's gradient, g_val that of the target's mean loss, and D by which the next Adam step
    multiplies a gradient (see filter_then_weight):

        a_i = <g_i, D * g_val>;   as many of the highest as a batch has room for

    Where no candidate goes the target's way these are learnt all the same, which the run's metrics count (fallback).

    Cost: forward and backward over candidates and target batch, without the gradients of matrices: 4N FLOPs a token;
    2N a token of the chosen. Limit: that of the passes.

    Departures: LESS compares Adam's whole update of a sample, m'/sqrt(v'), whose square root no product of factors can
    give; its lengths are made 1, and several checkpoints are summed. This is its form for one step, with the second
    moment frozen: what is left of it in comparisons of online methods. `curate score less` is LESS itself.

    Reference: Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024), as adapted in
    Filter-then-Weight's comparison.

    >>> import numpy as np
    >>> from curate.kinds.signals import Products
    >>> products = Products(np.eye(3), np.array([0.9, -0.8, 0.1]), 1.0)
    >>> LessOnline().update(Step(1, products=products, room=1), {})[0].values.tolist()
    [1.0, 0.0, 0.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    uses_target: ClassVar = True
    chooses: ClassVar = True

    precondition: Literal["before", "projected"] = "before"
    """Adam's D on the target's gradient before it is projected; or D of projected gradients."""

    def matching(self) -> Matching:
        return Matching(precondition=self.precondition)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None and step.products.aligned is not None
        values = step.products.aligned
        chosen = highest(values, step.room)
        fallback = not (values[chosen] > 0).any()
        return Weights(weighing(chosen, len(values)), values, fallback=fallback), state
