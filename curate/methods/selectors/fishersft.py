from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector
from curate.kinds.vectors import Vectors
from curate.methods.selectors._logdet import Moments, Volume, greedy
from curate.numerics.triangles import side, unpacked

_OF_TOKENS = "embed_tokens"  # the score whose vectors are of tokens


@dataclass(frozen=True)
class Fishersft(Selector):
    """Samples whose last-layer features span the most: D-optimal design for the output head (FisherSFT).

    Formula, with X_i the rows that a sample adds, S those chosen so far:

        V = sigma0^2 I + sum over s in S of X_s^T X_s
        next = argmax over i of  log det(V + X_i^T X_i) - log det V,    ties: first id

    of=tokens (the paper): X_i has a row for each supervised token, the hidden state that it is predicted from, as
    --vectors embed_tokens stores their X_i^T X_i (projected to `dim` dimensions, or exactly with dim=0).
    of=samples: X_i is one row, the mean of the sample's hidden states (--vectors embed_lm); the gain is then
    log(1 + x^T V^-1 x).

    V is a lower bound on the information that the chosen samples carry about the head's weights: the Hessian of their
    loss is the sum over tokens of x x^T, each times the covariance of the token's predicted distribution. A second copy
    of a sample gains strictly less; of=tokens prefers long samples, whose tokens add up.

    Cost: for each gain at most 2 k D FLOPs after k choices (of=samples), or 4.7 d^3 and 3 d^3 for each choice
    (of=tokens, with the d dimensions of embed_tokens); lazy, exact, in float64; no model. Memory: 8 D bytes per choice,
    or 16 d^2 in all, in addition to the vectors.

    Departures: the paper does not give sigma0. Vectors are stored in float16.

    Reference: Deb et al., "FisherSFT: Data-Efficient Supervised Fine-Tuning of Language Models Using Information Gain",
    ICML 2025, arXiv:2505.14826; a baseline of DualSFT, arXiv:2605.06166.

    >>> candidates = Candidates.of(vectors=[[2.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    >>> Fishersft().select(candidates, Budget("rows", 2), seed=0).tolist()
    [1, 2]
    >>> candidates = Candidates.of(vectors=[[2.0, 0.0, 0.0], [1.5, 0.0, 1.5], [0.0, 0.0, 2.0]])  # triangles of 2 x 2
    >>> Fishersft(of="tokens").select(candidates, Budget("rows", 2), seed=0).tolist()
    [1, 0]
    """

    uses_vectors: ClassVar = True

    sigma0: float = 1.0
    """Prior: the square root of the matrix's initial diagonal."""
    of: Literal["samples", "tokens"] = "samples"
    """What a row of the design is: a sample's vector, or each of its tokens (vectors of embed_tokens)."""

    def __post_init__(self) -> None:
        if not self.sigma0 > 0:
            raise CurateError(f"sigma0={self.sigma0:g} of fishersft is a number above 0.")

    def select(self, candidates: Candidates, budget: Budget, seed: int) -> np.ndarray:
        count = len(candidates.require_vectors(self.name))
        vectors = candidates.vectors
        assert vectors is not None
        self._refuse_others(vectors)
        if not count:
            return np.zeros(0, np.int64)
        alpha = 1 / self.sigma0**2
        if self.of == "tokens":
            volume = Moments(lambda places: unpacked(vectors.raw(places)), side(vectors.unit.shape[1]), alpha)
        else:
            volume = Volume(vectors.raw, count, alpha)
        chosen = greedy(volume, candidates.sizes, budget, lambda places: np.zeros(len(places)), lambda _: None)
        candidates.charge(volume.flops)
        return chosen

    def _refuse_others(self, vectors: Vectors) -> None:
        """Raises CurateError for vectors of another kind than `of` says."""
        width = vectors.unit.shape[1]
        if self.of == "samples" and vectors.score == _OF_TOKENS:
            raise CurateError(
                "fishersft: these vectors are of tokens, and of=samples takes a sample's own; add --set of=tokens, or "
                "take --vectors embed_lm."
            )
        if self.of == "tokens" and (vectors.score not in ("", _OF_TOKENS) or not side(width) or vectors.norm.ndim > 1):
            these = vectors.score or f"{width} numbers each"
            raise CurateError(
                f"fishersft: of=tokens takes vectors of tokens, and these are {these}; make some by "
                "`curate score embed_tokens --model M`, and name them by --vectors."
            )
