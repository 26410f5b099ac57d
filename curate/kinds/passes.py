"""What a score asks of its samples: passes over the pool, of which some go through a model and some back again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from curate.kinds.signals import Forward, Logits, means

# Arrays named by column: 'score' [B], a method's further columns [B], 'error' (reasons, '' where fine),
# 'subtasks' (one array [B] per sub-task, as a mapping).
Columns = Mapping[str, Any]
# Named arrays that a pass leaves for the next: of one unit (a partial), or of all (a state).
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ForwardRequest:
    """One way of the samples through a model. Requests of all scores that go the same way share it.

    per_token: a number at each supervised token, Tensor [n]. hidden: whether the last layer's states are wanted too.
    head: whether, beside them, what makes logits of them is.
    pooled: whether a sentence encoder's vector is. of: what is kept of each sample, from a batch. model: the role of
    the model. view: the whole sample; the same with its last answer alone supervised; its answers alone (the supervised
    tokens behind the token that begins a text; raw text has none); or its contents as a plain text, as sentence
    encoders take it.
    """

    per_token: Callable[[Logits], Any] | None = None
    hidden: bool = False
    head: bool = False
    pooled: bool = False
    of: Callable[[Forward], Columns] = means
    model: str = "base"
    view: Literal["whole", "last", "answer", "text"] = "whole"


class GradientCollector(ABC):
    """Looks at the gradients of a batch of B samples, parameter by parameter, and keeps what a score wants of them.

    A sample without a gradient has a zero one here, and its reason in the column `error` of the request.
    """

    @abstractmethod
    def take(self, gradient: Any) -> None:
        """Look at one parameter's (curate.gradients.per_sample.PerSample)."""

    def columns(self) -> Columns:
        """What is kept of each sample, arrays [B, …]."""
        return {}

    def sums(self) -> Mapping[str, Any]:
        """What is added up over samples: tensors by name."""
        return {}

    def flops(self) -> float:
        """What looking has cost."""
        return 0.0


@dataclass(frozen=True)
class GradientRequest:
    """One way of the samples forward and backward through a model: what is kept of the gradient of each one's loss, the
    mean over its supervised tokens.

    watch(at, state, places): a GradientCollector for a batch; given the model there (curate.gradients.backward), the
    pass's state, and the samples' positions, int64 [B]. every: at every checkpoint, what is kept of a sample stacked
    [B, C, …] and what is added up, added over all; else at the last. moments: whether the optimizer's state is wanted.
    along(at, state): instead of a watcher the directions, name -> Tensor [K, *shape], along which forward-mode
    differentiation is to find the derivatives of each one's loss, the column `dot` [B, K]. curved(at, state): likewise
    one direction, name -> Tensor [1, *shape], that the Hessians of all losses are to be applied to: added up as
    hessianCHECKPOINT/NAME, and how many they are as hessianCHECKPOINT/samples. loss: another loss than that mean:
    (logits at supervised tokens [S, V], those of the model in the role `beside`, each token's sample int64 [S], how
    many samples there are) -> Tensor [B].
    """

    watch: Callable[[Any, Any, np.ndarray], GradientCollector] | None = None
    along: Callable[[Any, Any], Mapping[str, Any]] | None = None
    curved: Callable[[Any, Any], Mapping[str, Any]] | None = None
    loss: Callable[[Any, Any, Any, int], Any] | None = None
    beside: str = ""
    every: bool = False
    moments: bool = False
    model: str = "base"
    view: Literal["whole", "last"] = "whole"


@dataclass(frozen=True)
class Pass:
    """One run over the pool.

    map(batch, state) gives columns in the last pass, else a partial; `reduce` makes of all partials a state; a pass
    is given the states of all before it, as one. `open(state)` is called once per worker, before any map, and what it
    returns is handed to map in the state's place: the place to tokenise a target.
    shaped_by: the settings that shape this pass's partials; others may change and the partials stand. flops: of one
    sample, given what map is given; null where no tensors are at work, or a model counts them.

    A batch is a curate.kinds.text.Text; of a pass with requests, what each request keeps of the samples: request ->
    column -> array [B]; of a score on vectors, the samples' curate.kinds.vectors.Vectors, and `open` is given the
    target's. over: a counting pass with requests may go over the target's samples instead, or over the anchors that
    were set aside. A partial of such a pass is what its requests' collectors add up, under the collectors' own names;
    `reduce` is given the partials of few large ranges of the pool, added up already.
    """

    name: str
    map: Callable[[Any, Any], Any]
    reduce: Callable[[Iterable[Arrays]], Arrays] | None = None
    open: Callable[[Any], Any] | None = None
    shaped_by: tuple[str, ...] = ()
    flops: Callable[[Any], float] | None = None
    requests: Mapping[str, ForwardRequest | GradientRequest] = field(default_factory=dict)
    over: Literal["pool", "target", "anchors"] = "pool"
