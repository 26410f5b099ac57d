"""What training on subsets of the pool gives, and which values of samples foretell it: the linear datamodeling score.

Every function takes K subsets of N samples as `members`, bool [K, N], and what training on each gained: `gains`,
float64 [K, E], of E target examples, higher for better (the negative loss). Plain arrays.

References: Park et al., "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186, Section 2.2 (the score); Ilyas
et al., "Datamodels", arXiv:2202.00622 (the regression on membership).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PENALTIES = np.logspace(-6, 6, 49)  # of the regression, over the mean eigenvalue of the subsets' overlaps


@dataclass(frozen=True)
class Foretold:
    """How well values foretell gains. each: the score of every target example, float64 [E]. mean: of the mean gain over
    the examples. low, high: the 95 % bootstrap interval of it, resampling subsets. p: how often values dealt out anew
    among the samples foretell the mean gain as well."""

    each: np.ndarray
    mean: float
    low: float
    high: float
    p: float


def predicted(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The summed value of each subset's samples, float64 [K]; samples without a value (NaN) add nothing."""
    return members @ np.nan_to_num(values, nan=0.0)


def lds(values: np.ndarray, members: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The linear datamodeling score of each target example, float64 [E]: Spearman's correlation over the subsets of the
    summed values, [N], with the gains. NaN where either is constant."""
    return _spearman(predicted(values, members), gains)


def foretold(values: np.ndarray, members: np.ndarray, gains: np.ndarray, draws: int = 1000, seed: int = 0) -> Foretold:
    """The scores of values, with an interval and the permutation control."""
    members = members.astype(np.float64)  # once, and not for each of the draws
    rng, summed, mean = np.random.default_rng(seed), predicted(values, members), gains.mean(1)
    score = float(_spearman(summed, mean[:, None])[0])
    again = [_spearman(summed[i], mean[i][:, None])[0] for i in _resampled(rng, len(summed), draws)]
    low, high = np.nanpercentile(again, [2.5, 97.5]) if np.isfinite(again).any() else (np.nan, np.nan)
    dealt = predicted_anew(values, members, draws, rng)
    null = np.array([_spearman(one, mean[:, None])[0] for one in dealt])
    p = float((1 + np.sum(null >= score)) / (1 + draws)) if np.isfinite(score) else float("nan")
    return Foretold(lds(values, members, gains), score, float(low), float(high), p)


def predicted_anew(
    values: np.ndarray, members: np.ndarray, draws: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The summed values of the subsets, [K], where those that there are are dealt out anew among their samples."""
    known = np.flatnonzero(~np.isnan(values))
    dealt = values.copy()
    for _ in range(draws):
        dealt[known] = rng.permutation(values[known])
        yield predicted(dealt, members)


def shares_of_best(summed: np.ndarray, gains: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """In what share of bootstrap samples of the subsets each of S scores foretells the mean gain best, float64 [S].
    summed: their predictions, [S, K]; gains: [K, E]."""
    rng, mean, won = np.random.default_rng(seed), gains.mean(1), np.zeros(len(summed))
    for i in _resampled(rng, summed.shape[1], draws):
        found = _spearman(summed[:, i].T, np.repeat(mean[i][:, None], len(summed), 1))
        won[np.argmax(np.nan_to_num(found, nan=-2.0))] += 1
    return won / draws


def standard_error(subsets: int) -> float:
    """Of Spearman's correlation over so many subsets, where there is none: 1 / sqrt(K - 1)."""
    return 1 / np.sqrt(subsets - 1) if subsets > 1 else float("inf")


# --- what is to be had -----------------------------------------------------------------------------------


def reliability(repeats: np.ndarray) -> float:
    """How much of the variance of the gains of one training is of its subset and not of its seed: the mean correlation
    (Pearson) of the mean gains over subsets, of any two of R repeats. repeats: float64 [R, K]; NaN for fewer than two
    repeats, or subsets."""
    if len(repeats) < 2 or repeats.shape[1] < 3:
        return float("nan")
    pairs = np.corrcoef(repeats)[np.triu_indices(len(repeats), 1)]
    return float(np.mean(pairs))


def of_mean(reliable: float, times: float) -> float:
    """The reliability of the mean of so many repeats as one has that of (Spearman and Brown)."""
    return times * reliable / (1 + (times - 1) * reliable)


def ceiling(reliable: float) -> float:
    """The largest correlation with gains of that reliability that any prediction is expected to have: its root."""
    return float(np.sqrt(max(reliable, 0.0))) if np.isfinite(reliable) else float("nan")


def linear_datamodel(members: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What the other subsets foretell of each one's gain over their mean, float64 [K, E]: ridge regression on
    membership, with the penalty of the least squared error on subsets that are left out one by one. So well can values
    that are summed foretell, as far as K trainings can tell which. (Of their mean alone a subset's own gain would be
    foretold the wrong way round, since the mean of the others is the lower, the higher it is.)"""
    x = members - members.mean(0)
    overlaps = x @ x.T
    eigenvalues, vectors = np.linalg.eigh(overlaps)
    eigenvalues = np.clip(eigenvalues, 0, None)
    scale = eigenvalues.mean() or 1.0
    k = len(members)
    best, least = np.zeros_like(gains), np.full(gains.shape[1], np.inf)
    for penalty in PENALTIES * scale:
        shrunk = eigenvalues / (eigenvalues + penalty)
        hat = (vectors * shrunk) @ vectors.T + 1 / k  # with the mean, which is not penalised
        kept = 1 - np.diag(hat)
        left_out = gains - (gains - hat @ gains) / np.maximum(kept, 1e-12)[:, None]
        error = np.square(gains - left_out).mean(0)
        better = error < least
        best[:, better], least[better] = left_out[:, better], error[better]
    return best - (gains.sum(0) - gains) / (k - 1)


# --- ranks -----------------------------------------------------------------------------------------------


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of a, [K], or of its columns, [K, E], with the columns of b, [K, E]: [E]."""
    from scipy.stats import rankdata

    a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    a = (a - a.mean(0))[:, None] if a.ndim == 1 else a - a.mean(0)
    b = b - b.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))


def _resampled(rng: np.random.Generator, n: int, draws: int) -> Iterator[np.ndarray]:
    for _ in range(draws):
        yield rng.integers(0, n, n)
