"""Whole numbers in proportion to given shares, by largest remainders (Hamilton's method of apportionment)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def largest_remainders(shares: np.ndarray, total: float) -> np.ndarray:
    """Whole numbers in proportion to shares that add up to int(total), int64 [D].

    shares: float64 or integers [D], at least 0. Each is rounded down; what is left goes to the largest remainders, of
    equal ones to the first. All 0 shares count as equal to none: everything is left to the first.
    """
    exact = total * (shares / (shares.sum() or 1))
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: int(total) - int(counts.sum())]] += 1
    return counts


def apportion(shares: Mapping[str, float], total: float) -> dict[str, int]:
    """`largest_remainders` by name; of equal remainders the first name's is rounded up."""
    counts = largest_remainders(np.array(list(shares.values()), np.float64), total)
    return dict(zip(shares, counts.tolist(), strict=True))
