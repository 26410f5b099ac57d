"""Positions of the largest elements over many arrays, without sorting or concatenating all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def largest(value: Callable[[str], np.ndarray], sizes: Mapping[str, int], k: int) -> dict[str, np.ndarray]:
    """Flat positions of the k largest elements over all arrays, ascending, int64, by name; earlier ones win ties.

    value(name): the array; called twice for each, one at a time. sizes: of each, in order. NaN counts as the smallest.
    Memory: k elements and one array.
    """
    k = min(k, sum(sizes.values()))
    if not k:
        return {name: np.zeros(0, np.int64) for name in sizes}
    best = np.zeros(0)
    for name in sizes:
        best = np.concatenate([best, _flat(value(name))])
        if len(best) > k:
            best = np.partition(best, len(best) - k)[-k:]
    threshold = best.min()
    ties_left = k - int((best > threshold).sum())  # how many elements equal to the threshold are still taken
    positions = {}
    for name in sizes:
        values = _flat(value(name))
        ties = np.flatnonzero(values == threshold)[:ties_left]
        ties_left -= len(ties)
        positions[name] = np.sort(np.concatenate([np.flatnonzero(values > threshold), ties]))
    return positions


def largest_of_each(
    value: Callable[[str], np.ndarray], sizes: Mapping[str, int], counts: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The same for every array separately; counts: how many of each."""
    return {name: largest(value, {name: size}, counts[name])[name] for name, size in sizes.items()}


def _flat(values: np.ndarray) -> np.ndarray:
    flat = np.asarray(values, np.float64).ravel()
    return np.where(np.isnan(flat), -np.inf, flat)
