from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Products, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import weighing


@dataclass(frozen=True)
class GradMatch(Weighting):
    """Chooses and weighs samples whose sum is near a gradient, by orthogonal matching pursuit (GRAD-MATCH).

    Formula, with g_i a candidate's gradient, A their matrix and c what is sought:

        least w >= 0 of  |A w - c|^2 + lambda |w|^2,   by: while |r| / |c| >= tolerance and there is room,
        add i = argmax <g_i, r>;  w = (A_S^T A_S + lambda I)^-1 A_S^T c  over those added, S;
        drop the most negative w_i until none is;  r = c - A_S w

    c is the target's gradient (the paper's isValid), or the sum of all candidates' (its default: match=candidates).

    Cost: forward and backward over candidates and target batch, without the gradients of matrices: 4N FLOPs a token;
    2N a token of the chosen; a system of at most a batch's size for each choice. Limit: that of the passes.

    Departures and choices: the paper matches gradients of the last layer, of mini-batches, every few epochs; here they
    are those of a step's candidates in all layers, projected. Its fraction that is short is filled up by lot with
    weights of 1: here it stays short. lambda has several values in its code: ridge is times the mean of the diagonal.
    search=exhaustive tries every candidate at every choice and keeps the least objective (Filter-then-Weight,
    Algorithm 2). Where nothing aligns the best aligned are learnt with weights of 1, which the metrics count. Weights
    are such that their sum is the batch (scale=sum_to_batch), or as they come (none).

    Reference: Killamsetty et al., "GRAD-MATCH: Gradient Matching based Data Subset Selection" (ICML 2021).

    >>> products = Products(np.eye(4), np.array([3.0, 0.0, 1.0, 0.0]), 10.0)
    >>> GradMatch(ridge=0.0, scale="none").update(Step(1, products=products, room=3), {})[0].values.tolist()
    [3.0, 0.0, 1.0, 0.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    chooses: ClassVar = True

    match: Literal["target", "candidates"] = "target"
    """What the sum is to be near: the target's gradient, or that of all candidates."""
    search: Literal["residual", "exhaustive"] = "residual"
    """What is added: the best aligned with what is left; or what leaves the least, by trying all."""
    ridge: float = 0.01
    """lambda, times the mean of the diagonal."""
    tolerance: float = 1e-4
    """What is left, as a share of what is sought, at which no more is added."""
    scale: Literal["sum_to_batch", "none"] = "sum_to_batch"
    """Whether the weights' sum is made that of a batch of 1s."""
    precondition: Literal["none", "before", "projected"] = "none"
    """none: plain descent; before: Adam's D on the target's gradient; projected: that of projected gradients."""

    def __post_init__(self) -> None:
        require(f"grad_match.ridge={self.ridge}", self.ridge >= 0, "0 or more")

    @property
    def uses_target(self) -> bool:  # type: ignore[override]
        return self.match == "target"

    def matching(self) -> Matching:
        return Matching(target=self.uses_target, precondition=self.precondition)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.products is not None
        gram, b, square = self._sought(step.products)
        chosen, weights = self._pursued(gram, b, square, step.room)
        if fallback := not len(chosen):
            chosen = np.argsort(-b, kind="stable")[: step.room]
            weights = np.ones(len(chosen))
        if self.scale == "sum_to_batch":
            weights = weights * (step.room / weights.sum())
        return Weights(weighing(chosen, len(b), weights), b, fallback=fallback), state

    def _sought(self, products: Products) -> tuple[np.ndarray, np.ndarray, float]:
        if self.match == "candidates":
            return products.gram, products.gram.sum(1), float(products.gram.sum())
        assert products.aligned is not None
        return products.gram, products.aligned, products.square

    def _pursued(self, gram: np.ndarray, b: np.ndarray, square: float, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Those added, and what they weigh."""
        ridge = self.ridge * float(np.diagonal(gram).mean())
        chosen, weights, tried = np.zeros(0, np.int64), np.zeros(0), np.zeros(len(b), bool)
        while len(chosen) < room and not tried.all():
            left = square - 2 * weights @ b[chosen] + weights @ gram[np.ix_(chosen, chosen)] @ weights
            slope = np.where(tried, -np.inf, b - gram[:, chosen] @ weights)
            if left <= self.tolerance**2 * square or not slope.max() > 0:
                break
            entering = self._entering(gram, b, ridge, chosen, slope)
            tried[entering] = True
            chosen = np.append(chosen, entering)
            weights = _ridge(gram, b, ridge, chosen)
            while (weights < 0).any():
                chosen = np.delete(chosen, int(np.argmin(weights)))
                weights = _ridge(gram, b, ridge, chosen)
        some = weights > 0
        return chosen[some], weights[some]

    def _entering(self, gram: np.ndarray, b: np.ndarray, ridge: float, chosen: np.ndarray, slope: np.ndarray) -> int:
        if self.search == "residual":
            return int(np.argmax(slope))
        explained = np.full(len(b), -np.inf)
        for i in np.flatnonzero(np.isfinite(slope)):
            trial = np.append(chosen, i)
            explained[i] = b[trial] @ _ridge(gram, b, ridge, trial)  # the objective is |c|^2 less this
        return int(np.argmax(explained))


def _ridge(gram: np.ndarray, b: np.ndarray, ridge: float, chosen: np.ndarray) -> np.ndarray:
    its = gram[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
    return np.linalg.lstsq(its, b[chosen], rcond=None)[0]
