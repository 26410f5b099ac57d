from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._gates import clipped, sigmoid, unit_interval


@dataclass(frozen=True)
class AdaptStatic(Weighting):
    """Weights a sample by a stored column through ADAPT's gate: ADAPT-BM25 with a column of BM25.

    Formula:  s = (c - min c) / (max c - min c) over the training set,   w = sigmoid(s / max(tau, eps))

    Cost: none in training; the column's own price is in the ledger.

    Departures and choices: the paper does not say how it scales BM25 before the gate. Unscaled it saturates (on real
    data sigmoid(BM25) is above 0.99 nearly everywhere, which is plain training); so the column is scaled to [0, 1].
    With tau = 1 a weight lies between 0.5 and 0.73; a smaller tau spreads them. AdamW undoes the factor that all
    weights have in common, except for `clip` (see `adapt`); normalize=mean1 takes it away.

    Reference: ADAPT (ICLR 2026), Sections 2.2 and 5.3.

    >>> column = np.array([0.0, 5.0, 10.0])
    >>> AdaptStatic().update(Step(1, column=column), AdaptStatic().init(column))[0].values.round(3).tolist()
    [0.5, 0.622, 0.731]
    """

    needs: ClassVar = ("column",)

    tau: float = 1.0
    """Temperature of the gate; smaller is sharper."""
    clip_low: float = 0.0
    """No weight is below this."""
    clip_high: float | None = None
    """No weight is above this; none: no bound."""
    normalize: Literal["none", "mean1"] = "none"
    """none: as in Algorithm 1; mean1: a step's weights are scaled to a mean of 1."""

    def __post_init__(self) -> None:
        require(f"adapt_static.tau={self.tau}", self.tau > 0, "above 0")

    def init(self, column: np.ndarray | None) -> Arrays:
        assert column is not None
        return {"range": np.array([column.min(), column.max()]) if len(column) else np.zeros(2)}

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        scaled = unit_interval(step.column, *state["range"])
        return Weights(clipped(sigmoid(scaled / self.tau), self.clip_low, self.clip_high), step.column), state
