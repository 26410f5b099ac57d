"""Learning curves of a short branch on the next stage: how much is there early, and how soon enough is.

Source: LHAS, arXiv:2605.30537, Section 4.1 and Appendix A, which fix neither horizon nor axis.
"""

from __future__ import annotations

import numpy as np


def area(x: np.ndarray, y: np.ndarray) -> float:
    """The area under a curve over its length, by trapezoids: a constant curve's is the constant. x: ascending [n >= 2];
    y: [n]."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError("a curve has two points or more, in ascending order")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def reached(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """Where a curve first is at `level` or above, between two points by a straight line; not a number where it never
    is, or is not known."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    above = np.flatnonzero(y >= level)
    if not len(above):
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))
