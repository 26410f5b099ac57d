"""Realised decrease of the validation loss by training, for several trials from one checkpoint: what scores predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        task_loss = self._mean(self.task, None, "")
        return task_loss + self.lam * self._mean(self.anchors, self.loss, self.beside) if self.lam else task_loss

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


def realised(
    lm: LanguageModel,
    examples: Examples,
    trials: Sequence[RealisedTrial],
    horizons: Sequence[int],
    settings: TrainSettings,
    weighting: Weighting,
    validation: Validation,
    moments: Moments | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, Usage]:
    """The decrease of the validation loss after each horizon of each trial, float64 [trials, horizons]; and the cost.
    Every trial starts from the parameters at the time of the call, which are restored afterwards.

    horizons: ascending, in steps. settings: as given, except that `steps` is the last horizon. moments: AdamW's initial
    state, as the checkpoint's training left it; None: none, so that its first steps nearly follow the gradients' signs.
    """
    settings = replace(settings, steps=max(horizons))
    parameters = dict(lm.model.named_parameters())
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    trained = {name: p.requires_grad for name, p in parameters.items()}
    lm.model.eval()
    start, usage = validation.value(), lm.usage()
    decreases = np.zeros((len(trials), len(horizons)))
    try:
        for i, trial in enumerate(trials):
            lm.model.requires_grad_(True)
            data = Data.of(examples, documents=trial.documents)
            mask = Refreshed(trial.selected) if trial.selected is not None else None
            trainer = Trainer(lm, data, settings, weighting, Alone(), seed=seed, mask=mask)
            if moments:
                _begin_with(trainer, moments)
            for result in trainer.run():
                usage.add(result.usage["train"])
                if result.step in horizons:
                    lm.model.eval()
                    decreases[i, horizons.index(result.step)] = start - validation.value()
            _put_back(parameters, initial)
    finally:
        _put_back(parameters, initial)
        for name, p in parameters.items():
            p.requires_grad_(trained[name])
            p.grad = None
        lm.model.eval()
    return decreases, usage


def _begin_with(trainer: Trainer, moments: Moments) -> None:
    """Set AdamW's state to these moments; with a mask, to those of the selected parameters."""
    for name, parameter in trainer.parameters.items():
        tensors = {"exp_avg": moments.mean[name], "exp_avg_sq": moments.square[name]}
        if trainer.masked:
            index = trainer.masked.index[name]
            tensors = {key: value.flatten().index_select(0, index) for key, value in tensors.items()}
        state = {key: value.to(parameter).clone() for key, value in tensors.items()}
        trainer.optimizer.state[parameter] = {"step": torch.tensor(float(moments.step)), **state}


def _put_back(parameters: Mapping[str, torch.nn.Parameter], initial: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(initial[name])
