"""The candidates with the highest keys, of any number that come in blocks; what cannot be chosen is not held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from curate.kinds.selector import Budget

_SLACK = (1 << 18, 1 << 22)  # candidates held beyond those that fit, before the others are dropped: at least, at most

Columns = Mapping[str, np.ndarray]
"""Candidates, one array for each column."""


@dataclass(frozen=True)
class Tally:
    """The candidates of a group: how many, their size together, that of the chosen, and of the largest left out."""

    count: int
    size: float
    spent: float
    largest_left: float


class Leaders:
    """The longest prefix of each group's ranking, by descending key and then by id, that fits in the group's budget.

    What does not fit never will: sizes are not negative, so candidates that come later only push it further down. Of
    each group, all that ranks below the first that did not fit is passed by. budget: of a group, by its number.
    """

    def __init__(self, budget: Callable[[int], Budget]) -> None:
        self._budget = budget
        self._blocks: list[Columns] = []
        self._most = _SLACK[0]
        self._count, self._size, self._left = np.zeros(0, np.int64), np.zeros(0), np.zeros(0)  # of each group
        self._out_key, self._out_id = np.zeros(0), np.zeros(0, np.uint64)  # the first that did not fit

    def add(self, block: Columns, n_groups: int) -> None:
        """Look at more candidates: keys float64 [n], ids uint64, groups int32, sizes float64; and further columns.

        n_groups: how many groups there are so far, whose numbers are below it.
        """
        groups, keys, sizes = block["groups"], block["keys"], block["sizes"]
        self._know(n_groups)
        self._count += np.bincount(groups, minlength=len(self._count))
        self._size += np.bincount(groups, sizes, minlength=len(self._count))
        bound = self._out_key[groups]
        stays = (keys > bound) | ((keys == bound) & (block["ids"] <= self._out_id[groups]))
        np.maximum.at(self._left, groups[~stays], sizes[~stays])
        self._blocks.append({name: column[stays] for name, column in block.items()})
        if self._held() > self._most:
            self._prune()
            self._most = self._held() + int(np.clip(self._held(), *_SLACK))

    def best(self) -> list[tuple[Columns, Tally]]:
        """Of every group, by number, the chosen ones, the best first, and what was seen of it."""
        if not self._blocks:
            return []
        self._prune()
        (held,) = self._blocks
        stops = np.cumsum(np.bincount(held["groups"], minlength=len(self._count)))
        parts = zip(*(np.split(column, stops[:-1]) for column in held.values()), strict=True)
        return [self._of_group(group, dict(zip(held, part, strict=True))) for group, part in enumerate(parts)]

    def _held(self) -> int:
        return sum(len(block["keys"]) for block in self._blocks)

    def _know(self, n_groups: int) -> None:
        """Begin with groups that were not seen before."""
        new = n_groups - len(self._count)
        self._count, self._size = np.append(self._count, np.zeros(new, np.int64)), np.append(self._size, np.zeros(new))
        lowest, last_id = np.full(new, -np.inf), np.full(new, np.iinfo(np.uint64).max)
        self._left, self._out_key = np.append(self._left, lowest), np.append(self._out_key, lowest)
        self._out_id = np.append(self._out_id, last_id)

    def _prune(self) -> None:
        """Put what is held in order, by group, and drop what does not fit."""
        keys, ids, groups, sizes = (self._column(name) for name in ("keys", "ids", "groups", "sizes"))
        kept = []
        for group, ranked in self._ranked(keys, ids, groups):
            fit = self._budget(group).fits(sizes[ranked])
            kept.append(ranked[:fit])
            if fit < len(ranked):
                self._out_key[group], self._out_id[group] = keys[ranked[fit]], ids[ranked[fit]]
                self._left[group] = max(self._left[group], sizes[ranked[fit:]].max())
        chosen = np.concatenate(kept)
        self._blocks = [{name: self._column(name)[chosen] for name in self._blocks[0]}]

    def _ranked(self, keys: np.ndarray, ids: np.ndarray, groups: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Every group, and the positions of its candidates by rank."""
        if len(self._count) == 1:
            yield 0, by_rank(keys, ids)
            return
        stops = np.cumsum(np.bincount(groups, minlength=len(self._count)))
        for group, at in enumerate(np.split(np.argsort(groups, kind="stable"), stops[:-1])):
            yield group, at[by_rank(keys[at], ids[at])]

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([block[name] for block in self._blocks])

    def _of_group(self, group: int, chosen: Columns) -> tuple[Columns, Tally]:
        count, size, left = (float(column[group]) for column in (self._count, self._size, self._left))
        return chosen, Tally(int(count), size, float(chosen["sizes"].sum()), left)


def by_rank(keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions by descending key, and then by id. Only equal keys are sorted by id, which takes longer."""
    order = np.argsort(-keys)
    same = keys[order[1:]] == keys[order[:-1]]
    places = np.flatnonzero(np.append(same, False) | np.append(False, same))
    tied = order[places]
    order[places] = tied[np.lexsort((ids[tied], -keys[tied]))]
    return order
