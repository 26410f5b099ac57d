from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError, require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Products, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import greedy, highest, weighing
from curate.methods.weightings._nnls import nonnegative


@dataclass(frozen=True)
class FilterThenWeight(Weighting):
    """Chooses and weights a step's samples so that Adam's step follows the target's gradient (Filter-then-Weight).

    Formula, with g_i a candidate's gradient, g_val that of the target's mean loss, and D the factor by which the next
    Adam step multiplies a gradient (second moment frozen, momentum ignored):

        q = D * g_val                                                  (Eq. 9, 11)
        filter: r <- q; as often as a batch has room: i = argmax <g_i, r>, r <- r - g_i            (Algorithm 1)
        weight: least w >= 0 of  w^T (G + lambda I) w - 2 b^T w,   G_ij = <g_i, g_j>, b_i = <g_i, q>
        update: sum of w_i g_i, to the ordinary Adam step

    Inner products are those of projected gradients (--set projection). In the first step, when Adam has no second
    moment, D is 1. Where no candidate aligns with the target every w is 0: then the step trains on the filter's choice
    with weights of 1, which the run's metrics count (fallback). The step's gradient is the sum of w_i g_i divided by
    the batch size.

    Cost: forward and backward over all candidates without weight gradients, 4N FLOPs per token; the target batch
    likewise; 2N per token of the chosen; and the projections, at most 2(m + n)k per token of an m x n layer.
    Bottleneck: those passes.

    Departures and choices: D can be 1e4 and more, so that q dwarfs the candidates' sum. The filter's unit steps then
    change little of the order, and w is large, which Adam's own scale and the clipping of the gradient take back. That
    is the paper's form, and the default. rescale=match_norm makes q as long as an average batch of candidates: most of
    q lies outside the candidates' span, where no candidate can reach it, so what is left inside is short against a
    single g_i, and after the first choice the residual points away from that choice more than towards the target.
    rescale=match_span makes the part of q within their span that long, and keeps the filter's sense of redundancy.
    The paper gives no lambda (here ridge, times the mean of G's diagonal), and uses the D of projected gradients
    (precondition=projected); here D is applied to the target's full gradient before it is projected. Its Eq. 6 applies
    D to the candidates, which changes G (side=candidates).

    Its ablations are settings: filter=top with weigh=none is the plain choice of the best aligned (Methods 2 and 3, the
    first with precondition=none; also tracin_online and less_online); positions=same compares tokens with those at the
    same position alone (Method 6),  <g_i, g_j> = sum over t of (e_it . e_jt)(x_it . x_jt)  with a layer's inputs x and
    output gradients e, so D, which is not a product of the two, can only be that of projected gradients. With
    unit=token single tokens' contributions to a gradient are chosen, the best aligned ones, as many as a batch has,
    unweighted; the update is then not the gradient of a weighted loss.

    Reference: Filter-then-Weight, Algorithm 1 and Eq. 6 to 11 (optimizer-aware online selection).

    >>> products = Products(np.eye(3), np.array([2.0, -1.0, 0.5]), 4.25)
    >>> given = FilterThenWeight(ridge=0.0).update(Step(1, products=products, room=2), {})[0]
    >>> given.values.tolist()
    [2.0, 0.0, 0.5]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    uses_target: ClassVar = True
    chooses: ClassVar = True

    filter: Literal["greedy", "top"] = "greedy"
    """greedy: each choice is subtracted from the residual before the next; top: the best aligned candidates."""
    weigh: Literal["nonnegative", "signed", "none"] = "nonnegative"
    """How the chosen are weighted; signed: least squares without the bound at 0; none: all by 1."""
    ridge: float = 0.01
    """lambda, times the mean of G's diagonal; no published value."""
    precondition: Literal["before", "projected", "none"] = "before"
    """Adam's D on the target's gradient before projection; the D of projected gradients; or none (plain descent)."""
    side: Literal["target", "candidates"] = "target"
    """Where D is applied: to the target (Eq. 11), or to the candidates (Eq. 6)."""
    rescale: Literal["none", "match_span", "match_norm", "sum_to_batch"] = "none"
    """none: as in the formulas; match_span: the part of q within the candidates' span gets the norm of an average batch
    of them; match_norm: the whole of q does; sum_to_batch: the weights of the chosen are scaled to a mean of 1."""
    positions: Literal["all", "same"] = "all"
    """Which tokens of two samples are compared: all, or only those at the same position."""
    unit: Literal["sample", "token"] = "sample"
    """What is chosen: samples, or single tokens' contributions to their gradients."""

    def __post_init__(self) -> None:
        require(f"filter_then_weight.ridge={self.ridge}", self.ridge >= 0, "0 or more")
        if self.weigh == "signed" and self.rescale == "sum_to_batch":
            raise CurateError(
                "filter_then_weight: weights of both signs may sum to 0, so weigh=signed does not go with "
                "rescale=sum_to_batch; take rescale=match_norm."
            )
        if self.side == "candidates" and self.unit == "token":
            raise CurateError("filter_then_weight: unit=token compares tokens with the target's side; leave out one.")
        if self.positions == "same" and self.precondition == "before":
            raise CurateError(
                "filter_then_weight: positions=same compares factors of gradients, to which Adam's D cannot be applied "
                "before projection; add precondition=projected, or precondition=none."
            )
        if self.positions == "same" and (self.unit == "token" or self.side == "candidates"):
            raise CurateError("filter_then_weight: positions=same compares samples as they are; leave out unit=token "
                              "and side=candidates.")  # fmt: skip

    @property
    def signed(self) -> bool:
        return self.weigh == "signed"

    def matching(self) -> Matching:
        return Matching(
            precondition=self.precondition,
            candidates=self.side == "candidates",
            tokens=self.unit == "token",
            positions=self.positions,
        )

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        products = step.products
        assert products is not None and products.aligned is not None
        if self.unit == "token":
            return self._tokens(products, step.room), state
        gram, b = products.gram, products.aligned
        if self.rescale in ("match_norm", "match_span"):
            square = products.square if self.rescale == "match_norm" else _square_within(gram, b)
            b = b * _ratio(gram, square, step.room)
        chosen = greedy(b, gram, step.room) if self.filter == "greedy" else highest(b, step.room)
        weights = self._weights(gram[np.ix_(chosen, chosen)], b[chosen])
        fallback = not (products.aligned[chosen] > 0).any()
        if not weights.any():
            weights = np.ones(len(chosen))
        if self.rescale == "sum_to_batch" and weights.sum() > 0:
            weights = weights * (len(chosen) / weights.sum())
        return Weights(weighing(chosen, len(b), weights), products.aligned, fallback=fallback), state

    def _weights(self, gram: np.ndarray, b: np.ndarray) -> np.ndarray:
        if self.weigh == "none":
            return np.ones(len(b))
        ridged = gram + self.ridge * np.diagonal(gram).mean() * np.eye(len(b))
        if self.weigh == "signed":
            return np.linalg.lstsq(ridged, b, rcond=None)[0]
        return nonnegative(ridged, b)

    def _tokens(self, products: Products, room: int) -> Weights:
        """The best aligned tokens, as many as `room` candidates have on average; all tokens, where none is aligned."""
        tokens, aligned = products.tokens, products.aligned
        assert tokens is not None and aligned is not None
        n_tokens = int(room * np.count_nonzero(tokens) / max(len(tokens), 1))
        best = highest(tokens.ravel(), max(n_tokens, 1))
        mask = np.zeros(tokens.size)
        mask[best[tokens.ravel()[best] > 0]] = 1.0
        if fallback := not mask.any():
            mask = (tokens.ravel() != 0).astype(float)
        selected = mask.reshape(tokens.shape)
        return Weights(selected.any(1).astype(float), aligned, tokens=selected, fallback=fallback)


def _ratio(gram: np.ndarray, square: float, room: int) -> float:
    """The factor that gives a vector of that squared norm the norm of `room` times the candidates' mean."""
    mean = float(np.sqrt(max(gram.sum(), 0.0))) / len(gram)
    return room * mean / float(np.sqrt(square)) if square > 0 and mean > 0 else 1.0


def _square_within(gram: np.ndarray, b: np.ndarray) -> float:
    """The squared norm of the target's gradient projected onto the candidates' span:  b^T G^+ b."""
    return float(max(b @ np.linalg.lstsq(gram, b, rcond=None)[0], 0.0))
