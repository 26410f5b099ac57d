"""Least squares whose coefficients are not negative, from inner products alone. Plain arrays in float64."""

from __future__ import annotations

import numpy as np

_ROUNDS = 30  # for each coefficient; an active set needs some two


def nonnegative(gram: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """The w >= 0, float64 [n], of least  w^T G w - 2 b^T w.

    gram: G, symmetric and not negative, float64 [n, n]. aligned: b, float64 [n]. What is of no use at the solution is
    exactly 0. Of a singular G one of the solutions is given.

    An active set after Lawson and Hanson (1974), in the form of Bro and De Jong (1997) that needs no more than G and b.
    It stops where no gradient is below 0 by more than rounding: n eps (max |b| + max |G| sum w).
    """
    n, w = len(aligned), np.zeros(len(aligned))
    used, refused = np.zeros(n, bool), np.zeros(n, bool)
    for _ in range(_ROUNDS * n):
        slope = aligned - gram @ w
        rounding = 10 * n * np.finfo(float).eps * (np.abs(aligned).max() + np.abs(gram).max() * w.sum())
        open_ = ~used & ~refused & (slope > rounding)
        if not open_.any():
            return w
        entering = int(np.argmax(np.where(open_, slope, -np.inf)))
        used[entering] = True
        found = _least(gram, aligned, used)
        if found[entering] <= 0:  # by rounding alone: what enters goes up
            used[entering], refused[entering] = False, True
            continue
        while (found[used] <= 0).any():
            falling = used & (found <= 0)
            step = (w[falling] / (w[falling] - found[falling])).min()
            w = w + step * (found - w)
            used &= w > rounding / max(np.abs(gram).max(), np.finfo(float).tiny)
            w[~used] = 0.0
            found = _least(gram, aligned, used)
        w, refused = found, np.zeros(n, bool)
    return w


def _least(gram: np.ndarray, aligned: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The least squares of those that are used; 0 elsewhere."""
    found = np.zeros(len(aligned))
    if used.any():
        found[used] = np.linalg.lstsq(gram[np.ix_(used, used)], aligned[used], rcond=None)[0]
    return found
