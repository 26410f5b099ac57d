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
    """Chooses and weights samples to match a gradient, by orthogonal matching pursuit (GRAD-MATCH).

    Formula, with g_i a candidate's gradient, A their matrix and c the gradient to match:

        least w >= 0 of  |A w - c|^2 + lambda |w|^2,   by: while |r| / |c| >= tolerance and there is room,
        add i = argmax <g_i, r>;  w = (A_S^T A_S + lambda I)^-1 A_S^T c  over those added, S;
        drop the most negative w_i until none is;  r = c - A_S w

    c is the target's gradient (the paper's isValid), or the sum of all candidates' (its default: match=candidates).

    Cost: forward and backward over candidates and target batch, without weight gradients: 4N FLOPs per token; 2N per
    token of the chosen; and for each choice a linear system of at most the batch's size. Bottleneck: those passes.

    Departures and choices: the paper matches last-layer gradients of mini-batches every few epochs; here the projected
    gradients of a step's candidates in all layers are matched. If too few are chosen, the paper fills up at random with
    weights of 1; here the choice stays short. lambda has several values in its code; here `ridge` is relative to the
    mean of the diagonal. search=exhaustive tries every candidate at every choice and keeps the one with the lowest
    objective, as Filter-then-Weight's Algorithm 2 does; that lets weights be negative, while here those who get one are
    dropped. Where nothing aligns, the step trains on the best aligned with weights of 1, which the metrics count.
    Weights are scaled to sum to the batch size (scale=sum_to_batch), or left as they are (none).

    Reference: Killamsetty et al., "GRAD-MATCH: Gradient Matching based Data Subset Selection" (ICML 2021).

    >>> products = Products(np.eye(4), np.array([3.0, 0.0, 1.0, 0.0]), 10.0)
    >>> GradMatch(ridge=0.0, scale="none").update(Step(1, products=products, room=3), {})[0].values.tolist()
    [3.0, 0.0, 1.0, 0.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    chooses: ClassVar = True

    match: Literal["target", "candidates"] = "target"
    """The gradient to match: the target's, or that of all candidates."""
    search: Literal["residual", "exhaustive"] = "residual"
    """What is added: the candidate best aligned with the residual; or the one that leaves the smallest, by trying
    all."""
    ridge: float = 0.01
    """lambda, as a multiple of the mean of the diagonal."""
    tolerance: float = 1e-4
    """Residual, as a share of the gradient to match, at which nothing more is added."""
    scale: Literal["sum_to_batch", "none"] = "sum_to_batch"
    """Whether the weights are scaled to sum to the batch size."""
    precondition: Literal["none", "before", "projected"] = "none"
    """none: plain descent; before: Adam's D on the target's gradient; projected: the D of projected gradients."""

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
        """The chosen candidates, and their weights."""
        ridge = self.ridge * float(np.diagonal(gram).mean())
        chosen, weights, tried = np.zeros(0, np.int64), np.zeros(0), np.zeros(len(b), bool)
        while len(chosen) < room and not tried.all():
            residual = square - 2 * weights @ b[chosen] + weights @ gram[np.ix_(chosen, chosen)] @ weights
            slope = np.where(tried, -np.inf, b - gram[:, chosen] @ weights)
            if residual <= self.tolerance**2 * square or not slope.max() > 0:
                break
            entering = self._entering(gram, b, ridge, chosen, slope)
            tried[entering] = True
            chosen = np.append(chosen, entering)
            weights = _ridge(gram, b, ridge, chosen)
            while (weights < 0).any():
                chosen = np.delete(chosen, int(np.argmin(weights)))
                weights = _ridge(gram, b, ridge, chosen)
        positive = weights > 0
        return chosen[positive], weights[positive]

    def _entering(self, gram: np.ndarray, b: np.ndarray, ridge: float, chosen: np.ndarray, slope: np.ndarray) -> int:
        if self.search == "residual":
            return int(np.argmax(slope))
        explained = np.full(len(b), -np.inf)
        for i in np.flatnonzero(np.isfinite(slope)):
            trial = np.append(chosen, i)
            explained[i] = b[trial] @ _ridge(gram, b, ridge, trial)  # the objective is |c|^2 minus this
        return int(np.argmax(explained))


def _ridge(gram: np.ndarray, b: np.ndarray, ridge: float, chosen: np.ndarray) -> np.ndarray:
    system = gram[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
    return np.linalg.lstsq(system, b[chosen], rcond=None)[0]
