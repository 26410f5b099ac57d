"""Measures of a stage's data and update: spread over skills, concentration in one direction, drift, stability.

Source: LHAS, arXiv:2605.30537, Section 4.1, Equation 4 and Appendix A; where it leaves a measure open, the choice is an
argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def entropy(counts: Sequence[float], base: float | None = None, normalize: bool = False) -> float:
    """Entropy of the shares of C skill clusters: -sum p log p. base: of the logarithm; None: e. normalize: divide by
    log C, so that a uniform distribution gives 1. An empty cluster counts in C."""
    p = np.asarray(counts, np.float64)
    p = p / p.sum()
    value = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    if normalize:
        return value / float(np.log(len(p))) if len(p) > 1 else 0.0
    return value / float(np.log(base)) if base else value


def concentration(gram: np.ndarray, eps: float = 1e-12) -> float:
    """The share of the leading direction: lambda_max(M) / (tr M + eps) with M = mean of g g^T, not centred
    (Equation 4). gram: <g_i, g_j>, [n, n], which has the same non-zero spectrum as n M. Between 1 / n and 1."""
    m = np.asarray(gram, np.float64) / len(gram)
    return float(np.linalg.eigvalsh(m)[-1] / (np.trace(m) + eps))


def drift(products: Mapping[str, float]) -> float:
    """Cosine distance between a stage's update u and the sum v of all earlier ones: 1 - u.v / (|u| |v|), from the inner
    products 'uu', 'uv', 'vv'. NaN if either is zero, as v is at the first stage."""
    length = np.sqrt(products["uu"] * products["vv"])
    return float(1 - products["uv"] / length) if length > 0 else float("nan")


@dataclass(frozen=True)
class Stability:
    """spread: standard deviation of the loss around its running mean. spikes: share of steps whose loss is more than
    three such deviations above it. norm_range: the largest gradient norm over the median."""

    spread: float
    spikes: float
    norm_range: float


def stability(loss: Sequence[float], norms: Sequence[float], window: int = 10) -> Stability:
    """Training stability from each step's loss and gradient norm (the paper names it without defining it).

    window: steps of the running mean over earlier steps only. All NaN for fewer than two steps.
    """
    values, lengths = np.asarray(loss, np.float64), np.asarray(norms, np.float64)
    if len(values) < 2:
        return Stability(float("nan"), float("nan"), float("nan"))
    running_mean = np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values))])
    deviation = values[1:] - running_mean
    spread = float(deviation.std())
    spikes = float(np.mean(deviation > 3 * spread)) if spread > 0 else 0.0
    median = float(np.median(lengths))
    return Stability(spread, spikes, float(lengths.max() / median) if median > 0 else float("nan"))
