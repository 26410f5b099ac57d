"""Inputs of scores and weightings from a pass through a model: plain containers, independent of models and methods.

Shapes: B samples, T tokens in the longest of them, S supervised tokens in all of them, V the size of the vocabulary, D
the model's hidden width. A token is supervised if its loss is trained on: in a chat the assistant's turns, in raw text
every token; never the first token, which nothing predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """The model's predictive distribution at n of the S supervised tokens, and the tokens themselves.

    log_p: natural log probabilities, float32 [n, V]. labels: int64 [n]. answers: of a question with K answers, the
    tokens that each may begin with, int64 each.
    """

    log_p: Tensor
    labels: Tensor
    answers: Sequence[Tensor] = ()

    @cached_property
    def p(self) -> Tensor:
        """Probabilities, float32 [n, V]."""
        return self.log_p.exp()

    @cached_property
    def label_log_p(self) -> Tensor:
        """Log probability of the actual token, float32 [n]."""
        return self.log_p.gather(1, self.labels[:, None])[:, 0]

    @cached_property
    def answer_log_p(self) -> Tensor:
        """Log probability of each answer of a question, over all the tokens that it may begin with, float32 [n, K]."""
        import torch

        return torch.stack([self.log_p[:, tokens].logsumexp(1) for tokens in self.answers], 1)


@dataclass(frozen=True)
class Forward:
    """The result of one forward pass of B samples; what was not requested is None.

    per_token: the requested value at each supervised token, float64 [S] or [S, K], sample after sample. counts:
    supervised tokens of each sample, int64 [B]. weights: how much each supervised token counts, float64 [S], where
    turns have weights of their own; else None. hidden: the last layer's hidden states, float32 [B, T, D], zero beyond a
    sample's end. lengths: tokens of each sample, int64 [B]. pooled: the pooled vector of a sentence encoder, float32
    [B, D], or the outputs of a classifier, float64 [B, L]. head: maps `hidden` to logits (curate.models.head.Head).
    before: where in `hidden`, taken as [B T, D], the states are that the supervised tokens are predicted from, int64
    [S].
    """

    per_token: np.ndarray | None
    counts: np.ndarray
    hidden: Tensor | None
    lengths: np.ndarray
    pooled: Tensor | None = None
    head: Any = None
    weights: np.ndarray | None = None
    before: np.ndarray | None = None

    def mean(self) -> np.ndarray:
        """The mean of `per_token`, times `weights`, over each sample's supervised tokens, float64 [B]; NaN if it has
        none."""
        assert self.per_token is not None
        values = self.per_token if self.weights is None else self.weights * self.per_token
        sums = np.add.reduceat(np.append(values, 0.0), np.cumsum(self.counts) - self.counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counts > 0, sums / self.counts, np.nan)


def means(batch: Forward) -> dict[str, np.ndarray]:
    """The columns `mean`, over each sample's supervised tokens, and `tokens`, their number."""
    return {"mean": batch.mean(), "tokens": batch.counts}


# --- of a training step ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """How the gradients of a step's candidates are compared, for a weighting that uses `Products`.

    target: whether they are compared with the target's gradient. precondition: of the target's gradient: 'none';
    'before', multiplied by the optimizer's diagonal preconditioner D before projection; 'projected', its projection
    multiplied by the D that Adam would have for projected gradients. candidates: whether D is applied to the candidates
    instead, where it changes their products with each other. curvature: whether inner products through a
    Kronecker-factored curvature matrix, or its inverse, are computed too. factors: whose gradients the curvature is
    made of. damping: added to its factors, relative to their mean diagonals. tokens: whether every token of a candidate
    is compared separately. positions: whether tokens are compared with all tokens (the inner product of gradients), or
    only with those at the same position of the other sample.
    """

    target: bool = True
    precondition: Literal["none", "before", "projected"] = "none"
    candidates: bool = False
    curvature: Literal["none", "kfac", "inverse"] = "none"
    factors: Literal["candidates", "target"] = "candidates"
    damping: float = 0.1
    tokens: bool = False
    positions: Literal["all", "same"] = "all"


@dataclass(frozen=True)
class Products:
    """Inner products of the gradients g_i of B candidates, each of its own loss as it enters the step's sum.

    gram: <g_i, g_j>, float64 [B, B]; with D g instead of g if the candidates are preconditioned. aligned: <g_i, q> with
    the gradient q of the target's mean loss, preconditioned as requested, float64 [B]; None without a target. square:
    <q, q>; 0 without a target. curved: <g_i, H g_j> with the requested curvature H, float64 [B, B]. influence:
    <g_i, H^-1 q>, float64 [B]. tokens: <g_it, q> for the contribution g_it of token t to g_i, float64 [B, T], 0 where
    there is no token.
    """

    gram: np.ndarray
    aligned: np.ndarray | None = None
    square: float = 0.0
    curved: np.ndarray | None = None
    influence: np.ndarray | None = None
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """The domain of each sample of a step, if they are drawn from a mixture.

    of: int64 [B], positions among the domains. vocabulary: the size of the model's vocabulary.
    """

    of: np.ndarray
    vocabulary: int


@dataclass(frozen=True)
class Step:
    """The inputs of a weighting at an optimizer step: B of its samples, or all of them if it weights them jointly.

    number: of the step, from 1. loss: each sample's mean loss over its supervised tokens under the current model,
    float64 [B]. column: the user's column, or the mean loss under the model that training began with, float64 [B].
    counts: supervised tokens of each sample, int64 [B]. token_loss: the loss of each supervised token under the current
    model, float64 [S], sample after sample; base_token_loss: likewise, under the model that training began with, or
    another reference model. domains: of a mixture. states: the position-weighted mean of the last layer's hidden states
    of each sample, Tensor [B, D]. products: inner products of their gradients. For a weighting that chooses, outputs:
    the forward pass of the samples, with `hidden` and `head`, and room: how many may be chosen. lr: the learning rate
    of the step. What a weighting does not request is None.
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
    """The weights of a step's samples.

    values: float64, finite, and at least 0 unless the weighting is `signed`: one per sample [B], or one per supervised
    token [S], sample after sample. measure: the quantity they were computed from, float64 [B], for logging: a
    similarity, a loss. tokens: weights of each token's contribution to its sample's gradient, float64 [B, T], in
    addition to `values`. fallback: whether these are fallback weights, because the formula selected nothing.
    """

    values: np.ndarray
    measure: np.ndarray | None = None
    tokens: np.ndarray | None = None
    fallback: bool = False


def position_weighted(states: Tensor, document: Tensor, place: Tensor, n: int) -> Tensor:
    """The mean of each document's hidden states, with weight l for token l, [n, D] (ADAPT, Section 5.3; RDS+).

    states: hidden states, [R, T, D]. document, place: int64 [R, T], which of the n documents a token belongs to (n:
    none), and its position in the document, from 0. Padding and other documents packed into the row are thus excluded.
    """
    weight = (place + 1).to(states.dtype)
    flat_document = document.reshape(-1)
    sums = states.new_zeros(n + 1, states.shape[-1]).index_add_(
        0, flat_document, (states * weight[..., None]).flatten(0, 1)
    )
    totals = states.new_zeros(n + 1).index_add_(0, flat_document, weight.reshape(-1))
    return sums[:n] / totals[:n, None]
