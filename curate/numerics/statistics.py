"""Means over seeds, with standard errors and intervals. Plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """n values: their mean, and its standard error (sd / sqrt n, with n - 1 degrees of freedom); None for one value."""

    n: int
    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of one or more values."""
        n = len(values)
        if n > 1 and all(value == values[0] for value in values):  # otherwise rounding gives a tiny non-zero error
            return cls(n, float(values[0]), 0.0)
        return cls(n, float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Student's t confidence interval; None for one value."""
        if self.error is None:
            return None
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, self.n - 1)) * self.error
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        """The mean, rounded to the decimal place of its error's second significant digit."""
        if self.error is None:
            return f"{self.mean:.4g}"
        if not 1e-6 < self.error < np.inf:
            return f"{self.mean:.4g} ± {self.error:.2g}"
        places = max(0, 1 - int(np.floor(np.log10(self.error))))
        return f"{self.mean:.{places}f} ± {self.error:.{places}f}"


def paired(a: dict[int, float], b: dict[int, float]) -> Mean | None:
    """The mean of a - b over the seeds that both have; None if they share none. a, b: seed -> value."""
    shared = sorted(a.keys() & b.keys())
    return Mean.of([a[seed] - b[seed] for seed in shared]) if shared else None


def pareto(costs: Sequence[float], values: Sequence[float], better: str) -> list[int]:
    """Positions on the Pareto front of cost and value, cheapest first. better: 'higher' or 'lower' values."""
    sign = 1.0 if better == "higher" else -1.0
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i]))
    front: list[int] = []
    for i in order:
        if not front or sign * values[i] > sign * values[front[-1]]:
            front.append(i)
    return front


def effective_size(weights: np.ndarray) -> float:
    """Effective sample size (sum w)^2 / sum w^2; 0 if all weights are 0."""
    maximum = float(weights.max(initial=0.0))
    relative = weights / maximum if maximum else weights  # scaled so that squares do not underflow
    return float(relative.sum() ** 2 / (relative**2).sum()) if maximum else 0.0


def adjusted(p: np.ndarray) -> np.ndarray:
    """Holm's adjustment of p values, [K]: what each is at when the chance of any false one is to be that.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics, 1979.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(stepped, 1.0)
    return found
