"""Weights for trainers whose rows cannot carry one: repeated rows, or strata sampled at different rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint, keyed_uniform
from curate.numerics.statistics import effective_size


@dataclass(frozen=True)
class Resampled:
    """How weights of rows or domains were approximated.

    how: 'repeats' or 'strata'; for a mixture 'domains', or 'draws' of one epoch. rows: written, repeats counted.
    effective_rows: effective sample size (sum w)^2 / sum w^2 of the requested weights. largest_error: the largest
    relative error of a row's resulting weight (for draws: of a domain's share). left_out: rows that repeat 0 times.
    """

    how: str
    rows: int
    effective_rows: float
    largest_error: float
    left_out: int = 0

    def __str__(self) -> str:
        if self.how == "domains":
            return f"each domain is a part, {self.rows:,} draws an epoch"
        if self.how == "draws":
            return (
                f"one epoch of the mixture, {self.rows:,} draws; {self.left_out:,} samples are not among them; the "
                f"largest error of a domain's share is {self.largest_error:.1%}"
            )
        dropped = f"; {self.left_out:,} rows repeat 0 times" if self.left_out else ""
        return (
            f"weights as {self.how}: {self.rows:,} rows, effective sample size {self.effective_rows:,.0f}; the largest "
            f"error of a row's weight is {self.largest_error:.0%}{dropped}"
        )


def repeats_of(weights: np.ndarray, total: int, seed: int) -> tuple[np.ndarray, Resampled]:
    """How often each row repeats, int64 [N], summing to `total`: systematic rounding of  w * total / sum w.

    One random number shifts the rounding of all rows, so each count is its share rounded down or up, and equals the
    share in expectation. weights: float64 [N], non-negative, not all 0.
    """
    _require(weights)
    share = weights / weights.sum() * total
    shift = float(keyed_uniform(np.zeros(1, np.uint64), seed, fingerprint("repeats"))[0])
    ends = np.floor(np.cumsum(share) + shift)
    ends[-1] = total  # guards against rounding error in the cumulative sum
    repeats = np.diff(ends, prepend=0.0).astype(np.int64)
    positive = share > 0
    error = float(np.abs(repeats[positive] / share[positive] - 1).max())
    return repeats, Resampled("repeats", total, effective_size(weights), error, int((repeats == 0).sum()))


def strata_of(
    weights: np.ndarray, count: int, group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, Resampled]:
    """Rows stratified by quantiles of their weight: each row's stratum, int64 [N], and each stratum's mean weight.

    A stratum is to be sampled in proportion to its mean weight. Empty strata are dropped; rows of weight 0 get a
    stratum of their own. group: int64 [N], e.g. the source; each group is split at its own quantiles, which preserves
    its mean weight.
    """
    _require(weights)
    group = np.zeros(len(weights), np.int64) if group is None else group
    part = np.zeros(len(weights), np.int64)
    for label in np.unique(group):
        members = (group == label) & (weights > 0)
        part[group == label] = label * (count + 1)
        if members.any():
            bounds = np.quantile(weights[members], np.arange(1, count) / count)
            part[members] += 1 + np.searchsorted(bounds, weights[members], side="left")
    parts, stratum = np.unique(part, return_inverse=True)
    means = np.bincount(stratum, weights) / np.bincount(stratum, minlength=len(parts))
    positive = weights > 0
    error = float(np.abs(means[stratum][positive] / weights[positive] - 1).max())
    return stratum, means, Resampled("strata", len(weights), effective_size(weights), error)


def differ(weights: np.ndarray | Sequence[float]) -> bool:
    """Whether the weights are not all equal."""
    return len(weights) > 0 and bool((np.asarray(weights) != weights[0]).any())


def _require(weights: np.ndarray) -> None:
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise CurateError("weights are numbers of 0 or more, and not all of them 0; weigh again.")
