"""A weighted sum of columns, fitted to what training on subsets gained: ridge regression of the gains on the subsets'
means of the columns.

Shapes: J columns, N samples, K subsets. Plain arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.numerics.datamodels import PENALTIES, linear_datamodel
from curate.numerics.rank_agreement import spearman


@dataclass(frozen=True)
class Combination:
    """Fitted weights, each per standard deviation of its column, float64 [J], and their 95 % bootstrap intervals over
    subsets. center, scale: the columns' means and standard deviations over the samples. penalty: of the regression.
    held_out: Spearman's correlation of what the other subsets foretell of each one, with its gain; low, high: its
    95 % bootstrap interval."""

    weights: np.ndarray
    weights_low: np.ndarray
    weights_high: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    penalty: float
    held_out: float
    low: float
    high: float


def fitted(values: np.ndarray, members: np.ndarray, gains: np.ndarray, draws: int = 1000, seed: int = 0) -> Combination:
    """The combination of columns, values float64 [J, N] (NaN counts as the column's mean), that foretells the gains,
    float64 [K], of subsets, members bool [K, N], best when each is left out."""
    center = np.nanmean(values, 1)
    scale = np.nanstd(values, 1)
    scale = np.where(scale > 0, scale, 1.0)
    z = np.nan_to_num((values - center[:, None]) / scale[:, None], nan=0.0)
    features = members @ z.T / np.maximum(members.sum(1), 1)[:, None]
    weights, penalty = ridge(features, gains)
    foretold = linear_datamodel(features, gains[:, None])[:, 0]
    rng, again, held = np.random.default_rng(seed), [], []
    for _ in range(draws):
        i = rng.integers(0, len(gains), len(gains))
        again.append(ridge(features[i], gains[i], penalty)[0])
        held.append(spearman(foretold[i], gains[i]))
    low, high = np.percentile(again, [2.5, 97.5], axis=0)
    held_low, held_high = np.nanpercentile(held, [2.5, 97.5])
    own = spearman(foretold, gains)
    return Combination(weights, low, high, center, scale, penalty, own, float(held_low), float(held_high))


def ridge(features: np.ndarray, gains: np.ndarray, penalty: float | None = None) -> tuple[np.ndarray, float]:
    """Weights [J] of the features, [K, J], and the penalty; None: that of the least squared error on subsets that are
    left out one by one, of those that the datamodel has. The mean is not penalised."""
    x, y, k = features - features.mean(0), gains - gains.mean(), len(gains)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    if penalty is None:
        scale = np.square(s).sum() / k or 1.0
        errors = [_left_out(u, s, y, each) for each in PENALTIES * scale]
        penalty = float((PENALTIES * scale)[int(np.argmin(errors))])
    return vt.T @ (s / (np.square(s) + penalty) * (u.T @ y)), penalty


def _left_out(u: np.ndarray, s: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """The mean squared error on subsets that are left out one by one."""
    shrunk = np.square(s) / (np.square(s) + penalty)
    kept = 1 - (np.square(u) @ shrunk) - 1 / len(y)
    return float(np.square((y - u @ (shrunk * (u.T @ y))) / np.maximum(kept, 1e-12)).mean())
