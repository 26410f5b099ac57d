"""Ratings from pairs: against a slow optimiser, what is exact, what is extreme, and which pairs are compared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from curate.numerics.bradley_terry import design, rated


def compared(n: int, degree: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ratings, pairs, and preferences that follow from them, but for what is added to each pair's log odds."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    one, other = design(n, degree, rng).T
    odds = truth[one] - truth[other] + noise * rng.normal(size=len(one))
    return truth, one, other, np.stack([expit(odds), expit(-odds)], 1)


def slow(n: int, one: np.ndarray, other: np.ndarray, preferred: np.ndarray) -> np.ndarray:
    """Pair by pair, by scipy's optimiser for any function."""

    def loss(r: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros(n)
        for i, j, (p, q) in zip(one, other, preferred, strict=True):
            d = r[i] - r[j]
            total -= p * log_expit(d) + q * log_expit(-d)
            slope[i] -= p - expit(d)
            slope[j] += p - expit(d)
        return total, slope

    found = minimize(loss, np.zeros(n), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 10_000}).x
    return found - found.mean()


@pytest.mark.parametrize(("n", "degree", "noise"), [(40, 4, 1.0), (30, 2, 0.5), (12, 20, 2.0), (2, 2, 0.3)])
def test_ratings_are_those_of_a_slow_optimiser(n: int, degree: int, noise: float) -> None:
    _, one, other, preferred = compared(n, degree, n, noise)
    found = rated(n, one, other, preferred)
    np.testing.assert_allclose(found.rating, slow(n, one, other, preferred), atol=1e-6)
    assert found.floor <= found.loss <= np.log(2)


def test_preferences_that_ratings_explain_give_these_ratings() -> None:
    truth, one, other, preferred = compared(500, 4, 0, 0.0)
    found = rated(500, one, other, preferred)
    np.testing.assert_allclose(found.rating, truth - truth.mean(), atol=1e-9)
    assert found.loss == pytest.approx(found.floor)


def test_a_preference_of_nearly_one_gives_a_large_rating_and_no_infinite_one() -> None:
    tiny = 1e-80
    found = rated(3, np.array([0, 1]), np.array([1, 2]), np.array([[1.0, tiny], [0.5, 0.5]]))
    assert 20 < found.rating[0] - found.rating[1] < -np.log(tiny)  # what is all but certain is as good as certain
    assert found.rating[1] == pytest.approx(found.rating[2])


@pytest.mark.parametrize(("degree", "spread"), [(8, 25.0), (2, 30.0)])
def test_what_is_all_but_certain_comes_to_an_end(degree: int, spread: float) -> None:
    rng = np.random.default_rng(3)
    truth = spread * rng.normal(size=1000)
    one, other = design(1000, degree, rng).T
    odds = truth[one] - truth[other] + rng.normal(size=len(one))
    found = rated(1000, one, other, np.stack([expit(odds), expit(-odds)], 1))
    assert np.isfinite(found.rating).all() and found.loss < 0.1
    if degree == 8:
        assert np.corrcoef(np.argsort(np.argsort(truth)), np.argsort(np.argsort(found.rating)))[0, 1] > 0.9


def test_what_no_comparisons_connect_has_no_rating() -> None:
    found = rated(6, np.array([0, 1, 3]), np.array([1, 2, 4]), np.full((3, 2), 0.5))
    assert np.isfinite(found.rating).tolist() == [True, True, True, False, False, False]
    assert np.isnan(rated(3, np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2))).rating).all()


@pytest.mark.parametrize(("n", "degree"), [(1000, 8), (7, 4), (5, 8), (2, 2), (1, 2), (0, 2)])
def test_each_is_compared_with_so_many_others_and_all_are_connected(n: int, degree: int) -> None:
    pairs = design(n, degree, np.random.default_rng(0))
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)
    met = np.bincount(pairs.ravel(), minlength=n)
    assert (met <= min(degree, max(n - 1, 0))).all() and met.sum() >= 0.97 * n * min(degree, n - 1) * (n > 10)
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(n, n))
    assert not n or connected_components(graph, directed=False)[0] == 1


def test_more_comparisons_tell_the_order_better() -> None:
    """Of preferences whose log odds are off by as much as ratings differ: the figures of the score's docstring."""
    agreement = {}
    for degree in (4, 8, 16):
        truth, one, other, preferred = compared(4000, degree, 1, 1.0)
        agreement[degree] = float(np.corrcoef(truth, rated(4000, one, other, preferred).rating)[0, 1])
    assert agreement == pytest.approx({4: 0.84, 8: 0.93, 16: 0.96}, abs=0.015)
