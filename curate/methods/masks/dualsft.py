from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.kinds.parameters import Mask, Parameters
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest, largest_of_each


@dataclass(frozen=True)
class Dualsft(Mask):
    """The parameters that matter most in a step of training, by the gradients that score the data (DualSFT).

    Formula, with q and G as the score `dualsft` has them (--score names one that was made):

        score_j = q_j G_j,    the budget's largest, by their sign: what hurts the validation loss is never worth much

    quota=global ranks all parameters together; quota=module gives each parameter (a matrix, a norm) its share of the
    budget by size.

    Cost: nothing but reading what the score has kept; no sample goes through the model. It holds the states of the
    score, about 12 bytes a parameter, and 8 bytes for each number that is chosen.

    Departures: the published script ranks by the absolute value, with quotas for layers and modules; the paper has
    signed scores of all parameters together, as here.

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
    """All parameters are ranked together, or each one's by themselves."""
    end: Literal["largest", "smallest"] = "largest"
    """smallest: the reverse, which should do worse than chance; to check that the order means something."""

    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        scores = given.scores
        assert scores is not None
        sign = 1.0 if self.end == "largest" else -1.0
        sizes = {name: int(np.prod(weight.shape)) for name, weight in given.weights.items()}
        if self.quota == "global":
            return largest(lambda name: sign * scores(name), sizes, given.budget)
        return largest_of_each(lambda name: sign * scores(name), sizes, apportion(sizes, given.budget))
