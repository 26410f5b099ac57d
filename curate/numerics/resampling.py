"""Weights for consumers whose rows cannot carry one: rows repeated, or strata drawn at different rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint, keyed_uniform
from curate.numerics.statistics import effective_size


@dataclass(frozen=True)
class Resampled:
    """What became of weights, of rows or of domains.

    how: 'repeats', 'strata'; of a mixture 'domains', or 'draws' of one epoch. rows: written, repeats counted.
    effective_rows: (sum w)^2 / sum w^2 of the weights asked for. largest_error: of the weight a row has in the end (of
    draws: a domain), relative to what it should have, the greatest. left_out: rows that repeat 0 times.
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
        gone = f"; {self.left_out:,} rows repeat 0 times" if self.left_out else ""
        return (
            f"weights as {self.how}: {self.rows:,} rows, worth {self.effective_rows:,.0f} of equal weight; the largest "
            f"error of a row's weight is {self.largest_error:.0%}{gone}"
        )


def repeats_of(weights: np.ndarray, total: int, seed: int) -> tuple[np.ndarray, Resampled]:
    """How often each row repeats, int64 [N], adding up to `total`: systematic rounding of  w N / sum w.

    One random number shifts the rounding of all, so every row repeats its share in the mean, rounded down or up.
    weights: float64 [N], 0 or more, not all 0.
    """
    _require(weights)
    share = weights / weights.sum() * total
    shift = float(keyed_uniform(np.zeros(1, np.uint64), seed, fingerprint("repeats"))[0])
    ends = np.floor(np.cumsum(share) + shift)
    ends[-1] = total  # against the last bit of the sum
    repeats = np.diff(ends, prepend=0.0).astype(np.int64)
    some = share > 0
    error = float(np.abs(repeats[some] / share[some] - 1).max())
    return repeats, Resampled("repeats", total, effective_size(weights), error, int((repeats == 0).sum()))


def strata_of(
    weights: np.ndarray, count: int, group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, Resampled]:
    """Rows by quantiles of their weight: the stratum of each, int64 [N], and each stratum's mean weight.

    A stratum's rows are to be drawn so often as its mean weight says; strata that would be empty are left out; rows of
    no weight have one of their own. group: int64 [N], as of sources; each is parted by its own quantiles, so its mean
    weight is kept.
    """
    _require(weights)
    group = np.zeros(len(weights), np.int64) if group is None else group
    part = np.zeros(len(weights), np.int64)
    for one in np.unique(group):
        mine = (group == one) & (weights > 0)
        part[group == one] = one * (count + 1)
        if mine.any():
            bounds = np.quantile(weights[mine], np.arange(1, count) / count)
            part[mine] += 1 + np.searchsorted(bounds, weights[mine], side="left")
    found, stratum = np.unique(part, return_inverse=True)
    means = np.bincount(stratum, weights) / np.bincount(stratum, minlength=len(found))
    some = weights > 0
    error = float(np.abs(means[stratum][some] / weights[some] - 1).max())
    return stratum, means, Resampled("strata", len(weights), effective_size(weights), error)


def differ(weights: np.ndarray | Sequence[float]) -> bool:
    """Whether rows weigh differently at all."""
    return len(weights) > 0 and bool((np.asarray(weights) != weights[0]).any())


def _require(weights: np.ndarray) -> None:
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise CurateError("weights are numbers of 0 or more, and not all of them 0; weigh again.")
