"""Losses of the training set under the model that a training begins with, for weightings that compare with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from curate.integrations.documents import IGNORED
from curate.integrations.target import objective_of
from curate.models.tokens import Encoded
from curate.training.examples import Examples
from curate.training.inference import base_losses


class BaseLosses:
    """The loss of every supervised token of every sample, by its place in the training set. cost: of computing them.

    collate: as for training, so that what is supervised is what is trained on. Raises CurateError if the processes hold
    parts of the model."""

    def __init__(self, trainer: Any, weighting: str, collate: Callable[[Sequence[Mapping[str, Any]]], Any]):
        encoded = []
        for row in trainer.train_dataset:
            batch = collate([row])
            ids, labels = (batch[name][0].cpu().numpy() for name in ("input_ids", "labels"))
            encoded.append(Encoded(ids.astype(np.int32), (labels != IGNORED) & (np.arange(len(labels)) > 0)))
        self._counts = np.array([one.supervised.sum() for one in encoded], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        some = Examples.of([one for one in encoded if one.supervised.any()])
        world = trainer.accelerator.num_processes
        self._losses, self.cost = base_losses(objective_of(trainer, weighting), some, processes=world)
        self.samples = len(some)

    def tokens(self, places: np.ndarray) -> np.ndarray:
        """The losses of these samples' tokens, float64 [S], sample after sample."""
        return np.concatenate([self._of(place) for place in places] or [np.zeros(0)])

    def means(self) -> np.ndarray:
        """Every sample's mean loss, float64 [N]; 0 for one without a supervised token."""
        return np.array([self._of(i).mean() if count else 0.0 for i, count in enumerate(self._counts)])

    def _of(self, place: int) -> np.ndarray:
        return self._losses[self._starts[place] :][: self._counts[place]]
