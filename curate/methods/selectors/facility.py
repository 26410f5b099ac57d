from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates, Selector
from curate.kinds.vectors import similarities

_AT_ONCE = 64  # candidates whose gains are recomputed at once
_HELD = 1 << 24  # cosines in memory at once


@dataclass(frozen=True)
class Facility(Selector):
    """Facility location: the set of samples that best covers all candidates.

    Formula, with s(x, i) = (1 + v_x . v_i) / 2 and C the samples to be covered:

        f(S) = sum over x in C of  max over i in S of  s(x, i)
        next = argmax over i of  f(S + i) - f(S),    ties: first id

    f is monotone and submodular, so the greedy choice reaches at least 63 % of the optimum. On unit vectors the
    Euclidean form (a constant minus the squared distance) differs by a factor and a constant, and chooses the same
    samples.

    Cost: 2 |C| D FLOPs for each gain computed; no model. With up to `covered` candidates C is all of them and the
    choice is lazy: a gain only shrinks as more are chosen, so one computed earlier is an upper bound, and those of the
    first round have a closed form; exact, in float64. With more, C is a random subset of size `covered`, f an estimate,
    and each of k choices is made among (N / k) ln(1 / epsilon) random candidates, so that N ln(1 / epsilon) gains are
    computed in all, and 63 % minus epsilon of the optimum is reached in expectation. Memory: 2 D + 60 bytes per
    candidate, 8 D + 8 bytes for each of C, and up to 128 MiB of cosines.

    Departures: Superfiltering.D first keeps the 10 % with the highest ifd, and then 2 % of all by this method; use
    --where for the first step.

    Reference: Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978; of many
    candidates Mirzasoleiman et al., "Lazier Than Lazy Greedy", AAAI 2015, arXiv:1409.7938; for instruction data Li et
    al., "Superfiltering", ACL 2024, arXiv:2402.00530.

    >>> candidates = Candidates.of(vectors=[[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]])
    >>> Facility().select(candidates, Budget("rows", 2), seed=0).tolist()
    [2, 3]
    """

    uses_vectors: ClassVar = True

    covered: int = 10_000
    """Number of samples to cover: up to this many, all candidates; beyond that, a random subset of this size."""
    epsilon: float = 0.1
    """Beyond `covered` candidates: what may be lost by considering only some of them for each choice."""

    def __post_init__(self) -> None:
        if self.covered < 1 or not 0 < self.epsilon < 1:
            raise CurateError(
                f"facility needs covered >= 1 and epsilon between 0 and 1, not covered={self.covered}, "
                f"epsilon={self.epsilon}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit = candidates.require_vectors(self.name)
        if len(unit) <= self.covered:
            return self._lazily(candidates, unit, budget)
        return self._among_some(candidates, unit, budget, seed)

    def _lazily(self, candidates: Candidates, unit: np.ndarray, budget: Budget) -> np.ndarray:
        cover, sizes = _Cover(unit.astype(np.float64), candidates), candidates.sizes.tolist()
        bound = cover.first_gains(unit)
        heap = [(-gain, i) for i, gain in enumerate(bound.tolist())]
        heapq.heapify(heap)
        fresh = np.zeros(len(unit), np.int64)  # how many were chosen when the bound was computed
        chosen, spent = [], 0.0
        while heap:
            if fresh[heap[0][1]] == len(chosen):
                best = heapq.heappop(heap)[1]
                if not budget.pays(spent, sizes[best]):
                    break
                chosen.append(best)
                spent += sizes[best]
                cover.add(unit[best])
                continue
            stale = []
            while heap and len(stale) < _AT_ONCE and fresh[heap[0][1]] < len(chosen):
                stale.append(heapq.heappop(heap)[1])
            fresh[stale] = len(chosen)
            for gain, i in zip(cover.gains(unit[stale]).tolist(), stale, strict=True):
                heapq.heappush(heap, (-gain, i))
        return np.array(chosen, np.int64)

    def _among_some(self, candidates: Candidates, unit: np.ndarray, budget: Budget, seed: int) -> np.ndarray:
        noise, sizes = keyed_uniform(candidates.ids, seed, self.name), candidates.sizes
        cover = _Cover(unit[np.sort(np.argsort(noise)[: self.covered])].astype(np.float32), candidates)
        n_expected = max(1.0, budget.amount / float(sizes.mean()))
        sample_size = int(len(unit) / min(n_expected, len(unit)) * -np.log(self.epsilon)) + 1
        free, chosen, spent = np.ones(len(unit), bool), [], 0.0
        drawn, rounds = np.zeros(0, np.int64), 0
        while len(chosen) < len(unit):
            if len(drawn) < sample_size:  # all candidates in a new random order, after what is left of the old
                rounds += 1
                order = np.argsort(keyed_uniform(candidates.ids, seed, f"{self.name} {rounds}"))
                drawn = np.concatenate([drawn, order[free[order]]])
            batch, drawn = np.unique(drawn[:sample_size]), drawn[sample_size:]
            batch = batch[free[batch]]
            if not len(batch):
                continue
            best = int(batch[cover.gains(unit[batch]).argmax()])
            if not budget.pays(spent, float(sizes[best])):
                break
            free[best] = False
            chosen.append(best)
            spent += float(sizes[best])
            cover.add(unit[best])
        return np.array(chosen, np.int64)


class _Cover:
    """The samples to be covered, [|C|, D], and the cosine of each with the nearest chosen one.

    Gains are rounded to 1e-9: two samples that are each other's nearest have the same gain, and the first id is to be
    taken, not the one that rounding makes larger.
    """

    def __init__(self, covered: np.ndarray, candidates: Candidates):
        self.covered, self.candidates = covered, candidates
        self.nearest = np.full(len(covered), -1.0, covered.dtype)  # where s is 0

    def first_gains(self, unit: np.ndarray) -> np.ndarray:
        """The gains where nothing is chosen yet, in closed form, float64 [N]."""
        self.candidates.charge(2.0 * unit.size)
        total = self.covered.sum(0, dtype=np.float64)[None]
        return np.round((len(self.covered) + similarities(unit, total)[:, 0]) / 2, 9)

    def gains(self, some: np.ndarray) -> np.ndarray:
        """The increase of f by each of some candidates [n, D], float64 [n]."""
        self.candidates.charge(2.0 * self.covered.size * len(some))
        gain, wide = np.zeros(len(some)), some.astype(self.covered.dtype).T
        step = max(1, _HELD // len(some))
        for start in range(0, len(self.covered), step):
            increase = self.covered[start : start + step] @ wide
            increase -= self.nearest[start : start + step, None]
            np.maximum(increase, 0, out=increase)
            gain += increase.sum(0, dtype=np.float64)
        return np.round(gain / 2, 9)

    def add(self, chosen: np.ndarray) -> None:
        self.candidates.charge(2.0 * self.covered.size)
        np.maximum(self.nearest, self.covered @ chosen.astype(self.covered.dtype), out=self.nearest)
