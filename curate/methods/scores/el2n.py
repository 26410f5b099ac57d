from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class El2n(Score):
    """How wrong the model is: mean L2 norm of its error vectors over the answer's tokens.

    Formula, over the S supervised tokens of a sample, with p_t the model's distribution there and e(y_t) the one-hot
    vector of the actual token:

        score = (1/S) sum over t of ||p_t - e(y_t)||_2

    between 0 (sure and right) and sqrt 2 (sure and wrong). Data Diet keeps the highest.

    Cost: one forward pass, 2N FLOPs per token, shared with other scores requested together. Bottleneck: the device's
    matrix products.

    Departures: the paper scores a classifier's single prediction per example, and averages over ten models early in
    training; the mean over tokens is ours. For several models, score with each under its own --name and average in SQL.

    Reference: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021, arXiv:2107.07075, Definition 2.3.

    >>> import torch
    >>> undecided_and_sure = Logits(torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([0, 1]))
    >>> [round(x, 3) for x in El2n()._token(undecided_and_sure).tolist()]
    [0.707, 1.414]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("forward", self._score, requests={"answer": ForwardRequest(self._token)}),)

    def _token(self, at: Logits) -> Any:
        error = at.p.clone()  # expanding the square would lose digits to cancellation where the model is sure
        error.scatter_add_(1, at.labels[:, None], error.new_full((len(error), 1), -1.0))
        return error.norm(dim=1)

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        return {"score": requests["answer"]["mean"]}
