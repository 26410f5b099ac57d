"""Learning curves of a short branch on the next stage: area under the curve, and tokens to a threshold.

Source: LHAS, arXiv:2605.30537, Section 4.1 and Appendix A, which specify neither horizon nor axis.
"""

from __future__ import annotations

import numpy as np


def area(x: np.ndarray, y: np.ndarray) -> float:
    """The area under a curve divided by its length (trapezoidal rule), so a constant curve gives the constant.

    x: ascending [n], n >= 2; y: [n]. Raises ValueError otherwise.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError("a curve has two points or more, in ascending order")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def reached(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """Where a curve first reaches `level`, interpolated linearly between points; NaN if it never does or is unknown."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    above = np.flatnonzero(y >= level)
    if not len(above):
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))
