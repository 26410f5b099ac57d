"""What a training learns from: documents in tokens, with what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from curate.training.examples import Examples
from curate.training.stream import Stream


@dataclass(frozen=True)
class Data:
    """What is learnt.

    examples: the documents. documents: int64, those of an epoch, one that repeats repeatedly. weights: of each sample,
    float64 [N]. column: of each sample, for a weighting that asks for one, float64 [N]. anchors: the target's samples,
    for one that uses them. base_token_loss: of every supervised token of the examples, for one that asks for it.
    stream: where each step's documents come from instead; then the examples are those of one step, and place where each
    stands in the stream, int64 [N].
    """

    examples: Examples
    documents: np.ndarray
    weights: np.ndarray
    column: np.ndarray | None = None
    anchors: Examples | None = None
    base_token_loss: np.ndarray | None = None
    stream: Stream | None = None
    place: np.ndarray | None = None

    @classmethod
    def of(cls, examples: Examples, **more: Any) -> Data:
        """Every document once, each weighing 1."""
        n = int(examples.sample.max(initial=-1)) + 1
        return cls(examples, **{"documents": np.arange(len(examples)), "weights": np.ones(n), **more})

    def with_weight(self) -> Data:
        """Without the documents that weigh nothing: a choice of one would teach nothing."""
        return replace(self, documents=self.documents[self.weights[self.examples.sample[self.documents]] > 0])

    @cached_property
    def first_supervised(self) -> np.ndarray:
        """Where each document's supervised tokens begin among all, int64 [N]."""
        return np.cumsum(self.examples.counts) - self.examples.counts
