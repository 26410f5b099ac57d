from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates, Selector, by_value
from curate.models.logit_sketch import Memory


@dataclass(frozen=True)
class Uds(Selector):
    """From each micro-batch, the candidates most useful and farthest from those chosen before (UDS).

    Formula: the candidates are put in random order and split into micro-batches; from each, `keep` are chosen, the
    highest in

        s_i = u_i + alpha mean over j in M of ||z_i - z_j||,    the second term 0 while M is empty

    with u the value (--by; the paper's is `nuclear`), z the vectors (--vectors; the paper's are those of
    `embed_logits`), and M the last `memory` chosen ones, first in, first out. The number of micro-batches is such that
    the budget is spent. M starts with --history, if given.

    Cost: 2 |M| D FLOPs per candidate, in float64; no model. Memory: 8 D bytes for each of M, in addition to the
    vectors.

    Departures: the published code scores each micro-batch with that step's model; here all are scored beforehand. Its
    optional term within a micro-batch is left out. Its alpha, 2.5e-3 (1.5e-3 in a script), fits the distances of its
    own transform: with vectors of scale=released it means the same, with scale=isometric use alpha times sqrt(V T) / 2.

    Reference: UDS, arXiv:2510.16882; code gfyddha/UDS, UDSamplingTrainer.py.

    >>> candidates = Candidates.of(values=[1.0, 0.9, 0.1, 0.0], vectors=[[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> sorted(Uds(alpha=0.0).select(candidates, Budget("rows", 2), seed=0).tolist())
    [0, 1]
    >>> sorted(Uds(alpha=5.0).select(candidates, Budget("rows", 2), seed=0).tolist())
    [1, 3]
    """

    uses_vectors: ClassVar = True
    uses_history: ClassVar = True

    alpha: float = 2.5e-3
    """Weight of the distance from the memory relative to the value."""
    memory: int = 1024
    """How many of the chosen samples are remembered."""
    keep: int = 1
    """How many of every micro-batch are chosen."""

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.memory < 0 or self.keep < 1:
            raise CurateError(
                f"uds needs alpha and memory of 0 or more and keep of 1 or more, not alpha={self.alpha:g}, "
                f"memory={self.memory}, keep={self.keep}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        values, count = candidates.require_values(self.name), len(candidates.require_vectors(self.name))
        vectors, sizes = candidates.vectors, candidates.sizes
        assert vectors is not None
        n_wanted = min(budget.amount / max(sizes.mean(), 1e-12), count) if count else 0.0
        if not count or n_wanted <= 0:
            return np.zeros(0, np.int64)
        order = np.argsort(keyed_uniform(candidates.ids, seed, self.name), kind="stable")
        memory = Memory(self.memory, np.zeros((0, vectors.unit.shape[1])))
        if candidates.history is not None:
            memory.push(candidates.history.raw(np.flatnonzero(candidates.history.there)))
        chosen, spent = list[int](), 0.0
        for batch in np.array_split(order, max(1, int(np.ceil(n_wanted / self.keep)))):
            batch = np.sort(batch)  # ties: first id
            raw = vectors.raw(batch)
            ranked = batch[by_value(values[batch] + self.alpha * memory.distance(raw))]
            candidates.charge(2.0 * len(memory.kept) * raw.size)
            for best in ranked[: self.keep]:
                if not budget.pays(spent, float(sizes[best])):
                    break
                chosen.append(int(best))
                spent += float(sizes[best])
                memory.push(vectors.raw(np.array([best])))
        return _topped_up(chosen, spent, order, sizes, budget)


def _topped_up(chosen: list[int], spent: float, order: np.ndarray, sizes: np.ndarray, budget: Budget) -> np.ndarray:
    """What is left of the budget (the chosen were smaller than average), spent on others in the same random order."""
    chosen_places = set(chosen)
    for place in order.tolist():
        if place not in chosen_places and budget.pays(spent, float(sizes[place])):
            chosen.append(place)
            spent += float(sizes[place])
    return np.array(chosen, np.int64)
