"""The weight of each sample of a step: from the weighting, checked, and the resulting loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateFailure
from curate.kinds.passes import Arrays
from curate.kinds.signals import Drawn, Step
from curate.kinds.weighting import Weighting
from curate.models.forward import to_device
from curate.training.dataset import Data
from curate.training.distributed import gather
from curate.training.examples import Batch
from curate.training.objective import Losses
from curate.training.settings import TrainSettings


class Diverged(Exception):
    """A loss or a gradient is not finite; the step was not taken."""

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} is not a finite number at step {step}")
        self.step, self.what = step, what


@dataclass
class Micro:
    """A micro-batch of this process: its rows as tensors, losses, weights."""

    batch: Batch
    recompute: bool = False  # its activations in the backward pass, as they are too large to be kept
    losses: Losses | None = None
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    measure: np.ndarray | None = None
    idle: bool = False  # passed so that all processes pass equally often; of no weight


class Weigher:
    """Applies a weighting to steps. data: the documents and their per-sample values. state: the weighting's state."""

    def __init__(self, weighting: Weighting, data: Data, settings: TrainSettings, processes: Any, seed: int):
        self.weighting, self.data, self.settings = weighting, data, settings
        self.processes, self.seed = processes, seed
        self.state: Arrays = {}

    def weigh(self, number: int, micro: Micro, losses: Losses) -> None:
        """Set the weights of a micro-batch, for a weighting whose samples are independent of each other."""
        documents = micro.batch.documents
        means = losses.means(self.data.examples.counts[documents])
        tokens = self.token_losses(losses)
        step = self.shown(number, documents, means, losses.states, tokens)
        result, self.state = self.weighting.update(step, self.state)
        micro.weights, micro.measure = checked(self.weighting, result.values, means, number), result.measure

    def token_losses(self, losses: Losses) -> np.ndarray | None:
        """The loss of every supervised token, float64 [S]; None unless the weighting uses it."""
        return losses.values if "token_loss" in self.weighting.needs else None

    def weigh_all(
        self, number: int, micros: list[Micro], means: list[np.ndarray], tokens: list[np.ndarray | None]
    ) -> None:
        """Set the weights of a step from the losses of all processes; tokens: every token's, if the weighting uses
        them."""
        own = np.concatenate([micro.batch.documents for micro in micros] or [np.zeros(0, np.int64)])
        gathered = gather(self.processes, [own, np.concatenate([*means, np.zeros(0)])])
        token_losses = None
        if "token_loss" in self.weighting.needs:
            ((token_losses, _),) = gather(
                self.processes, [np.concatenate([*(t for t in tokens if t is not None), np.zeros(0)])]
            )
        step = self.shown(number, gathered[0][0], gathered[1][0], None, token_losses)
        result, self.state = self.weighting.update(step, self.state)
        weights = checked(self.weighting, result.values, gathered[1][0], number)
        counts = self.data.examples.counts[gathered[0][0]]
        per_token = len(weights) == counts.sum() > len(counts)
        bounds = np.append(0, np.cumsum(counts)) if per_token else np.arange(len(counts) + 1)
        start = int(sum(gathered[0][1][: self.processes.process_index]))
        for micro in micros:
            stop = start + len(micro.batch.documents)
            micro.weights, start = weights[bounds[start] : bounds[stop]], stop

    def deal(self, number: int, micros: list[Micro]) -> None:
        """Shuffle a step's weights among all its samples (or tokens), as a control."""
        own = np.concatenate([micro.weights for micro in micros] or [np.zeros(0)])
        ((weights, lengths),) = gather(self.processes, [own])
        dealt = np.random.default_rng([self.seed % 2**63, number]).permutation(np.sort(weights))
        start = int(sum(lengths[: self.processes.process_index]))
        for micro in micros:
            n = len(micro.weights)
            micro.weights, start = dealt[start : start + n], start + n

    def shown(
        self,
        number: int,
        documents: np.ndarray,
        loss: np.ndarray,
        states: Tensor | None,
        token_loss: np.ndarray | None = None,
    ) -> Step:
        """A step, or a part of it, with the inputs that the weighting uses."""
        needs, data = self.weighting.needs, self.data
        base = None
        if "base_token_loss" in needs:
            assert data.base_token_loss is not None
            starts = data.first_supervised[documents]
            stops = starts + data.examples.counts[documents]
            base = np.concatenate([data.base_token_loss[a:b] for a, b in zip(starts, stops, strict=True)])
        column = data.column[data.examples.sample[documents]] if data.column is not None else None
        domains = None
        if "domains" in needs and data.draws:
            domains = Drawn(data.draws.domain[data.examples.sample[documents]], data.vocabulary)
        counts = data.examples.counts[documents]
        return Step(number, loss, column, counts, base, states, token_loss=token_loss, domains=domains)

    def token_weights(self, micro: Micro) -> np.ndarray:
        """Each supervised token's weight, float64 [S]: its own or its document's, times its sample's data weight."""
        documents = micro.batch.documents
        counts = self.data.examples.counts[documents]
        data_weights = self.data.weights[self.data.examples.sample[documents]]
        token_weights = micro.weights if len(micro.weights) == counts.sum() > len(counts) else None
        return np.repeat(data_weights, counts) * (
            np.repeat(micro.weights, counts) if token_weights is None else token_weights
        )

    def mean_weight(self, micro: Micro) -> np.ndarray:
        """Each document's weight averaged over its supervised tokens, float64 [n]."""
        counts = self.data.examples.counts[micro.batch.documents]
        return np.add.reduceat(self.token_weights(micro), np.cumsum(counts) - counts) / counts

    def weighted_means(self, micro: Micro, losses: Losses) -> np.ndarray:
        """Each document's mean of its weighted token losses, float64 [n]."""
        counts = self.data.examples.counts[micro.batch.documents]
        weighted = losses.values * self.token_weights(micro)
        return np.add.reduceat(weighted, np.cumsum(counts) - counts) / counts

    def weighted(self, micro: Micro, losses: Losses, scale: float) -> Tensor:
        """This micro-batch's contribution to the step's loss, a differentiable scalar."""
        factors = self.token_weights(micro) / scale
        if self.settings.reduction == "sample":
            counts = self.data.examples.counts[micro.batch.documents]
            factors = factors / np.repeat(counts, counts)
        wide = losses.token.dtype == torch.float64
        return (losses.token * to_device(factors if wide else factors.astype(np.float32), losses.token.device)).sum()


def checked(weighting: Weighting, weights: np.ndarray, losses: np.ndarray, number: int) -> np.ndarray:
    """Weights as float64. Raises Diverged for losses that are not finite, CurateFailure for such weights or, unless the
    weighting is signed, negative ones."""
    if not np.isfinite(losses).all():
        raise Diverged(number, "a loss")
    weights = np.asarray(weights, np.float64)
    if (bad := weights[~(np.isfinite(weights) & (weighting.signed | (weights >= 0)))]).size:
        raise CurateFailure(
            f"the weighting '{weighting.name}' gave the weight {bad[0]} at step {number}; a weight is a number of 0 "
            "or more: check its settings and its column."
        )
    return weights
