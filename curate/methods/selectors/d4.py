from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector, by_value
from curate.numerics.faiss_index import clusters, likeness_before, rows_of_clusters


@dataclass(frozen=True)
class D4(Selector):
    """Without near-duplicates, and then without what is most typical: de-duplication and diversification (D4).

    Formula: SemDeDup first. The vectors are clustered by k-means, the samples of a cluster ordered by falling distance
    from its centre, and each has m_j, the highest cosine with one before it; the `dedup` share of the candidates with
    the lowest m stays. Those that stay are clustered anew, and taken by falling distance from their new centres: what
    is nearest to one, a prototype of its cluster, is left out first. A budget above `dedup` keeps as many as it needs.

    Cost: k-means twice (2 N K D FLOPs an iteration, from at most 256 vectors a centre), and the pairs inside clusters,
    2 D each; no model. Memory: 4 D + 40 bytes a candidate and, as semdedup, more for the largest cluster.

    Departures: the paper has some 11,000 clusters of web documents; the number here grows with the candidates. Its
    vectors are an OPT-125M's last token's; any will do here. No value is looked at.

    Reference: Tirumala, Simig, Aghajanyan, Morcos, "D4: Improving LLM Pretraining via Document De-Duplication and
    Diversification", NeurIPS 2023, arXiv:2308.12284 (R_dedup = 0.75); the prototypes are Sorscher et al.'s, 2022.

    >>> vectors = [[1, 0], [1, 0.01], [0.8, 0.6], [0.6, 0.8]]
    >>> sorted(D4(clusters=1).select(Candidates.of(vectors=vectors), Budget("rows", 2), seed=0).tolist())
    [0, 3]
    """

    uses_vectors: ClassVar = True

    dedup: float = 0.75
    """Share of the candidates that are left by de-duplication, as in the paper."""
    clusters: int = 0
    """Clusters of k-means; 0: the square root of the candidates."""
    iterations: int = 20
    """Of k-means."""

    def __post_init__(self) -> None:
        if not 0 < self.dedup <= 1 or self.clusters < 0 or not 1 <= self.iterations <= 10_000:
            raise CurateError(
                f"d4 needs dedup above 0 and at most 1, clusters >= 0 and iterations from 1 to 10,000, not "
                f"dedup={self.dedup}, clusters={self.clusters}, iterations={self.iterations}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit = candidates.require_vectors(self.name)
        if not len(unit):
            return np.zeros(0, np.int64)
        cluster, cosine = self._clustered(candidates, np.arange(len(unit)), seed)
        alike = np.full(len(unit), -1.0, np.float32)
        for rows in rows_of_clusters(cluster, cosine):
            alike[rows] = likeness_before(unit, rows)
            candidates.charge(unit.shape[1] * float(len(rows)) ** 2)
        ranking = by_value(-alike.astype(np.float64))
        left = max(1, round(self.dedup * len(unit)), budget.fits(candidates.sizes[ranking]))
        stay = np.sort(ranking[:left])
        _, cosine = self._clustered(candidates, stay, seed + 1)
        ranking = stay[by_value(-cosine.astype(np.float64))]
        return ranking[: budget.fits(candidates.sizes[ranking])]

    def _clustered(self, candidates: Candidates, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each of some candidates, and its cosine with the centre."""
        unit = candidates.require_vectors(self.name)[rows]
        k = self.clusters or round(len(unit) ** 0.5)
        cluster, cosine, flops = clusters(unit, candidates.ids[rows], k, seed, self.iterations)
        candidates.charge(flops)
        return cluster, cosine
