"""The linear datamodeling score against scipy and a hand-made example, its intervals and what is to be had at most."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from curate.numerics.datamodels import (
    ceiling,
    foretold,
    lds,
    linear_datamodel,
    of_mean,
    predicted,
    reliability,
    shares_of_best,
    standard_error,
)


def drawn(k: int, n: int, seed: int = 0) -> np.ndarray:
    """K subsets of half of N samples."""
    rng = np.random.default_rng(seed)
    members = np.zeros((k, n), bool)
    for row in members:
        row[rng.choice(n, n // 2, replace=False)] = True
    return members


def test_a_hand_made_example() -> None:
    members = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], bool)
    values = np.array([3.0, 1.0, 0.0, np.nan])
    assert predicted(values, members).tolist() == [4, 1, 0, 3]
    gains = np.array([[9.0, 1.0], [2.0, 3.0], [1.0, 4.0], [8.0, 2.0]])
    assert lds(values, members, gains).tolist() == pytest.approx([1, -1])


def test_as_scipy_has_it_with_ties() -> None:
    rng, members = np.random.default_rng(1), drawn(40, 30)
    values, gains = rng.integers(0, 3, 30).astype(float), rng.normal(size=(40, 5)).round(1)
    wanted = [spearmanr(members.astype(float) @ values, gains[:, e]).statistic for e in range(5)]
    assert lds(values, members, gains) == pytest.approx(wanted, abs=1e-12)


def test_values_that_make_the_gains_foretell_them_and_others_do_not() -> None:
    rng, members = np.random.default_rng(2), drawn(64, 200)
    true = rng.normal(size=200)
    gains = (members @ true)[:, None] + rng.normal(size=(64, 8))
    good, bad = foretold(true, members, gains, 200), foretold(rng.normal(size=200), members, gains, 200)
    assert good.mean > 0.95 and good.p == pytest.approx(1 / 201) and good.low < good.mean <= good.high
    assert bad.low < 0 < bad.high and bad.p > 0.01
    assert good.each.shape == (8,) and good.each.mean() < good.mean  # each is noisier than their mean


def test_constant_values_foretell_nothing_rather_than_something() -> None:
    members = drawn(16, 20)
    found = foretold(np.ones(20), members, np.random.default_rng(0).normal(size=(16, 2)), 50)
    assert np.isnan(found.mean) and np.isnan(found.p) and np.isnan(found.each).all()


def test_the_permutation_control_is_uniform_where_there_is_nothing() -> None:
    rng, members = np.random.default_rng(3), drawn(24, 60)
    p = [foretold(rng.normal(size=60), members, rng.normal(size=(24, 1)), 99, seed=i).p for i in range(60)]
    assert 0.35 < np.mean(p) < 0.65 and min(p) < 0.15 and max(p) > 0.85


def test_reliability_is_the_share_of_variance_that_repeats() -> None:
    rng = np.random.default_rng(4)
    of_subset, noise = rng.normal(size=4000), rng.normal(size=(3, 4000))
    repeats = of_subset + noise  # half of the variance is the subset's
    assert reliability(repeats) == pytest.approx(0.5, abs=0.03)
    assert of_mean(0.5, 3) == pytest.approx(0.75) and of_mean(0.75, 1 / 3) == pytest.approx(0.5)
    best = np.corrcoef(of_subset, repeats[0])[0, 1]  # of the very cause with one noisy training
    assert ceiling(reliability(repeats)) == pytest.approx(best, abs=0.03)
    assert np.isnan(reliability(repeats[:1])) and np.isnan(ceiling(float("nan"))) and ceiling(-0.1) == 0


def test_the_linear_datamodel_leaves_each_subset_out() -> None:
    """As a regression on the other subsets alone says, at every penalty; so the least error is over these."""
    rng, members = np.random.default_rng(5), drawn(12, 6)
    gains = (members @ rng.normal(size=6))[:, None] + 0.1 * rng.normal(size=(12, 2))
    found = linear_datamodel(members, gains)
    x = members - members.mean(0)
    scale = np.linalg.eigvalsh(x @ x.T).mean()
    by_penalty = []
    for penalty in np.logspace(-6, 6, 49) * scale:
        left_out = np.zeros_like(gains)
        for i in range(12):
            others = np.delete(np.arange(12), i)
            design = np.column_stack([np.ones(11), x[others]])
            ridge = np.diag([0.0] + [penalty] * 6)
            weights = np.linalg.solve(design.T @ design + ridge, design.T @ gains[others])
            left_out[i] = np.concatenate([[1.0], x[i]]) @ weights
        by_penalty.append(left_out)
    errors = np.array([np.square(gains - one).mean(0) for one in by_penalty])
    wanted = np.stack([by_penalty[errors[:, e].argmin()][:, e] for e in range(2)], 1)
    others = (gains.sum(0) - gains) / 11
    assert found == pytest.approx(wanted - others, abs=1e-6)
    assert np.square(gains - others - found).mean() < 0.3 * gains.var()


def test_the_linear_datamodel_foretells_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(7)
    found = [
        spearmanr(linear_datamodel(members, gains)[:, 0], gains[:, 0]).statistic
        for members, gains in ((drawn(40, 30, i), rng.normal(size=(40, 1))) for i in range(40))
    ]
    assert abs(np.mean(found)) < 0.2  # where the means of the others are left in, it is -0.6


def test_which_is_best_is_told_by_resampled_subsets() -> None:
    rng, members = np.random.default_rng(8), drawn(40, 50)
    true = rng.normal(size=50)
    gains = (members @ true)[:, None] + rng.normal(size=(40, 3))
    summed = np.stack([predicted(v, members) for v in (rng.normal(size=50), true, true + 0.1, np.ones(50))])
    shares = shares_of_best(summed, gains, 200)
    assert shares.sum() == pytest.approx(1) and shares[1] > 0.9 and shares[3] == 0  # of equals the first wins


def test_the_standard_error_of_a_correlation_over_subsets() -> None:
    rng = np.random.default_rng(6)
    found = [spearmanr(rng.normal(size=26), rng.normal(size=26)).statistic for _ in range(2000)]
    assert standard_error(26) == pytest.approx(np.std(found), rel=0.06) and standard_error(1) == float("inf")
