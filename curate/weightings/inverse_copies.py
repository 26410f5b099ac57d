from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.gates import require
from curate.method import Arrays, Weighting
from curate.signals import Step, Weights


@dataclass(frozen=True)
class InverseCopies(Weighting):
    """Weighs a sample down by how often it is there: de-duplication that throws nothing away.

    Formula, with c a column of counts:

        w = c^-power

    c is `copies` for exact duplicates (how often the input had the sample, which the pool keeps once) or
    `near_dup_size` for near ones. A cluster of c then weighs c^(1 - power) in all: power 1 counts it once, 0 leaves it
    as it is, between them it counts for more than one and less than all. The pool has an exact duplicate once already,
    so of `copies` a negative power brings them back: -1 is the input as it was.

    Cost: none in training; the column's own price is in the ledger.

    Departures: none, as no paper is followed; SemDeDup and others drop what is weighed down here.

    Reference: none for the exponent; reweighting by inverse frequency is the textbook's (inverse propensity).

    >>> InverseCopies().update(Step(1, column=np.array([1.0, 2.0, 4.0])), {})[0].values.tolist()
    [1.0, 0.5, 0.25]
    """

    needs: ClassVar = ("column",)

    power: float = 1.0
    """1: a cluster counts once; 0: each sample does."""
    normalize: Literal["none", "mean1"] = "none"
    """mean1: a step's weights are 1 in the mean."""

    def __post_init__(self) -> None:
        require(f"inverse_copies.power={self.power}", np.isfinite(self.power), "a finite number")

    def init(self, column: np.ndarray | None) -> Arrays:
        assert column is not None
        least = float(column.min()) if len(column) else 1.0
        require(f"inverse_copies: the least of its column is {least:.4g}, which", least > 0, "above 0 (a count)")
        return {}

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        return Weights(step.column**-self.power, step.column), state
