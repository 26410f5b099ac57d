from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.parameters import Pruner


@dataclass(frozen=True)
class Magnitude(Pruner):
    """Keeps the largest changes: the baseline every other pruning must beat.

    Formula, for every parameter of the model, with W0 before and W after training:

        worth = |W - W0|

    Cost: one pass over the weights on the CPU; no FLOPs are charged to the ledger. Bottleneck: reading them.

    Departures: none, as no paper is followed.

    Reference: none; magnitude pruning (Han et al., 2015, arXiv:1506.02626) of the update instead of the weights.

    >>> Magnitude().worth(np.array([1.0, 1.0, 1.0]), np.array([0.1, -0.3, 0.2])).tolist()
    [0.1, 0.3, 0.2]
    """

    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        return np.abs(update)
