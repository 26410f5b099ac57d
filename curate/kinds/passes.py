"""Passes over the pool that a score requests: without a model, forward through one, or forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from curate.kinds.asking import Asked
from curate.kinds.classified import Classified
from curate.kinds.signals import Forward, Logits, means

# Arrays by column name: 'score' [B], a method's further columns [B], 'error' (reasons, '' if there is none),
# 'subtasks' (a mapping of one array [B] per sub-task).
Columns = Mapping[str, Any]
# Named arrays that a pass leaves for the next one: of one unit (a partial), or reduced over all units (a state).
Arrays = dict[str, np.ndarray]
# How a sample is shown to a model (ForwardRequest).
View: TypeAlias = Literal["whole", "last", "content", "answer", "text", "chosen", "rejected"] | Asked | Classified


@dataclass(frozen=True)
class ForwardRequest:
    """A forward pass of the samples through a model. Scores that request the same pass share it.

    Without any of per_token, hidden and pooled it only counts tokens, for which no weights are needed.

    per_token: a value at each supervised token, Tensor [n], or K of them, [n, K]. hidden: whether the last layer's
    hidden states are needed. head: whether the output head, which maps them to logits, is needed too. pooled: whether
    the pooled vector of a sentence encoder, or the outputs of a classifier, are needed. of: which columns are kept of
    each sample, from a batch. model: the role of the model. view: the whole sample; the same, supervised on its last
    answer only; the same up to the end of what that answer says (content), without what ends the turn; its answers only
    (the supervised tokens after the beginning-of-text token; raw text has none); its contents as plain text, as
    sentence encoders take it; or of a preference pair the conversation with the chosen or the rejected answer,
    supervised on that answer only; a question about the sample, supervised on the first token of its answer; or a text
    of it, for a classifier.
    """

    per_token: Callable[[Logits], Any] | None = None
    hidden: bool = False
    head: bool = False
    pooled: bool = False
    of: Callable[[Forward], Columns] = means
    model: str = "base"
    view: View = "whole"

    @property
    def counts_only(self) -> bool:
        """Whether it needs the samples' tokens alone, and nothing that a model computes of them."""
        return not (self.per_token or self.hidden or self.pooled)


class GradientCollector(ABC):
    """Receives the gradients of a batch of B samples, one parameter at a time, and keeps what a score needs.

    A sample without a gradient appears with a zero gradient, and with the reason in the column `error` of the request.
    """

    def begin(self, used: np.ndarray) -> None:  # noqa: B027  most have no use for it
        """Called first. used: up to which of each sample's tokens its loss depends on, their number, int64 [B]."""

    @abstractmethod
    def take(self, gradient: Any) -> None:
        """Receive the per-sample gradients of one parameter (curate.gradients.per_sample.PerSample)."""

    def columns(self) -> Columns:
        """Values kept of each sample, arrays [B, …]."""
        return {}

    def sums(self) -> Mapping[str, Any]:
        """Values summed over the samples: tensors by name."""
        return {}

    def flops(self) -> float:
        """The FLOPs that the collector itself has spent."""
        return 0.0


@dataclass(frozen=True)
class Fisher:
    """Gradients whose expected outer product is a Fisher matrix, instead of those of a sample's mean loss: the sum of
    its supervised tokens' losses, divided by the square root of their number, of labels drawn from the model's
    predictions with the seed (kind=true: then it is the Gauss-Newton matrix of the mean loss) or of the sample's own
    tokens (kind=empirical)."""

    kind: Literal["true", "empirical"] = "true"
    seed: int = 0


@dataclass(frozen=True)
class GradientRequest:
    """A forward and backward pass of the samples through a model, and what is kept of the gradients of their losses,
    each the mean over a sample's supervised tokens.

    watch(at, state, places): makes the GradientCollector of a batch, from the model at a checkpoint
    (curate.gradients.backward), the state of the pass, and the positions of the samples, int64 [B]. every: whether to
    run at all C checkpoints, stacking per-sample values as [B, C, …] and adding up sums over all; else at the last one
    only. moments: whether the optimizer state is needed.
    along(at, state): instead of a collector, the directions, name -> Tensor [K, *shape], along which the derivatives of
    each sample's loss are computed, the column `dot` [B, K]: by=jvp, by forward-mode differentiation; by=difference, by
    finite differences, of which the first direction's alone is central. curved(at, state):
    likewise one direction, name -> Tensor [1, *shape], for products with the curvature, summed over the samples as
    hessianCHECKPOINT/NAME, with their count as hessianCHECKPOINT/samples: the Hessian, or the Gauss-Newton matrix of
    the mean loss. fisher: takes gradients of this kind instead. loss: replaces the mean loss: (logits at supervised
    tokens [S, V], those of the model in the role `beside`, the sample of each token int64 [S], the number of samples)
    -> Tensor [B]. paper: what a sample costs by the papers' convention, in training steps of one (6N FLOPs of
    2,048 tokens), over all checkpoints; None: what is computed, by that convention.
    """

    watch: Callable[[Any, Any, np.ndarray], GradientCollector] | None = None
    along: Callable[[Any, Any], Mapping[str, Any]] | None = None
    by: Literal["jvp", "difference"] = "jvp"
    curved: Callable[[Any, Any], Mapping[str, Any]] | None = None
    curvature: Literal["hessian", "gauss_newton"] = "hessian"
    fisher: Fisher | None = None
    loss: Callable[[Any, Any, Any, int], Any] | None = None
    beside: str = ""
    every: bool = False
    moments: bool = False
    model: str = "base"
    view: Literal["whole", "last"] = "whole"
    paper: float | None = None


@dataclass(frozen=True)
class Pass:
    """One run over the pool: a counting pass, which has a `reduce`, or the last pass, which has none.

    map(batch, state) returns columns in the last pass, else a partial; `reduce` combines all partials into a state; a
    pass is given the states of all previous passes, merged. `open(state)` is called once per worker, before any map,
    and its result is passed to map in place of the state: this is where to tokenise a target.
    shaped_by: the settings that affect the partials of this pass; when others change, the partials remain valid. flops:
    of one sample, given the second argument of map; None if no tensors are used, or if the model counts them.

    A batch is a curate.kinds.text.Text; in a pass with requests, what each request keeps of the samples: request ->
    column -> array [B]; in a score on vectors, the curate.kinds.vectors.Vectors of the samples, and `open` is given
    those of the target. over: a counting pass with requests may run over the samples of the target instead, or over the
    held-out anchors; over="training" it is given, instead of batches, what a training on the pool gave
    (`Score.replay`): ids, uint64 [N], values, float64 [N], the derivative of the target's loss by each sample's weight;
    loss, steps and drift, [1] (curate.training.replay); over="pairs" its requests' samples are pairs, in both orders
    (`Score.compared`, curate.kinds.asking), and a partial has the ids of these too: one, other, uint64. A partial of a
    pass with requests holds the sums of its
    requests' collectors, under the collectors' own names; `reduce` is given partials of a few large ranges of the pool,
    already summed.
    then(state, before): what the state becomes, given the states of all previous passes, of which an array is read
    when it is asked for. reads: a prefix: only such arrays of the previous states are given to this pass. share, seed:
    of a counting pass over the pool with requests, the share of the samples that it runs on, drawn with the seed.
    """

    name: str
    map: Callable[[Any, Any], Any]
    reduce: Callable[[Iterable[Arrays]], Arrays] | None = None
    open: Callable[[Any], Any] | None = None
    shaped_by: tuple[str, ...] = ()
    flops: Callable[[Any], float] | None = None
    requests: Mapping[str, ForwardRequest | GradientRequest] = field(default_factory=dict)
    over: Literal["pool", "target", "anchors", "training", "pairs"] = "pool"
    then: Callable[[Arrays, Mapping[str, np.ndarray]], Arrays] | None = None
    reads: str = ""
    share: float = 1.0
    seed: int = 0

    def state(self, partials: Iterable[Arrays], before: Mapping[str, np.ndarray]) -> Arrays:
        """The state of a counting pass, from all its partials and the states of the passes before it."""
        assert self.reduce is not None
        reduced = self.reduce(partials)
        return self.then(reduced, before) if self.then else reduced
