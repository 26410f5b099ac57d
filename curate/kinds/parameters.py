"""Masks and pruners: which parameter elements are trained, and which elements of an update are kept."""

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
    """What a mask chooses from: tensors by parameter name, and how many elements it may choose in total.

    scores: for a mask that ranks by a score: parameter name -> float64 of its shape, loaded one parameter at a time.
    gradients: for a mask with a warm-up: likewise, the sum of the gradients of its steps. taken: for an update, the
    steps taken so far; the budget is then the number of elements that the mask began with. head_dim: rows of q_proj,
    k_proj and v_proj that make a head of attention; 0 if that is not known.
    """

    weights: Mapping[str, Any]
    budget: int
    scores: Callable[[str], np.ndarray] | None = None
    gradients: Callable[[str], np.ndarray] | None = None
    taken: int = 0
    head_dim: int = 0


class Mask(Method):
    """Chooses which parameter elements are trained: name -> flat indices, int64 ascending, in total as many as the
    budget; ties go to the lower index.

    uses_score: whether it ranks by a score that has values per parameter. interval: for masks that are recomputed from
    the current weights during training, the number of steps between updates; 0: never. density_interval: for masks that
    have another number of elements later in training, the steps between changes, which are updates, too; 0: never.
    """

    uses_score: ClassVar[bool] = False
    interval: int = 0
    density_interval: int = 0

    def warm_up(self) -> Warmup | None:
        """The preceding training of all parameters, whose gradients are summed over its steps; None: no warm-up."""
        return None

    def check(self, given: Parameters) -> None:
        """Raises CurateError for what `init` would refuse, before a warm-up is trained."""

    @abstractmethod
    def init(self, given: Parameters) -> dict[str, np.ndarray]:
        """The elements chosen before training."""

    def update(self, given: Parameters) -> dict[str, np.ndarray]:
        """The elements chosen at a later update, from the partly trained weights."""
        return self.init(given)


class Pruner(Method):
    """Assigns an importance to each element of a training update, so that the least important can be reverted."""

    @abstractmethod
    def worth(self, before: np.ndarray, update: np.ndarray) -> np.ndarray:
        """The importance of every element of one parameter, float64 of its shape; the highest are kept. before: values
        before training. update: the change during training, 0 where there was none."""
