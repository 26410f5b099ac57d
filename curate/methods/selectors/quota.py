from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curate.errors import CurateError, nearest
from curate.kinds.fields import pair
from curate.kinds.selector import Budget, Candidates, Selector, by_value
from curate.methods.selectors._budget_shares import fill


@dataclass(frozen=True)
class Quota(Selector):
    """The highest values of every source, each source with its share of the budget.

    Formula: source s gets floor(budget * share_s / sum of shares), the rows lost to rounding going to the largest
    remainders; within a source as `top`. With `shortfall=redistribute`, what a source cannot fill is split again among
    those that can.

    Cost: one sort; no FLOPs.

    Reference: none; quota realisation of a mixture, largest-remainder (Hamilton) apportionment.

    >>> candidates = Candidates.of([2.0, 1.0, 3.0], ["a", "b", "a"])
    >>> Quota(shares="a:1,b:1").select(candidates, Budget("rows", 2), seed=0).tolist()
    [2, 1]
    """

    shares: str = ""
    """SOURCE=SHARE (or SOURCE:SHARE), separated by commas; empty: each source in proportion to its candidates."""
    shortfall: Literal["redistribute", "leave"] = "redistribute"
    """Where a source has too few samples: `redistribute` the rest among the others, or `leave` it unused."""

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        values = candidates.require_values(self.name)
        order = by_value(values)
        present = enumerate(candidates.source_names)
        ranked = {s: rows for i, s in present if len(rows := order[candidates.sources[order] == i])}
        shares = self._shares({s: candidates.sizes[rows].sum() for s, rows in ranked.items()})
        chosen = fill(ranked, shares, candidates.sizes, budget, self.shortfall == "redistribute")
        picked = np.concatenate(list(chosen.values())) if chosen else order[:0]
        return picked[np.lexsort((picked, -values[picked]))]

    def _shares(self, sizes: dict[str, float]) -> dict[str, float]:
        if not self.shares:
            return sizes
        shares = {}
        for item in self.shares.split(","):
            source, share = pair(item)
            if source not in sizes:
                raise CurateError(
                    f"quota names the source '{source}', which has no candidate: {nearest(source, sizes)}"
                )
            if source in shares:
                raise CurateError(f"quota names the source '{source}' twice; give it one share.")
            try:
                shares[source] = float(share)
            except ValueError:
                raise CurateError(f"quota's '{item}' is not SOURCE=SHARE with a number, as in gsm8k=0.5.") from None
            if not 0 <= shares[source] < float("inf"):
                raise CurateError(f"quota's share of '{source}' is {share}; shares are numbers of 0 or more.")
        return shares
