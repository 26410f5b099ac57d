"""Selectors: candidates, a budget and a seed in; positions of the chosen samples out, best first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.method import Method
from curate.kinds.vectors import Vectors


@dataclass(frozen=True)
class Budget:
    """At most `amount` of rows or tokens."""

    unit: Literal["rows", "tokens"]
    amount: float

    def fits(self, sizes: np.ndarray) -> int:
        """How many candidates, taken in the given order, fit in the budget."""
        if self.unit == "rows":
            return min(int(self.amount), len(sizes))
        return int(np.searchsorted(np.cumsum(sizes, dtype=np.float64), self.amount, side="right"))

    def pays(self, spent: float, size: float) -> bool:
        """Whether one more candidate of this size fits in the budget."""
        return spent + size <= self.amount


@dataclass(frozen=True)
class Candidates:
    """The N samples to select from, by id ascending.

    ids: uint64 [N], the 16 hex digits of each id as an integer. values: float64 [N], finite, higher is better; None if
    no value was requested. sources: int [N], positions in `source_names`. sizes: float64 [N], the cost of each sample,
    in the unit of the budget. vectors: those of every candidate, for a selector that uses them. target: the vectors of
    the target's examples, for a selector that uses them. history: the vectors of samples trained on earlier, the most
    recent last; None if none were given. flops: what the selector has spent, in FLOPs.
    """

    ids: np.ndarray
    values: np.ndarray | None
    sources: np.ndarray
    source_names: Sequence[str]
    sizes: np.ndarray
    vectors: Vectors | None = None
    target: Vectors | None = None
    history: Vectors | None = None
    flops: list[float] = field(default_factory=list)

    def charge(self, flops: float) -> None:
        """Record FLOPs that a selector spends on tensor operations; the ledger sums them."""
        self.flops.append(flops)

    @classmethod
    def of(
        cls,
        values: Sequence[float] | None = None,
        sources: Sequence[str] = (),
        sizes: Sequence[float] = (),
        vectors: Sequence[Sequence[float]] | np.ndarray | None = None,
        target: Sequence[Sequence[float]] | np.ndarray | None = None,
        subtasks: Sequence[str] = (),
        history: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> Candidates:
        """Candidates from in-memory data, with ids 1, 2, …; default: one source for all, and size 1 for each.

        vectors, target, history: [N, D], [T, D] and [H, D], of any norm. subtasks: of the target's examples.
        """
        n = len(values if values is not None else vectors if vectors is not None else ())
        names, codes = np.unique(np.array(sources or [""] * n), return_inverse=True)
        return cls(
            np.arange(1, n + 1, dtype=np.uint64),
            None if values is None else np.array(values),
            codes,
            names.tolist(),
            np.array(sizes or [1.0] * n),
            None if vectors is None else Vectors.of(np.asarray(vectors, np.float64)),
            None if target is None else Vectors.of(np.asarray(target, np.float64), subtasks=subtasks),
            None if history is None else Vectors.of(np.asarray(history, np.float64)),
        )

    def require_values(self, selector: str) -> np.ndarray:
        """The values, float64 [N]. Raises CurateError, which names the selector, if there are none."""
        if self.values is None:
            raise CurateError(f"the selector '{selector}' ranks by a value; say which with --by, as in --by bm25_t.")
        return self.values

    def require_vectors(self, selector: str) -> np.ndarray:
        """The candidates' unit vectors, float16 or wider [N, D]. Raises CurateError if there are none."""
        if self.vectors is None:
            raise CurateError(
                f"the selector '{selector}' works on vectors; say which by --vectors, as in --vectors embed "
                "(`curate score embed` makes some)."
            )
        return self.vectors.unit


class Selector(Method):
    """Columns, a budget and a seed in; positions of chosen candidates out, best first.

    uses_history: whether it uses the samples trained on earlier, if they are given. fills: whether it spends the whole
    budget as long as there are candidates; a selector that leaves out near-duplicates does not.
    """

    uses_vectors: ClassVar[bool] = False
    uses_target: ClassVar[bool] = False
    uses_history: ClassVar[bool] = False
    fills: ClassVar[bool] = True

    @abstractmethod
    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        """Positions in `candidates`, int64 [n], best first: no duplicates, never over the budget."""


class RankingSelector(Selector):
    """A selector that takes the highest keys, where the key of a candidate depends on that candidate alone.

    So candidates can be read in blocks, of any number, and only those held that can still be chosen.
    """

    @abstractmethod
    def keys(self, candidates: Candidates, seed: int) -> np.ndarray:
        """A key for each candidate, float64 [N], higher is better; of equal ones the first id."""

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        """The longest prefix of the ranking by key that fits in the budget."""
        return highest(self.keys(candidates, seed), candidates.sizes, budget)


def by_value(values: np.ndarray) -> np.ndarray:
    """Positions by descending value; ties keep their order of position, which is by id."""
    return np.argsort(-values, kind="stable")


def highest(values: np.ndarray, sizes: np.ndarray, budget: Budget) -> np.ndarray:
    """The longest prefix of the ranking `by_value` that fits in the budget."""
    positions = np.arange(len(values))
    if budget.unit == "rows" and 1 <= (n := int(budget.amount)) < len(values):
        positions = np.flatnonzero(values >= np.partition(values, -n)[-n])  # sort only what can be chosen
    order = positions[by_value(values[positions])]
    return order[: budget.fits(sizes[order])]
