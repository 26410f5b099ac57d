from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector, highest
from curate.kinds.vectors import similarities
from curate.numerics.faiss_index import clusters


@dataclass(frozen=True)
class Lhas(Selector):
    """Useful now, unlike earlier training data, close to future data, and not repetitive (LHAS).

    Formula, with v the unit vectors (--vectors), H those of the samples trained on in earlier stages (--history), P a
    proxy of future data (--target), and [.] a term minus its mean over the candidates, divided by its standard
    deviation there:

        s = [u] + lam [c] + eta [p] - rho [a]
        c = 1 - max over h in H of cos(v, h)        distance from all earlier training data
        p = mean over q in P of cos(v, q)           similarity to future data
        a = (cos(v, mean of H))^2                   overlap with the mean direction of H (repetition=direction), or
            the share of H nearest to v's cluster   of `clusters` clusters of the candidates (repetition=cluster)

    and u the value (--by, as `nuclear`), or with utility=uds the utility-diversity score

        u = value + alpha mean over m in M of ||z - z_m||,      the second term 0 while M is empty

    with z the vectors at their own norms and M the last `memory` samples chosen before, first in, first out: it begins
    with the history, and what is chosen enters it. The highest are chosen, with uds one after the other; ties: first
    id. [.] of such a u divides by the standard deviation of the values alone, as the term of M changes with every
    choice. Without a history, c and a are 0 for all. The mean of a term over the chosen samples rises with its own
    weight, and that of `a` falls; the effect on entropy, transfer and the like has to be measured (`curate audit`),
    not deduced.

    Cost: 2 |H| D FLOPs per candidate, 2 |P| D more for its proxy, 40 K D for K clusters; with utility=uds 2 D per
    candidate for each of the buffer, 4 D for each choice when it is full, and 8 D bytes per candidate; no model.

    Departures: the paper gives no forms, weights or scales for its terms; these are ours: standardised terms, all with
    weight 1. It calls u UDS-like: UDS chooses from micro-batches, and here from all candidates.

    Reference: "The Long-Term Effects of Data Selection in LLM Fine-Tuning" (LHAS), arXiv:2605.30537, Equation 5.

    >>> candidates = Candidates.of(values=[0, 0, 0], vectors=[[1, 0], [0.6, 0.8], [0, 1]], target=[[1, 1]],
    ...                            history=[[1, 0]])
    >>> Lhas(eta=0).select(candidates, Budget("rows", 1), seed=0).tolist()
    [2]
    >>> Lhas(lam=0, rho=0).select(candidates, Budget("rows", 1), seed=0).tolist()
    [1]
    """

    uses_vectors: ClassVar = True
    uses_target: ClassVar = True
    uses_history: ClassVar = True

    lam: float = 1.0
    """Weight of c, the distance from all earlier training data."""
    eta: float = 1.0
    """Weight of p, the similarity to the proxy of future data."""
    rho: float = 1.0
    """Weight of a, subtracted: repeating the direction or the clusters of earlier training data."""
    repetition: Literal["direction", "cluster"] = "direction"
    """How repetition is measured."""
    clusters: int = 16
    """Number of clusters, for repetition=cluster."""
    utility: Literal["value", "uds"] = "value"
    """What u is: the value, or the utility-diversity score, which also counts the distance from what was chosen
    before."""
    alpha: float = 2.5e-3
    """Weight of that distance relative to the value, for utility=uds (that of UDS, for vectors of embed_logits)."""
    memory: int = 1024
    """How many of the samples chosen before are remembered, for utility=uds."""

    def __post_init__(self) -> None:
        if min(self.lam, self.eta, self.rho, self.alpha, self.memory) < 0 or self.clusters < 1:
            raise CurateError(
                f"lhas needs weights and memory of 0 or more and clusters of 1 or more, not lam={self.lam:g}, "
                f"eta={self.eta:g}, rho={self.rho:g}, alpha={self.alpha:g}, memory={self.memory}, "
                f"clusters={self.clusters}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        values = candidates.require_values(self.name)
        terms = self.terms(candidates, seed)
        score = standardized(values)
        for name, weight in (("c", self.lam), ("p", self.eta), ("a", -self.rho)):
            score = score + weight * standardized(terms[name])
        if self.utility == "uds":
            return self._one_by_one(score, values, candidates, budget)
        return highest(score, candidates.sizes, budget)

    def _one_by_one(self, score: np.ndarray, values: np.ndarray, candidates: Candidates, budget: Budget) -> np.ndarray:
        """The highest in `score` and the distance from the buffer, which every choice enters."""
        vectors, history, sizes = candidates.vectors, candidates.history, candidates.sizes
        assert vectors is not None
        raw, weight = (
            vectors.raw(np.arange(len(score))),
            self.alpha / (float(values.std()) or 1.0) if len(score) else 0.0,
        )
        past = history.raw(np.flatnonzero(history.there)) if history is not None else raw[:0]
        buffer, apart = _Buffer(raw, self.memory), np.full(len(score), True)
        buffer.push(past)
        chosen, spent = list[int](), 0.0
        while apart.any():
            best = int(np.argmax(np.where(apart, score + weight * buffer.mean_distance(), -np.inf)))
            if not budget.pays(spent, float(sizes[best])):
                break
            chosen.append(best)
            spent += float(sizes[best])
            apart[best] = False
            buffer.push(raw[best : best + 1])
        candidates.charge(buffer.flops)
        return np.array(chosen, np.int64)

    def terms(self, candidates: Candidates, seed: int) -> dict[str, np.ndarray]:
        """The terms c, p and a of each candidate, float64 [N], before standardising."""
        unit, target, history = candidates.require_vectors(self.name), candidates.target, candidates.history
        n, zeros = len(unit), np.zeros(len(unit))
        proxy = zeros
        if target is not None and self.eta:
            proxy = similarities(unit, target.unit[target.there].mean(0, dtype=np.float64)[None])[:, 0]
            candidates.charge(2.0 * unit.size)
        past = history.unit[history.there] if history is not None else unit[:0]
        if not len(past) or not n:
            return {"c": zeros, "p": proxy, "a": zeros}
        nearest = np.full(n, -np.inf)
        for start in range(0, len(past), 1024):
            np.maximum(nearest, similarities(unit, past[start : start + 1024]).max(1), out=nearest)
        candidates.charge(2.0 * len(past) * unit.size)
        if self.repetition == "cluster":
            return {"c": 1 - nearest, "p": proxy, "a": self._shares(candidates, past, seed)}
        mean = past.mean(0, dtype=np.float64)
        length = np.linalg.norm(mean)
        overlap = similarities(unit, mean[None] / length)[:, 0] ** 2 if length > 0 else zeros
        return {"c": 1 - nearest, "p": proxy, "a": overlap}

    def _shares(self, candidates: Candidates, past: np.ndarray, seed: int) -> np.ndarray:
        unit = candidates.require_vectors(self.name)
        cluster, _, flops = clusters(unit, candidates.ids, self.clusters, seed, 20)
        names, cluster = np.unique(cluster, return_inverse=True)
        centres = np.zeros((len(names), unit.shape[1]))
        np.add.at(centres, cluster, unit.astype(np.float64))
        centres /= np.maximum(np.linalg.norm(centres, axis=1), 1e-12)[:, None]
        counts = np.bincount(similarities(past, centres).argmax(1), minlength=len(names))
        candidates.charge(flops + 2.0 * centres.size * len(past))
        return (counts / len(past))[cluster]


class _Buffer:
    """The last vectors that were chosen, and of every candidate the sum of its distances from them. raw: [N, D]."""

    def __init__(self, raw: np.ndarray, most: int):
        self._raw, self._most, self.flops = raw, most, 0.0
        self._squares = np.square(raw).sum(1)
        self._kept: list[np.ndarray] = []
        self._sums = np.zeros(len(raw))

    def push(self, vectors: np.ndarray) -> None:
        """Take in vectors [n, D]; the oldest beyond the capacity leave."""
        for vector in vectors[-self._most :] if self._most else vectors[:0]:
            self._sums += self._distances(vector)
            self._kept.append(vector)
            if len(self._kept) > self._most:
                self._sums -= self._distances(self._kept.pop(0))

    def mean_distance(self) -> np.ndarray:
        """Mean distance of every candidate from the buffer, float64 [N]; 0 if it is empty."""
        return self._sums / max(len(self._kept), 1)

    def _distances(self, vector: np.ndarray) -> np.ndarray:
        self.flops += 2.0 * self._raw.size
        return np.sqrt(np.maximum(self._squares + vector @ vector - 2 * self._raw @ vector, 0.0))


def standardized(term: np.ndarray) -> np.ndarray:
    """Minus its mean, divided by its standard deviation; 0 where all are the same."""
    if not len(term):
        return term
    spread = float(term.std())
    return (term - term.mean()) / spread if spread > 1e-12 * max(1.0, float(np.abs(term).max())) else term * 0.0
