from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Forward
from curate.kinds.vectors import Vectors
from curate.numerics.triangles import packed, unpacked

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
_AT_ONCE = 1 << 22  # numbers of matrices in memory at once


@dataclass(frozen=True)
class EmbedTokens(Score):
    """Second moments of the hidden states that a sample's tokens are predicted from, for `fishersft` over tokens.

    Formula, with h_t the last layer's hidden state (after the final norm) from which the supervised token t is
    predicted, w_t that token's weight in the loss (1 unless the turn has another), P [D, d] random signs divided by
    sqrt(d):

        X = the rows  sqrt(w_t) h_t P,    M = X^T X = sum over t of  w_t (h_t P)^T (h_t P)
        vector = the upper triangle of R,  X = Q R,  R_jj >= 0,  so that  R^T R = M
        score = mean over the target's examples v of  <M, M_v> / (|M| |M_v|),    <A, B> = sum of a_ij b_ij

    dim=0, or a model that is no wider than `dim`: no projection, R^T R is the sum over all supervised tokens itself,
    however many there are. Otherwise d = dim: M is that sum seen in d random directions, whose inner products it
    preserves in expectation. R is stored, not M, since R^T R has no negative eigenvalue even after rounding to float16.
    The score is 0 to 1: 1 where the tokens spread alike. `curate select --selector fishersft --set of=tokens` uses the
    vectors; as plain vectors (kcenter, `curate neighbors`) they have no meaning. Without a target only the vectors are
    computed.

    Cost: one forward pass, 2N FLOPs per token, without the output head; shared with other scores by the same model
    requested together; 2 D d FLOPs and the triangle's 2 d^2 per supervised token. Storage: d (d + 1) bytes per sample
    (4 KiB with dim=64). Bottleneck: the device's matrix products.

    Departures: the projection is ours, since D (D + 1) bytes per sample are too many for a wide model.

    Reference: Deb et al., "FisherSFT: Data-Efficient Supervised Fine-Tuning of Language Models Using Information Gain",
    ICML 2025, arXiv:2505.14826, whose design matrix is the sum of these second moments over the chosen sentences.

    >>> import torch
    >>> states = torch.tensor([[[3.0, 0.0], [4.0, 2.0], [0.0, 0.0]]])
    >>> batch = Forward(None, np.array([2]), states, np.array([3]), before=np.array([0, 1]))
    >>> flat = EmbedTokens(dim=0).vectors().requests["states"].of(batch)["vector"]
    >>> (unpacked(flat)[0].T @ unpacked(flat)[0]).round(4).tolist()  # 9 + 16, 4 times 2, 2 times 2
    [[25.0, 8.0], [8.0, 4.0]]
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)

    dim: int = 64
    """Dimensions that hidden states are projected to; 0: none, the states themselves."""
    seed: int = 0
    """Seed of the projection; vectors with different seeds cannot be compared."""

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise CurateError(f"dim={self.dim} of embed_tokens is a number of dimensions, or 0 for no projection.")

    def vectors(self) -> Pass:
        request = ForwardRequest(hidden=True, of=self._factors)
        return Pass("forward", self._vector, shaped_by=("dim", "seed"), requests={"states": request})

    def _factors(self, batch: Forward) -> Columns:
        """R of each sample's states as a flat row, float32 [B, d (d + 1) / 2]."""
        import torch

        assert batch.hidden is not None
        hidden = batch.hidden
        d = min(self.dim or hidden.shape[-1], hidden.shape[-1])
        if not len(batch.counts):
            return {"vector": np.zeros((0, d * (d + 1) // 2), np.float32)}
        assert batch.before is not None
        rows = hidden.flatten(0, 1)[torch.from_numpy(batch.before).to(hidden.device)].double()
        if batch.weights is not None:
            rows = rows * torch.from_numpy(np.sqrt(batch.weights)).to(rows)[:, None]
        if d < hidden.shape[-1]:
            rows = rows @ self._projection(hidden).double()
        factors = torch.zeros(len(batch.counts), d, d, dtype=torch.float64)
        for i, own in enumerate(rows.split(batch.counts.tolist())):
            factors[i, : min(len(own), d)] = torch.linalg.qr(own, mode="r")[1].cpu()
        signs = torch.where(factors.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
        return {"vector": packed((factors * signs[:, :, None]).numpy()).astype(np.float32)}

    def _projection(self, hidden: Tensor) -> Tensor:
        """P, float32 [D, d]."""
        from curate.numerics.projections import Rademacher

        return Rademacher(self.dim, self.seed).entries("hidden states", 0, hidden.shape[-1], hidden.device)

    def _vector(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        flat = np.asarray(requests["states"]["vector"])
        return {"vector": flat, "error": np.where(np.any(flat != 0, 1), "", _NOTHING).astype(object)}

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("score", self._nearness, open=self._mean_moment, flops=lambda mean: 2.0 * mean.size * len(mean)),)

    def _mean_moment(self, target: Vectors) -> np.ndarray:
        """The mean of the target's second moments, each divided by its norm, float64 [d, d]."""
        present = target.take(target.there)
        if not len(present):
            raise CurateError(f"no example of the target has a vector: {target.error[0]}; edit the target.")
        moments = _moments(present.unit)
        return (moments / np.linalg.norm(moments, axis=(1, 2), keepdims=True)).mean(0)

    def _nearness(self, batch: Vectors, mean: np.ndarray) -> Columns:
        score, step = np.full(len(batch), np.nan), max(1, _AT_ONCE // mean.size)
        for start in range(0, len(batch), step):
            moments = _moments(batch.unit[start : start + step])
            norms = np.linalg.norm(moments, axis=(1, 2))
            products = (moments * mean).sum((1, 2))
            score[start : start + step] = products / np.where(norms > 0, norms, 1.0)
        return {"score": np.where(batch.there, score, np.nan), "error": batch.error}


def _moments(unit: np.ndarray) -> np.ndarray:
    """R^T R of each row, float64 [n, d, d]."""
    factors = unpacked(unit.astype(np.float64))
    return factors.transpose(0, 2, 1) @ factors
