"""Short trainings of the narrow model, and the gradient of one step to compare with a slow reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.examples import Examples
from curate.training.loop import StepResult, Trainer
from curate.training.settings import TrainSettings
from tests.support.narrow import NARROW

PLAIN = TrainSettings(batch_size=8, lr=1e-3, warmup=0.0, schedule="constant", epochs=1)


def narrow(dtype: Any = "float32") -> LanguageModel:
    model = LanguageModel(ModelChoice(NARROW, device="cpu"))
    model.model.to(getattr(torch, dtype)).requires_grad_(True)
    return model


def trained(
    processes: Any,
    encoded: Sequence[Encoded],
    weighting: Weighting,
    settings: TrainSettings,
    model: Any = None,
    **data: Any,
) -> tuple[LanguageModel, list[StepResult]]:
    lm = model or narrow()
    trainer = Trainer(lm, Data.of(Examples.of(encoded), **data), settings, weighting, processes)
    return lm, list(trainer.run())


def gradient_of(
    processes: Any, encoded: Sequence[Encoded], weighting: Weighting, settings: TrainSettings, **data: Any
) -> tuple[dict[str, torch.Tensor], StepResult]:
    """The gradient of one step over all samples, unclipped, in float64."""
    lm = narrow("float64")
    trainer = Trainer(lm, Data.of(Examples.of(encoded), **data), settings, weighting, processes)
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        kept.update({name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    (done,) = trainer.run()
    return kept, done


ONE_STEP = replace(PLAIN, batch_size=1000, clip=0.0)


def pairs(encoded: Sequence[Encoded]) -> list[tuple[list[int], list[bool]]]:
    return [(one.ids.tolist(), one.supervised.tolist()) for one in encoded]


def closest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """Llama's norms compute in float32, even of a model in float64; so this is as near as its gradients come."""
    assert a.keys() == b.keys()
    scale = max(float(t.abs().max()) for t in b.values())
    for name in a:
        assert float((a[name] - b[name]).abs().max()) <= tolerance * scale, name


class Given(Weighting):
    """The weights that a column holds."""

    needs = ("column",)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        return Weights(step.column), state
