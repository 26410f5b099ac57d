from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.fingerprint import keyed_uniform
from curate.method import Budget, Candidates, Selector
from curate.vectors import frontier, similarities

_POOL = 4096  # candidates that may be looked at again before all bounds are
_AT_ONCE = 64  # of them, at once


@dataclass(frozen=True)
class Facility(Selector):
    """Facility location: the samples that together are nearest to everything.

    Formula, with s(x, i) = (1 + v_x . v_i) / 2 and C the samples to be covered:

        f(S) = sum over x in C of  max over i in S of  s(x, i)
        next = argmax over i of  f(S + i) - f(S),    of equals the first id

    f is monotone and submodular, so the greedy choice reaches at least 63 % of the best. On unit vectors the Euclidean
    form (a constant minus the squared distance) differs by a factor and a constant, and chooses the same.

    Cost: 2 |C| D FLOPs for each gain that is looked at; no model. Lazy: a gain only shrinks as more are chosen, so one
    that was computed before bounds it, and those of the first round have a closed form. Exact, but for float32's
    rounding, where C is every candidate, which it is up to `covered` of them; beyond, C is a random `covered` of them,
    and f an estimate. Memory: 2 D + 12 bytes a candidate, 4 D + 1,000 bytes a covered one.

    Departures: Superfiltering.D takes the 10 % with the highest ifd first and then 2 % of all by this: --where.

    Reference: Mirzasoleiman et al., 2013, and Minoux, "Accelerated greedy algorithms for maximizing submodular set
    functions", 1978; for instruction data Li et al., "Superfiltering", ACL 2024, arXiv:2402.00530.

    >>> candidates = Candidates.of(vectors=[[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]])
    >>> Facility().select(candidates, Budget("rows", 2), seed=0).tolist()
    [2, 3]
    """

    uses_vectors: ClassVar = True

    covered: int = 20_000
    """Samples that are to be covered: all up to so many, beyond that a random choice of so many."""

    def __post_init__(self) -> None:
        if self.covered < 1:
            raise CurateError(f"facility's covered={self.covered}; a number of samples is 1 or more.")

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit, sizes = candidates.require_vectors(self.name), candidates.sizes.tolist()
        covered = unit[self._covered(candidates, seed)].astype(np.float32)
        total = covered.sum(0, dtype=np.float64)[None]
        bound = (len(covered) + similarities(unit, total)[:, 0]) / 2  # the first gains
        candidates.charge(2.0 * unit.size)
        nearest = np.zeros(len(covered), np.float32)  # s with the nearest chosen one
        chosen, spent = [], 0.0
        fresh = np.zeros(len(unit), np.int32)  # how many were chosen when the bound was computed
        while len(chosen) < len(unit):
            pool, outside = frontier(bound, _POOL)
            heap = [(-float(bound[p]), int(p)) for p in pool if bound[p] > -np.inf]
            heapq.heapify(heap)
            while heap and heap[0] <= outside:
                if fresh[heap[0][1]] == len(chosen):
                    best = heapq.heappop(heap)[1]
                    if not budget.pays(spent, sizes[best]):
                        return np.array(chosen, np.int64)
                    chosen.append(best)
                    spent += sizes[best]
                    bound[best] = -np.inf
                    np.maximum(nearest, _likeness(covered, unit[best][None])[:, 0], out=nearest)
                    candidates.charge(2.0 * covered.size)
                    continue
                stale = []
                while heap and len(stale) < _AT_ONCE and fresh[heap[0][1]] < len(chosen):
                    stale.append(heapq.heappop(heap)[1])
                likeness = _likeness(covered, unit[stale])
                candidates.charge(2.0 * covered.size * len(stale))
                gains = np.maximum(likeness - nearest[:, None], 0).sum(0, dtype=np.float64)
                bound[stale], fresh[stale] = gains, len(chosen)
                for gain, p in zip(gains, stale, strict=True):
                    heapq.heappush(heap, (-float(gain), p))
        return np.array(chosen, np.int64)

    def _covered(self, candidates: Candidates, seed: int) -> np.ndarray:
        """Positions of the samples to be covered, by id."""
        n = len(candidates.ids)
        if n <= self.covered:
            return np.arange(n)
        return np.sort(np.argsort(keyed_uniform(candidates.ids, seed, self.name))[: self.covered])


def _likeness(covered: np.ndarray, some: np.ndarray) -> np.ndarray:
    """s of every covered sample with some candidates, float32 [|C|, n]."""
    return (1 + covered @ some.astype(np.float32).T) / 2
