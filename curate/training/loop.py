"""The training loop: rows of samples, weighted, one optimizer step after another.

    rows ─ micro-batches ─ forward ─┬─ losses, states ─ weighting ─ weights ─┐
                                    └──────── token losses ──────────────────┴─ loss ─ backward ─ add up ─ AdamW

The loss of a step is  sum over its samples i of  w_i (sum of i's token losses) / D,  with D the step's supervised
tokens, or their weights' sum where the weighting normalises; so it does not depend on how the step is cut into
micro-batches and processes. Of a weighting that chooses, D is what as many candidates as there is room for have in the
mean, whichever are chosen: so the gradient is the sum of w_i g_i that the weighting had in mind, over the room.
Whatever chance there is is a pure function of the seed, the step, the process and the micro-batch, so a run that was
cut short goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from curate.errors import CurateError, CurateFailure
from curate.gradients.optimizer_state import INDEX, SUM, stored_under
from curate.kinds.passes import Arrays
from curate.kinds.signals import Forward
from curate.kinds.weighting import Weighting
from curate.models.flops import FORWARD, TRAINING, TrainingFlops, counted, forward_flops, paper_flops
from curate.models.forward import out_of_memory
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.numerics.statistics import effective_size
from curate.training.dataset import Data
from curate.training.distributed import add_up, gather
from curate.training.examples import Batch, batch_of, epoch_rows, micro_batches
from curate.training.gradient_matching import Chooser, StepCandidates
from curate.training.inference import in_order, times, unlearnt
from curate.training.masked_parameters import MaskedParameters, Refreshed, Selected
from curate.training.objective import Losses, Objective
from curate.training.optimizer import adamw, load_optimizer, optimizer_tensors, trained
from curate.training.settings import TrainSettings
from curate.training.step_weights import Diverged, Micro, Weigher

# Of all documents of a step: which, their weights, mean losses, measures, and means of their weighted token losses.
Seen: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]"


@dataclass
class StepResult:
    """A step that was taken.

    last_of_epoch: whether the epoch ends with it. metrics: the row of the table `metrics`. documents, weight, loss,
    measure: of all samples of the step, [n]. usage: what it cost, by phase; samples: of how many, likewise.
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
    """What training goes on from, beside the model: the step, the optimizer's tensors, the weighting's arrays, how many
    rows go through the model at once, where memory ran out with more; and the stream's arrays."""

    step: int
    optimizer: dict[str, Tensor]
    weighting: Arrays
    micro_batch_size: int = 0
    stream: Arrays = field(default_factory=dict)


def _selected(mask: Refreshed, start: Snapshot | None) -> Selected:
    stored = stored_under(INDEX, start.optimizer) if start else {}
    return {name: index.numpy() for name, index in stored.items()} or mask.selected


@dataclass(frozen=True)
class SelectedStep:
    """What a step learns from: what was seen of all its documents, the rows whose gradients are added up, and what
    their sum is divided by. unfit:
    candidates that could not be chosen. fallback: whether the weighting's formula gave nothing. again: whether the
    learnt ones went through the model once more."""

    seen: Seen
    learnt: list[np.ndarray]
    divisor: float
    unfit: int = 0
    fallback: bool = False
    again: bool = False


class Trainer:
    """Trains a model on weighted samples, in one process or as one of several.

    model: whose parameters are frozen, or not, as they are to be. processes: `Alone()`, or an accelerate.Accelerator.
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
    ):
        self.model, self.settings, self.weighting = model, settings, weighting
        self.processes, self.seed = processes, seed
        learnt = data.with_weight() if weighting.chooses else data
        self.weigher = Weigher(weighting, learnt, settings, processes, seed)
        self.objective = Objective(model, settings.in_bfloat16(model.device.type))
        self.whole = trained(model.model)
        self.mask, self.masked = mask, MaskedParameters(self.whole, _selected(mask, start)) if mask else None
        self._take_parameters()
        self.micro_batch_size = settings.micro_batch_size
        self.step = start.step if start else 0
        self.weigher.state = start.weighting if start else {}
        self.sums: dict[str, Tensor] = {}
        self._begun = start is not None
        if start:
            load_optimizer(self.optimizer, self.parameters, start.optimizer)
            self.sums = {n: t.to(model.device) for n, t in stored_under(SUM, start.optimizer).items()}
            self.micro_batch_size = start.micro_batch_size or self.micro_batch_size
        if settings.packing:
            self.objective.refuse_unpackable()
        self.chooser = self._chooser(start)

    def _chooser(self, start: Snapshot | None) -> Chooser | None:
        """What compares gradients, for a weighting that asks for it. Raises CurateError where it cannot be."""
        if not self.weighting.chooses:
            return None
        name, room, n = self.weighting.name, self.settings.batch_size, len(self.data.documents)
        if n < room and not self.data.stream:
            raise CurateError(
                f"'{name}' chooses {room} samples a step (batch_size) among candidates, oversample="
                f"{self.settings.oversample} times as many, and there are {n} to learn from; take a smaller batch_size."
            )
        matching = self.weighting.matching()
        for what, bad in (("with a mask", matching and self.mask), ("in several processes", self._several())):
            if bad:
                raise CurateError(f"'{name}' cannot choose {what} yet; leave that out.")
        if self.settings.shuffle_weights or self.settings.packing:
            what = "shuffle_weights" if self.settings.shuffle_weights else "packing"
            raise CurateError(f"'{name}' chooses single samples of a step, which {what} does not leave; leave it out.")
        if matching is None:
            return None
        chooser = Chooser(self.model, self.optimizer, self.settings, matching, self.data.anchors, self.seed)
        chooser.load(start.optimizer if start else {})
        return chooser

    @property
    def data(self) -> Data:
        """What is learnt; of a stream, one step's."""
        return self.weigher.data

    def _several(self) -> bool:
        return self.processes.num_processes > 1

    def _take_parameters(self) -> None:
        """What the optimizer steps, and the parameters whose gradients it is given."""
        if self.masked:
            self.whole, self.parameters = self.masked.whole, self.masked.parameters
        else:
            self.parameters = self.whole
        self.optimizer = adamw(self.parameters, self.settings, self.whole)

    def snapshot(self) -> Snapshot:
        """Where training stands; the model's own parameters are beside it."""
        tensors = optimizer_tensors(self.optimizer, self.parameters)
        if self.masked:
            tensors |= {f"{INDEX}.{name}": index.cpu() for name, index in self.masked.index.items()}
        tensors |= {f"{SUM}.{name}": total.cpu() for name, total in self.sums.items()}
        tensors |= self.chooser.tensors() if self.chooser else {}
        stream = self.data.stream.tensors() if self.data.stream else {}
        return Snapshot(self.step, tensors, dict(self.weigher.state), self.micro_batch_size, stream)

    @cached_property
    def steps(self) -> int:
        """How many steps the whole training takes."""
        if self.settings.steps:
            return self.settings.steps
        whole, rest = divmod(self.settings.epochs, 1)
        cut = [self._steps_of(e) for e in range(int(whole))]
        return sum(cut) + int(np.ceil(rest * self._steps_of(int(whole)) - 1e-9) if rest else 0)

    def _steps_of(self, epoch: int) -> int:
        return -(-len(self._epoch(epoch)) // self._rows)

    @cached_property
    def _rows(self) -> int:
        """Rows of a step: those that are learnt, or as many as some of them are chosen from."""
        return self.settings.batch_size * (self.settings.oversample if self.weighting.chooses else 1)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        room = self.model.context if self.settings.packing else 0
        shuffle = self.settings.order == "shuffle"
        return epoch_rows(self.data.examples, self.data.of_epoch(epoch), epoch, self.seed, shuffle, room)

    def plan(self) -> Iterator[tuple[int, int, bool, list[np.ndarray]]]:
        """Every step that is still to be taken: its number, its epoch, whether that ends with it, its rows."""
        if stream := self.data.stream:
            for number in range(self.step + 1, self.steps + 1):
                examples, place = stream.candidates(number, self._rows)
                self.weigher.data = replace(Data.of(examples), anchors=self.data.anchors, stream=stream, place=place)
                yield number, 0, number == self.steps, list(np.arange(len(examples))[:, None])
            return
        number, epoch, size = 0, 0, self._rows
        while number < self.steps:
            rows = self._epoch(epoch)
            for start in range(0, len(rows), size):
                number += 1
                if self.step < number <= self.steps:
                    yield number, epoch, start + size >= len(rows), rows[start : start + size]
            epoch += 1

    def run(self) -> Iterator[StepResult]:
        """Take every step that is left. Raises Diverged where a loss or the gradient is no finite number."""
        if not self._begun:
            self.weigher.state = self.weighting.init(self.data.column)
            self._begun = True
        for number, epoch, last, rows in self.plan():
            self.model.model.train()
            self._refresh_mask(number)
            usage: dict[str, Usage] = {}
            if "states" in self.weighting.needs and self.weighting.uses_target and self._anchors_due(number):
                usage["anchors"] = self._refresh()
            done = replace(self._retried(number, epoch, rows, usage), last_of_epoch=last)
            self.step = number
            yield done

    def _anchors_due(self, number: int) -> bool:
        return (number - 1) % self.weighting.refresh == 0

    def _refresh_mask(self, number: int) -> None:
        """Select other numbers where the mask asks for it, before a step."""
        if self.masked and self.mask and self.mask.update and self.mask.due(number):
            states = self.masked.reselect(self.mask.update(dict(self.model.model.named_parameters())), self.optimizer)
            self._take_parameters()
            for name, state in states.items():
                self.optimizer.state[self.parameters[name]] = state
            self.__dict__.pop("_flops", None)  # other parameters have gradients

    # --- one step ----------------------------------------------------------------------------------------

    def _retried(self, number: int, epoch: int, rows: list[np.ndarray], usage: dict[str, Usage]) -> StepResult:
        while True:
            try:
                return self._take(number, epoch, rows, usage)
            except Exception as error:
                size = self.micro_batch_size or len(rows)
                if not out_of_memory(error) or size == 1 or self.processes.num_processes > 1:
                    raise
                self.micro_batch_size = size // 2  # remembered: the next steps' are no larger
            self.model.model.zero_grad()

    def _take(self, number: int, epoch: int, rows: list[np.ndarray], usage: dict[str, Usage]) -> StepResult:
        costs, before, began = dict(usage), dict(self.weigher.state), time.perf_counter()
        try:
            if self.weighting.chooses:
                choice = self._choose(number, rows, costs)
            else:
                costs["train"] = self._usage(rows)
                with counted(costs["train"], self.settings.count_flops):
                    seen = self._forward_and_backward(number, rows, self._micros(rows), costs)
                choice = SelectedStep(seen, rows, self._scale(rows))
                if "losses" in costs and costs["losses"].flops_counted:  # which the outer count has, too
                    costs["train"].flops_counted = (costs["train"].flops_counted or 0.0) - costs["losses"].flops_counted
            norm, divisor = self._descend(number, choice.divisor, choice.seen)
        except Exception:
            self.weigher.state = before
            raise
        beside = [its.seconds or 0.0 for phase, its in costs.items() if phase not in ("train", "anchors")]
        costs["train"].seconds = time.perf_counter() - began - sum(beside)
        metrics = self._metrics(number, epoch, rows, choice, norm, divisor)
        samples = {phase: self._samples(phase, choice) for phase in costs}
        return StepResult(number, epoch, False, metrics, *choice.seen[:4], usage=costs, samples=samples)

    def _samples(self, phase: str, choice: SelectedStep) -> int:
        """How many samples a phase of a step has seen."""
        every, learnt = len(choice.seen[0]), len(np.concatenate(choice.learnt))
        one_pass = self.chooser is not None and not choice.again
        beside = {"train": learnt, "candidates": every - learnt if one_pass else every}
        if phase in ("anchors", "target"):
            return self.chooser.target_samples if self.chooser else len(self.data.anchors or ())
        return beside.get(phase, every)

    def _micros(self, rows: Sequence[np.ndarray]) -> list[Micro]:
        return [Micro(batch) for batch in self._batches(rows)]

    # --- a step that chooses ------------------------------------------------------------------------------

    def _choose(self, number: int, rows: list[np.ndarray], costs: dict[str, Usage]) -> SelectedStep:
        """Look at the candidates, and add up the gradients of those that the weighting chooses."""
        room = min(self.settings.batch_size, -(-len(rows) // self.settings.oversample))
        found = self._looked(number, rows, costs)
        documents, good = found.documents[found.good], found.good
        if not len(good):
            raise Diverged(number, "the gradient of every candidate")
        shown = self.weigher.shown(number, documents, found.loss[good], None)
        lr = self.settings.learning_rate(number, self.steps)
        shown = replace(shown, products=found.products, outputs=found.outputs, room=min(room, len(good)), lr=lr)
        began, beside = time.perf_counter(), costs["selection" if self.chooser else "losses"]
        given, self.weigher.state = self.weighting.update(shown, self.weigher.state)
        beside.seconds = (beside.seconds or 0.0) + time.perf_counter() - began
        values = self.weigher.checked(given.values, found.loss[good], number)
        if not 1 <= np.count_nonzero(values) <= shown.room and given.tokens is None or not values.any():
            raise CurateFailure(
                f"the weighting '{self.weighting.name}' chose {np.count_nonzero(values)} of {len(good)} candidates at "
                f"step {number}; it is to choose at least 1 and at most {shown.room}."
            )
        weights = np.zeros(len(found.documents))
        weights[good] = values
        learnt = [found.documents[[i]] for i in np.flatnonzero(weights)]
        divisor = room * self._scale(rows) / len(rows)
        self._learn_chosen(number, found, weights, given.tokens, learnt, divisor, costs)
        data = self.data.weights[self.data.examples.sample[found.documents]]
        measure = found.loss.copy() if given.measure is None else np.full(len(weights), np.nan)
        if given.measure is not None:
            measure[good] = given.measure
        weighted = np.where(weights != 0, found.loss * weights * data, 0.0)
        seen = (found.documents, weights * data, found.loss, measure, weighted)
        again = found.gradients is None
        return SelectedStep(seen, learnt, divisor, len(found.documents) - len(good), given.fallback, again)

    def _looked(self, number: int, rows: list[np.ndarray], costs: dict[str, Usage]) -> StepCandidates:
        """What the weighting asks to know of the candidates: their gradients' products, or their losses alone."""
        groups = list(micro_batches(self.data.examples, rows, self.micro_batch_size))
        documents = [np.concatenate(group) for group in groups]
        if self.chooser:
            if self.chooser.due(number):
                costs["target"] = self.chooser.look_at_target(number)
            costs["selection"], each = self.model.usage(), self._each(np.concatenate(documents))
            sow = partial(self._sow, number)
            return self.chooser.look(self.data.examples, documents, each, costs["selection"], sow)
        usage, losses, began = self._usage(rows, backward=False), [], time.perf_counter()
        hidden = []
        with torch.no_grad(), counted(usage, self.settings.count_flops):
            for place, micro in enumerate(self._micros(rows)):
                found = self._losses(number, place, micro)
                losses.append(found.means(micro.batch.counts))
                hidden += [] if found.hidden is None else [found.hidden]
        usage.seconds = time.perf_counter() - began
        costs["losses"] = usage
        every = np.concatenate(losses)
        good = np.flatnonzero(np.isfinite(every))
        outputs = self._outputs(np.concatenate(documents)[good], hidden, good) if hidden else None
        return StepCandidates(np.concatenate(documents), every, good, None, None, usage, outputs)

    def _outputs(self, documents: np.ndarray, hidden: list[Tensor], good: np.ndarray) -> Forward:
        """Candidates as they went through the model; of each its own tokens, zero beyond them."""
        lengths, longest = self.data.examples.lengths[documents], max(h.shape[1] for h in hidden)
        every = torch.cat([torch.nn.functional.pad(h, (0, 0, 0, longest - h.shape[1])) for h in hidden])
        states = every[torch.from_numpy(good).to(every.device)]
        places = torch.arange(longest, device=states.device)
        beyond = places[None] >= torch.from_numpy(lengths).to(states.device)[:, None]
        counts = self.data.examples.counts[documents]
        return Forward(None, counts, states.masked_fill(beyond[:, :, None], 0.0), lengths, head=self._head)

    @property
    def _head(self) -> Any:
        """The output head as it is now: what was made of it before may be of other weights."""
        if any(p.requires_grad for p in self.model.head.parameters()):
            vars(self.model).pop("output", None)
        return self.model.output

    def _each(self, candidates: np.ndarray) -> np.ndarray:
        """By what the gradient of each candidate's mean loss stands in the step's loss, but for the divisor, which is
        their mean number of tokens where tokens count: float64."""
        data, counts = self.data.weights[self.data.examples.sample[candidates]], self.data.examples.counts[candidates]
        return data if self.settings.reduction == "sample" else data * counts / counts.mean()

    def _learn_chosen(
        self,
        number: int,
        found: StepCandidates,
        weights: np.ndarray,
        tokens: np.ndarray | None,
        learnt: list[np.ndarray],
        divisor: float,
        costs: dict[str, Usage],
    ) -> None:
        """The gradient of the chosen: of the factors that are there, or by a second pass."""
        train = self.model.usage()
        if found.gradients is None or self.chooser is None:
            if tokens is not None:
                raise CurateError("unit=token needs all candidates of a step in one micro-batch; leave out "
                                  "micro_batch_size, or take a smaller batch_size.")  # fmt: skip
            costs["train"] = self._usage(learnt)
            micros, left = self._micros(learnt), weights[weights != 0]  # both longest first, as micro-batches are
            for micro in micros:
                micro.weights, left = np.split(left, [len(micro.batch.documents)])
            with counted(costs["train"], self.settings.count_flops):
                self._learn(number, micros, divisor)
            if self.chooser:
                costs["candidates"] = found.usage
            return
        share, lengths = len(learnt) / len(found.documents), self.data.examples.lengths
        mean = self._scale([found.documents]) / len(found.documents)  # by which `_each` has divided already
        factors = weights * self._each(found.documents) * mean / divisor
        with counted(train, self.settings.count_flops):
            train.flops += self.chooser.learn(found, factors[found.good], tokens)
        train.add(found.usage.part(share))
        train.tokens = int(lengths[np.concatenate(learnt)].sum())
        costs["train"], costs["candidates"] = train, found.usage.part(1 - share)
        costs["candidates"].tokens = int(lengths[found.documents].sum()) - train.tokens

    def _batches(self, rows: Sequence[np.ndarray]) -> Iterator[Batch]:
        rank, world = self.processes.process_index, self.processes.num_processes
        for group in micro_batches(self.data.examples, rows, self.micro_batch_size, rank, world):
            yield batch_of(self.data.examples, group, self.model.device)

    def _forward_and_backward(
        self, number: int, rows: list[np.ndarray], micros: list[Micro], costs: dict[str, Usage]
    ) -> Seen:
        """Adds up the gradients of this process. Returns what was seen of the whole step."""
        if together := self._together():
            self._weigh_together(number, rows, micros, costs)
        return self._learn(number, micros, self._scale(rows), weigh=not together)

    def _learn(self, number: int, micros: list[Micro], scale: float, weigh: bool = False) -> Seen:
        """Adds up the gradients of micro-batches. weigh: first weigh each one; else it has its weights."""
        found = []
        for place, micro in enumerate(micros):
            losses = micro.losses or self._losses(number, place, micro)
            if weigh:
                self.weigher.weigh(number, micro, losses)
            means, documents = losses.means(micro.batch.counts), micro.batch.documents
            measure = means if micro.measure is None else micro.measure
            found.append(
                (documents, self.weigher.mean_weight(micro), means, measure, self.weigher.weighted_means(micro, losses))
            )
            self.weigher.weighted(micro, losses, scale).backward()
            micro.losses = None  # and with it what the backward pass has used
        columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        columns = columns or [np.zeros(0, np.int64), *[np.zeros(0)] * 4]  # a process may have no row of a step
        documents, weight, loss, measure, weighted = (whole for whole, _ in gather(self.processes, columns))
        if not np.isfinite(loss).all():
            raise Diverged(number, "a loss")
        return documents, weight, loss, measure, weighted

    def _together(self) -> bool:
        """Whether a step's weights must all be known before anything is learnt from it."""
        return self.weighting.scope == "batch" or self.settings.shuffle_weights

    def _losses(self, number: int, place: int, micro: Micro) -> Losses:
        """A micro-batch through the model; what chance there is in it is the same whenever it is done."""
        self._sow(number, place)
        needs = self.weighting.needs
        return self.objective.losses(micro.batch, "states" in needs, "outputs" in needs)

    def _sow(self, number: int, place: int) -> None:
        key = [self.seed % 2**63, number, self.processes.process_index, place]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _weigh_together(
        self, number: int, rows: list[np.ndarray], micros: list[Micro], costs: dict[str, Usage]
    ) -> None:
        """The weights of a weighting that looks at the whole step, before anything is learnt from it.

        One micro-batch is kept on its way; several go through the model twice, or their activations would all have to
        stand in memory. Weights that are dealt out by lot are dealt among all of the step.
        """
        began, world = time.perf_counter(), self.processes.num_processes
        again = len(rows) > world * (self.micro_batch_size or len(rows))  # more than one in some process
        first = self._usage(rows, backward=False)
        means, tokens = [], []
        with counted(first, again and self.settings.count_flops):
            for place, micro in enumerate(micros):
                with torch.set_grad_enabled(not again):
                    losses = self._losses(number, place, micro)
                means.append(losses.means(micro.batch.counts))
                tokens.append(self.weigher.token_losses(losses))
                micro.losses = None if again else losses
                if self.weighting.scope == "sample":
                    self.weigher.weigh(number, micro, losses)
        if self.weighting.scope == "batch":
            self.weigher.weigh_all(number, micros, means, tokens)
        if self.settings.shuffle_weights:
            self.weigher.deal(number, micros)
        if again:
            costs["losses"], first.seconds = first, time.perf_counter() - began

    def _scale(self, rows: list[np.ndarray]) -> float:
        """What a step's weighted sum is divided by: its supervised tokens, or its samples."""
        documents = np.concatenate(rows)
        by_sample = self.settings.reduction == "sample"
        return float(len(documents) if by_sample else self.data.examples.counts[documents].sum())

    def _descend(self, number: int, scale: float, seen: Seen) -> tuple[float, float]:
        """Adds the gradients of all processes and takes the optimizer's step. Returns their norm and the divisor."""
        add_up(self.processes, self.whole)
        if self.settings.sum_gradients:
            self._remember()
        if self.masked:
            self.masked.gather()
        divisor = scale
        if self.weighting.normalize == "mean1":
            counts = 1 if self.settings.reduction == "sample" else self.data.examples.counts[seen[0]]
            divisor = float((seen[1] * counts).sum())
            for parameter in self.parameters.values():
                parameter.grad.mul_(scale / divisor if divisor else 0.0)  # type: ignore[union-attr]
        norm = float(clip_grad_norm_(self.parameters.values(), self.settings.clip or float("inf")))
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
        """Adds the step's gradients to those of the steps before."""
        for name, parameter in self.whole.items():
            assert parameter.grad is not None
            self.sums[name] = self.sums[name].add_(parameter.grad) if name in self.sums else parameter.grad.clone()

    # --- accounts ----------------------------------------------------------------------------------------

    def _metrics(
        self, number: int, epoch: int, rows: list[np.ndarray], choice: SelectedStep, norm: float, divisor: float
    ) -> dict[str, Any]:
        documents, weight, loss, _, weighted = choice.seen
        counts = self.data.examples.counts[documents]
        each, fit = 1 if self.settings.reduction == "sample" else counts, np.isfinite(loss)
        return {
            "step": number,
            "epoch": epoch + 1,
            "loss": float((loss * counts)[fit].sum() / counts[fit].sum()),
            "weighted_loss": float((weighted * each).sum() / divisor) if divisor else 0.0,
            "lr": self.settings.learning_rate(number, self.steps),
            "grad_norm": norm,
            "samples": len(np.unique(self.data.examples.sample[documents])),
            "tokens": int(self.data.examples.lengths[documents].sum()),
            "supervised": int(counts.sum()),
            "weight_mean": float(weight.mean()),
            "weight_min": float(weight.min()),
            "weight_max": float(weight.max()),
            "effective_samples": effective_size(np.abs(weight)),
            "chosen": len(np.unique(self.data.examples.sample[documents[weight != 0]])),
            "unfit": choice.unfit,
            "fallback": int(choice.fallback),
        }

    def _usage(self, rows: list[np.ndarray], backward: bool = True) -> Usage:
        """What a step costs all processes together."""
        examples, documents = self.data.examples, np.concatenate(rows)
        usage = self.model.usage(int(examples.lengths[documents].sum()))
        usage.flops_paper = paper_flops(TRAINING if backward else FORWARD, self.model.n_params, len(documents))
        for rank in range(self.processes.num_processes):
            for group in micro_batches(examples, rows, self.micro_batch_size, rank, self.processes.num_processes):
                longest = max(int(examples.lengths[row].sum()) for row in group)
                head = int(examples.counts[np.concatenate(group)].sum())
                head = head if self.model.plain_head else len(group) * longest
                usage.padded_tokens += len(group) * longest
                if backward:
                    usage.flops += self._flops.step(len(group), longest, head, self.settings.gradient_checkpointing)
                else:
                    usage.flops += forward_flops(self._flops.model, len(group), longest, head)
        return usage

    @cached_property
    def _flops(self) -> TrainingFlops:
        return TrainingFlops(self.model.model)

    def _refresh(self) -> Usage:
        """Shows the weighting the target's samples as the model sees them now. Every process looks for itself."""
        assert self.data.anchors is not None
        states, usage, began = [], self.model.usage(), time.perf_counter()
        for batch, found in unlearnt(self.objective, self.data.anchors, usage, self.settings.count_flops, losses=False):
            assert found.states is not None
            states.append((batch.documents, found.states))
        self.weigher.state = self.weighting.refreshed(in_order(states), self.weigher.state)
        return times(usage, self.processes.num_processes, time.perf_counter() - began)
