"""Rho-1's tokens, slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rho_weight(now: Sequence[float], reference: Sequence[float], share: float) -> list[float]:
    excess = [a - b for a, b in zip(now, reference, strict=True)]
    room = math.ceil(share * len(excess))
    taken = sorted(range(len(excess)), key=lambda i: (-excess[i], i))[:room]
    return [1.0 if i in taken else 0.0 for i in range(len(excess))]
