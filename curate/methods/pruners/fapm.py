from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.parameters import Pruner


@dataclass(frozen=True)
class Fapm(Pruner):
    """The changes that are large and small beside the weight they change stay, so that less is forgotten (FAPM).

    Formula, of every number of a matrix, with W0 before and W after training, D = W - W0:

        worth = |D| - mean|W0| |D| / |W0|

    the mean being over the matrix; of norms and biases, which are none, worth = |D|. A number whose weight is under the
    mean has a worth below 0, and the lower the more it has changed. Of a W0 of 0 that has changed it is minus infinity:
    it goes first.

    Cost: one pass over the weights on the processor, no FLOPs of the ledger's. Limit: reading them.

    Departures: known from a secondary account. The paper prunes up to 90 % of an update and names no default; what
    becomes of parameters that are no matrices is chosen here: of one that is constant, as norms begin, the formula says
    nothing.

    Reference: "Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware Pruning" (FAPM), EMNLP
    2025.

    >>> Fapm().worth(np.array([[1.0, 4.0, 1.0]]), np.array([[0.2, 0.2, 0.0]])).round(2).tolist()
    [[-0.2, 0.1, 0.0]]
    """

    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        change, weight = np.abs(update), np.abs(before)
        if before.ndim < 2:
            return change
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(change > 0, change / weight, 0.0)
            return np.where(np.isinf(relative), -np.inf, change - weight.mean() * relative)
