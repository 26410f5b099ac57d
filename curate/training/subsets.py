"""The same training on many subsets of the data, each from the same beginning: what a trial consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from curate.kinds.weighting import Weighting
from curate.models.usage import Usage
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import TrainableModel, redraw


@dataclass(frozen=True)
class SubsetResult:
    """What a training on a subset gave. loss: of each target example, the mean over its supervised tokens, float64 [E];
    NaN where it has none. steps, samples: of the training. usage: its cost by phase, `evaluate` among them."""

    loss: np.ndarray
    steps: int
    samples: int
    usage: dict[str, Usage]


class SubsetTrainer:
    """Trains a model on subsets of N samples, one after another, and measures it on E target examples.

    model: as `trainable` loaded it; its parameters are those of the latest subset afterwards. data: all samples that a
    subset may have. asked: the target examples' tokens.
    """

    def __init__(
        self, model: TrainableModel, data: Data, settings: TrainSettings, weighting: Weighting, asked: Examples
    ):
        self.model, self.data, self.settings, self.weighting, self.asked = model, data, settings, weighting, asked
        named = model.model.model.named_parameters()
        self._beginning = {name: p.detach().clone() for name, p in named if p.requires_grad}

    def base(self) -> tuple[np.ndarray, Usage]:
        """The target examples' losses before any training, float64 [E], and their cost."""
        self._begin(0)
        trainer = Trainer(self.model.model, self.data, self.settings, self.weighting, Alone())
        return self._measured(trainer)

    def train(self, members: np.ndarray, seed: int) -> SubsetResult:
        """Train on the samples that are members, bool [N], with an order of samples, and matrices of LoRA, that are
        drawn by the seed. Raises Diverged if a loss is not finite."""
        self._begin(seed)
        sample_of = self.data.examples.sample
        documents = self.data.documents[members[sample_of[self.data.documents]]]
        data = replace(self.data, documents=documents)
        trainer = Trainer(self.model.model, data, self.settings, self.weighting, Alone(), seed)
        usage: dict[str, Usage] = {}
        for result in trainer.run():
            for phase, cost in result.usage.items():
                usage.setdefault(phase, self.model.model.usage()).add(cost)
        loss, usage["evaluate"] = self._measured(trainer)
        return SubsetResult(loss, trainer.step, int(members.sum()), usage)

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters that are trained, as they are after the latest subset."""
        named = self.model.model.model.named_parameters()
        return {name: p.detach().cpu().numpy() for name, p in named if name in self._beginning}

    def measure(self, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Usage]:
        """The target examples' losses with such parameters, float64 [E], and their cost."""
        with torch.no_grad():
            for name, parameter in self.model.model.model.named_parameters():
                if name in self._beginning:
                    parameter.copy_(torch.from_numpy(parameters[name]))
        trainer = Trainer(self.model.model, self.data, self.settings, self.weighting, Alone())
        return self._measured(trainer)

    def _begin(self, seed: int) -> None:
        """The parameters as they were; of LoRA, matrices drawn by the seed."""
        with torch.no_grad():
            for name, parameter in self.model.model.model.named_parameters():
                if name in self._beginning:
                    parameter.copy_(self._beginning[name])
                    parameter.grad = None
        if self.model.adapter is not None:
            redraw(self.model.adapter, seed)

    def _measured(self, trainer: Trainer) -> tuple[np.ndarray, Usage]:
        with trainer.objective.precision():
            losses, usage = base_losses(trainer.objective, self.asked, self.settings.count_flops)
        counts = self.asked.counts
        sums = np.bincount(np.repeat(np.arange(len(counts)), counts), losses, minlength=len(counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / np.where(counts, counts, np.nan), usage
