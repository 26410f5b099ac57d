from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.selector import Budget, Candidates, Selector, highest


@dataclass(frozen=True)
class Top(Selector):
    """The highest values, until the budget is full.

    Formula: candidates by decreasing value, ties by id; the longest prefix of that ranking that fits.

    Cost: one sort; no FLOPs.

    Reference: none; what "top 5 %" means in LESS, RDS+ and most others.

    >>> Top().select(Candidates.of([2.0, 1.0, 3.0]), Budget("rows", 2), seed=0).tolist()
    [2, 0]
    """

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        return highest(candidates.require_values(self.name), candidates.sizes, budget)
