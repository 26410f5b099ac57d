from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates, Selector
from curate.kinds.vectors import cosines, frontier

_POOL = 4096  # candidates whose distances are kept up to date
_CENTRES = 1024  # chosen samples that distances are updated with at once


@dataclass(frozen=True)
class Kcenter(Selector):
    """Farthest first: repeatedly the sample that is farthest from all chosen ones (k-center).

    Formula, with unit vectors v and S the samples chosen so far:

        next = argmax over i of  min over j in S of  (1 - v_i . v_j)

    which is half the squared distance, so both give the same farthest sample; ties: first id. The largest distance from
    a sample to the nearest chosen one is at most twice the optimum for as many samples.

    Cost: about 2 N k D FLOPs for k of N samples at most, as matrix products; no model. Exact up to float32 rounding: a
    distance only shrinks as more are chosen, so one computed earlier is an upper bound, and only samples whose bound is
    among the 4,096 highest are recomputed. Memory: 2 D + 20 bytes per candidate.

    Departures: the paper starts from the labelled samples; here `start` sets the first sample.

    Reference: Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985; for training data Sener,
    Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, arXiv:1708.00489.

    >>> candidates = Candidates.of(vectors=[[1, 0], [0.9, 0.1], [0, 1], [0.7, 0.7]])
    >>> Kcenter(start="random").select(candidates, Budget("rows", 2), seed=5).tolist()
    [3, 0]
    """

    uses_vectors: ClassVar = True

    start: Literal["central", "random", "value"] = "central"
    """The first sample: nearest to the mean of all vectors, a random one, or the one with the highest value (--by)."""

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit, sizes = candidates.require_vectors(self.name), candidates.sizes.tolist()
        first = self._first(candidates, unit, seed) if len(unit) else 0
        if not len(unit) or not budget.pays(0.0, sizes[first]):
            return np.zeros(0, np.int64)
        chosen, spent = [first], sizes[first]
        bound = 1 - cosines(unit, unit[first][None])[:, 0]  # on the distance to the nearest chosen one
        candidates.charge(2.0 * unit.size)
        bound[first] = -np.inf
        accounted = np.ones(len(unit), np.int64)  # how many chosen ones the bound accounts for
        while len(chosen) < len(unit):
            pool, outside = frontier(bound, _POOL)
            vectors = unit[pool].astype(np.float32)
            distance = bound[pool]
            candidates.charge(_bring_up(distance, vectors, accounted[pool], unit, chosen))
            while True:
                best = int(distance.argmax())
                if (-distance[best], pool[best]) > outside or distance[best] == -np.inf:
                    break
                if not budget.pays(spent, sizes[pool[best]]):
                    return np.array(chosen)
                chosen.append(int(pool[best]))
                spent += sizes[pool[best]]
                np.minimum(distance, 1 - vectors @ vectors[best], out=distance)
                distance[best] = -np.inf
                candidates.charge(2.0 * vectors.size)
            bound[pool], accounted[pool] = distance, len(chosen)
        return np.array(chosen)

    def _first(self, candidates: Candidates, unit: np.ndarray, seed: int) -> int:
        if self.start == "value":
            return int(candidates.require_values(self.name).argmax())
        if self.start == "random":
            return int(keyed_uniform(candidates.ids, seed, self.name).argmax())
        return int(cosines(unit, unit.mean(0, dtype=np.float64)[None])[:, 0].argmax())


def _bring_up(
    distance: np.ndarray, vectors: np.ndarray, accounted: np.ndarray, unit: np.ndarray, chosen: list[int]
) -> float:
    """Update distances, which account for the first `accounted` of the chosen, in place. Returns the FLOPs."""
    flops = 0.0
    for start in range(int(accounted.min()), len(chosen), _CENTRES):
        stop = min(start + _CENTRES, len(chosen))
        stale = np.flatnonzero(accounted < stop)
        centres = unit[chosen[start:stop]].astype(np.float32)
        distance[stale] = np.minimum(distance[stale], 1 - (vectors[stale] @ centres.T).max(1))
        flops += 2.0 * len(stale) * centres.size
    return flops
