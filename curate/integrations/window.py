"""The weights of one optimizer step, of all its micro-batches and processes, by any weighting."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.models.forward import to_device
from curate.training.distributed import gather
from curate.training.step_weights import checked


@dataclass
class Part:
    """A micro-batch of this process, of n documents. token: the loss of every supervised token, Tensor [S]; counts:
    int64 [n], how many each document has. column: float64 [n]. divisor: of their sum, in the trainer's loss. weights:
    of the tokens, float64 [S], and measure, as the weighting's, float64 [n], once they are known. places: int64 [n],
    where the documents are in the training set; None: not known. shape: its rows, their tokens, and its tokens without
    padding. base: the loss of every token under the model that training began with, float64 [S]."""

    token: Tensor
    counts: np.ndarray
    states: Tensor | None
    column: np.ndarray | None
    divisor: Tensor | float
    places: np.ndarray | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    measure: np.ndarray | None = None
    base: np.ndarray | None = None

    @property
    def losses(self) -> np.ndarray:
        """Each document's mean loss, float64 [n]."""
        return self._means(self.values)

    @cached_property
    def values(self) -> np.ndarray:
        """The loss of each token, float64 [S], read from the device once."""
        return self.token.detach().double().cpu().numpy()

    @property
    def of_documents(self) -> np.ndarray:
        """Each document's mean weight over its tokens, float64 [n]."""
        return self._means(self.weights)

    def weighted(self) -> Tensor:
        """The loss of each token times its weight, Tensor [S], differentiable."""
        wide = self.token.dtype == torch.float64
        return self.token * to_device(self.weights if wide else self.weights.astype(np.float32), self.token.device)

    def forget(self) -> None:
        """Free the graph that leads to its losses, which nothing needs any more."""
        self.token = self.token.detach()

    def _means(self, values: np.ndarray) -> np.ndarray:
        n = len(self.counts)
        return np.bincount(np.repeat(np.arange(n), self.counts), values, n) / self.counts


class StepWeigher:
    """Applies a weighting to the steps of a trainer. state: the weighting's. together: whether all of a step's losses
    must be known before any of its weights are."""

    def __init__(self, weighting: Weighting, processes: Any):
        self.weighting, self.processes = weighting, processes
        self.state: Arrays = {}
        self.together = weighting.scope == "batch" or weighting.normalize == "mean1"

    def stored(self) -> bytes:
        """The weighting's state, for a checkpoint."""
        return save({name: np.ascontiguousarray(values) for name, values in self.state.items()})

    def load(self, stored: bytes) -> None:
        """Go on from what `stored` gave."""
        self.state = load(stored)

    def weigh(self, number: int, parts: list[Part]) -> None:
        """Set the weights of all micro-batches of a step or, where these do not depend on each other, of some."""
        if self.weighting.scope == "sample":
            for part in parts:
                found = self._updated(
                    number, part.losses, part.counts, part.column, part.values, part.base, part.states
                )
                part.weights, part.measure = _of_tokens(found.values, part.counts), found.measure
        else:
            self._weigh_all(number, parts)
        if self.weighting.normalize == "mean1":
            sums = np.array([[sum(part.weights.sum() for part in parts), sum(len(part.weights) for part in parts)]])
            ((sums, _),) = gather(self.processes, [sums])
            total, tokens = sums.sum(0)
            for part in parts:
                part.weights = part.weights * (tokens / total if total else 0.0)

    def _weigh_all(self, number: int, parts: list[Part]) -> None:
        own = [
            np.concatenate([part.losses for part in parts]),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([np.zeros(0) if part.column is None else part.column for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([np.zeros(0) if part.base is None else part.base for part in parts]),
        ]
        (losses, _), (counts, parted), (column, _), (values, _), (base, _) = gather(self.processes, own)
        column_or_none, base_or_none = (one if len(one) else None for one in (column, base))
        found = self._updated(number, losses, counts, column_or_none, values, base_or_none)
        weights = _of_tokens(found.values, counts)
        place = sum(parted[: self.processes.process_index])
        start = int(counts[:place].sum())
        for part in parts:
            stop, last = start + len(part.token), place + len(part.counts)
            part.weights, start = weights[start:stop], stop
            part.measure, place = None if found.measure is None else found.measure[place:last], last

    def _updated(
        self,
        number: int,
        losses: np.ndarray,
        counts: np.ndarray,
        column: np.ndarray | None,
        values: np.ndarray,
        base: np.ndarray | None,
        states: Tensor | None = None,
    ) -> Weights:
        needs = self.weighting.needs
        token_loss = values if "token_loss" in needs else None
        step = Step(number, losses, column, counts, base, states, token_loss=token_loss)
        result, self.state = self.weighting.update(step, self.state)
        return replace(result, values=checked(self.weighting, result.values, losses, number))


def _of_tokens(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The weight of every token, float64 [S], from those of tokens or of documents."""
    return weights if len(weights) == counts.sum() > len(counts) else np.repeat(weights, counts)
