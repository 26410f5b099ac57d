"""Logistic regression with a ridge penalty, and how well such a classifier tells its classes apart.

Shapes: N samples, J features. Labels are booleans.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize  # pyright: ignore[reportAttributeAccessIssue]  # a starred import there
from scipy.special import expit, log_expit
from scipy.stats import rankdata

_BINS = 10  # of equal width, in the usual expected calibration error


def fitted(x: object, label: np.ndarray, penalty: float, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Weights float64 [J] and the intercept that minimise the mean log loss + penalty / 2 |weights|^2, of features x,
    [N, J], dense or sparse. start: weights and intercept to begin with, [J + 1]. Features that never occur have weight
    0."""
    n, j = x.shape  # type: ignore[attr-defined]
    sign = np.where(label, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = parameters[:j], parameters[j]
        margin = sign * (x @ weights + intercept)
        slope = -sign * expit(-margin) / n
        value = -log_expit(margin).mean() + penalty / 2 * float(weights @ weights)
        return value, np.append(x.T @ slope + penalty * weights, slope.sum())  # type: ignore[attr-defined]

    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, np.zeros(j + 1) if start is None else start, jac=True, method="L-BFGS-B", options=options).x
    return found[:j], float(found[j])


def log_loss(odds: np.ndarray, label: np.ndarray) -> float:
    """The mean log loss of log odds, in nats."""
    return float(-log_expit(np.where(label, odds, -odds)).mean())


def auroc(values: np.ndarray, label: np.ndarray) -> float:
    """The probability that a value of the label is above one that is not of it, ties counted half; NaN without one of
    either."""
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    return float((rankdata(values)[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(odds: np.ndarray, label: np.ndarray) -> float:
    """By how much probabilities differ from the label's share among those of like probability, on average (expected
    calibration error, ten bins of equal width)."""
    p = expit(odds)
    place = np.minimum((p * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(place, p - label, _BINS)
    return float(np.abs(gaps).sum() / len(p))
