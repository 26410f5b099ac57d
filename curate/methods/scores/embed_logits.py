from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target, near_target
from curate.kinds.signals import Forward
from curate.kinds.vectors import Aggregate
from curate.models.logit_sketch import MOST_TOKENS, projected, released_scale


@dataclass(frozen=True)
class EmbedLogits(Score):
    """Similarity to the target in the model's logits, projected over tokens and vocabulary (UDS's vectors).

    Formula, with L [N, V] the logits at all N tokens of the sample, and C [V, d1], D [N, d2] matrices of random signs
    divided by sqrt(d1) and sqrt(d2), each row of D belonging to a position in the sample:

        z(x) = vec(D^T L C) times the scale,    score = mean over the target's examples v of  cos(z(x), z(v))

    The projection preserves squared distances in expectation. scale=released then multiplies by sqrt(V T) / 2, with T =
    `length`, the factor by which the published code's unnormalised transform enlarges distances, so that `uds` can use
    the published alpha. The logits are never materialised: L C = H (W^T C) with the last hidden states H and the output
    head W. The vectors are stored, and reused by `uds`, by `curate neighbors` and for every target; without a target
    only the vectors are computed.

    Cost: one forward pass without the output head, 2N FLOPs per token, shared with the other scores by the same model;
    2 E d1 FLOPs per token, and 2 V E d1 once. Bottleneck: the device's matrix products.

    Departures: the published code takes the real part of a Fourier transform at positions drawn with replacement, of
    rows zero-padded to 512 tokens, with dropout on. Here the signs are independent, padding does not contribute, and
    dropout is off. Vectors are stored in float16, with their norm.

    Reference: UDS, arXiv:2510.16882; code gfyddha/UDS, UDSamplingTrainer.py.

    >>> import torch
    >>> from curate.models.head import Head
    >>> batch = Forward(None, np.array([1]), torch.tensor([[[3.0, 4.0]]]), np.array([1]), head=Head(torch.eye(2)))
    >>> found = EmbedLogits(d1=1, d2=1, scale="isometric").vectors().requests["logits"].of(batch)["vector"]
    >>> found.shape, abs(float(found[0, 0])) in (1.0, 7.0)
    ((1, 1), True)
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True

    d1: int = 128
    """Dimensions that the vocabulary is projected to: the paper's d1."""
    d2: int = 8
    """Dimensions that the positions in a sample are projected to: the paper's d2."""
    scale: Literal["released", "isometric"] = "released"
    """Whether distances match, in expectation, those of the published code or those of the logits themselves."""
    length: int = 512
    """Length of the published code's padded rows, for scale=released."""
    seed: int = 0
    """Seed of the random signs."""
    aggregate: Aggregate = "mean"
    """Mean over the target's examples, their maximum, or the maximum over sub-tasks of the sub-task's mean."""

    def __post_init__(self) -> None:
        if min(self.d1, self.d2, self.length) < 1:
            raise CurateError(
                f"embed_logits needs d1, d2 and length of 1 or more, not {self.d1}, {self.d2}, {self.length}."
            )
        if self.d1 > MOST_TOKENS:
            raise CurateError(f"embed_logits.d1={self.d1} is more than the tokens of any vocabulary; take fewer.")
        if self.d2 > self.length:
            raise CurateError(
                f"embed_logits.d2={self.d2} is more than the {self.length} positions of a row (length); take fewer."
            )

    def vectors(self) -> Pass:
        shaped = ("d1", "d2", "scale", "length", "seed")
        requests = {"logits": ForwardRequest(hidden=True, head=True, of=self._projected)}
        return Pass("forward", self._vector, shaped_by=shaped, requests=requests)

    def _projected(self, batch: Forward) -> Columns:
        """z of each sample, float32 [B, d2 d1]."""
        if not len(batch.lengths):
            return {"vector": np.zeros((0, self.d2 * self.d1), np.float32)}
        factor = released_scale(batch.head.vocabulary, self.length) if self.scale == "released" else 1.0
        return {"vector": projected(batch, self.d1, self.d2, self.seed) * factor}

    def _vector(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return requests["logits"]

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (near_target(self.aggregate, False),)
