from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector, by_value
from curate.numerics.faiss_index import clusters, likeness_before, rows_of_clusters


@dataclass(frozen=True)
class D4(Selector):
    """Drops near-duplicates, then the most prototypical samples: de-duplication and diversification (D4).

    Formula: SemDeDup first. The vectors are clustered by k-means, the samples of a cluster ordered by decreasing
    distance from its centre, and m_j is the highest cosine of a sample with one before it; the `dedup` share of the
    candidates with the lowest m stays. These are clustered again, and taken by decreasing distance from their new
    centres: the samples nearest to a centre, the prototypes of its cluster, are dropped first. If the budget exceeds
    `dedup`, as many as it needs are kept.

    Cost: k-means twice (2 N K D FLOPs per iteration, from at most 256 vectors per centre), and the pairs inside
    clusters, 2 D each; no model. Memory: 4 D + 40 bytes per candidate and, as in `semdedup`, more for the largest
    cluster.

    Departures: the paper uses about 11,000 clusters of web documents; here the number grows with the number of
    candidates. Its vectors are OPT-125M's last-token embeddings; here any can be used. Values (--by) are ignored.

    Reference: Tirumala, Simig, Aghajanyan, Morcos, "D4: Improving LLM Pretraining via Document De-Duplication and
    Diversification", NeurIPS 2023, arXiv:2308.12284 (R_dedup = 0.75); the prototypes are Sorscher et al.'s, 2022.

    >>> vectors = [[1, 0], [1, 0.01], [0.8, 0.6], [0.6, 0.8]]
    >>> sorted(D4(clusters=1).select(Candidates.of(vectors=vectors), Budget("rows", 2), seed=0).tolist())
    [0, 3]
    """

    uses_vectors: ClassVar = True

    dedup: float = 0.75
    """Share of the candidates that de-duplication keeps, as in the paper."""
    clusters: int = 0
    """Number of k-means clusters; 0: the square root of the number of candidates."""
    iterations: int = 20
    """Iterations of k-means."""

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
        likeness = np.full(len(unit), -1.0, np.float32)
        for rows in rows_of_clusters(cluster, cosine):
            likeness[rows] = likeness_before(unit, rows)
            candidates.charge(unit.shape[1] * float(len(rows)) ** 2)
        ranking = by_value(-likeness.astype(np.float64))
        n_kept = max(1, round(self.dedup * len(unit)), budget.fits(candidates.sizes[ranking]))
        kept = np.sort(ranking[:n_kept])
        _, cosine = self._clustered(candidates, kept, seed + 1)
        ranking = kept[by_value(-cosine.astype(np.float64))]
        return ranking[: budget.fits(candidates.sizes[ranking])]

    def _clustered(self, candidates: Candidates, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each of these candidates, and its cosine with the centre."""
        unit = candidates.require_vectors(self.name)[rows]
        k = self.clusters or round(len(unit) ** 0.5)
        cluster, cosine, flops = clusters(unit, candidates.ids[rows], k, seed, self.iterations)
        candidates.charge(flops)
        return cluster, cosine
