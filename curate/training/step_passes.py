"""Forward and backward passes over a step's rows in this process: micro-batches, losses, weights, summed gradients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from curate.models.flops import counted
from curate.models.usage import Usage
from curate.training.distributed import gather
from curate.training.examples import batch_of, micro_batches
from curate.training.objective import Losses, Objective
from curate.training.recomputing import recomputing
from curate.training.step_costs import StepCosts
from curate.training.step_weights import Diverged, Micro, Weigher

# For all documents of a step: positions, weights, mean losses, measures, and means of their weighted token losses.
Seen: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]"


class StepPasses:
    """Runs the rows of a step through the model, split into micro-batches and over processes.

    micro_batch_size: rows that go through the model at once; 0: all rows of a step. in_step: whether all processes must
    pass equally often, as each has a part of the model.
    """

    def __init__(
        self, weigher: Weigher, objective: Objective, costs: StepCosts, micro_batch_size: int, in_step: bool = False
    ):
        self.weigher, self.objective, self.costs = weigher, objective, costs
        self.micro_batch_size, self.in_step = micro_batch_size, in_step
        self.weighting, self.settings = weigher.weighting, weigher.settings
        self.processes, self.seed = weigher.processes, weigher.seed

    def micros(self, rows: Sequence[np.ndarray]) -> list[Micro]:
        """What this process passes through the model in a step, one after the other."""
        examples, device = self.weigher.data.examples, self.objective.model.device
        world, every = self.processes.num_processes, self.parts(rows)
        passes = [[part for parts in every[rank::world] for part in parts] for rank in range(world)]
        own = [
            Micro(batch_of(examples, part, device), recompute=self.costs.recomputes(examples, part))
            for part in passes[self.processes.process_index]
        ]
        if self.in_step:
            shortest = min(rows, key=lambda row: int(examples.lengths[row].sum()))
            more = max(map(len, passes)) - len(own)
            own += [Micro(batch_of(examples, [shortest], device), idle=True) for _ in range(more)]
        return own

    def parts(self, rows: Sequence[np.ndarray]) -> list[list[list[np.ndarray]]]:
        """All processes' micro-batches of a step, each in parts of similar length. The graphs of one micro-batch are
        in memory together."""
        return [self.costs.parts(self.weigher.data.examples, group) for group in self.groups(rows)]

    def groups(self, rows: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """All processes' micro-batches of a step."""
        examples, world = self.weigher.data.examples, self.processes.num_processes
        return micro_batches(examples, rows, self.micro_batch_size, world, self.costs.room)

    def forward_and_backward(
        self, number: int, rows: list[np.ndarray], micros: list[Micro], costs: dict[str, Usage]
    ) -> Seen:
        """Accumulate the gradients of this process. Returns weights and losses of the whole step."""
        if together := self._together():
            self._weigh_together(number, rows, micros, costs)
        return self.learn(number, micros, self.scale(rows), weigh=not together)

    def learn(self, number: int, micros: list[Micro], scale: float, weigh: bool = False) -> Seen:
        """Accumulate the gradients of micro-batches. scale: the divisor of the loss. weigh: compute each one's weights
        first; otherwise they are already set. Raises Diverged if a loss is not finite."""
        results = []
        for place, micro in enumerate(micros):
            losses = micro.losses or self.losses(number, place, micro)
            if micro.idle:
                (losses.token.sum() * 0.0).backward()
                continue
            if weigh:
                self.weigher.weigh(number, micro, losses)
            documents = micro.batch.documents
            means = losses.means(self.weigher.data.examples.counts[documents])
            measure = means if micro.measure is None else micro.measure
            results.append(
                (documents, self.weigher.mean_weight(micro), means, measure, self.weigher.weighted_means(micro, losses))
            )
            self.weigher.weighted(micro, losses, scale).backward()
            micro.losses = None  # frees the autograd graph
        columns = [np.concatenate(parts) for parts in zip(*results, strict=True)]
        columns = columns or [np.zeros(0, np.int64), *[np.zeros(0)] * 4]  # a process may have no row of a step
        documents, weight, loss, measure, weighted = (column for column, _ in gather(self.processes, columns))
        if not np.isfinite(loss).all():
            raise Diverged(number, "a loss")
        return documents, weight, loss, measure, weighted

    def _together(self) -> bool:
        """Whether all of a step's weights must be known before its first backward pass."""
        return self.weighting.scope == "batch" or self.settings.shuffle_weights

    def losses(self, number: int, place: int, micro: Micro) -> Losses:
        """Run a micro-batch through the model; its randomness (dropout) is the same whenever this is called."""
        self.seed_random(number, place)
        needs = self.weighting.needs
        with recomputing(self.objective.model.model, micro.recompute):
            return self.objective.losses(micro.batch, "states" in needs, "outputs" in needs)

    def seed_random(self, number: int, place: int) -> None:
        """Make the randomness of a micro-batch (dropout) a function of seed, step, process and place."""
        key = [self.seed % 2**63, number, self.processes.process_index, place]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _weigh_together(
        self, number: int, rows: list[np.ndarray], micros: list[Micro], costs: dict[str, Usage]
    ) -> None:
        """Compute the weights of a weighting that uses the whole step, before the first backward pass.

        A single micro-batch keeps its graphs; several go through the model twice, as otherwise all their activations
        would have to stay in memory. Shuffled weights are shuffled over the whole step.
        """
        began, world = time.perf_counter(), self.processes.num_processes
        two_passes = len(self.groups(rows)) > world  # more than one in some process
        forward_usage = self.costs.usage(self.weigher.data.examples, rows, self.micro_batch_size, backward=False)
        means, tokens = [], []
        with counted(forward_usage, two_passes and self.settings.count_flops):
            for place, micro in enumerate(micros):
                with torch.set_grad_enabled(not two_passes):
                    losses = self.losses(number, place, micro)
                micro.losses = None if two_passes else losses
                if micro.idle:
                    continue
                means.append(losses.means(self.weigher.data.examples.counts[micro.batch.documents]))
                tokens.append(self.weigher.token_losses(losses))
                if self.weighting.scope == "sample":
                    self.weigher.weigh(number, micro, losses)
        weighed = [micro for micro in micros if not micro.idle]
        if self.weighting.scope == "batch":
            self.weigher.weigh_all(number, weighed, means, tokens)
        if self.settings.shuffle_weights:
            self.weigher.deal(number, weighed)
        if two_passes:
            costs["losses"], forward_usage.seconds = forward_usage, time.perf_counter() - began

    def scale(self, rows: list[np.ndarray]) -> float:
        """The divisor of a step's weighted sum: its number of supervised tokens, or of samples."""
        documents = np.concatenate(rows)
        by_sample = self.settings.reduction == "sample"
        return float(len(documents) if by_sample else self.weigher.data.examples.counts[documents].sum())
