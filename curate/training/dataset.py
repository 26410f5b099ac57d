"""Training data: tokenised documents with their weights and other per-sample values."""

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
    """The data of a training run, of N samples.

    examples: the documents. documents: int64, those of an epoch; a repeated one occurs several times. draws: set if
    each epoch draws its samples anew from a mixture of domains. vocabulary: size of the tokenizer. weights: per sample,
    float64 [N]. column: per sample, for a weighting that uses a column, float64 [N]. anchors: the target's samples, for
    a weighting that uses them. base_token_loss: of every supervised token of the examples under the base or reference
    model, for a weighting that uses it. stream: set if each step's documents come from a stream; then the examples are
    those of one step, and place is the position of each in the stream, int64 [N].
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
        """Every document once, with weight 1. more: further fields."""
        n = int(examples.sample.max(initial=-1)) + 1
        return cls(examples, **{"documents": np.arange(len(examples)), "weights": np.ones(n), **more})

    def with_weight(self) -> Data:
        """Without the documents of weight 0, which it would be pointless to select."""
        draws = self.draws and self.draws.without(self.weights <= 0)
        kept = self.documents[self.weights[self.examples.sample[self.documents]] > 0]
        return replace(self, documents=kept, draws=draws)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The documents of an epoch (from 0), int64, repeated ones several times, in arbitrary order."""
        if self.draws is None:
            return self.documents
        samples, sample_of = self.draws.samples(epoch), self.examples.sample
        first, last = np.searchsorted(sample_of, samples, "left"), np.searchsorted(sample_of, samples, "right")
        starts = np.repeat(first, last - first)
        offsets = np.arange(len(starts)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        return starts + offsets

    @cached_property
    def first_supervised(self) -> np.ndarray:
        """Offset of each document's first supervised token among those of all documents, int64 [N]."""
        return np.cumsum(self.examples.counts) - self.examples.counts
