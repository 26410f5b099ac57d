"""Whether the selectors that win now are those that win in the end: the myopia gap, and how sure it is.

A gap means little by itself: of 7 selectors ranked by lot it is .38 in the mean, and .57 at most. So it comes with the
share of random rankings that have as large a one, and with an interval over seeds.

Source: LHAS, arXiv:2605.30537, Equation 3; ties and the null are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

_EXACT = 8  # selectors whose rankings are all gone through
_DRAWS = 20_000


@dataclass(frozen=True)
class Myopia:
    """gap: of the family. each: of every selector, [K]. now, later: its ranks, 1 the best, ties in the mean, [K]. null:
    the mean gap of rankings by lot. p: the share of those with a gap at least as large, agree: at most as large; least:
    the least p that so few selectors can have. interval: 95 %, over seeds;
    null with one seed."""

    gap: float
    each: np.ndarray
    now: np.ndarray
    later: np.ndarray
    null: float
    p: float
    agree: float
    least: float
    interval: tuple[float, float] | None


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the highest; equal values share the mean of their ranks. [K] -> [K]."""
    from scipy.stats import rankdata

    return rankdata(-np.asarray(values, np.float64))


def gap_of(now: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Of every selector |rank now - rank later| / (K - 1), [..., K]; their mean is the gap of the family."""
    return np.abs(now - later) / (now.shape[-1] - 1)


def myopia(immediate: np.ndarray, long: np.ndarray, seed: int = 0) -> Myopia:
    """The gap between two rankings of K selectors, each by its mean over seeds; [K, seeds], whatever is not a number
    left out of the mean. Raises ValueError for fewer than two selectors, which have no ranks."""
    immediate, long = (np.asarray(values, np.float64) for values in (immediate, long))
    if len(immediate) < 2:
        raise ValueError("ranks need two selectors or more")
    now, later = ranks(_mean(immediate)), ranks(_mean(long))
    each = gap_of(now, later)
    null, gap = gap_of(now, _rankings(later, seed)).mean(-1), float(each.mean())
    drawn = int(len(later) > _EXACT)  # of rankings by lot, the one at hand is one more
    p, agree = (
        float((np.sum(some) + drawn) / (len(null) + drawn)) for some in (null >= gap - 1e-12, null <= gap + 1e-12)
    )
    least = float(np.mean(null >= null.max() - 1e-12))
    interval = _interval(immediate, long, seed)
    return Myopia(gap, each, now, later, float(null.mean()), p, agree, least, interval)


def _rankings(ranked: np.ndarray, seed: int) -> np.ndarray:
    """The same ranks dealt out otherwise: in every way where these are few, else by lot. [n, K]."""
    if len(ranked) <= _EXACT:
        return np.array(list(permutations(ranked)))
    lot = np.random.default_rng(seed)
    return np.array([lot.permutation(ranked) for _ in range(_DRAWS)])


def _interval(immediate: np.ndarray, long: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float] | None:
    """The gap where seeds are drawn again with replacement: 2.5 to 97.5 %."""
    n = immediate.shape[1]
    if n < 2:
        return None
    lot, gaps = np.random.default_rng(seed), []
    for _ in range(draws):
        some = lot.integers(n, size=n)
        now, later = _mean(immediate[:, some]), _mean(long[:, some])
        if np.isfinite(now).all() and np.isfinite(later).all():
            gaps.append(gap_of(ranks(now), ranks(later)).mean())
    low, high = np.percentile(gaps, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over seeds, without what is not a number; not a number where nothing is one."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(1) / there.sum(1)
