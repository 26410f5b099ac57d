from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Forward
from curate.models.logit_sketch import singular_values


@dataclass(frozen=True)
class Nuclear(Score):
    """Nuclear norm of the model's logits: how large they are, in how many directions (UDS's utility).

    Formula, with L [N, V] the logits at all N tokens of the sample, its prompt included, and s_i their singular values:

        score = sum over i of s_i(L) = ||L||_*

    divided by N for normalize=tokens; by ||L||_F = sqrt(sum of s_i^2) for normalize=frobenius, which then lies between
    1 and the square root of min(N, V) and measures the number of directions alone. UDS selects by it plus the distance
    to the samples chosen before: the selector `uds`.

    The logits are never materialised: they are H W^T with the last hidden states H and the output head W, so the
    singular values are those of H S, with S S^T = W^T W, and S is E by E instead of E by V.

    Cost: one forward pass without the output head, 2N FLOPs per token, shared with the other scores by the same model;
    2 E^2 FLOPs per token for H S, and the singular values of an N by E matrix. Bottleneck: the device's matrix
    products.

    Departures: the published code takes the logits of rows zero-padded to 512 tokens, with dropout on; here padding
    does not contribute, and dropout is off. As there, long samples score higher unless `normalize` says otherwise.
    Models that scale or cap their logits are refused.

    Reference: UDS, "Utility-Diversity Aware Online Batch Selection", arXiv:2510.16882; code gfyddha/UDS,
    UDSamplingTrainer.py.

    >>> import torch
    >>> from curate.models.head import Head
    >>> states = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]]])  # of two tokens, and of one
    >>> batch = Forward(None, np.array([1, 1]), states, np.array([2, 1]), head=Head(torch.eye(2)))
    >>> Nuclear()._norm(batch)["norm"].tolist(), Nuclear(normalize="frobenius")._norm(batch)["norm"].round(3).tolist()
    ([7.0, 5.0], [1.4, 1.0])
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True

    normalize: Literal["none", "tokens", "frobenius"] = "none"
    """Divide by nothing, by the sample's number of tokens, or by the logits' Frobenius norm."""

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (
            Pass("forward", self._score, requests={"logits": ForwardRequest(hidden=True, head=True, of=self._norm)}),
        )

    def _norm(self, batch: Forward) -> Columns:
        if not len(batch.lengths):
            return {"norm": np.zeros(0)}
        values = singular_values(batch)
        norm = values.sum(1)
        if self.normalize == "tokens":
            norm = norm / batch.lengths
        elif self.normalize == "frobenius":
            norm = norm / np.sqrt(np.square(values).sum(1))
        return {"norm": norm}

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return {"score": requests["logits"]["norm"]}
