from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Entropy(Score):
    """How uncertain the model is: mean entropy of its predictions at the answer's tokens, in nats.

    Formula, over the S supervised tokens of a sample, with p_t the model's distribution over the V tokens there:

        score = (1/S) sum over t of H_t,    H_t = -sum over v of p_t(v) ln p_t(v),    0 <= H_t <= ln V

    It ignores what the answer actually is: where the model is sure of a different token, entropy is low and `nll` high.

    Cost: one forward pass, 2N FLOPs per token, shared with other scores requested together. Bottleneck: the device's
    matrix products.

    Reference: Settles, "Active Learning Literature Survey", 2009, Section 3.1 (uncertainty sampling by entropy); the
    mean over tokens is Settles, Craven, EMNLP 2008, Equation 3 (token entropy).

    >>> import torch
    >>> half_and_quarter = Logits(torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    >>> [round(x, 3) for x in Entropy()._token(half_and_quarter).tolist()]
    [0.693, 0.562]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("forward", self._score, requests={"answer": ForwardRequest(self._token)}),)

    def _token(self, at: Logits) -> Any:
        return -(at.p * at.log_p).nan_to_num(0.0).sum(1)  # p = 0 contributes 0, even where ln p is -inf

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return {"score": requests["answer"]["mean"]}
