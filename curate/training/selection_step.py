"""A selection step: more candidates than are trained on are compared by their gradients or losses, and the gradients of
the selected ones are summed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError, CurateFailure
from curate.kinds.signals import Forward
from curate.models.flops import counted
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.training.dataset import Data
from curate.training.gradient_matching import Chooser, StepCandidates
from curate.training.masked_parameters import MaskedParameters
from curate.training.shared_candidates import SharedCandidates, sum_of_usage
from curate.training.step_passes import Seen, StepPasses
from curate.training.step_weights import Diverged, checked


@dataclass(frozen=True)
class SelectedStep:
    """What a step trains on.

    seen: weights and losses of all its documents. learnt: the rows whose gradients are summed. divisor: of their sum.
    unfit: number of candidates that could not be selected. fallback: whether the weighting's formula gave nothing.
    again: whether the selected ones went through the model a second time.
    """

    seen: Seen
    learnt: list[np.ndarray]
    divisor: float
    unfit: int = 0
    fallback: bool = False
    again: bool = False


def require_selectable(passes: StepPasses) -> None:
    """Raises CurateError if a weighting cannot select inside the step: too few samples, outputs of several processes,
    shuffled weights, packed rows."""
    data, settings, weighting = passes.weigher.data, passes.settings, passes.weighting
    name, room, n = weighting.name, settings.batch_size, len(data.documents)
    if n < room and not data.stream:
        raise CurateError(
            f"'{name}' chooses {room} samples a step (batch_size) among candidates, oversample="
            f"{settings.oversample} times as many, and there are {n} to train on; use a smaller batch_size."
        )
    if passes.processes.num_processes > 1 and "outputs" in weighting.needs:
        raise CurateError(f"'{name}' compares outputs of all candidates, which one process has; start a single one.")
    if settings.compile:
        raise CurateError(f"'{name}' looks at candidates in ways that are not compiled; leave out compile.")
    if settings.batch_tokens:
        raise CurateError(
            f"'{name}' chooses a number of samples a step, which batch_tokens does not say; set batch_size instead."
        )
    if settings.shuffle_weights or settings.packing:
        condition = "shuffle_weights" if settings.shuffle_weights else "packing"
        raise CurateError(f"'{name}' chooses single samples of a step, which {condition} does not leave; leave it out.")


def gradient_chooser(
    passes: StepPasses,
    optimizer: torch.optim.Optimizer,
    stored: Mapping[str, Tensor],
    masked: MaskedParameters | None = None,
) -> Chooser | None:
    """The chooser that compares candidates' gradients; None for a weighting that does not use gradients.

    stored: the optimizer's tensors in a checkpoint, which include the chooser's own. masked: the elements that are
    trained, if not all.
    """
    if (matching := passes.weighting.matching()) is None:
        return None
    anchors = passes.weigher.data.anchors
    chooser = Chooser(
        passes.objective.model, optimizer, passes.settings, matching, anchors, passes.seed, passes.processes, masked
    )
    chooser.products.load(stored)
    return chooser


class SelectionStep:
    """Selects inside the step, for a weighting that selects among candidates."""

    def __init__(self, passes: StepPasses, chooser: Chooser | None):
        self.passes, self.chooser = passes, chooser
        self.weigher, self.weighting, self.settings = passes.weigher, passes.weighting, passes.settings

    @property
    def model(self) -> LanguageModel:
        """The model being trained."""
        return self.passes.objective.model

    @property
    def data(self) -> Data:
        """The training data; for a stream, that of the current step."""
        return self.weigher.data

    def choose(self, number: int, rows: list[np.ndarray], lr: float, costs: dict[str, Usage]) -> SelectedStep:
        """Compare the candidates, and sum the gradients of those that the weighting selects.

        lr: of this step. costs: phase -> usage, filled in. Raises Diverged if no candidate has a finite gradient.
        """
        room = min(self.settings.batch_size, -(-len(rows) // self.settings.oversample))
        candidates = self._compared(number, rows, costs)
        documents, valid = candidates.documents[candidates.good], candidates.good
        if not len(valid):
            raise Diverged(number, "the gradient of every candidate")
        step = self.weigher.shown(number, documents, candidates.loss[valid], None)
        step = replace(
            step, products=candidates.products, outputs=candidates.outputs, room=min(room, len(valid)), lr=lr
        )
        began, cost = time.perf_counter(), costs["selection" if self.chooser else "losses"]
        result, self.weigher.state = self.weighting.update(step, self.weigher.state)
        cost.seconds = (cost.seconds or 0.0) + time.perf_counter() - began
        values = checked(self.weighting, result.values, candidates.loss[valid], number)
        if not 1 <= np.count_nonzero(values) <= step.room and result.tokens is None or not values.any():
            raise CurateFailure(
                f"the weighting '{self.weighting.name}' chose {np.count_nonzero(values)} of {len(valid)} candidates at "
                f"step {number}; it is to choose at least 1 and at most {step.room}."
            )
        weights = np.zeros(len(candidates.documents))
        weights[valid] = values
        chosen_rows = [candidates.documents[[i]] for i in np.flatnonzero(weights)]
        divisor = room * self.passes.scale(rows) / len(rows)
        self._learn_chosen(number, candidates, weights, result.tokens, chosen_rows, divisor, costs)
        data_weights = self.data.weights[self.data.examples.sample[candidates.documents]]
        measure = candidates.loss.copy() if result.measure is None else np.full(len(weights), np.nan)
        if result.measure is not None:
            measure[valid] = result.measure
        weighted = np.where(weights != 0, candidates.loss * weights * data_weights, 0.0)
        seen = (candidates.documents, weights * data_weights, candidates.loss, measure, weighted)
        second_pass = candidates.gradients is None
        return SelectedStep(
            seen, chosen_rows, divisor, len(candidates.documents) - len(valid), result.fallback, second_pass
        )

    def _compared(self, number: int, rows: list[np.ndarray], costs: dict[str, Usage]) -> StepCandidates:
        """The candidates with what the weighting needs: inner products of their gradients, or only their losses."""
        shared = SharedCandidates(self.passes.processes, self.passes.parts(rows))
        if self.chooser:
            if self.chooser.due(number):
                costs["target"] = self.chooser.look_at_target(number)
            costs["selection"], factors = self.model.usage(), self._each(shared.documents)
            sow = partial(self.passes.seed_random, number)
            return self.chooser.look(self.data.examples, shared, factors, costs["selection"], sow)
        usage, losses, began = self._usage(rows, backward=False), [np.zeros(0)], time.perf_counter()
        hidden = []
        with torch.no_grad(), counted(usage, self.settings.count_flops):
            for place, micro in enumerate(self.passes.micros(rows)):
                batch_losses = self.passes.losses(number, place, micro)
                losses.append(batch_losses.means(self.data.examples.counts[micro.batch.documents]))
                hidden += [] if batch_losses.hidden is None else [batch_losses.hidden]
        usage.seconds = time.perf_counter() - began
        costs["losses"] = usage
        all_losses = shared.all_of(np.concatenate(losses))
        finite = np.flatnonzero(np.isfinite(all_losses))
        outputs = self._outputs(shared.documents[finite], hidden, finite) if hidden else None
        return StepCandidates(shared.documents, all_losses, finite, None, None, usage, outputs)

    def _outputs(self, documents: np.ndarray, hidden: list[Tensor], positions: np.ndarray) -> Forward:
        """The candidates' hidden states, zero beyond each one's own tokens, with their lengths and the output head."""
        lengths, longest = self.data.examples.lengths[documents], max(h.shape[1] for h in hidden)
        padded = torch.cat([torch.nn.functional.pad(h, (0, 0, 0, longest - h.shape[1])) for h in hidden])
        states = padded[torch.from_numpy(positions).to(padded.device)]
        places = torch.arange(longest, device=states.device)
        padding = places[None] >= torch.from_numpy(lengths).to(states.device)[:, None]
        counts = self.data.examples.counts[documents]
        return Forward(None, counts, states.masked_fill(padding[:, :, None], 0.0), lengths, head=self._head)

    @property
    def _head(self) -> Any:
        """The current output head; a cached one is dropped if the head is trained, as its weights have changed."""
        if any(p.requires_grad for p in self.model.head.parameters()):
            vars(self.model).pop("output", None)
        return self.model.output

    def _each(self, candidates: np.ndarray) -> np.ndarray:
        """The factor of each candidate's mean loss in the step's loss, float64, up to the divisor: its data weight and,
        for reduction=token, its number of supervised tokens over the candidates' mean."""
        data, counts = self.data.weights[self.data.examples.sample[candidates]], self.data.examples.counts[candidates]
        return data if self.settings.reduction == "sample" else data * counts / counts.mean()

    def _learn_chosen(
        self,
        number: int,
        candidates: StepCandidates,
        weights: np.ndarray,
        tokens: np.ndarray | None,
        rows: list[np.ndarray],
        divisor: float,
        costs: dict[str, Usage],
    ) -> None:
        """The gradient of the selected candidates, from stored factors or by a second pass."""
        train = self.model.usage()
        if candidates.gradients is None or self.chooser is None:
            if tokens is not None:
                raise CurateError("unit=token needs all candidates of a step in one micro-batch; leave out "
                                  "micro_batch_size, or use a smaller batch_size.")  # fmt: skip
            costs["train"] = self._usage(rows)
            micros, chosen = self.passes.micros(rows), SharedCandidates(self.passes.processes, self.passes.parts(rows))
            for micro, its in zip(micros, chosen.own_of(weights[weights != 0]), strict=True):  # both longest first
                micro.weights = its
            with counted(costs["train"], self.settings.count_flops):
                self.passes.learn(number, micros, divisor)
            if self.chooser:
                costs["candidates"] = candidates.usage
            return
        share, lengths = len(rows) / len(candidates.documents), self.data.examples.lengths
        mean = self.passes.scale([candidates.documents]) / len(candidates.documents)  # undoes the division in `_each`
        factors = weights * self._each(candidates.documents) * mean / divisor
        with counted(train, self.settings.count_flops):
            train.flops += self.chooser.learn(candidates, factors[candidates.good], tokens)
        sum_of_usage(self.passes.processes, train)
        train.add(candidates.usage.part(share))
        train.tokens = int(lengths[np.concatenate(rows)].sum())
        costs["train"], costs["candidates"] = train, candidates.usage.part(1 - share)
        costs["candidates"].tokens = int(lengths[candidates.documents].sum()) - train.tokens

    def samples(self, phase: str, step: SelectedStep) -> int:
        """The number of samples processed in a phase of a step."""
        n_candidates, n_chosen = len(step.seen[0]), len(np.concatenate(step.learnt))
        one_pass = self.chooser is not None and not step.again
        if phase in ("anchors", "target"):
            return self.chooser.target_samples if self.chooser else len(self.data.anchors or ())
        return {"train": n_chosen, "candidates": n_candidates - n_chosen if one_pass else n_candidates}.get(
            phase, n_candidates
        )

    def _usage(self, rows: list[np.ndarray], backward: bool = True) -> Usage:
        return self.passes.costs.usage(self.data.examples, rows, self.passes.micro_batch_size, backward)
