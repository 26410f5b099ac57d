"""What a stage's data and its update look like: how spread over skills, how much of one direction, how steady.

Source: LHAS, arXiv:2605.30537, Section 4.1, Equation 4 and Appendix A; where it leaves a measure open, the choice is an
argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def entropy(counts: Sequence[float], base: float | None = None, normalize: bool = False) -> float:
    """Entropy of shares over C clusters of skills: -sum p log p. base: of the logarithm; null: e. normalize: divided by
    log C, so that all alike is 1. A cluster without samples counts in C."""
    p = np.asarray(counts, np.float64)
    p = p / p.sum()
    found = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    if normalize:
        return found / float(np.log(len(p))) if len(p) > 1 else 0.0
    return found / float(np.log(base)) if base else found


def concentration(gram: np.ndarray, eps: float = 1e-12) -> float:
    """The share of the strongest direction: lambda_max(M) / (tr M + eps) with M = mean of g g^T, not centred
    (Equation 4). gram: <g_i, g_j>, [n, n], which has the same spectrum as n M but for zeros. From 1 / n to 1."""
    m = np.asarray(gram, np.float64) / len(gram)
    return float(np.linalg.eigvalsh(m)[-1] / (np.trace(m) + eps))


def drift(products: Mapping[str, float]) -> float:
    """Cosine distance of a stage's update u from the sum v of all before: 1 - u.v / (|u| |v|), from 'uu', 'uv', 'vv'.
    Not a number where one is zero, as v is at the first stage."""
    length = np.sqrt(products["uu"] * products["vv"])
    return float(1 - products["uv"] / length) if length > 0 else float("nan")


@dataclass(frozen=True)
class Stability:
    """spread: standard deviation of the loss around its running mean. spikes: share of steps whose loss is over three
    such above it. norm_range: the largest gradient's length over the median."""

    spread: float
    spikes: float
    norm_range: float


def stability(loss: Sequence[float], norms: Sequence[float], window: int = 10) -> Stability:
    """How steady a training was, from each step's loss and gradient's length (the paper names it, not how).

    window: steps of the running mean, which looks back only. Of fewer than two steps nothing is known.
    """
    values, lengths = np.asarray(loss, np.float64), np.asarray(norms, np.float64)
    if len(values) < 2:
        return Stability(float("nan"), float("nan"), float("nan"))
    before = np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values))])
    off = values[1:] - before
    spread = float(off.std())
    spikes = float(np.mean(off > 3 * spread)) if spread > 0 else 0.0
    middle = float(np.median(lengths))
    return Stability(spread, spikes, float(lengths.max() / middle) if middle > 0 else float("nan"))
