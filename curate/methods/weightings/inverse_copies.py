from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class InverseCopies(Weighting):
    """Down-weights a sample by how often it occurs: de-duplication that throws nothing away.

    Formula, with c a column of counts:

        w = c^-power           where the data hold each of the c (`held=each`: --by near_dup_size)
        w = c^(1 - power)      where they hold one for all (`held=once`: --by copies)

    Either way a cluster of c has a total weight of c^(1 - power): power 1 counts it once, 0 as often as it occurs, and
    values between them something in between. `copies` is how often the input had a sample, which the pool keeps once.

    Cost: none in training; the column's own price is in the ledger.

    Departures: none, as no paper is followed; SemDeDup and others drop what is down-weighted here.

    Reference: none for the exponent; reweighting by inverse frequency is the textbook's (inverse propensity).

    >>> InverseCopies().update(Step(1, column=np.array([1.0, 2.0, 4.0])), {})[0].values.tolist()
    [1.0, 0.5, 0.25]
    """

    needs: ClassVar = ("column",)

    power: float = 1.0
    """1: a cluster counts once; 0: as often as it occurs."""
    held: Literal["each", "once"] = "each"
    """Whether the data contain each of the copies that are counted, or one for all."""
    normalize: Literal["none", "mean1"] = "none"
    """mean1: a step's weights are scaled to a mean of 1."""

    def __post_init__(self) -> None:
        require(f"inverse_copies.power={self.power}", np.isfinite(self.power), "a finite number")

    def init(self, column: np.ndarray | None) -> Arrays:
        assert column is not None
        minimum = float(column.min()) if len(column) else 1.0
        require(f"inverse_copies: the least of its column is {minimum:.4g}, which", minimum > 0, "above 0 (a count)")
        return {}

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        return Weights(step.column ** ((self.held == "once") - self.power), step.column), state
