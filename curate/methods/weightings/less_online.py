from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class LessOnline(Weighting):
    """Chooses samples by the alignment of their Adam step with the target, each independently (online LESS).

    Formula, with g_i a candidate's gradient, g_val that of the target's mean loss, and D the factor by which the next
    Adam step multiplies a gradient (see filter_then_weight):

        a_i = <g_i, D * g_val>;   the highest fill the batch

    Where no candidate aligns with the target the step trains on these all the same, which the run's metrics count
    (fallback).

    Cost: forward and backward over candidates and target batch, without weight gradients: 4N FLOPs per token; 2N per
    token of the chosen. Bottleneck: those passes.

    Departures: LESS compares Adam's whole update on a sample, m'/sqrt(v'), whose square root cannot be computed from
    the layers' factors; it normalises to length 1 and sums over several checkpoints. This is its form for one step,
    with the second moment frozen, as in comparisons of online methods. `curate score less` is LESS itself.

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
    """Adam's D on the target's gradient before projection; or the D of projected gradients."""

    def matching(self) -> Matching:
        return Matching(precondition=self.precondition)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None and step.products.aligned is not None
        values = step.products.aligned
        chosen = highest(values, step.room)
        fallback = not (values[chosen] > 0).any()
        return Weights(weighing(chosen, len(values)), values, fallback=fallback), state
