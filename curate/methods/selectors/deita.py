from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector, by_value

_AT_ONCE = 1024  # candidates compared with those kept at once
_HELD = 1 << 26  # cosines in memory at once


@dataclass(frozen=True)
class Deita(Selector):
    """The highest values, skipping samples too similar to one already taken (DEITA's Repr Filter).

    Formula: candidates by decreasing value, ties by id; each in turn is taken unless

        max over those taken before of  v . v_taken  >  threshold

    until the budget is full, or all have been considered. The paper's value is complexity times quality, from its two
    scorers: with such columns of your own, --by "complexity * quality"; any other value works too.

    Cost: 2 D FLOPs for each pair of a candidate considered and a sample taken; no model. Memory: 4 D bytes per sample
    taken, and up to 256 MiB of cosines. Bottleneck: that product.

    Departures: with batches larger than 1, the released code also compares the candidates of a batch with one another,
    rejected ones included; here only with those taken. For several turns the paper adds up the values; here a sample
    has one value.

    Reference: Liu et al., "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in
    Instruction Tuning", ICLR 2024, arXiv:2312.15685, Section 3; code hkust-nlp/deita.

    >>> candidates = Candidates.of([3.0, 2.0, 1.0], vectors=[[1, 0], [1, 0.1], [0, 1]])
    >>> Deita().select(candidates, Budget("rows", 2), seed=0).tolist()
    [0, 2]
    """

    uses_vectors: ClassVar = True
    fills: ClassVar = False

    threshold: float = 0.9
    """Highest allowed cosine with a sample that was taken."""

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise CurateError(f"deita needs a threshold between -1 and 1 (a cosine), not {self.threshold}.")

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        ranking, unit = by_value(candidates.require_values(self.name)), candidates.require_vectors(self.name)
        chosen: list[int] = []
        chosen_vectors, spent, start = np.empty((0, unit.shape[1]), np.float32), 0.0, 0
        while start < len(ranking):
            batch = ranking[start : start + max(1, min(_AT_ONCE, _HELD // (len(chosen_vectors) + _AT_ONCE)))]
            vectors = unit[batch].astype(np.float32)
            nearest = np.minimum((vectors @ chosen_vectors.T).max(1, initial=-np.inf), 1.0)  # rounding may go above
            within_batch, accepted = np.minimum(vectors @ vectors.T, 1.0), []
            candidates.charge(2.0 * vectors.size * (len(chosen_vectors) + len(vectors)))
            for i in np.flatnonzero(nearest <= self.threshold):
                if within_batch[i, accepted].max(initial=-np.inf) > self.threshold:
                    continue
                size = float(candidates.sizes[batch[i]])
                if not budget.pays(spent, size):
                    return np.array([*chosen, *batch[accepted]], np.int64)
                spent += size
                accepted.append(int(i))
                if budget.unit == "rows" and not budget.pays(spent, 1.0):
                    return np.array([*chosen, *batch[accepted]], np.int64)
            chosen += batch[accepted].tolist()
            chosen_vectors, start = np.concatenate([chosen_vectors, vectors[accepted]]), start + len(batch)
        return np.array(chosen, np.int64)
