"""Weightings: signals of a training step's samples in, a weight for each sample out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.method import Method
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights

Signal = Literal["loss", "token_loss", "column", "base_loss", "base_token_loss", "states", "outputs", "domains"]


class Weighting(Method):
    """Turns the signals of a training step into weights: `init() -> state`, `update(step, state) -> weights, state`.

    scope 'sample': a sample's weight depends on that sample alone; 'batch': on all samples of the step, across all
    processes and micro-batches, which `update` then receives together. needs: the fields of a Step that it uses;
    'column' is one that the user names; 'base_loss' is that column or else the sample's mean loss under the model that
    training begins with (or under `TrainingSpec.reference`); 'domains' requires samples drawn from a mixture.
    uses_target: whether it receives anchors, representations of the target's samples under the current model, every
    `refresh` steps or epochs (refresh_unit). normalize: 'mean1' divides by the sum of the weights (of tokens) instead
    of their number, so that a step's weights have mean 1. The state consists of plain arrays, so that a checkpoint can
    store it.

    chooses: it receives more candidates than a step trains on, and gives at most `Step.room` of them a weight; the
    others are not trained on. signed: its weights may be negative.
    """

    scope: ClassVar[Literal["sample", "batch"]] = "sample"
    needs: ClassVar[tuple[Signal, ...]] = ()
    uses_target: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    normalize: str = "none"
    refresh: int = 0
    refresh_unit: Literal["steps", "epochs"] = "steps"

    @property
    def signed(self) -> bool:
        """Whether its weights may be negative."""
        return False

    @property
    def background(self) -> int:
        """Of how many of the samples that are trained on it receives the states too, with those of the anchors."""
        return 0

    def matching(self) -> Matching | None:
        """How the candidates' gradients are compared; None: it does not use gradients."""
        return None

    def init(self, column: np.ndarray | None) -> Arrays:
        """The state before the first step. column: of all training samples, float64 [N]; None if not requested."""
        return {}

    def refreshed(self, anchors: Any, state: Arrays, background: Any = None) -> Arrays:
        """The state with new anchors: position-weighted mean hidden states of the target's samples, Tensor [V, D].
        background: of some of the samples that are trained on, Tensor [B, D]; None if not requested."""
        return state

    @abstractmethod
    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        """The weights of the given samples, and the updated state."""


def weigh_once(weighting: Weighting, values: np.ndarray) -> np.ndarray:
    """Offline weights from one column of values, float64 [N], as if all N samples were in one step."""
    column = np.asarray(values, np.float64)
    return weighting.update(Step(1, loss=column, column=column), weighting.init(column))[0].values
