"""Vectors of samples and of a target, and their similarity. Plain arrays: independent of files, models and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.errors import CurateError

Aggregate = Literal["mean", "max", "subtask_max"]
_BLOCK = 1 << 22  # elements of vectors that are converted to a wider type at once


@dataclass(frozen=True)
class Vectors:
    """N vectors of D dimensions, stored as unit vectors and norms.

    unit: [N, D], of norm 1, float16 as stored or wider; zero for a sample without a vector. norm: float32 [N], the
    original norm; NaN for a sample without a vector. error: object [N], why there is no vector, '' if there is one.
    subtasks: for a target's samples, the sub-task of each. score: the method that made them; '' if that is not known.

    Vectors in C parts (one per checkpoint) are the concatenated unit vectors of the parts, each scaled by the square
    root of its share, so that inner products are means of the parts' cosines weighted by the shares; norm is [N, C].
    """

    unit: np.ndarray
    norm: np.ndarray
    error: np.ndarray
    subtasks: tuple[str, ...] = ()
    score: str = ""

    @classmethod
    def of(
        cls,
        raw: np.ndarray,
        error: Sequence[str] | np.ndarray | None = None,
        subtasks: Sequence[str] = (),
        shares: Sequence[float] = (),
    ) -> Vectors:
        """From vectors of any norm, [N, D], or in parts [N, C, D]; one that is zero or not finite counts as missing,
        with the reason."""
        reasons = np.full(len(raw), "", object) if error is None else np.array(error, object)
        wide = np.asarray(raw, np.float64 if raw.dtype == np.float64 else np.float32)
        norm = np.linalg.norm(wide, axis=-1)
        valid = np.isfinite(norm) & (norm > 0)
        present = (valid if raw.ndim == 2 else valid.all(1)) & (reasons == "")
        reasons = np.where(present | (reasons != ""), reasons, "its vector is zero or not finite")
        parts = wide if raw.ndim == 3 else wide[:, None]
        unit = np.zeros_like(parts)
        np.divide(parts, norm.reshape(*parts.shape[:2], 1), out=unit, where=present[:, None, None])
        mask = present if raw.ndim == 2 else present[:, None]
        norm = np.where(mask, norm, np.nan).astype(np.float32)
        return cls(side_by_side(unit, shares), norm, reasons, tuple(subtasks))

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def there(self) -> np.ndarray:
        """Which samples have a vector, bool [N]."""
        return self.error == ""

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows at their original norms, float64 [n, D] (part by part); zero for missing ones."""
        norm = np.nan_to_num(self.norm[rows].astype(np.float64))
        unit = self.unit[rows].astype(np.float64)
        parts = norm.shape[1] if norm.ndim == 2 else 1
        return (unit.reshape(len(unit), parts, -1) * norm.reshape(len(unit), parts, 1)).reshape(unit.shape)

    def take(self, rows: np.ndarray) -> Vectors:
        """A subset, by positions or by a boolean mask."""
        subtasks = tuple(np.array(self.subtasks, object)[rows]) if self.subtasks else ()
        return Vectors(self.unit[rows], self.norm[rows], self.error[rows], subtasks, self.score)


def side_by_side(parts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Concatenate unit vectors in parts [N, C, D] to [N, C D]; shares: of the parts, summing to 1; empty: equal."""
    count = parts.shape[1]
    if count > 1:
        roots = np.sqrt(np.asarray(shares or [1 / count] * count, np.float64))
        parts = (parts.astype(np.promote_types(parts.dtype, np.float32)) * roots[:, None]).astype(parts.dtype)
    return parts.reshape(len(parts), count * parts.shape[2])


def similarities(unit: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Products of N unit vectors with C directions, float64 [N, C]; computed in blocks to limit memory."""
    products, step = np.empty((len(unit), len(others))), max(1, _BLOCK // max(unit.shape[1], 1))
    columns = others.T.astype(np.float64)
    for start in range(0, len(unit), step):
        products[start : start + step] = unit[start : start + step].astype(np.float64) @ columns
    return products


def cosines(unit: np.ndarray, others: np.ndarray) -> np.ndarray:
    """As `similarities`, but in float32: precise enough to choose among many, not for stored scores."""
    products, step = np.empty((len(unit), len(others)), np.float32), max(1, _BLOCK // max(unit.shape[1], 1))
    columns = np.ascontiguousarray(others.T, np.float32)
    for start in range(0, len(unit), step):
        np.matmul(unit[start : start + step].astype(np.float32), columns, out=products[start : start + step])
    return products


def frontier(bound: np.ndarray, n: int) -> tuple[np.ndarray, tuple[float, int]]:
    """Positions of the n highest of N bounds, ties by lower position; and the best one that is left out.

    The latter is (-bound, position), so that lower is better, as in the choice; (inf, N) if none is left out.
    """
    if n >= len(bound):
        return np.arange(len(bound)), (np.inf, len(bound))
    edge = np.partition(bound, len(bound) - n)[len(bound) - n]
    above = bound > edge
    level = np.flatnonzero(bound == edge)
    split = n - int(above.sum())
    above[level[:split]] = True
    if split < len(level):
        return np.flatnonzero(above), (-float(edge), int(level[split]))
    remaining = np.where(above, -np.inf, bound)
    best = int(remaining.argmax())
    return np.flatnonzero(above), (-float(remaining[best]), best)


@dataclass(frozen=True)
class Anchors:
    """A target as C directions: one for each example, for each sub-task, or for the target as a whole.

    directions: float64 [C, D], each the mean of its examples' unit vectors, so that a product with it is the mean
    cosine (aggregating first is exact, since the cosine of unit vectors is linear). shares: the share of the target's
    examples in each, float64 [C].
    """

    directions: np.ndarray
    labels: tuple[str, ...]
    shares: np.ndarray
    aggregate: Aggregate
    keep_subtasks: bool

    @classmethod
    def of(cls, target: Vectors, aggregate: Aggregate, keep_subtasks: bool = False) -> Anchors:
        """The directions of a target's vectors. Raises CurateError if no example of the target has a vector."""
        present = target.take(target.there)
        if not len(present):
            why = target.error[0] if len(target) else "it has no examples"
            raise CurateError(f"no example of the target has a vector: {why}; edit the target.")
        names = present.subtasks or ("",) * len(present)
        if aggregate == "max":
            names = tuple(str(i) for i in range(len(present)))
        elif aggregate == "mean" and not keep_subtasks:
            names = ("",) * len(present)
        labels, group = np.unique(np.array(names, object).astype(str), return_inverse=True)
        sizes = np.bincount(group)
        sums = np.zeros((len(labels), present.unit.shape[1]))
        np.add.at(sums, group, present.unit.astype(np.float64))
        return cls(sums / sizes[:, None], tuple(labels.tolist()), sizes / sizes.sum(), aggregate, keep_subtasks)

    def flops(self) -> float:
        """FLOPs of the similarities of one sample."""
        return 2.0 * self.directions.size

    def nearness(self, batch: Vectors) -> Mapping[str, Any]:
        """The score of each sample, float64 [B], and its mean cosine with each sub-task if `keep_subtasks`."""
        score, kept = np.empty(len(batch)), []
        step = max(1, _BLOCK // max(len(self.directions), 1))
        for start in range(0, len(batch), step):
            products = similarities(batch.unit[start : start + step], self.directions)
            block_scores = products @ self.shares if self.aggregate == "mean" else products.max(1, initial=-np.inf)
            score[start : start + step] = block_scores
            kept += [products] if self.keep_subtasks else []
        columns = {"score": np.where(batch.there, score, np.nan), "error": batch.error}
        if not self.keep_subtasks:
            return columns
        by_task = np.concatenate([np.zeros((0, len(self.labels))), *kept])
        return {**columns, "subtasks": dict(zip(self.labels, by_task.T, strict=True))}


@dataclass(frozen=True)
class Groups:
    """A target's examples as one group, or one for each sub-task.

    labels: of the K groups. of_each: int64 [T], the group of each example.
    """

    labels: tuple[str, ...]
    of_each: np.ndarray

    @classmethod
    def of(cls, subtasks: Sequence[str], apart: bool) -> Groups:
        """Groups of examples by sub-task if `apart`, else one group."""
        names = np.array(subtasks if apart else [""] * len(subtasks), object).astype(str)
        labels, group = np.unique(names, return_inverse=True)
        return cls(tuple(labels.tolist()), group.astype(np.int64))

    def aggregated(self, values: np.ndarray, shares: np.ndarray, aggregate: Aggregate, keep: bool) -> Mapping[str, Any]:
        """The score of each sample from its values for each group, [B, K]; and these, if `keep`. shares: the weight of
        each group in the mean, [K]."""
        score = values @ shares if aggregate == "mean" else values.max(1, initial=-np.inf)
        kept = {"subtasks": dict(zip(self.labels, values.T, strict=True))} if keep else {}
        return {"score": score, **kept}
