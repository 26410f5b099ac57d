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
    """Chooses the samples with the longest gradients.

    Formula: a_i = |g_i|, of the layers that are compared; as many of the highest as a batch has room for.

    Cost: forward and backward over the candidates without the gradients of matrices: 4N FLOPs a token; 2N a token of
    the chosen. Limit: that of the passes.

    Departures: lengths are those of projected gradients (--set projection; 0: exact). Katharopoulos and Fleuret draw by
    them, with weights that keep the mean gradient; a comparison's baseline takes the longest.

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
