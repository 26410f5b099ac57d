"""Masks and pruners: which elements of a model's parameters train, and which of an update stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds.method import Method
from curate.kinds.score import Warmup


@dataclass(frozen=True)
class Parameters:
    """What a mask chooses from: a model's parameters by name, tensors; and how many numbers of all it may take.

    scores: of a mask that ranks by a score's states: a parameter's name -> float64, its shape; asked for one at a time.
    gradients: of one that has a warm-up, likewise: the gradients of its steps, added up.
    """

    weights: Mapping[str, Any]
    budget: int
    scores: Callable[[str], np.ndarray] | None = None
    gradients: Callable[[str], np.ndarray] | None = None


class Mask(Method):
    """Chooses which numbers of a model's parameters may be trained: a name -> flat places in it, int64 ascending, as
    many as the budget together; of ties those that come first.

    uses_score: whether it ranks by a score that has parameters' values. interval: a field of masks that choose anew
    from the weights as they learn, after so many steps; 0: the mask stays.
    """

    uses_score: ClassVar[bool] = False
    interval: int = 0

    def warm_up(self) -> Warmup | None:
        """The training that comes before, of all parameters, whose steps' gradients are added up; null: none."""
        return None

    def check(self, given: Parameters) -> None:
        """Raises CurateError for what `init` would refuse, before a warm-up is paid for."""

    @abstractmethod
    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        """What is chosen before training."""

    def update(self, given: Parameters) -> dict[str, np.ndarray]:
        """What is chosen from then on, of weights that have learnt."""
        return self.init(given)


class Pruner(Method):
    """Says what each number of a training's update is worth, so that the least can be taken back."""

    @abstractmethod
    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        """Of every number of one parameter, float64 of its shape; the highest stay. before: training; update: what it
        added, 0 where nothing."""
