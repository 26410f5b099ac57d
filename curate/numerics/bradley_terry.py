"""Ratings from comparisons of pairs: the Bradley-Terry model, by Newton's method, and which pairs to compare.

Shapes: N things, P pairs. Plain arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg
from scipy.special import expit, log_expit

_ROUNDS = 100  # some ten are enough, but where preferences are all but certain
_PRODUCTS = 200  # in one step, which need not be exact to lead downhill
_DAMPING = 1e-6  # of the mean curvature
_ENOUGH = 1e-5  # of the largest change of a rating in the last step, behind which an error is about its square


@dataclass(frozen=True)
class Ratings:
    """rating: float64 [N], of mean 0, NaN for what is not connected with the most by comparisons. loss: the mean
    cross-entropy of the preferences under the ratings, in nats; floor: their own entropy, below which no rating
    gets. settled: whether the ratings no longer changed."""

    rating: np.ndarray
    loss: float
    floor: float
    settled: bool


def rated(n: int, one: np.ndarray, other: np.ndarray, preferred: np.ndarray) -> Ratings:
    """The ratings r of n things that make the preferences most likely, with P(one over other) = 1 / (1 + exp(-(r_one -
    r_other))).

    one, other: what is compared, int64 [P]. preferred: the shares of each pair's preference, for one and for other,
    float64 [P, 2], which add up to 1 (both, so that a tiny one keeps its digits).

    Reference: Bradley and Terry, "Rank Analysis of Incomplete Block Designs", Biometrika 1952.
    """
    inside = _connected(n, one, other)
    kept = inside[one]
    place = np.cumsum(inside) - 1
    rating = np.full(n, np.nan)
    found, settled = _fitted(int(inside.sum()), place[one[kept]], place[other[kept]], preferred[kept])
    rating[inside] = found
    own = preferred[kept]
    entropy = -(own * np.log(np.where(own > 0, own, 1.0))).sum(1)
    d = rating[one[kept]] - rating[other[kept]]
    loss = -(own[:, 0] * log_expit(d) + own[:, 1] * log_expit(-d))
    mean, floor = (float(each.mean()) if len(d) else np.nan for each in (loss, entropy))
    return Ratings(rating, mean, floor, settled)


def design(n: int, degree: int, rng: np.random.Generator) -> np.ndarray:
    """Random pairs of n things in which each is compared with about `degree` others, at most; int64 [P, 2], each pair
    once, the lower number first.

    They are the neighbours on degree / 2 random rings through all of them, so that all are connected, and a walk
    along pairs soon gets from anywhere to anywhere; all pairs, if these are no more.
    """
    if degree >= n - 1:
        one, other = np.triu_indices(n, 1)
        return np.stack([one, other], 1).astype(np.int64)
    rings = [rng.permutation(n) for _ in range(degree // 2)]
    pairs = np.concatenate([np.stack([ring, np.roll(ring, -1)], 1) for ring in rings])
    return np.unique(np.sort(pairs, 1), axis=0)


def _connected(n: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which things are among the most that comparisons connect, bool [n]; none of them without comparisons."""
    if not len(one):
        return np.zeros(n, bool)
    _, group = connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(n, n)), directed=False)
    return group == np.bincount(group).argmax()


def _fitted(n: int, one: np.ndarray, other: np.ndarray, preferred: np.ndarray) -> tuple[np.ndarray, bool]:
    """The most likely ratings of n connected things, and whether they no longer changed."""

    def difference(x: np.ndarray) -> np.ndarray:
        return x[one] - x[other]

    def spread(x: np.ndarray) -> np.ndarray:
        return np.bincount(one, x, n) - np.bincount(other, x, n)

    def loss(d: np.ndarray) -> float:
        return -float((preferred[:, 0] * log_expit(d) + preferred[:, 1] * log_expit(-d)).sum())

    both = np.concatenate([one, other]), np.concatenate([other, one])
    rating, before = np.zeros(n), loss(np.zeros(len(one)))
    for _ in range(_ROUNDS if n else 0):
        d = difference(rating)
        slope = spread(preferred[:, 0] * expit(-d) - preferred[:, 1] * expit(d))
        weight = expit(d) * expit(-d)
        diagonal = np.bincount(one, weight, n) + np.bincount(other, weight, n)
        # Where all is but certain the curvature vanishes: a little of it is added, which changes steps, not the end.
        diagonal += _DAMPING * diagonal.mean() + np.finfo(float).tiny
        curvature = diags_array(diagonal) - coo_array((np.tile(weight, 2), both), shape=(n, n)).tocsr()
        # Below 1e-13 the slope is what rounding leaves of sums of probabilities.
        step, _ = cg(curvature, slope, rtol=1e-8, atol=1e-13, maxiter=_PRODUCTS, M=diags_array(1 / diagonal))
        step -= step.mean()  # ratings are determined up to what is added to all
        after = loss(d + difference(step))
        while after > before + 1e-12 * abs(before):
            step /= 2
            after = loss(d + difference(step))
        rating, before = rating + step, after
        if np.abs(step).max() <= _ENOUGH:
            return rating, True
    return rating, not n
