from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector
from curate.methods.selectors._logdet import Diagonal, Volume, greedy


@dataclass(frozen=True)
class Spice(Selector):
    """Samples whose gradients span the most, minus a penalty for conflict with those chosen before (SPICE).

    Formula, with g the samples' projected gradients (--vectors of `less` with variant=sgd), S those chosen so far:

        gain_x = log(1 + alpha g_x^T (I + alpha sum over s in S of g_s g_s^T)^-1 g_x)
        next = argmax over x of  gain_x - lam max(0, -cos(g_x, mean over S of g)),    ties: first id

    gain_x is what x adds to log det(I + alpha sum of g g^T), so it is the same for g and for -g, and a second copy of a
    sample gains strictly less. form=diagonal, as in the published code: the sum over j of g_j^2 / d_j instead of the
    quadratic form, with d_j = 1 + alpha times the sum of g_j^4.

    Cost: at most 2 k D FLOPs for each gain computed after k choices; lazy, exact, in float64; no model. Memory: 8 D
    bytes per choice, in addition to the vectors.

    Departures: samples are chosen once from all candidates, where the published code chooses 64 of 128 in every
    training step. It leaves out the penalty by default, as lam=0 does here. The share of the first gain at which to
    stop is not known: threshold=0 never stops.

    Reference: SPICE, as its published code (spice/select, adafisher) and DualSFT, arXiv:2605.06166, describe it.

    >>> candidates = Candidates.of(vectors=[[2.0, 0.0], [2.0, 0.1], [-1.9, 0.1], [0.0, 1.0]])
    >>> Spice().select(candidates, Budget("rows", 3), seed=0).tolist()
    [1, 3, 0]
    """

    uses_vectors: ClassVar = True

    alpha: float = 1.0
    """Weight of a gradient relative to the identity."""
    lam: float = 0.1
    """Weight of the penalty for conflict with the mean gradient of the chosen."""
    form: Literal["full", "diagonal"] = "full"
    """The paper's matrix, or the published code's diagonal."""
    threshold: float = 0.0
    """Stop where a choice gains no more than this share of the first; 0: only when the budget is spent."""
    lengths: Literal["norm", "unit"] = "norm"
    """norm: gradients keep their norm; unit: they are normalised to length 1."""

    def __post_init__(self) -> None:
        if not self.alpha > 0 or self.lam < 0 or self.threshold < 0:
            raise CurateError(
                f"spice needs alpha above 0, lam and threshold of 0 or more, not alpha={self.alpha:g}, "
                f"lam={self.lam:g}, threshold={self.threshold:g}."
            )

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        count = len(candidates.require_vectors(self.name))
        if not count:
            return np.zeros(0, np.int64)
        vectors = candidates.vectors
        assert vectors is not None

        def rows(places: np.ndarray) -> np.ndarray:
            return vectors.raw(places) if self.lengths == "norm" else vectors.unit[places].astype(np.float64)

        total = np.zeros(vectors.unit.shape[1])

        def against(places: np.ndarray) -> np.ndarray:
            """lam max(0, -cos(g, mean of the chosen))."""
            length = float(np.linalg.norm(total))
            if not length or not self.lam:
                return np.zeros(len(places))
            unit = rows(places)
            norms = np.linalg.norm(unit, axis=1)
            cosine = unit @ total / np.where(norms > 0, norms * length, 1.0)
            return self.lam * np.maximum(0.0, -cosine)

        def added(place: int) -> None:
            total[:] += rows(np.array([place]))[0]

        volume = (Volume if self.form == "full" else Diagonal)(rows, count, self.alpha)
        chosen = greedy(volume, candidates.sizes, budget, against, added, self.threshold)
        candidates.charge(volume.flops)
        return chosen
