from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.parameters import Pruner


@dataclass(frozen=True)
class Fapm(Pruner):
    """Keeps changes that are large, but small relative to the weight they change, to forget less (FAPM).

    Formula, for every element of a matrix, with W0 before and W after training, D = W - W0:

        worth = |D| - mean|W0| |D| / |W0|

    the mean being over the matrix; for norms and biases, which are not matrices, worth = |D|. It is the importance of a
    change: the lowest are pruned. An element whose weight is below the mean has a negative one, the lower the more it
    has changed. Where W0 is 0 and has changed it is minus infinity: that element is pruned first.

    Cost: one pass over the weights on the CPU; no FLOPs are charged to the ledger. Bottleneck: reading them.

    Departures: implemented from a secondary description. The paper prunes up to 90 % of an update and gives no default;
    the rule for parameters that are not matrices is our choice: for a constant one, as norms are at initialisation, the
    formula does not distinguish changes.

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
