from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import highest, weighing


@dataclass(frozen=True)
class RhoOnline(Weighting):
    """Chooses the samples whose loss can still be reduced: RHO's reducible holdout loss.

    Formula, with l the mean loss of a candidate under the current model, and l0 its irreducible loss:

        a_i = l_i - l0_i;   the highest fill the batch

    l0 is a column (--by nll_holdout_nll), ideally from a model trained on holdout data of the kind that is wanted.
    Without one it is the loss under the model that training starts from, so a_i is how much training has made it worse.

    Cost: a forward pass over the candidates, 2N FLOPs per token; the chosen go through the model once more, 6N per
    token. Without a column one more forward pass over the training set. Bottleneck: those passes.

    Departures: none.

    Reference: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
    Learnt" (ICML 2022).

    >>> import numpy as np
    >>> step = Step(1, loss=np.array([0.5, 3.0, 1.0]), column=np.array([0.4, 2.9, 0.2]), room=1)
    >>> RhoOnline().update(step, {})[0].values.tolist()
    [0.0, 0.0, 1.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss", "base_loss")
    chooses: ClassVar = True

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.loss is not None and step.column is not None
        reducible = step.loss - step.column
        return Weights(weighing(highest(reducible, step.room), len(reducible)), reducible), state
