"""What a training learns from: documents in tokens, with what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from curate.training.examples import Examples
from curate.training.mixture_sampler import Draws
from curate.training.stream import Stream


@dataclass(frozen=True)
class Data:
    """What is learnt.

    examples: the documents. documents: int64, those of an epoch, one that repeats repeatedly. draws: where each epoch
    draws its samples anew, from a mixture of domains. vocabulary: how many tokens the model knows. weights: of each
    sample, float64 [N]. column: of each sample, for a weighting that asks for one, float64 [N]. anchors: the target's
    samples, for one that uses them. base_token_loss: of every supervised token of the examples, for one that asks for
    it, under the model that training began with, or another. stream: where each step's documents come from instead;
    then the examples are those of one step, and place where each stands in the stream, int64 [N].
    """

    examples: Examples
    documents: np.ndarray
    weights: np.ndarray
    column: np.ndarray | None = None
    anchors: Examples | None = None
    base_token_loss: np.ndarray | None = None
    stream: Stream | None = None
    place: np.ndarray | None = None
    draws: Draws | None = None
    vocabulary: int = 0

    @classmethod
    def of(cls, examples: Examples, **more: Any) -> Data:
        """Every document once, each weighing 1."""
        n = int(examples.sample.max(initial=-1)) + 1
        return cls(examples, **{"documents": np.arange(len(examples)), "weights": np.ones(n), **more})

    def with_weight(self) -> Data:
        """Without the documents that weigh nothing: a choice of one would teach nothing."""
        draws = self.draws and self.draws.without(self.weights <= 0)
        kept = self.documents[self.weights[self.examples.sample[self.documents]] > 0]
        return replace(self, documents=kept, draws=draws)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The documents of an epoch, from 0, one that repeats repeatedly; in no order that matters."""
        if self.draws is None:
            return self.documents
        samples, whose = self.draws.samples(epoch), self.examples.sample
        first, last = np.searchsorted(whose, samples, "left"), np.searchsorted(whose, samples, "right")
        many = np.repeat(first, last - first)
        inside = np.arange(len(many)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        return many + inside

    @cached_property
    def first_supervised(self) -> np.ndarray:
        """Where each document's supervised tokens begin among all, int64 [N]."""
        return np.cumsum(self.examples.counts) - self.examples.counts
