"""What a pass through a model is given. Plain holders of tensors: they know no model and no method.

Shapes: B samples, T tokens of the longest of them, S supervised tokens of all of them, V the vocabulary, D the model's
width. A token is supervised where its loss is what the sample teaches: in the assistant's turns of a chat, everywhere
in raw text; never the first, which nothing predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """The model's distribution at some supervised tokens, n of the S, and what stands there.

    log_p: natural log probabilities, float32 [n, V]. labels: int64 [n].
    """

    log_p: Tensor
    labels: Tensor

    @cached_property
    def p(self) -> Tensor:
        """Probabilities, float32 [n, V]."""
        return self.log_p.exp()

    @cached_property
    def label_log_p(self) -> Tensor:
        """Log probability of the token that stands there, float32 [n]."""
        return self.log_p.gather(1, self.labels[:, None])[:, 0]


@dataclass(frozen=True)
class Forward:
    """B samples that went through a model once.

    per_token: what the request asked for at each supervised token, float64 [S], sample after sample; null where it
    asked for nothing. counts: supervised tokens of each sample, int64 [B]. hidden: the last layer's states, float32 [B,
    T, D], zero beyond a sample's end; null where not asked for. lengths: tokens of each sample, int64 [B]. pooled: the
    vector a sentence encoder was made to give, float32 [B, D]; null where not asked for. head: what makes logits of
    `hidden` (curate.models.head.Head); null where not asked for.
    """

    per_token: np.ndarray | None
    counts: np.ndarray
    hidden: Tensor | None
    lengths: np.ndarray
    pooled: Tensor | None = None
    head: Any = None

    def mean(self) -> np.ndarray:
        """The mean of `per_token` over each sample's supervised tokens, float64 [B]; not a number where it has none."""
        assert self.per_token is not None
        sums = np.add.reduceat(np.append(self.per_token, 0.0), np.cumsum(self.counts) - self.counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counts > 0, sums / self.counts, np.nan)


def means(batch: Forward) -> dict[str, np.ndarray]:
    """Of each sample: the mean over its supervised tokens, and how many they are."""
    return {"mean": batch.mean(), "tokens": batch.counts}


# --- of a training step ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """How the gradients of a step's candidates are compared, for a weighting that looks at `Products`.

    target: whether with the target's. precondition: of the target's gradient: 'none'; 'before', times the optimizer's
    own D before it is projected; 'projected', its projection times the D that Adam would have of projected gradients.
    candidates: whether D is on the candidates' side instead, where it changes their products with each other.
    curvature: whether products with a Kronecker-factored curvature, or its inverse, between are wanted. damping: added
    to its factors, times their mean diagonals. tokens: whether every token of a candidate is compared by itself.
    """

    target: bool = True
    precondition: Literal["none", "before", "projected"] = "none"
    candidates: bool = False
    curvature: Literal["none", "kfac", "inverse"] = "none"
    damping: float = 0.1
    tokens: bool = False


@dataclass(frozen=True)
class Products:
    """Inner products of the gradients g of B candidates, each of its own loss as the step adds it up.

    gram: <g_i, g_j>, float64 [B, B]; of D g with D on the candidates' side. aligned: <g_i, q> with the gradient q of
    the target's mean loss, preconditioned as was asked for, float64 [B]; null without a target. square: <q, q>, of
    length zero likewise. curved: <g_i, H g_j> with the curvature asked for, float64 [B, B]. influence: <g_i, H^-1 q>,
    float64 [B]. tokens: <g_it, q> of what each token adds to g_i, float64 [B, T], 0 where there is none.
    """

    gram: np.ndarray
    aligned: np.ndarray | None = None
    square: float = 0.0
    curved: np.ndarray | None = None
    influence: np.ndarray | None = None
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """Which domain a step's samples are of, where they are drawn from a mixture.

    of: int64 [B], positions among the domains. vocabulary: how many tokens the model knows.
    """

    of: np.ndarray
    vocabulary: int


@dataclass(frozen=True)
class Step:
    """What a weighting is shown of an optimizer step: B of its samples, or all of them where it weighs them together.

    number: of the step, from 1. loss: each sample's mean loss over its supervised tokens under the model as it is,
    float64 [B]. column: the user's column, or the mean loss under the model that training began with, float64 [B].
    counts: supervised tokens of each sample, int64 [B]. token_loss: the loss of each of them under the model as it is,
    float64 [S], sample after sample; base_token_loss: likewise, under the model that training began with, or another
    that it is compared with. domains: of a mixture. states: the position-weighted mean of the last layer's
    states of each sample, Tensor [B, D]. products: of their gradients. outputs: the samples as they went through the
    model, a Forward with `hidden` and `head`, and room: how many may be chosen, for a weighting that chooses. lr: the
    step's. What a weighting does not ask for is null.
    """

    number: int
    loss: np.ndarray | None = None
    column: np.ndarray | None = None
    counts: np.ndarray | None = None
    base_token_loss: np.ndarray | None = None
    states: Tensor | None = None
    products: Products | None = None
    outputs: Forward | None = None
    room: int = 0
    lr: float = 0.0
    token_loss: np.ndarray | None = None
    domains: Drawn | None = None


@dataclass(frozen=True)
class Weights:
    """What a step's samples weigh.

    values: float64, finite and at least 0 (but where the weighting is `signed`): of each sample [B], or of each
    supervised token [S], sample after sample. measure: what they were made of, float64 [B], for the record: a
    similarity, a loss. tokens: of what each token adds to its sample's gradient, float64 [B, T], beside `values`.
    fallback: whether these are not what the formula asks for, which gave nothing.
    """

    values: np.ndarray
    measure: np.ndarray | None = None
    tokens: np.ndarray | None = None
    fallback: bool = False


def position_weighted(states: Tensor, document: Tensor, place: Tensor, n: int) -> Tensor:
    """The mean of each document's states in which the l-th token has weight l, [n, D] (ADAPT, Section 5.3; RDS+).

    states: [R, T, D]. document, place: int64 [R, T], which of the n documents a token belongs to (n: to none), and
    where it stands in it, from 0. So neither padding nor what else stands in a row takes part.
    """
    weight = (place + 1).to(states.dtype)
    whose = document.reshape(-1)
    sums = states.new_zeros(n + 1, states.shape[-1]).index_add_(0, whose, (states * weight[..., None]).flatten(0, 1))
    totals = states.new_zeros(n + 1).index_add_(0, whose, weight.reshape(-1))
    return sums[:n] / totals[:n, None]
