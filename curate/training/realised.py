"""Realised decrease of the validation loss by training, for several trials from one checkpoint: what scores predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from curate.errors import CurateError
from curate.gradients.backward import Backward, Loss
from curate.gradients.optimizer_state import Moments
from curate.kinds.weighting import Weighting
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.settings import TrainSettings

_AT_ONCE = 32  # samples whose loss is taken together


@dataclass(frozen=True)
class RealisedTrial:
    """documents: what is trained on, int64. selected: the trained parameters (name -> flat positions); None: all."""

    documents: np.ndarray
    selected: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Validation:
    """The validation loss in DualSFT's utility: L_task + lam L_pre, each a mean over samples.

    model: at the checkpoint whose parameters are trained. task, anchors: the samples of L_task and of L_pre. loss: of
    L_pre; beside: the role of the model that it compares with.
    """

    model: Backward
    task: Sequence[Encoded]
    anchors: Sequence[Encoded] = ()
    lam: float = 0.0
    loss: Loss | None = None
    beside: str = ""

    def value(self) -> float:
        """The loss at the current parameters."""
        task_loss, preserved = self.terms()
        return task_loss + self.lam * preserved

    def terms(self) -> tuple[float, float]:
        """L_task and L_pre at the current parameters; the latter 0 where it is not weighed."""
        return self._mean(self.task, None, ""), self._mean(self.anchors, self.loss, self.beside) if self.lam else 0.0

    def _mean(self, encoded: Sequence[Encoded], loss: Loss | None, beside: str) -> float:
        usable = sorted(
            (sample for sample in encoded if sample.supervised[1:].any()), key=lambda sample: len(sample.ids)
        )
        if not usable:
            raise CurateError("no sample of the validation loss has anything supervised.")
        total = 0.0
        for start in range(0, len(usable), _AT_ONCE):
            batch = usable[start : start + _AT_ONCE]
            ids, supervised = self.model.padded(batch, max(len(sample.ids) for sample in batch))
            with torch.no_grad():
                total += float(self.model.losses(ids, supervised, loss, beside).double().sum())
        return total / len(usable)


@dataclass(frozen=True)
class Decreases:
    """How much each trial lowers the two terms of the validation loss, float64 [trials, horizons] each; lam: the weight
    of the second."""

    task: np.ndarray
    preserved: np.ndarray
    lam: float

    @property
    def total(self) -> np.ndarray:
        """Of the whole validation loss, float64 [trials, horizons]."""
        return self.task + self.lam * self.preserved


@dataclass(frozen=True)
class Start:
    """How the trials step. kind: AdamW, or SGD without momentum at the settings' learning rate. moments: the AdamW
    state to start with, as the checkpoint's training left it; None: none, so that AdamW's first steps nearly follow the
    gradients' signs. keep: all of it; or its second moments, with the first at zero, which makes the first steps short.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    moments: Moments | None = None
    keep: Literal["all", "second"] = "all"


def realised(
    lm: LanguageModel,
    examples: Examples,
    trials: Sequence[RealisedTrial],
    horizons: Sequence[int],
    settings: TrainSettings,
    weighting: Weighting,
    validation: Validation,
    start: Start | None = None,
    seed: int = 0,
) -> tuple[Decreases, Usage]:
    """The decrease of the validation loss after each horizon of each trial; and the cost. Every trial starts from the
    parameters at the time of the call, which are restored afterwards.

    horizons: ascending, in steps. settings: as given, except that `steps` is the last horizon. start: the optimizer and
    its state; None: AdamW without any.
    """
    start = start or Start()
    settings = replace(settings, steps=max(horizons))
    parameters = dict(lm.model.named_parameters())
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    trained = {name: p.requires_grad for name, p in parameters.items()}
    lm.model.eval()
    before, usage = np.array(validation.terms()), lm.usage()
    decreases = np.zeros((2, len(trials), len(horizons)))
    try:
        for i, trial in enumerate(trials):
            lm.model.requires_grad_(True)
            data = Data.of(examples, documents=trial.documents)
            mask = Refreshed(trial.selected) if trial.selected is not None else None
            trainer = Trainer(lm, data, settings, weighting, Alone(), seed=seed, mask=mask)
            _begin(trainer, start)
            for result in trainer.run():
                usage.add(result.usage["train"])
                if result.step in horizons:
                    lm.model.eval()
                    decreases[:, i, horizons.index(result.step)] = before - validation.terms()
            _put_back(parameters, initial)
    finally:
        _put_back(parameters, initial)
        for name, p in parameters.items():
            p.requires_grad_(trained[name])
            p.grad = None
        lm.model.eval()
    return Decreases(decreases[0], decreases[1], validation.lam), usage


def _begin(trainer: Trainer, start: Start) -> None:
    """Give the trainer its optimizer, and AdamW the moments; with a mask, those of the selected parameters."""
    if start.kind == "sgd":
        trainer.optimizer = torch.optim.SGD(trainer.parameters.values(), lr=trainer.settings.lr)
    elif start.moments:
        _begin_with(trainer, start.moments, start.keep)


def _begin_with(trainer: Trainer, moments: Moments, keep: str) -> None:
    for name, parameter in trainer.parameters.items():
        mean = moments.mean[name] if keep == "all" else torch.zeros_like(moments.mean[name])
        tensors = {"exp_avg": mean, "exp_avg_sq": moments.square[name]}
        if trainer.masked:
            index = trainer.masked.index[name]
            tensors = {key: value.flatten().index_select(0, index) for key, value in tensors.items()}
        state = {key: value.to(parameter).clone() for key, value in tensors.items()}
        trainer.optimizer.state[parameter] = {"step": torch.tensor(float(moments.step)), **state}


def _put_back(parameters: Mapping[str, torch.nn.Parameter], initial: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(initial[name])
