"""Splits a budget among groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from curate.kinds.selector import Budget
from curate.numerics.apportion import apportion


def fill(
    ranked: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    sizes: np.ndarray,
    budget: Budget,
    redistribute: bool = True,
) -> dict[str, np.ndarray]:
    """The prefix of each group's ranking that fits its share of the budget.

    ranked: group -> positions, best first. shares: one per group, normalised here by their sum. sizes: what each
    position costs, float64 [N]. redistribute: what a group cannot fill is split again among those that can.
    """
    chosen = {g: rows[:0] for g, rows in ranked.items()}
    unfilled, remaining = {g: share for g, share in shares.items() if share > 0}, float(budget.amount)
    while unfilled and remaining > 0:
        for group, amount in _split(remaining, unfilled, budget.unit).items():
            rows = ranked[group]
            limit = Budget(budget.unit, sizes[chosen[group]].sum() + amount)
            chosen[group] = rows[: limit.fits(sizes[rows])]
        remaining = budget.amount - sum(sizes[rows].sum() for rows in chosen.values())
        full = [g for g in unfilled if len(chosen[g]) == len(ranked[g])]
        if not full or not redistribute:
            break
        unfilled = {g: share for g, share in unfilled.items() if g not in full}
    return chosen


def _split(amount: float, shares: Mapping[str, float], unit: str) -> dict[str, float]:
    """An amount split by shares; rows are whole numbers; of equal remainders the first name's is rounded up."""
    if unit == "rows":
        return {group: float(rows) for group, rows in apportion(dict(sorted(shares.items())), amount).items()}
    return {group: amount * share / sum(shares.values()) for group, share in shares.items()}
