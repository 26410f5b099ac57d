"""Integers in proportion to given shares, by the largest-remainder method (Hamilton apportionment)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def largest_remainders(shares: np.ndarray, total: float) -> np.ndarray:
    """Integers in proportion to `shares` that sum to int(total), int64 [D].

    shares: float64 or integers [D], non-negative. Each quota is rounded down and what is left goes to the largest
    remainders, ties to the first. If all shares are 0, the first int(total) entries get 1 each.
    """
    exact = total * (shares / (shares.sum() or 1))
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: int(total) - int(counts.sum())]] += 1
    return counts


def apportion(shares: Mapping[str, float], total: float) -> dict[str, int]:
    """`largest_remainders` for named shares; among equal remainders the first name is rounded up."""
    counts = largest_remainders(np.array(list(shares.values()), np.float64), total)
    return dict(zip(shares, counts.tolist(), strict=True))
