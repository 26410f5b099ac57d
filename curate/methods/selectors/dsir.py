from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Candidates, RankingSelector


@dataclass(frozen=True)
class Dsir(RankingSelector):
    """A draw without replacement in proportion to exp(value): Gumbel top-k over log weights.

    Formula: key_i = value_i / temperature + G_i with G_i = -log(-log u_i), u_i uniform by (seed, id); the largest
    keys win. With a budget of one row, candidate i is chosen with probability exp(value_i) / sum exp(value).

    Cost: one sort; no FLOPs. Values are log weights: the score `dsir` as it is.

    Reference: Xie et al., NeurIPS 2023, arXiv:2302.03169, Section 3 (importance resampling); Kool, van Hoof,
    Welling, ICML 2019, arXiv:1903.06059 (Gumbel top-k).

    >>> from curate.kinds.selector import Budget
    >>> Dsir().select(Candidates.of([2.0, 1.0, 3.0]), Budget("rows", 2), seed=0).tolist()
    [2, 0]
    """

    temperature: float = 1.0
    """Above 1 the draw is closer to uniform, towards 0 closer to `top`; the paper uses 1."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise CurateError(f"dsir's temperature is above 0, not {self.temperature}; for the highest values use top.")

    def keys(self, candidates: Candidates, seed: int) -> np.ndarray:
        values = candidates.require_values(self.name) / self.temperature
        gumbel = -np.log(-np.log(keyed_uniform(candidates.ids, seed, "selector dsir")))
        return values + gumbel
