"""Selection inside the steps of another trainer: its batches are candidates, of which a share is trained on.

The candidates of a step, of all its micro-batches and processes, go through the model as `curate train` takes them,
and the gradient of those that are chosen is left in the parameters, for the trainer to clip and to step with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from curate.errors import CurateError
from curate.integrations.documents import documents_of
from curate.integrations.target import objective_of
from curate.integrations.trainer_settings import recompute_nothing, recomputes, samples_of_a_step, settings_of
from curate.kinds.weighting import Weighting
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.training.dataset import Data
from curate.training.distributed import add_up, objects
from curate.training.examples import Examples
from curate.training.gradient_matching import Chooser
from curate.training.optimizer import trained
from curate.training.recomputing import keep_activations
from curate.training.selection_step import SelectedStep, SelectionStep, gradient_chooser
from curate.training.settings import TrainSettings
from curate.training.step_costs import StepCosts
from curate.training.step_passes import StepPasses
from curate.training.step_weights import Diverged, Weigher

_OWN = ("oversample", "projection", "target_batch", "target_every", "reduction")
_MATCHING = "matching."  # how the names begin of what the comparison of gradients keeps between steps


@dataclass
class Candidates:
    """Documents of a step, of one process. column: of each one, NaN without; places: in the training set, -1 where that
    is not known."""

    encoded: list[Encoded]
    column: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, inputs: Mapping[str, Any], column: Tensor | None, places: Tensor | None) -> Candidates:
        """Those of a micro-batch that have something to learn. column, places: of its samples, [n]."""
        documents = documents_of(inputs)
        of_each = documents.document.flatten().cpu().numpy()
        ids = inputs["input_ids"].flatten().cpu().numpy().astype(np.int32)
        supervised = np.zeros(len(ids), bool)
        supervised[documents.supervised.cpu().numpy()] = True
        order = np.argsort(of_each, kind="stable")  # tokens by document, in their order
        bounds = np.searchsorted(of_each[order], np.arange(len(documents) + 1))
        encoded = []
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            own = order[start:stop]
            encoded.append(Encoded(ids[own], supervised[own] & (np.arange(len(own)) > 0)))
        learns = [i for i, one in enumerate(encoded) if one.supervised.any()]
        kept = documents.kept[learns]
        return cls(
            [encoded[i] for i in learns],
            np.full(len(kept), np.nan) if column is None else column.double().cpu().numpy()[kept],
            np.full(len(kept), -1) if places is None else places.cpu().numpy()[kept],
        )


@dataclass(frozen=True)
class Taken:
    """A step that was selected in. examples: its candidates, of all processes. loss: of those trained on, weighted.
    candidate_loss: the mean over the tokens of all that have a finite one.
    costs: usage by phase; samples: their number by phase. places: of each candidate, in the order of step.seen."""

    examples: Examples
    step: SelectedStep
    loss: float
    candidate_loss: float
    costs: dict[str, Usage]
    samples: dict[str, int]
    places: np.ndarray


class StepSelection:
    """Selects in the steps of a trainer, by a weighting that chooses. anchors: the target's samples, from the trainer's
    model. settings: of `curate train`, as `oversample`; with the trainer's own afterwards. Raises CurateError for what
    it cannot do."""

    def __init__(
        self,
        trainer: Any,
        weighting: Weighting,
        anchors: Callable[[LanguageModel], Examples],
        settings: Mapping[str, Any] | None,
    ):
        self._trainer, self._weighting = trainer, weighting
        if weighting.matching() is not None:
            _keep_activations(trainer, weighting.name)
        self.settings = _settings(trainer, weighting, settings or {})
        self._objective = objective_of(trainer, weighting.name)
        self._anchors = anchors(self._objective.model) if weighting.uses_target else None
        nothing = Data.of(Examples.of([]), anchors=self._anchors)
        processes, seed = trainer.accelerator, trainer.args.seed
        self._weigher = Weigher(weighting, nothing, self.settings, processes, seed)
        costs = StepCosts(self._objective.model, self.settings, processes)
        self._passes = StepPasses(self._weigher, self._objective, costs, self.settings.micro_batch_size)
        if processes.num_processes > 1 and "outputs" in weighting.needs:
            raise CurateError(f"'{weighting.name}' compares outputs of all candidates; train in one process.")
        self._selection: SelectionStep | None = None
        self._stored: dict[str, Tensor] = {}
        self._window: list[Candidates] = []
        if weighting.matching() is not None:  # what cannot be compared is said at once, not when training begins
            unstepped = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
            gradient_chooser(self._passes, unstepped, {})

    def begin(self, column: np.ndarray | None) -> None:
        """Before the first step of a training that begins: the weighting's state. column: of all samples."""
        self._weigher.state = self._weighting.init(column)

    def add(self, inputs: Mapping[str, Any], column: Tensor | None, places: Tensor | None) -> int:
        """Add a micro-batch to the candidates of the step; the number of micro-batches that it has by now."""
        self._window.append(Candidates.of(inputs, column, places))
        return len(self._window)

    def take(self, number: int, lr: float) -> Taken:
        """Choose among the candidates of step `number`; every trained parameter's gradient is that of the chosen."""
        selection, processes = self._begun(), self._trainer.accelerator
        every = [part for parts in objects(processes, self._window) for part in parts]
        self._window = []
        examples = Examples.of([one for part in every for one in part.encoded])
        column = np.concatenate([part.column for part in every])
        places = np.concatenate([part.places for part in every])
        if not len(examples):
            raise CurateError(f"no sample of step {number} has a token to learn.")
        self._weigher.data = Data.of(examples, anchors=self._anchors, column=None if np.isnan(column).any() else column)
        costs: dict[str, Usage] = {}
        devices = [self._objective.model.device.index or 0] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):  # the trainer's own randomness goes on as if this had none
            try:
                step = selection.choose(number, list(np.arange(len(examples))[:, None]), lr, costs)
            except Diverged as error:
                raise CurateError(f"{error}; use a lower learning rate.") from None
        add_up(processes, trained(self._objective.model.model))
        documents, _, losses, _, weighted = step.seen
        counts = examples.counts[documents] * np.isfinite(losses)
        of_all = float((np.nan_to_num(losses) * counts).sum() / counts.sum())
        factors = 1 if self.settings.reduction == "sample" else examples.counts[documents]
        loss = float((np.nan_to_num(weighted) * factors).sum() / step.divisor)
        samples = {phase: selection.samples(phase, step) for phase in costs}
        return Taken(examples, step, loss, of_all, costs, samples, places[documents])

    def learnt(self) -> None:
        """Between clipping and the optimizer's step: see the gradient that it is given."""
        chooser = self._selection.chooser if self._selection else None
        if chooser is not None:
            chooser.learnt()

    def _begun(self) -> SelectionStep:
        """With the trainer's optimizer, which it makes when training begins."""
        if self._selection is None:
            optimizer = self._trainer.optimizer
            optimizer = getattr(optimizer, "optimizer", optimizer)
            self._selection = SelectionStep(self._passes, self._chooser(optimizer))
        return self._selection

    def _chooser(self, optimizer: Any) -> Chooser | None:
        matching = self._weighting.matching()
        if (
            matching
            and matching.precondition == "before"
            and not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        ):
            raise CurateError(
                f"'{self._weighting.name}' follows Adam's step, and the optimizer is {type(optimizer).__module__}."
                f"{type(optimizer).__name__}; use optim=adamw_torch, or precondition=none."
            )
        return gradient_chooser(self._passes, optimizer, self._stored)

    # --- what a checkpoint holds --------------------------------------------------------------------------

    def stored(self) -> bytes:
        """What the next step needs of the earlier ones."""
        kept = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in self._weigher.state.items()}
        if self._selection and self._selection.chooser:
            kept |= {k: v.contiguous() for k, v in self._selection.chooser.products.tensors().items()}
        return save(kept)

    def load(self, stored: bytes) -> None:
        """Go on from what `stored` gave."""
        tensors = load(stored)
        self._stored = {name: tensor for name, tensor in tensors.items() if name.startswith(_MATCHING)}
        self._weigher.state = {name: tensor.numpy() for name, tensor in tensors.items() if name not in self._stored}
        self._selection = None


def _keep_activations(trainer: Any, name: str) -> None:
    """Leave out gradient checkpointing (TRL's default), which forgets what gradients are compared by; and say so."""
    if not recomputes(trainer.args):
        return
    warnings.warn(
        f"gradient (activation) checkpointing is left out, as '{name}' compares gradients by the layers' inputs, which "
        "that forgets; where memory is short, use a smaller per_device_train_batch_size with gradient accumulation.",
        stacklevel=5,
    )
    recompute_nothing(trainer.args)
    keep_activations(trainer.model)


def _settings(trainer: Any, weighting: Weighting, given: Mapping[str, Any]) -> TrainSettings:
    args, name = trainer.args, weighting.name
    known = {field.name for field in fields(TrainSettings)}
    for setting in given:
        if setting not in _OWN:
            belongs = "is the trainer's own" if setting in known else "is unknown"
            raise CurateError(f"the setting {setting} of a selection {belongs}; it has {', '.join(_OWN)}.")
    if args.fp16:
        raise CurateError(f"fp16 scales the loss, which '{name}' does not see; train with bf16=True.")
    if getattr(args, "neftune_noise_alpha", None):
        raise CurateError(f"neftune_noise_alpha makes candidates noisy, which '{name}' compares; leave it out.")
    candidates, oversample = samples_of_a_step(trainer), int(given.get("oversample", TrainSettings.oversample))
    if candidates < oversample:
        raise CurateError(
            f"a step of this trainer has {candidates} samples (per_device_train_batch_size times "
            f"gradient_accumulation_steps times processes), of which '{name}' would train on 1 in {oversample}; use "
            f"a larger batch, or settings={{'oversample': {candidates}}}."
        )
    micro = args.per_device_train_batch_size if args.gradient_accumulation_steps > 1 else 0
    return settings_of(
        trainer,
        batch_size=candidates // oversample,
        micro_batch_size=micro,
        precision="bfloat16" if args.bf16 else "float32",
        packing=False,  # single documents are chosen, of packed rows too
        **given,
    )
