"""How far two rankings of the same things agree. Plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray], float]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks, float64 [N] each; ties have their mean rank; not a number where one is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(a), rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def pairwise_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pairs that both put in the same order; a pair that either ties counts half."""
    i, j = np.triu_indices(len(a), 1)
    same = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
    return float(((same + 1) / 2).mean()) if len(i) else float("nan")


def jaccard(a: Collection[int] | np.ndarray, b: Collection[int] | np.ndarray) -> float:
    """What two sets share, of all that either has; 1 for two empty ones."""
    one, other = set(np.asarray(a).tolist()), set(np.asarray(b).tolist())
    return len(one & other) / len(one | other) if one | other else 1.0


def best(values: np.ndarray, k: int) -> np.ndarray:
    """The places of the k greatest, ascending; of ties those that come first; what is no number comes last."""
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return np.sort(order[:k])


def top_overlap(a: np.ndarray, b: np.ndarray, share: float) -> float:
    """Of the `share` that a ranks highest (at least one), the part that b ranks as high."""
    k = max(1, round(share * len(a)))
    return len(np.intersect1d(best(a, k), best(b, k))) / k


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % interval by the bootstrap over things."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, statistic: Statistic, a: np.ndarray, b: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
        rng, found = np.random.default_rng(seed), []
        for _ in range(draws):
            some = rng.integers(0, len(a), len(a))
            found.append(statistic(a[some], b[some]))
        low, high = np.nanpercentile(found, [2.5, 97.5])
        return cls(statistic(a, b), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Regret:
    """What a ranking that does not know of a choice loses against one that does: of the same number of things, chosen
    by either, the worth by the one that knows. ratio: the one's over the other's; jaccard: of the two choices."""

    ratio: float
    jaccard: float

    @property
    def regret(self) -> float:
        return 1 - self.ratio

    @classmethod
    def of(cls, aware: np.ndarray, unaware: np.ndarray, k: int) -> Regret:
        mine, theirs = best(aware, k), best(unaware, k)
        return cls(float(aware[theirs].sum() / aware[mine].sum()), jaccard(mine, theirs))
