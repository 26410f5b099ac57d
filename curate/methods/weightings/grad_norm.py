from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class GradNorm(Weighting):
    """Chooses the samples with the largest gradient norms.

    Formula: a_i = |g_i|, over the layers that are compared; the highest fill the batch.

    Cost: forward and backward over the candidates without weight gradients: 4N FLOPs per token; 2N per token of the
    chosen. Bottleneck: those passes.

    Departures: norms are those of projected gradients (--set projection; 0: exact). Katharopoulos and Fleuret sample in
    proportion to them, with weights that keep the mean gradient unbiased; the usual baseline takes the largest.

    Reference: Katharopoulos and Fleuret, "Not All Samples Are Created Equal" (ICML 2018); a baseline of online
    selection.

    >>> from curate.kinds.signals import Products
    >>> GradNorm().update(Step(1, products=Products(np.diag([4.0, 9.0, 1.0])), room=1), {})[0].values.tolist()
    [0.0, 1.0, 0.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    chooses: ClassVar = True

    def matching(self) -> Matching:
        return Matching(target=False)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None
        lengths = np.sqrt(np.diagonal(step.products.gram).clip(min=0))
        return Weights(weighing(highest(lengths, step.room), len(lengths)), lengths), state
