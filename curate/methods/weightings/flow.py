from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting


@dataclass(frozen=True)
class Flow(Weighting):
    """Up-weights what the base model finds easy, so that fine-tuning forgets less (FLOW).

    Formula, with l0 a sample's mean loss under the model that training starts from:

        w = exp(-l0 / tau),   tau = the median of l0 over the training set
        loss = sum of w (sum of token losses) / (all tokens of the step)

    So a sample at the median has weight 1/e throughout training. l0 is a column (--by nll_nll), or computed by one
    forward pass over the training set before the first step.

    Cost: 2N FLOPs per token once, unless the column exists.

    Departures: the authors' command line defaults to tau = 1 and computes the median in a separate step; here the
    median is the default. The per-token variant is not offered.

    Reference: Sanyal et al., "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting" (FLOW), 2025,
    arXiv:2502.02797.

    >>> column = np.array([1.0, 2.0, 8.0])
    >>> Flow().update(Step(1, column=column), Flow().init(column))[0].values.round(3).tolist()
    [0.607, 0.368, 0.018]
    """

    needs: ClassVar = ("base_loss",)

    temperature: float | None = None
    """tau; none: the median over the training set."""

    def __post_init__(self) -> None:
        valid = self.temperature is None or self.temperature > 0
        require(f"flow.temperature={self.temperature}", valid, "above 0, or none for the median")

    def init(self, column: np.ndarray | None) -> Arrays:
        assert column is not None
        median = float(np.median(column)) if len(column) else 1.0
        require(
            f"flow: the median of its column is {median:.4g}, which", median > 0, "above 0 (a loss: nll_nll, not nll)"
        )
        return {"tau": np.array([self.temperature or median])}

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        return Weights(np.exp(-step.column / state["tau"][0]), step.column), state
