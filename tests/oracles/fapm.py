"""FAPM's worth of every number, slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fapm(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> list[list[float]]:
    mean = math.fsum(abs(w) for row in before for w in row) / sum(len(row) for row in before)
    worth = []
    for old, new in zip(before, after, strict=True):
        worth.append([])
        for w, v in zip(old, new, strict=True):
            change = abs(v - w)
            worth[-1].append(change - mean * change / abs(w) if w else (-math.inf if change else 0.0))
    return worth
