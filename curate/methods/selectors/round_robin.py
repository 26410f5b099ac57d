from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector
from curate.kinds.vectors import frontier

_HELD = 1 << 26  # cosines of lists in memory at once
_BLOCK = 1 << 22  # vector elements, or cosines with examples, at once


@dataclass(frozen=True)
class RoundRobin(Selector):
    """Each example of the target takes its nearest samples in turn (RDS+).

    Formula: example t ranks the samples by v_t . v_i, ties: first id; in turn each example takes the first sample of
    its ranking that is not yet taken, until the budget is spent.

    With `lists=subtask` each sub-task has one ranking, by the maximum over its examples, and the sub-tasks take turns:
    the paper's form for several tasks at once.

    Cost: 2 N T D FLOPs for N samples and T examples, and 2 N D more whenever a ranking runs out and is made four times
    as deep; no model. Exact up to float32 rounding. Memory: 2 D bytes per candidate, 256 MiB of cosines, 4 bytes per
    ranked sample.

    Reference: Ivison et al., "Large-Scale Data Selection for Instruction Tuning" (RDS+), 2025, arXiv:2503.01807,
    Section 3; as its code, compute_influence_cosinesim and get_top_influences. For RDS+ itself take the vectors of
    embed_lm.

    >>> candidates = Candidates.of(vectors=[[1, 0], [0.9, 0.1], [0, 1], [0.7, 0.7]], target=[[1, 0], [1, 0.1]])
    >>> RoundRobin().select(candidates, Budget("rows", 3), seed=0).tolist()
    [0, 1, 3]
    """

    uses_vectors: ClassVar = True
    uses_target: ClassVar = True

    lists: Literal["example", "subtask"] = "example"
    """Who takes turns: every example of the target, or every sub-task."""

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        unit, groups = candidates.require_vectors(self.name), self._groups(candidates)
        n_wanted = budget.amount if budget.unit == "rows" else len(unit)
        depth = min(len(unit), int(2 * min(n_wanted, len(unit)) / len(groups)) + 64)
        rankings = self._rankings(candidates, unit, groups, depth)
        next_place, free = [0] * len(groups), np.ones(len(unit), bool)
        chosen, spent = [], 0.0
        while len(chosen) < len(unit):
            for g in range(len(groups)):
                while (best := self._next(rankings[g], next_place, g, free)) is None and len(rankings[g]) < len(unit):
                    deeper = min(len(unit), 4 * len(rankings[g]))
                    rankings[g] = self._rankings(candidates, unit, [groups[g]], deeper)[0]  # the same, deeper
                if best is None:
                    break  # every sample is taken
                if not budget.pays(spent, candidates.sizes[best]):
                    return np.array(chosen, np.int64)
                free[best] = False
                chosen.append(best)
                spent += float(candidates.sizes[best])
        return np.array(chosen, np.int64)

    def _next(self, ranking: np.ndarray, next_place: list[int], g: int, free: np.ndarray) -> int | None:
        """The first free sample of a ranking, from place at[g] on; None where the ranking ends before."""
        while next_place[g] < len(ranking) and not free[ranking[next_place[g]]]:
            next_place[g] += 1
        return int(ranking[next_place[g]]) if next_place[g] < len(ranking) else None

    def _groups(self, candidates: Candidates) -> list[np.ndarray]:
        """The vectors of each list's examples, [n, D]."""
        target = candidates.target
        if target is None:
            raise CurateError(f"the selector '{self.name}' works on a target; say which by --target.")
        examples = target.take(target.there)
        if not len(examples):
            raise CurateError(f"no example of the target has a vector: {[*target.error, 'it has none'][0]}.")
        if self.lists == "example":
            return [v[None] for v in examples.unit]
        labels = np.array(examples.subtasks or [""] * len(examples), object)
        return [examples.unit[labels == label] for label in sorted(set(labels))]

    def _rankings(
        self, candidates: Candidates, unit: np.ndarray, groups: list[np.ndarray], depth: int
    ) -> list[np.ndarray]:
        """The `depth` nearest samples of each list, int32, the nearest first."""
        rankings, at_once = [], max(1, _HELD // max(len(unit), 1))
        for start in range(0, len(groups), at_once):
            batch = groups[start : start + at_once]
            candidates.charge(2.0 * unit.size * sum(map(len, batch)))
            for score in _highest(unit, batch):
                rows, _ = frontier(score, depth)
                rankings.append(rows[np.argsort(-score[rows], kind="stable")].astype(np.int32))
        return rankings


def _highest(unit: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """The highest cosine of each sample with one of each list's examples, float32 [lists, N]."""
    examples = np.concatenate(groups).astype(np.float32)
    starts = np.cumsum([0, *map(len, groups)])[:-1]
    highest, step = np.empty((len(groups), len(unit)), np.float32), max(1, _BLOCK // max(examples.shape))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step].astype(np.float32) @ examples.T
        highest[:, start : start + step] = np.maximum.reduceat(cosines, starts, axis=1).T
    return highest
