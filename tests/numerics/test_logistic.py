"""Logistic regression and what is said of classifiers: against scikit-learn and plain counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from curate.numerics.logistic import auroc, calibration_error, fitted, log_loss


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_it_is_what_scikit_learn_fits(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 9)) * (rng.random((120, 9)) < 0.4)
    label = x[:, 0] - x[:, 1] + rng.normal(size=120) > 0.3
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-12, max_iter=10_000, solver="newton-cg").fit(x, label)
    for given in (x, csr_array(x)):
        weights, intercept = fitted(given, label, penalty)
        np.testing.assert_allclose(weights, theirs.coef_[0], atol=1e-6)
        assert intercept == pytest.approx(theirs.intercept_[0], abs=1e-6)
    odds = x @ weights + intercept
    assert auroc(odds, label) == pytest.approx(roc_auc_score(label, odds))
    assert log_loss(odds, label) == pytest.approx(their_log_loss(label, 1 / (1 + np.exp(-odds))))


def test_ties_count_half_and_one_class_alone_has_no_auroc() -> None:
    assert auroc(np.array([1.0, 1.0, 0.0]), np.array([True, False, False])) == 0.75
    assert np.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))


def test_calibration_is_counted_bin_by_bin() -> None:
    rng = np.random.default_rng(1)
    p, label = rng.random(500), rng.random(500) < 0.6
    total = 0.0
    for k in range(10):
        inside = (p >= k / 10) & (p < (k + 1) / 10)
        total += inside.sum() / 500 * abs(p[inside].mean() - label[inside].mean())
    assert calibration_error(np.log(p / (1 - p)), label) == pytest.approx(total)
    certain = np.array([800.0, -800.0])
    assert calibration_error(certain, np.array([True, False])) == pytest.approx(0.0)
