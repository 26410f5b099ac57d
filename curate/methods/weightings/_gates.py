"""From values to weights: functions that weightings share. Plain arrays in float64."""

from __future__ import annotations

import numpy as np


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(values, np.float64)))


def unit_interval(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scaled so that `low` becomes 0 and `high` 1; all 0 where they are the same."""
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(len(values))


def clipped(weights: np.ndarray, low: float, high: float | None) -> np.ndarray:
    """Weights within bounds; no upper bound where `high` is None."""
    return np.clip(weights, low, high)


def spread(losses: np.ndarray, delta: float = 1.0) -> np.ndarray:
    """Losses scaled to [-delta, delta]: h = delta (2 l - (max + min)) / (max - min); all 0 where they are the same.

    The authors' code divides by max(max - min, 1e-6), which turns equal losses into noise.
    """
    low, high = (float(losses.min()), float(losses.max())) if len(losses) else (0.0, 0.0)
    return delta * (2 * losses - (high + low)) / (high - low) if high > low else np.zeros(len(losses))


def boltzmann(values: np.ndarray, r: float) -> np.ndarray:
    """The B softmax weights exp(f / r) / sum exp(f / r), times B: their mean is 1."""
    raised = np.exp((values - values.max(initial=-np.inf)) / r)
    return raised * (len(raised) / raised.sum()) if len(raised) else raised


def strength(step: int, r: float, first_r: float, first_steps: int) -> float:
    """How soft the weights of a step are: `first_r` up to the step `first_steps`, then `r`."""
    return first_r if step <= first_steps else r
