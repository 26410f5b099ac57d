from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.kinds.selector import Candidates, RankingSelector


@dataclass(frozen=True)
class Top(RankingSelector):
    """The highest values, until the budget is full.

    Formula: candidates by decreasing value, ties by id; the longest prefix of that ranking that fits.

    Cost: one sort; no FLOPs.

    Reference: none; what "top 5 %" means in LESS, RDS+ and most others.

    >>> from curate.kinds.selector import Budget
    >>> Top().select(Candidates.of([2.0, 1.0, 3.0]), Budget("rows", 2), seed=0).tolist()
    [2, 0]
    """

    def keys(self, candidates: Candidates, seed: int) -> np.ndarray:
        return candidates.require_values(self.name)
