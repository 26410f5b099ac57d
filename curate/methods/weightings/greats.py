from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Products, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._choose import greedy, highest, weighing


@dataclass(frozen=True)
class Greats(Weighting):
    """Greedily chooses the samples that lower the target's loss most, given those already chosen (GREATS).

    Formula, with g_i a candidate's gradient, g_val that of the target's mean loss, eta the learning rate:

        a_i = eta <g_i, g_val>,   B_ij = eta^2 <g_i, H g_j>,   H = 1
        as often as a batch has room: i = argmax a, a <- a - B_i

    It maximises  sum of a_i - sum over pairs of B_ij,  the second-order expansion without its self-terms, as in the
    authors' code. form=shapley instead takes the candidates with the highest Shapley value in the whole expansion,

        phi_i = eta <g_i, g_val> - eta^2 / 2 <g_i, H sum over all candidates j of g_j>

    Cost: forward and backward over candidates and target batch, without weight gradients: 4N FLOPs per token; 2N per
    token of the chosen. The authors' code runs the chosen through the model once more. Bottleneck: those passes.

    Departures and choices: the authors score for plain descent and train with AdamW, as is done here
    (precondition=none); precondition=before applies Adam's D in a. Their target batch has 2 samples, their candidates
    are twice the batch (--set target_batch, oversample). While the learning rate is 0, as at the first step of a
    warm-up, all scores are equal and the first samples are taken, which are the longest. Steps where no chosen sample
    aligns with the target are counted in the run's metrics (fallback). hessian=kfac_target with form=shapley is the
    second-order score of Filter-then-Weight's appendix,  g_i^T H sum g_k  with the Kronecker factors of H from the
    target's batch, here in the projected space. hessian=kfac_candidates takes them from the candidates, which is ours;
    `damping` is for it, as the appendix has none.

    Reference: Wang et al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration"
    (NeurIPS 2024).

    >>> products = Products(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0.9, 0.8, 0.1]), 1)
    >>> Greats().update(Step(1, products=products, room=2, lr=1.0), {})[0].values.tolist()
    [1.0, 0.0, 1.0]
    """

    scope: ClassVar = "batch"
    needs: ClassVar = ("loss",)
    uses_target: ClassVar = True
    chooses: ClassVar = True

    eta: float | None = None
    """Learning rate in the formula; none: the step's."""
    form: Literal["greedy", "shapley"] = "greedy"
    """Greedily, one after another; or by each one's Shapley value among all candidates."""
    hessian: Literal["identity", "kfac_target", "kfac_candidates"] = "identity"
    """H: the identity, or a Kronecker-factored curvature, of the target's batch or of the candidates."""
    damping: float = 0.0
    """Added to the curvature's factors, as a multiple of their mean diagonals; 0 in the paper."""
    precondition: Literal["none", "before", "projected"] = "none"
    """none: plain descent; before: Adam's D on the target's gradient; projected: the D of projected gradients."""

    def __post_init__(self) -> None:
        require(f"greats.damping={self.damping}", self.damping >= 0, "0 or more")

    def matching(self) -> Matching:
        return Matching(
            precondition=self.precondition,
            curvature="none" if self.hessian == "identity" else "kfac",
            factors="target" if self.hessian == "kfac_target" else "candidates",
            damping=self.damping,
        )

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        products = step.products
        assert products is not None and products.aligned is not None
        eta = step.lr if self.eta is None else self.eta
        a, pairs = eta * products.aligned, eta**2 * self._curved(products)
        shapley = self.form == "shapley"
        chosen = highest(a - pairs.sum(1) / 2, step.room) if shapley else greedy(a, pairs, step.room)
        fallback = not (products.aligned[chosen] > 0).any()
        return Weights(weighing(chosen, len(a)), products.aligned, fallback=fallback), state

    def _curved(self, products: Products) -> np.ndarray:
        if self.hessian == "identity":
            return products.gram
        assert products.curved is not None
        return products.curved
