from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector
from curate.methods.selectors._logdet import Volume, greedy


@dataclass(frozen=True)
class Fishersft(Selector):
    """Samples whose last-layer features span the most: D-optimal design for the output head (FisherSFT).

    Formula, with x the samples' features before the logits (--vectors embed_lm), S those chosen so far:

        V = sigma0^2 I + sum over s in S of x_s x_s^T
        next = argmax over i of  log det(V + x_i x_i^T) - log det V,    ties: first id

    It is a lower bound on the information that the chosen samples carry about the head's weights. The gain is log(1 +
    x^T V^-1 x); a second copy of a sample gains strictly less.

    Cost: at most 2 k D FLOPs for each gain computed after k choices; lazy, exact, in float64; no model. Memory: 8 D
    bytes per choice, in addition to the vectors.

    Departures: the paper sums x x^T over the tokens of a sentence; stored vectors are per sample, so here a sample has
    a single x, the mean of its tokens' hidden states. The paper does not give sigma0.

    Reference: FisherSFT, "Data-Efficient Supervised Fine-Tuning of Language Models Using Optimal Design"; a baseline of
    DualSFT, arXiv:2605.06166.

    >>> candidates = Candidates.of(vectors=[[2.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    >>> Fishersft().select(candidates, Budget("rows", 2), seed=0).tolist()
    [1, 2]
    """

    uses_vectors: ClassVar = True

    sigma0: float = 1.0
    """Prior: the square root of the matrix's initial diagonal."""

    def __post_init__(self) -> None:
        if not self.sigma0 > 0:
            raise CurateError(f"sigma0={self.sigma0:g} of fishersft is a number above 0.")

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        count = len(candidates.require_vectors(self.name))
        if not count:
            return np.zeros(0, np.int64)
        vectors = candidates.vectors
        assert vectors is not None
        volume = Volume(vectors.raw, count, 1 / self.sigma0**2)
        chosen = greedy(volume, candidates.sizes, budget, lambda places: np.zeros(len(places)), lambda _: None)
        candidates.charge(volume.flops)
        return chosen
