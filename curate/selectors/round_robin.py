from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.method import Budget, Candidates, Selector
from curate.vectors import cosines, frontier

_HELD = 1 << 26  # cosines in memory at once


@dataclass(frozen=True)
class RoundRobin(Selector):
    """Each example of the target takes its nearest samples in turn (RDS+).

    Formula: example t ranks the samples by v_t . v_i, of equals the first id; in turn each takes the first of its
    ranking that none has taken yet, until the budget is spent.

    With `lists=subtask` each sub-task has one ranking, by the maximum over its examples, and the sub-tasks take turns:
    the paper's form for several tasks at once.

    Cost: 2 N T D FLOPs for N samples and T examples; no model. Exact: rankings are as deep as they need to be, and
    deepened where one runs out. Memory: 2 D + 4 bytes a candidate, 256 MiB of cosines, 4 bytes for each ranked place.

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
        wanted = budget.amount if budget.unit == "rows" else len(unit)
        depth = min(len(unit), int(2 * min(wanted, len(unit)) / len(groups)) + 64)
        rankings = self._rankings(unit, groups, depth)
        at, free = [0] * len(groups), np.ones(len(unit), bool)
        chosen, spent = [], 0.0
        while len(chosen) < len(unit):
            for g in range(len(groups)):
                while True:
                    ranking = rankings[g]
                    while at[g] < len(ranking) and not free[ranking[at[g]]]:
                        at[g] += 1
                    if at[g] < len(ranking) or len(ranking) == len(unit):
                        break
                    depth = min(len(unit), 2 * depth)
                    rankings = self._rankings(unit, groups, depth)  # the same, deeper
                if at[g] == len(ranking):
                    break  # every sample is taken
                best = int(ranking[at[g]])
                if not budget.pays(spent, candidates.sizes[best]):
                    return np.array(chosen, np.int64)
                free[best] = False
                chosen.append(best)
                spent += float(candidates.sizes[best])
        return np.array(chosen, np.int64)

    def _groups(self, candidates: Candidates) -> list[np.ndarray]:
        """The vectors of each list's examples, [n, D]."""
        target = candidates.target
        if target is None or not target.there.any():
            raise CurateError(f"the selector '{self.name}' works on a target; say which by --target.")
        some = target.take(target.there)
        if self.lists == "example":
            return [v[None] for v in some.unit]
        labels = np.array(some.subtasks or [""] * len(some), object)
        return [some.unit[labels == label] for label in sorted(set(labels))]

    def _rankings(self, unit: np.ndarray, groups: list[np.ndarray], depth: int) -> list[np.ndarray]:
        """The `depth` nearest samples of each list, int32, the nearest first."""
        found, step = [], max(1, _HELD // max(len(unit), 1))
        start = 0
        while start < len(groups):
            stop, size = start + 1, len(groups[start])
            while stop < len(groups) and size + len(groups[stop]) <= step:
                size += len(groups[stop])
                stop += 1
            near = cosines(unit, np.concatenate(groups[start:stop]))
            ends = np.cumsum([0, *(len(g) for g in groups[start:stop])])
            for a, b in zip(ends[:-1], ends[1:], strict=True):
                score = near[:, a:b].max(1)
                some, _ = frontier(score, depth)
                found.append(some[np.argsort(-score[some], kind="stable")].astype(np.int32))
            start = stop
        return found
