"""Weightings: what a training step says of its samples in, a weight for each of them out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.method import Method
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights

Signal = Literal["loss", "token_loss", "column", "base_loss", "base_token_loss", "states", "outputs", "domains"]


class Weighting(Method):
    """Turns what a training step shows into weights: `init() -> state`, `update(step, state) -> weights, state`.

    scope 'sample': a sample's weight depends on that sample alone; 'batch': on all samples of the step, of every
    process and micro-batch, which `update` then sees together. needs: what of a Step it looks at; 'column' is one that
    the user names, 'base_loss' the same or else the sample's mean loss under the model that training begins with (or
    another, that `Training.reference` names); 'domains' wants samples that are drawn from a mixture.
    uses_target: whether it is given anchors, the target's samples as the model sees them, every `refresh` steps.
    normalize: 'mean1' divides by the sum of the weights (of tokens) instead of their number, so that a step's weights
    are 1 in the mean. The state is plain arrays, so that a checkpoint can hold it.

    chooses: it is shown more candidates than a step learns from, and gives at most `Step.room` of them a weight; the
    others are not learnt from. signed: its weights may be negative.
    """

    scope: ClassVar[Literal["sample", "batch"]] = "sample"
    needs: ClassVar[tuple[Signal, ...]] = ()
    uses_target: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    normalize: str = "none"
    refresh: int = 0

    @property
    def signed(self) -> bool:
        return False

    def matching(self) -> Matching | None:
        """How the candidates' gradients are to be compared; null: it does not look at them."""
        return None

    def init(self, column: np.ndarray | None) -> Arrays:
        """The state before the first step. column: of all training samples, float64 [N]; null where not asked for."""
        return {}

    def refreshed(self, anchors: Any, state: Arrays) -> Arrays:
        """The state with new anchors: the states of the target's samples under the model as it is, Tensor [V, D]."""
        return state

    @abstractmethod
    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        """The weights of the samples shown, and the state behind them."""


def weigh_once(weighting: Weighting, values: np.ndarray) -> np.ndarray:
    """The weights of samples from one column of them, float64 [N], as if all were one step's: a weighting offline."""
    column = np.asarray(values, np.float64)
    return weighting.update(Step(1, loss=column, column=column), weighting.init(column))[0].values
