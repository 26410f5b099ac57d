from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates, Selector, by_value
from curate.numerics.faiss_index import clusters, likeness_before, rows_of_clusters


@dataclass(frozen=True)
class Semdedup(Selector):
    """Drops near-duplicates: the samples least similar to any sample before them come first.

    Formula: the vectors are clustered by k-means; within a cluster the samples are ordered by `keep`, and sample j has

        m_j = max over i before j of  v_i . v_j          (-1 for the first)

    With `eps`, j is dropped where m_j > 1 - eps, even where the i it resembles was itself dropped, and of the rest the
    highest value is taken first (without --by, the lowest m). Without `eps` the lowest m are taken until the budget is
    spent: the paper's rule, with the eps that leaves that many.

    Cost: k-means (2 N K D FLOPs per iteration, from at most 256 vectors per centre), then the pairs inside clusters, 2
    D each; no model. Memory: 2 D + 40 bytes per candidate, 4 D for each vector k-means is fitted on, 6 D for each
    sample of the largest cluster, and up to 256 MiB of its cosines.

    Departures: the paper uses 50,000 clusters for its images; here the number grows with the number of candidates.

    Reference: Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication", 2023,
    arXiv:2303.09540, and its code (k-means of 100 iterations, the hardest kept).

    >>> candidates = Candidates.of(vectors=[[1, 0], [1, 0.01], [0, 1]])
    >>> Semdedup(clusters=1, eps=0.1).select(candidates, Budget("rows", 3), seed=0).tolist()
    [2, 0]
    """

    uses_vectors: ClassVar = True

    eps: float | None = None
    """A sample is dropped where its cosine with an earlier one is above 1 - eps; none: as the budget needs."""
    clusters: int = 0
    """Number of k-means clusters; duplicates are sought within each. 0: the square root of the number of candidates."""
    keep: Literal["hard", "easy", "random", "value"] = "hard"
    """Which duplicate stays: the farthest from the cluster's centre, the nearest, a random one, or the highest
    value."""
    iterations: int = 100
    """Iterations of k-means, as in the paper."""

    def __post_init__(self) -> None:
        if self.clusters < 0 or not 1 <= self.iterations <= 10_000 or not (self.eps is None or 0 <= self.eps <= 2):
            raise CurateError(
                f"semdedup needs clusters >= 0, iterations from 1 to 10,000 and eps from 0 to 2, not "
                f"clusters={self.clusters}, iterations={self.iterations}, eps={self.eps}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit = candidates.require_vectors(self.name)
        if not len(unit):
            return np.zeros(0, np.int64)
        k = self.clusters or round(len(unit) ** 0.5)
        cluster, cosine, flops = clusters(unit, candidates.ids, k, seed, self.iterations)
        candidates.charge(flops)
        likeness = np.full(len(unit), -1.0, np.float32)
        for rows in rows_of_clusters(cluster, self._order(candidates, cosine, seed)):
            likeness[rows] = likeness_before(unit, rows)
            candidates.charge(unit.shape[1] * float(len(rows)) ** 2)
        ranking = by_value(-likeness.astype(np.float64))
        if self.eps is not None:
            kept = likeness <= 1 - self.eps
            ranked = ranking if candidates.values is None else by_value(candidates.values)
            ranking = ranked[kept[ranked]]
        return ranking[: budget.fits(candidates.sizes[ranking])]

    def _order(self, candidates: Candidates, cosine: np.ndarray, seed: int) -> np.ndarray:
        """What the samples of a cluster are ordered by, the lowest first."""
        match self.keep:
            case "hard":
                return cosine
            case "easy":
                return -cosine
            case "random":
                return keyed_uniform(candidates.ids, seed, self.name)
            case "value":
                return -candidates.require_values(self.name)
