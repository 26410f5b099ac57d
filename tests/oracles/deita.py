"""DEITA's filter, slowly: one candidate after another against all that were taken."""

from __future__ import annotations

import numpy as np


def deita(values: np.ndarray, unit: np.ndarray, threshold: float, k: int) -> list[int]:
    """unit: float64 [N, D]."""
    taken: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if len(taken) < k and all(float(unit[i] @ unit[j]) <= threshold for j in taken):
            taken.append(i)
    return taken
