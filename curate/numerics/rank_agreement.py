"""Agreement between two rankings of the same items. Plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray], float]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, float64 [N] each; ties have their mean rank; NaN if either is constant."""
    from scipy.stats import ConstantInputWarning, spearmanr

    if len(a) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # NaN says so
        result = spearmanr(a, b)
    return float(result.statistic)


def pairwise_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pairs that both rank in the same order; a pair tied in either counts as half. NaN without pairs."""
    i, j = np.triu_indices(len(a), 1)
    same = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
    return float(((same + 1) / 2).mean()) if len(i) else float("nan")


def jaccard(a: Collection[int] | np.ndarray, b: Collection[int] | np.ndarray) -> float:
    """Intersection over union of two sets; 1 for two empty ones."""
    set_a, set_b = set(np.asarray(a).tolist()), set(np.asarray(b).tolist())
    return len(set_a & set_b) / len(set_a | set_b) if set_a | set_b else 1.0


def best(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest values, ascending; ties go to the earlier position; NaN ranks last."""
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return np.sort(order[:k])


def top_overlap(a: np.ndarray, b: np.ndarray, share: float) -> float:
    """The fraction of a's top `share` (at least one item) that is also in b's top `share`."""
    k = max(1, round(share * len(a)))
    return len(np.intersect1d(best(a, k), best(b, k))) / k


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % bootstrap interval, resampling items."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, statistic: Statistic, a: np.ndarray, b: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
        """The statistic of a and b, each [N], with percentiles over `draws` bootstrap samples of the N pairs."""
        rng, resampled = np.random.default_rng(seed), []
        for _ in range(draws):
            rows = rng.integers(0, len(a), len(a))
            resampled.append(statistic(a[rows], b[rows]))
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
        return cls(statistic(a, b), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Regret:
    """What selecting by an unaware ranking loses against selecting by an aware one, both measured by the aware values.

    ratio: summed aware value of the k items the unaware ranking selects, over that of the aware ranking's own k;
    jaccard: of the two selections.
    """

    ratio: float
    jaccard: float

    @property
    def regret(self) -> float:
        """1 - ratio; 0 where the unaware selection is as good."""
        return 1 - self.ratio

    @classmethod
    def of(cls, aware: np.ndarray, unaware: np.ndarray, k: int) -> Regret:
        """The regret of selecting k of N items by `unaware` instead of `aware`, float64 [N] each."""
        aware_best, unaware_best = best(aware, k), best(unaware, k)
        return cls(float(aware[unaware_best].sum() / aware[aware_best].sum()), jaccard(aware_best, unaware_best))
