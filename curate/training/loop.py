"""The training loop: rows of samples, weighted, one optimizer step after another.

    rows ─ micro-batches ─ forward ─┬─ losses, states ─ weighting ─ weights ─┐
                                    └──────── token losses ──────────────────┴─ loss ─ backward ─ add up ─ AdamW

The loss of a step is  sum over its samples i of  w_i (sum of i's token losses) / D,  with D the step's number of
supervised tokens, or the sum of their weights if the weighting normalises; so it does not depend on how the step is
split over micro-batches and processes. For a weighting that selects, D is batch_size times the candidates' mean number
of supervised tokens, whichever are selected: so the gradient is the sum of w_i g_i that the weighting optimised, over
the batch size. All randomness is a pure function of the seed, the step, the process and the micro-batch, so an
interrupted run resumes exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError
from curate.gradients.optimizer_state import INDEX, SUM, stored_under
from curate.kinds.passes import Arrays
from curate.kinds.weighting import Weighting
from curate.models.flops import counted
from curate.models.forward import out_of_memory
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.training.budget import Budget
from curate.training.dataset import Data
from curate.training.distributed import add_up
from curate.training.examples import epoch_rows, step_bounds
from curate.training.footprint import footprint
from curate.training.foreseen_steps import step_flops
from curate.training.looks import Looks
from curate.training.masked_parameters import MaskedParameters, Refreshed, Selected
from curate.training.objective import Objective
from curate.training.optimizer import adamw, load_optimizer, optimizer_tensors, trained
from curate.training.selection_step import SelectedStep, SelectionStep, gradient_chooser, require_selectable
from curate.training.settings import TrainSettings
from curate.training.sharded_layers import by_kind, clip_gradients, is_sharded, refuse_sharded
from curate.training.step_costs import StepCosts, step_metrics
from curate.training.step_passes import Seen, StepPasses
from curate.training.step_weights import Diverged, Weigher

COUNTED_EPOCHS = 100_000  # where epochs differ in length, counting more would take longer than training them


class PlannedStep(NamedTuple):
    """A step to be taken: its number, from 1; its epoch, from 0, and whether it begins and ends that; its rows."""

    number: int
    epoch: int
    begins: bool
    ends: bool
    rows: list[np.ndarray]

    @property
    def begun(self) -> int | None:
        """The epoch that begins with it; None if none does."""
        return self.epoch if self.begins else None


@dataclass
class StepResult:
    """The result of one optimizer step.

    last_of_epoch: whether the epoch ends with it. metrics: its row of the table `metrics`. documents, weight, loss,
    measure: of all samples of the step, [n]. usage: the cost by phase; samples: the number of samples by phase.
    """

    step: int
    epoch: int
    last_of_epoch: bool
    metrics: dict[str, Any]
    documents: np.ndarray
    weight: np.ndarray
    loss: np.ndarray
    measure: np.ndarray
    usage: dict[str, Usage]
    samples: dict[str, int]


@dataclass(frozen=True)
class Snapshot:
    """What training resumes from besides the model: the step, the optimizer's tensors, the weighting's state, the
    micro-batch size (possibly lowered after running out of memory), and the stream's state. At step 0 it is a new
    training that goes on with another's optimizer."""

    step: int
    optimizer: dict[str, Tensor]
    weighting: Arrays
    micro_batch_size: int = 0
    stream: Arrays = field(default_factory=dict)


def _selected(mask: Refreshed, start: Snapshot | None) -> Selected:
    stored = stored_under(INDEX, start.optimizer) if start else {}
    return {name: index.numpy() for name, index in stored.items()} or mask.selected


class Trainer:
    """Trains a model on weighted samples, in one process or as one of several.

    model: with `requires_grad` already set on its parameters. processes: `Alone()`, or an accelerate.Accelerator.
    start: the snapshot to resume from. mask: which parameters are trained, if not all. budget: in FLOPs, if what was
    paid before is to be part of it, or its steps are known.
    """

    def __init__(
        self,
        model: LanguageModel,
        data: Data,
        settings: TrainSettings,
        weighting: Weighting,
        processes: Any,
        seed: int = 0,
        start: Snapshot | None = None,
        mask: Refreshed | None = None,
        budget: Budget | None = None,
    ):
        self.budget = budget or Budget(settings.flops)
        self.model, self.settings, self.weighting = model, settings, weighting
        self.processes, self.seed = processes, seed
        training_data = data.with_weight() if weighting.chooses else data
        self.weigher = Weigher(weighting, training_data, settings, processes, seed)
        self.objective = Objective(model, settings.in_bfloat16(model.device.type), settings.compile)
        self.looks = Looks(weighting, self.objective, processes, seed, settings.count_flops)
        self.whole = trained(model.model)
        self.mask, self.masked = mask, MaskedParameters(self.whole, _selected(mask, start)) if mask else None
        self._take_parameters()
        sharded = any(map(is_sharded, self.whole.values()))
        if sharded:
            refuse_sharded(weighting, settings, mask is not None)
        unlimited = weighting.chooses or sharded  # choosing keeps factors, not graphs
        room = None if unlimited else footprint(self.objective, settings)
        self.costs = StepCosts(model, settings, processes, room)
        size = (start.micro_batch_size if start else 0) or settings.micro_batch_size
        self.passes = StepPasses(self.weigher, self.objective, self.costs, size, in_step=sharded)
        self.step = start.step if start else 0
        self.weigher.state = start.weighting if start else {}
        self.sums: dict[str, Tensor] = {}
        self._begun = start is not None and start.step > 0
        if start:
            load_optimizer(self.optimizer, self.parameters, start.optimizer)
            self.sums = {n: t.to(model.device) for n, t in stored_under(SUM, start.optimizer).items()}
        if settings.packing:
            self.objective.refuse_unpackable()
        if weighting.chooses:
            require_selectable(self.passes)
        self.chooser, self.selection = None, cast("SelectionStep | None", None)
        if weighting.chooses:
            self._take_chooser(start.optimizer if start else {})

    @property
    def data(self) -> Data:
        """The training data; for a stream, that of the current step."""
        return self.weigher.data

    @property
    def micro_batch_size(self) -> int:
        """Rows that go through the model at once; 0: all rows of a step."""
        return self.passes.micro_batch_size

    def _take_parameters(self) -> None:
        """Set the parameters to be trained, and an optimizer for them."""
        if self.masked:
            self.whole, self.parameters = self.masked.whole, self.masked.parameters
        else:
            self.parameters = self.whole
        self.optimizer: torch.optim.Optimizer = adamw(self.parameters, self.settings, self.whole)

    def _take_chooser(self, stored: Mapping[str, Tensor]) -> None:
        """Set what selects among candidates. stored: what it keeps between steps, with other tensors."""
        self.chooser = gradient_chooser(self.passes, self.optimizer, stored, self.masked)
        self.selection = SelectionStep(self.passes, self.chooser)

    def snapshot(self) -> Snapshot:
        """The state to resume training from, without the model's own parameters."""
        tensors = optimizer_tensors(self.optimizer, self.parameters)
        if self.masked:
            tensors |= {f"{INDEX}.{name}": index.cpu() for name, index in self.masked.index.items()}
        tensors |= {f"{SUM}.{name}": total.cpu() for name, total in self.sums.items()}
        tensors |= self.chooser.products.tensors() if self.chooser else {}
        stream = self.data.stream.tensors() if self.data.stream else {}
        return Snapshot(self.step, tensors, dict(self.weigher.state), self.micro_batch_size, stream)

    @cached_property
    def steps(self) -> int:
        """The total number of steps of the training."""
        if self.settings.steps:
            return self.settings.steps
        if self.settings.flops:
            return self.budget.steps or self.budget.steps_within(self._foreseen())
        full_epochs, fraction = divmod(self.settings.epochs, 1)
        full_steps = self._steps_of_epochs(int(full_epochs))
        return full_steps + int(np.ceil(fraction * self._steps_of(int(full_epochs)) - 1e-9) if fraction else 0)

    def _steps_of_epochs(self, epochs: int) -> int:
        """The steps of the first `epochs` epochs; counted one by one only where they may differ."""
        by_tokens = self.settings.packing or self.settings.batch_tokens
        if self.data.draws is None and not (by_tokens and self.settings.order == "shuffle"):
            return epochs * self._steps_of(0)
        if epochs > COUNTED_EPOCHS:
            raise CurateError(
                f"epochs={epochs:,}: here the steps of an epoch differ from those of the next (packing or "
                f"batch_tokens in random order, or samples drawn anew), and are counted for at most {COUNTED_EPOCHS:,} "
                "epochs; set max_steps instead."
            )
        return sum(self._steps_of(epoch) for epoch in range(epochs))

    def _steps_of(self, epoch: int) -> int:
        return len(self._bounds(self._epoch(epoch))) - 1

    @cached_property
    def _rows(self) -> int:
        """Rows per step: those trained on or, for a weighting that selects, the candidates."""
        return self.settings.batch_size * (self.settings.oversample if self.weighting.chooses else 1)

    def _bounds(self, rows: Sequence[np.ndarray]) -> list[int]:
        return step_bounds(self.data.examples, rows, self._rows, self.settings.batch_tokens)

    def _epoch(self, epoch: int) -> Sequence[np.ndarray]:
        room = self.model.context if self.settings.packing else 0
        shuffle = self.settings.order == "shuffle"
        return epoch_rows(self.data.examples, self.data.of_epoch(epoch), epoch, self.seed, shuffle, room)

    def plan(self) -> Iterator[PlannedStep]:
        """Every remaining step."""
        if stream := self.data.stream:
            for number in range(self.step + 1, self.steps + 1):
                examples, place = stream.candidates(number, self._rows)
                self.weigher.data = replace(Data.of(examples), anchors=self.data.anchors, stream=stream, place=place)
                begins, ends = number == 1, number == self.steps
                yield PlannedStep(number, 0, begins, ends, list(np.arange(len(examples))[:, None]))
            return
        yield from islice(self._all_steps(), self.step, self.steps)

    def _all_steps(self) -> Iterator[PlannedStep]:
        """Every step from the first one, without end."""
        number = 0
        for epoch in count():
            rows = self._epoch(epoch)
            for start, stop in pairwise(self._bounds(rows)):
                number += 1
                yield PlannedStep(number, epoch, not start, stop == len(rows), list(rows[start:stop]))

    def _foreseen(self) -> Iterator[float]:
        """FLOPs of every step from the first one, without end."""
        examples, anchors = self.data.examples, self.data.anchors
        length = float(anchors.lengths.mean() / examples.lengths.mean()) if anchors else 1.0
        for planned in self._all_steps():
            given = (self.costs, examples, planned.rows, self.settings, self.weighting, length)
            step, _ = step_flops(*given, masked=self.masked is not None)
            yield step + self.looks.foreseen(planned.number, planned.begun, self.data)

    def run(self) -> Iterator[StepResult]:
        """Take every remaining step. Raises Diverged if a loss or the gradient is not finite."""
        if not self._begun:
            self.weigher.state = self.weighting.init(self.data.column)
            self._begun = True
        for planned in self.plan():
            number = planned.number
            self.model.model.train()
            self._refresh_mask(number)
            usage: dict[str, Usage] = {}
            if self.looks.due(number, planned.begun):
                self.weigher.state, usage["anchors"] = self.looks.take(number, self.data, self.weigher.state)
            result = self._retried(number, planned.epoch, planned.rows, usage)
            result = replace(result, last_of_epoch=planned.ends)
            self.step = number
            yield result

    def _refresh_mask(self, number: int) -> None:
        """Before a step, reselect the trained parameters if the mask is due to be updated."""
        if self.masked and self.mask and self.mask.update and self.mask.due(number):
            selected = self.mask.update(dict(self.model.model.named_parameters()), number - 1)
            states = self.masked.reselect(selected, self.optimizer)
            self._take_parameters()
            for name, state in states.items():
                self.optimizer.state[self.parameters[name]] = state
            self.costs.forget()
            if self.chooser:
                self._take_chooser(self.chooser.products.tensors())

    def _retried(self, number: int, epoch: int, rows: list[np.ndarray], usage: dict[str, Usage]) -> StepResult:
        while True:
            try:
                return self._take(number, epoch, rows, usage)
            except Exception as error:
                size = self.micro_batch_size or len(rows)
                if not out_of_memory(error) or size == 1 or self.processes.num_processes > 1:
                    raise
                self.passes.micro_batch_size = size // 2  # stays lowered for later steps
            self.model.model.zero_grad()

    def _take(self, number: int, epoch: int, rows: list[np.ndarray], usage: dict[str, Usage]) -> StepResult:
        costs, previous_state, began = dict(usage), dict(self.weigher.state), time.perf_counter()
        try:
            step = self._select(number, rows, costs) if self.selection else self._train_on_all(number, rows, costs)
            norm, divisor = self._descend(number, step.divisor, step.seen)
        except Exception:
            self.weigher.state = previous_state
            raise
        other_seconds = [spent.seconds or 0.0 for phase, spent in costs.items() if phase not in ("train", "anchors")]
        costs["train"].seconds = time.perf_counter() - began - sum(other_seconds)
        metrics = step_metrics(
            self.data.examples, self.settings, step.seen, number, epoch, self.steps, norm, divisor
        ) | {"unfit": step.unfit, "fallback": int(step.fallback)}
        metrics["flops"] = sum(usage.flops for usage in costs.values())
        samples = {phase: self._samples(phase, step) for phase in costs}
        return StepResult(number, epoch, False, metrics, *step.seen[:4], usage=costs, samples=samples)

    def _select(self, number: int, rows: list[np.ndarray], costs: dict[str, Usage]) -> SelectedStep:
        assert self.selection is not None
        return self.selection.choose(number, rows, self.settings.learning_rate(number, self.steps), costs)

    def _train_on_all(self, number: int, rows: list[np.ndarray], costs: dict[str, Usage]) -> SelectedStep:
        """A step of a weighting that trains on all of its rows."""
        costs["train"] = self.costs.usage(self.data.examples, rows, self.micro_batch_size)
        with counted(costs["train"], self.settings.count_flops):
            seen = self.passes.forward_and_backward(number, rows, self.passes.micros(rows), costs)
        if "losses" in costs and costs["losses"].flops_counted:  # already contained in the outer count
            costs["train"].flops_counted = (costs["train"].flops_counted or 0.0) - costs["losses"].flops_counted
        return SelectedStep(seen, rows, self.passes.scale(rows))

    def _samples(self, phase: str, step: SelectedStep) -> int:
        """The number of samples processed in a phase of a step."""
        if self.selection:
            return self.selection.samples(phase, step)
        return self.looks.samples(self.data) if phase == "anchors" else len(step.seen[0])

    def _descend(self, number: int, scale: float, seen: Seen) -> tuple[float, float]:
        """Sum the gradients of all processes and take the optimizer step. Returns the gradient norm and the divisor."""
        add_up(self.processes, self.whole)
        if self.settings.sum_gradients:
            self._remember()
        if self.masked:
            self.masked.gather()
        divisor = scale
        if self.weighting.normalize == "mean1":
            counts = 1 if self.settings.reduction == "sample" else self.data.examples.counts[seen[0]]
            divisor = float((seen[1] * counts).sum())
            for kind in by_kind(self.parameters.values()):
                gradients = [p.grad for p in kind if p.grad is not None]
                torch._foreach_mul_(gradients, scale / divisor if divisor else 0.0)  # type: ignore[attr-defined]
        norm = clip_gradients(self.parameters, self.settings.clip or float("inf"))
        if not np.isfinite(norm):
            raise Diverged(number, "the gradient")
        if self.chooser:
            self.chooser.learnt()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(number, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.masked:
            self.masked.scatter()
        return norm, divisor

    def _remember(self) -> None:
        """Add the step's gradients to the running sums (setting sum_gradients)."""
        for name, parameter in self.whole.items():
            assert parameter.grad is not None
            self.sums[name] = self.sums[name].add_(parameter.grad) if name in self.sums else parameter.grad.clone()
