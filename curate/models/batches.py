"""Batches of about equal cost: samples of like length together, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def by_length(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Positions of samples, int64, in batches of at most `budget` tokens with padding; the longest come first.

    A sample over the budget is a batch of its own. lengths: int64 [N].
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, budget // longest)
        yield order[start:stop]
        start = stop
