"""A weighted sum of columns fitted to subsets' gains: against refitting by hand, and where the truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from curate.numerics.combination import fitted, ridge
from curate.numerics.datamodels import PENALTIES


def planted(k: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four columns of 400 samples, of which two matter; subsets of half; and their gains."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, 400)) * np.array([[1.0], [10.0], [0.1], [3.0]]) + np.array([[5.0], [0], [-2], [0]])
    members = np.stack([rng.permutation(400) < 200 for _ in range(k)])
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    means = members @ z.T / 200
    return values, members, means @ np.array([2.0, -1.0, 0.0, 0.0]) + noise * rng.standard_normal(k) + 7


def by_hand(features: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, float]:
    """Every penalty tried by fitting without each subset in turn."""
    x = features - features.mean(0)
    scale = np.square(x).sum() / len(x)

    def solve(f: np.ndarray, g: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        own = f - f.mean(0)
        return np.linalg.solve(own.T @ own + penalty * np.eye(f.shape[1]), own.T @ (g - g.mean())), g.mean()

    def error(penalty: float) -> float:
        total = 0.0
        for i in range(len(gains)):
            rest = np.arange(len(gains)) != i
            # the shortcut of a fit whose centre is that of all: the penalised weights of the rest, about the whole mean
            design = np.column_stack([np.ones(len(gains)), x])
            penalised = np.diag([0.0, *[penalty] * x.shape[1]])
            w = np.linalg.solve(design[rest].T @ design[rest] + penalised, design[rest].T @ gains[rest])
            total += (gains[i] - design[i] @ w) ** 2
        return total / len(gains)

    best = min(PENALTIES * scale, key=error)
    return solve(features, gains, best)[0], float(best)


def test_weights_and_penalty_are_those_of_refitting_without_each_subset() -> None:
    for noise in (0.01, 0.3):
        values, members, gains = planted(24, noise)
        features = members @ values.T / 200
        weights, penalty = ridge(features, gains)
        wanted, by = by_hand(features, gains)
        assert penalty == pytest.approx(by)
        np.testing.assert_allclose(weights, wanted, rtol=1e-8)


def test_what_was_planted_is_found_and_told_of_subsets_that_were_not_seen() -> None:
    values, members, gains = planted(64, 0.03)
    found = fitted(values, members, gains, draws=200)
    np.testing.assert_allclose(found.weights, [2, -1, 0, 0], atol=0.2)
    inside = (found.weights_low <= 0) & (found.weights_high >= 0)
    assert inside.tolist() == [False, False, True, True]
    assert found.held_out > 0.9 and found.low < found.held_out < found.high
    np.testing.assert_allclose(found.center, values.mean(1))
    np.testing.assert_allclose(found.scale, values.std(1))


def test_noise_is_not_told_to_be_foretold() -> None:
    held_out = []
    for seed in range(20):
        values, members, _ = planted(48, 0.0, seed)
        gains = np.random.default_rng(100 + seed).standard_normal(48)
        held_out.append(fitted(values, members, gains, draws=10).held_out)
    assert abs(np.mean(held_out)) < 0.1


def test_a_value_that_is_missing_counts_as_the_mean() -> None:
    values, members, gains = planted(32, 0.03)
    holes = values.copy()
    holes[0, :40] = np.nan
    filled = np.where(np.isnan(holes), np.nanmean(holes, 1, keepdims=True), holes)
    scale = np.nanstd(holes, 1)
    z = (filled - np.nanmean(holes, 1, keepdims=True)) / scale[:, None]
    wanted, _ = ridge(members @ z.T / 200, gains)
    np.testing.assert_allclose(fitted(holes, members, gains, draws=2).weights, wanted, rtol=1e-10)
