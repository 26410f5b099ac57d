"""Whether the selectors that win now also win in the end: the myopia gap, with a permutation test and an interval.

A gap means little by itself: for 7 selectors ranked at random it is .38 on average, and .57 at most. So it comes with
the share of random rankings that have at least as large a gap, and with an interval over seeds. It is of all selectors
together; whether one of them is myopic, ahead now and behind in the end, is asked of its ranks in every seed.

Source: LHAS, arXiv:2605.30537, Equation 3; the treatment of ties, the null distribution and the test of a single
selector are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

_EXACT = 8  # up to so many selectors, all rankings are enumerated
_DRAWS = 20_000  # random rankings otherwise


@dataclass(frozen=True)
class Myopia:
    """The myopia gap of K selectors.

    gap: the mean over selectors. each: of every selector, [K]. now, later: its ranks, 1 the best, ties averaged, [K].
    null: the mean gap of random rankings. p: the share of random rankings with a gap at least as large; agree: at most
    as large; least: the smallest p possible with K selectors. interval: 95 %, over seeds; None with one seed. myopic:
    of every selector by itself, the p that it is ahead now and behind in the end, [K]; `adjusted` is for all of them.
    """

    gap: float
    each: np.ndarray
    now: np.ndarray
    later: np.ndarray
    null: float
    p: float
    agree: float
    least: float
    interval: tuple[float, float] | None
    myopic: np.ndarray


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values, [K] -> [K]: 1 for the highest; ties get their mean rank."""
    from scipy.stats import rankdata

    return rankdata(-np.asarray(values, np.float64))


def gap_of(now: np.ndarray, later: np.ndarray) -> np.ndarray:
    """|rank now - rank later| / (K - 1) of every selector, [..., K]; the mean over selectors is the myopia gap."""
    return np.abs(now - later) / (now.shape[-1] - 1)


def myopia(immediate: np.ndarray, long: np.ndarray, seed: int = 0) -> Myopia:
    """The gap between two rankings of K selectors, each by its mean over seeds, from [K, seeds]; NaNs are left out of
    the means. Raises ValueError for fewer than two selectors, which have no ranks."""
    immediate, long = (np.asarray(values, np.float64) for values in (immediate, long))
    if len(immediate) < 2:
        raise ValueError("ranks need two selectors or more")
    now, later = ranks(_mean(immediate)), ranks(_mean(long))
    gaps = gap_of(now, later)
    null, gap = gap_of(now, _rankings(later, seed)).mean(-1), float(gaps.mean())
    drawn = int(len(later) > _EXACT)  # with sampled rankings, the observed one counts as one more
    p, agree = (
        float((np.sum(extreme) + drawn) / (len(null) + drawn)) for extreme in (null >= gap - 1e-12, null <= gap + 1e-12)
    )
    least = float(np.mean(null >= null.max() - 1e-12))
    interval = _interval(immediate, long, seed)
    myopic = ahead_and_behind(immediate, long)
    return Myopia(gap, gaps, now, later, float(null.mean()), p, agree, least, interval, myopic)


def ahead_and_behind(immediate: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Of each of K selectors the p that it is ahead now and behind in the end, from [K, seeds]: the larger of two, that
    random ranks in every seed have a sum as small as its ranks now, and as large as its ranks in the end. Exact; of the
    seeds in which all selectors have both values; NaN without any."""
    known = np.isfinite(immediate).all(0) & np.isfinite(long).all(0)
    if not known.any():
        return np.full(len(immediate), np.nan)
    now, later = (np.stack([ranks(v) for v in values[:, known].T]) for values in (immediate, long))  # [seeds, K]
    return np.maximum(_at_most(now), _at_most(now.shape[1] + 1 - later))


def _at_most(ranked: np.ndarray) -> np.ndarray:
    """P(the sum over seeds of ranks drawn at random from each seed's <= each selector's), [seeds, K] -> [K]."""
    doubled = np.rint(2 * ranked).astype(int)  # ties have half ranks
    chance = np.ones(1)
    for row in doubled:
        chance = np.convolve(chance, np.bincount(row) / len(row))
    return np.cumsum(chance)[doubled.sum(0)]


def _rankings(ranked: np.ndarray, seed: int) -> np.ndarray:
    """Permutations of the ranks, [n, K]: all of them for few selectors, otherwise a random sample."""
    if len(ranked) <= _EXACT:
        return np.array(list(permutations(ranked)))
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(ranked) for _ in range(_DRAWS)])


def _interval(immediate: np.ndarray, long: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float] | None:
    """The 2.5 to 97.5 % bootstrap interval of the gap, resampling seeds; None with one seed."""
    n = immediate.shape[1]
    if n < 2:
        return None
    rng, gaps = np.random.default_rng(seed), []
    for _ in range(draws):
        resample = rng.integers(n, size=n)
        now, later = _mean(immediate[:, resample]), _mean(long[:, resample])
        if np.isfinite(now).all() and np.isfinite(later).all():
            gaps.append(gap_of(ranks(now), ranks(later)).mean())
    low, high = np.percentile(gaps, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over seeds without NaNs; NaN where nothing is left."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0.0).sum(1) / finite.sum(1)
