from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class Dualsft(Mask):
    """The parameters that matter most in a training step, by the gradients that score the data (DualSFT).

    Formula, with q and G as in the score `dualsft` (--score names one that was computed):

        score_j = q_j G_j,    the budget's largest, signed: what hurts the validation loss ranks low

    quota=global ranks all parameters together; quota=module gives each parameter tensor (a matrix, a norm) its share of
    the budget by size.

    Cost: only reading what the score has stored; no sample goes through the model. Memory: the score's state, about 12
    bytes per parameter, and 8 bytes per chosen parameter.

    Departures: the published script ranks by absolute value, with quotas per layer and module; the paper ranks signed
    scores of all parameters together, as here.

    Reference: DualSFT, arXiv:2605.06166, Equation 7 and Section 5.1.

    >>> import numpy as np
    >>> values = {"a": np.array([[3.0, -9.0], [1.0, 0.0]]), "b": np.array([2.0, 2.0])}
    >>> chosen = Dualsft().init(Parameters(values, 2, values.__getitem__))
    >>> {name: places.tolist() for name, places in chosen.items()}
    {'a': [0], 'b': [0]}
    >>> chosen = Dualsft(end="smallest").init(Parameters(values, 2, values.__getitem__))
    >>> {name: places.tolist() for name, places in chosen.items()}
    {'a': [1, 3], 'b': []}
    """

    uses_score: ClassVar = True

    quota: Literal["global", "module"] = "global"
    """Whether all parameters are ranked together, or those of each tensor by themselves."""
    end: Literal["largest", "smallest"] = "largest"
    """smallest: the reverse, which should do worse than random; a check that the ranking means something."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        scores = given.scores
        assert scores is not None
        sign = 1.0 if self.end == "largest" else -1.0
        sizes = {name: int(np.prod(weight.shape)) for name, weight in given.weights.items()}
        if self.quota == "global":
            return largest(lambda name: sign * scores(name), sizes, given.budget)
        return largest_of_each(lambda name: sign * scores(name), sizes, apportion(sizes, given.budget))
