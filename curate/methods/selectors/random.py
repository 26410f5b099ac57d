from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.hashing import keyed_uniform
from curate.kinds.selector import Candidates, RankingSelector


@dataclass(frozen=True)
class Random(RankingSelector):
    """A uniform draw without replacement: the baseline every selection has to beat.

    Formula: each candidate gets a uniform random number that depends only on the seed and its id; the largest win. So a
    larger budget contains the smaller one, and new data leaves the order of the old as it was.

    Cost: one sort; no FLOPs.

    Reference: none; permanent random numbers, as survey samplers use them (Ohlsson 1995).

    >>> from curate.kinds.selector import Budget
    >>> Random().select(Candidates.of([2.0, 1.0, 3.0]), Budget("rows", 2), seed=0).tolist()
    [1, 0]
    """

    def keys(self, candidates: Candidates, seed: int) -> np.ndarray:
        return keyed_uniform(candidates.ids, seed, "selector random")
