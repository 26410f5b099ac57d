"""A training that chooses within its steps, and one that keeps what a slow reference says of every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Step, Weights
from curate.kinds.weighting import Weighting
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Snapshot, Trainer
from curate.training.settings import TrainSettings
from tests.oracles import choosing as slow
from tests.support.gradients import CONFIGS, model_of, samples, tokens

GPT2 = CONFIGS["gpt2, with places and layer norms"]  # whose norms are in float64, as Llama's are not
STEP = TrainSettings(
    batch_size=2, oversample=3, lr=1e-2, warmup=0.0, schedule="constant", clip=0.0, projection=0, target_batch=3
)
CANDIDATES, TARGET = [*samples(0), *samples(1)][:12], samples(2)[:3]


def trainer_of(
    weighting: Weighting,
    settings: TrainSettings = STEP,
    lora: bool = True,
    config: Any = GPT2,
    target: list[Encoded] | None = TARGET,
    encoded: list[Encoded] = CANDIDATES,
    start: Snapshot | None = None,
    state: dict[str, torch.Tensor] | None = None,
    dropout: float = 0.0,
    dtype: Any = torch.float64,
    processes: Any = None,
    mask: Any = None,
    **more: Any,
) -> Trainer:
    lm = model_of(config, lora, dtype)
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad_(not lora or "lora_" in name)
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if state:
        lm.model.load_state_dict(state, strict=False)
    anchors = Examples.of(target) if target is not None else None
    data = replace(Data.of(Examples.of(encoded), anchors=anchors), **more)
    return Trainer(lm, data, settings, weighting, processes or Alone(), start=start, mask=mask and mask(lm))


class Compared(Weighting):
    """Gives what another weighting does, and keeps what a slow reference says of the same step."""

    scope, needs, chooses, uses_target = "batch", ("loss",), True, True  # type: ignore[assignment]

    def __init__(self, inner: Any, reference: bool = True):
        self.inner, self.steps, self.trainer = inner, list[dict[str, Any]](), None
        self.reference = reference  # or the products alone are kept

    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def signed(self) -> bool:
        return self.inner.signed

    def matching(self) -> Matching | None:
        return self.inner.matching()

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        trainer: Any = self.trainer
        given, state = self.inner.update(step, state)
        if not self.reference:
            self.steps.append({"products": step.products})
            return given, state
        chooser = trainer.chooser
        those = {name: trainer.chooser.parameters[name] for name in chooser.sketcher.shapes}
        was = trainer.model.model.training
        trainer.model.model.eval()
        documents = self.documents
        counts = trainer.data.examples.counts[documents]
        each = counts / counts.mean() if trainer.settings.reduction == "token" else np.ones(len(counts))
        g = slow.vectors(trainer.model.model, [tokens(CANDIDATES[d]) for d in documents], those) * each[:, None]
        wanted = slow.vectors(trainer.model.model, [tokens(one) for one in TARGET], those).mean(0)
        if trainer.masked:
            d, kept = masked_d(trainer, those)
            g, wanted = g * kept, wanted * kept
        else:
            d = slow.adams_d(trainer.optimizer, those)
        trainer.model.model.train(was)
        for parameter in trainer.whole.values():
            parameter.requires_grad_(True)
        self.steps.append(
            {
                "given": given,
                "products": step.products,
                "g": g,
                "target": wanted,
                "d": d,
                "lr": step.lr,
                "documents": documents,
            }
        )
        return given, state

    documents: np.ndarray


def masked_d(trainer: Any, those: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Adam's D number by number, 1 for what is not trained; and which are trained, 0 or 1."""
    ds, kept = [], []
    for name, parameter in those.items():
        d, places = np.ones(parameter.numel()), trainer.masked.index[name].numpy()
        gathered = trainer.masked.parameters[name]
        if trainer.optimizer.state.get(gathered):
            d[places] = slow.adams_d(trainer.optimizer, {name: gathered})
        ds.append(d)
        kept.append(np.isin(np.arange(len(d)), places).astype(float))
    return np.concatenate(ds), np.concatenate(kept)


def compared(
    weighting: Weighting, settings: TrainSettings = STEP, steps: int = 2, **more: Any
) -> tuple[list[dict[str, Any]], Trainer]:
    """Two steps: at the first Adam has no state yet."""
    watching = Compared(weighting)
    trainer = trainer_of(watching, replace(settings, steps=steps), **more)
    watching.trainer = trainer
    told(trainer, watching)
    list(trainer.run())
    return watching.steps, trainer


def told(trainer: Trainer, weighting: Any) -> None:
    """Have a weighting know which documents it is shown."""
    shown = trainer.weigher.shown

    def keep(number: int, documents: np.ndarray, *rest: Any) -> Step:
        weighting.documents = documents
        return shown(number, documents, *rest)

    trainer.weigher.shown = keep  # type: ignore[method-assign]


def near(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-10) -> bool:
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


class Given(Weighting):
    """Weights that a test has thought of, of the candidates by their documents."""

    scope, needs, chooses, uses_target = "batch", ("loss",), True, True  # type: ignore[assignment]

    def __init__(self, by_document: dict[int, float]):
        self.by_document, self.documents = by_document, np.zeros(0)

    def settings(self) -> dict[str, Any]:
        return {}

    def matching(self) -> Matching:
        return Matching()

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        return Weights(np.array([self.by_document.get(int(d), 0.0) for d in self.documents])), state


def gradient_learnt(weighting: Given, settings: TrainSettings, **more: Any) -> dict[str, torch.Tensor]:
    trainer, kept = trainer_of(weighting, replace(settings, steps=1), **more), dict[str, torch.Tensor]()
    told(trainer, weighting)
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None})
    )
    list(trainer.run())
    return kept
