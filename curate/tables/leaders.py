"""The candidates with the highest keys, of any number that come in blocks; what cannot be chosen is not held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    each group, what ranks below one that did not fit, or just fits, is passed by. budget: of a group, by its number.
    """

    def __init__(self, budget: Callable[[int], Budget]) -> None:
        self._budget = budget
        self._blocks: list[Columns] = []
        self._most = _SLACK[0]
        self._count, self._size, self._left = np.zeros(0, np.int64), np.zeros(0), np.zeros(0)  # of each group
        self._out_key, self._out_id = np.zeros(0), np.zeros(0, np.uint64)  # to be ranked above

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
        (held,), found = self._blocks, []
        for group, at in enumerate(by_group(held["groups"], len(self._count))):
            ranked = at[by_rank(held["keys"][at], held["ids"][at])]
            found.append(self._of_group(group, {name: column[ranked] for name, column in held.items()}))
        return found

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
        """Drop what does not fit."""
        keys, ids, groups, sizes = (self._column(name) for name in ("keys", "ids", "groups", "sizes"))
        stays = np.zeros(len(keys), bool)
        for group, at in enumerate(by_group(groups, len(self._count))):
            fit, bound = fitting(keys[at], ids[at], sizes[at], self._budget(group))
            stays[at[fit]] = True
            if bound is not None:
                self._out_key[group], self._out_id[group] = keys[at[bound]], ids[at[bound]]
        np.maximum.at(self._left, groups[~stays], sizes[~stays])
        self._blocks = [{name: self._column(name)[stays] for name in self._blocks[0]}]

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([block[name] for block in self._blocks])

    def _of_group(self, group: int, chosen: Columns) -> tuple[Columns, Tally]:
        count, size, left = (float(column[group]) for column in (self._count, self._size, self._left))
        return chosen, Tally(int(count), size, float(chosen["sizes"].sum()), left)


def fitting(keys: np.ndarray, ids: np.ndarray, sizes: np.ndarray, budget: Budget) -> tuple[np.ndarray, int | None]:
    """Positions of the candidates of the longest prefix of the ranking that fits, in any order; and the position of one
    that any other must rank above to fit, too; None if all fit."""
    rows = int(budget.amount)
    if budget.unit == "rows" and 1 <= rows < len(keys):  # nothing need be sorted but ties
        lowest = np.partition(keys, -rows)[-rows]
        above, ties = np.flatnonzero(keys > lowest), np.flatnonzero(keys == lowest)
        ties = ties[np.argsort(ids[ties])][: rows - len(above)]
        return np.concatenate([above, ties]), int(ties[-1])
    ranked = by_rank(keys, ids)
    fit = budget.fits(sizes[ranked])
    return ranked[:fit], int(ranked[fit]) if fit < len(ranked) else None


def by_group(groups: np.ndarray, n_groups: int) -> list[np.ndarray]:
    """The positions of each group's candidates, ascending."""
    if n_groups == 1:
        return [np.arange(len(groups))]
    numbers = groups.astype(np.uint16) if n_groups <= 1 << 16 else groups  # which are sorted by their digits
    stops = np.cumsum(np.bincount(groups, minlength=n_groups))
    return np.split(np.argsort(numbers, kind="stable"), stops[:-1])


def by_rank(keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions by descending key, and then by id. Only equal keys are sorted by id, which takes longer."""
    order = np.argsort(-keys)
    same = keys[order[1:]] == keys[order[:-1]]
    places = np.flatnonzero(np.append(same, False) | np.append(False, same))
    tied = order[places]
    order[places] = tied[np.lexsort((ids[tied], -keys[tied]))]
    return order
