from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates, Selector
from curate.methods.selectors._budget_shares import fill
from curate.numerics.faiss_index import clusters, rows_of_clusters


@dataclass(frozen=True)
class KmeansQuota(Selector):
    """Samples from every cluster: k-means over the vectors, each cluster with its share of the budget.

    Formula: spherical k-means; cluster c gets floor(budget * share_c / sum of shares), the rows lost to rounding going
    to the largest remainders, with share_c its size (`quota=proportional`) or 1 (`equal`); within a cluster the highest
    value comes first, or the nearest to its centre. What a cluster cannot fill is split again among those that can.

    Cost: k-means (2 N K D FLOPs per iteration, from at most 256 vectors per centre), and one more product to assign; no
    model. Memory: 2 D + 40 bytes per candidate, 4 D for each vector k-means is fitted on.

    Departures: the paper draws inside a cluster in proportion to the value; `within=random` draws uniformly.

    Reference: Yu et al., "Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement", 2024,
    arXiv:2409.11378 (k-means sampling: closest, random, by quality). Cherry LLM chooses its first samples this way too.

    >>> candidates = Candidates.of([1.0, 2.0, 3.0, 4.0], vectors=[[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> sorted(KmeansQuota(clusters=2).select(candidates, Budget("rows", 2), seed=0).tolist())
    [1, 3]
    """

    uses_vectors: ClassVar = True

    clusters: int = 0
    """Number of k-means clusters; 0: the square root of the number of candidates."""
    quota: Literal["proportional", "equal"] = "proportional"
    """A cluster's share of the budget: in proportion to its candidates' sizes, or the same for all."""
    within: Literal["auto", "value", "closest", "random"] = "auto"
    """Which samples of a cluster come first: highest value, nearest to the centre, random; auto: by value where --by is
    given, else the nearest."""
    iterations: int = 20
    """Iterations of k-means."""

    def __post_init__(self) -> None:
        if self.clusters < 0 or not 1 <= self.iterations <= 10_000:
            raise CurateError(
                f"kmeans_quota needs clusters >= 0 and iterations from 1 to 10,000, not clusters={self.clusters}, "
                f"iterations={self.iterations}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit = candidates.require_vectors(self.name)
        if not len(unit):
            return np.zeros(0, np.int64)
        k = self.clusters or round(len(unit) ** 0.5)
        cluster, cosine, flops = clusters(unit, candidates.ids, k, seed, self.iterations)
        candidates.charge(flops)
        worth = self._worth(candidates, cosine, seed)
        ranked = {f"{i:09d}": rows for i, rows in enumerate(rows_of_clusters(cluster, -worth))}
        proportional = self.quota == "proportional"
        shares = {c: float(candidates.sizes[rows].sum()) if proportional else 1.0 for c, rows in ranked.items()}
        picked = np.concatenate(list(fill(ranked, shares, candidates.sizes, budget).values()))
        return picked[np.lexsort((picked, -worth[picked]))]

    def _worth(self, candidates: Candidates, cosine: np.ndarray, seed: int) -> np.ndarray:
        if self.within == "value" or (self.within == "auto" and candidates.values is not None):
            return candidates.require_values(self.name)
        return keyed_uniform(candidates.ids, seed, self.name) if self.within == "random" else cosine
