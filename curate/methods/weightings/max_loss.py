from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class MaxLoss(Weighting):
    """Chooses the samples with the highest loss.

    Formula: a_i = the mean loss of a candidate under the current model; the highest fill the batch.

    Cost: a forward pass over the candidates, 2N FLOPs per token; the chosen go through the model once more, 6N per
    token. Bottleneck: those passes.

    Departures: none. Wrong answers have high losses: check what share of a run's samples is corrupt before trusting it.

    Reference: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers" (2019); a baseline of online
    selection.

    >>> import numpy as np
    >>> MaxLoss().update(Step(1, loss=np.array([0.5, 3.0, 1.0]), room=2), {})[0].values.tolist()
    [0.0, 1.0, 1.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    chooses: ClassVar = True

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.loss is not None
        return Weights(weighing(highest(step.loss, step.room), len(step.loss)), step.loss), state
