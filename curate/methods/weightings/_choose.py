"""Choosing among a step's candidates: what weightings share. Plain arrays in float64; ties go to the first."""

from __future__ import annotations

import numpy as np


def highest(values: np.ndarray, room: int) -> np.ndarray:
    """Positions of the `room` highest, highest first."""
    return np.argsort(-values, kind="stable")[:room]


def greedy(aligned: np.ndarray, gram: np.ndarray, room: int) -> np.ndarray:
    """Positions by decreasing alignment with the residual, each choice being subtracted from it once: int64 [room].

    Repeatedly: i = argmax of a over those that are left, a <- a - gram[i].
    """
    residual, chosen = aligned.astype(np.float64).copy(), []
    available = np.ones(len(residual), bool)
    for _ in range(room):
        i = int(np.argmax(np.where(available, residual, -np.inf)))
        chosen.append(i)
        available[i] = False
        residual = residual - gram[i]
    return np.array(chosen, np.int64)


def weighing(chosen: np.ndarray, n: int, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Weights of n candidates, 0 for those not chosen, float64 [n]."""
    all_weights = np.zeros(n)
    all_weights[chosen] = weights
    return all_weights
