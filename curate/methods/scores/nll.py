from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Nll(Score):
    """How likely the model finds the answer: the mean log likelihood of its tokens, given the prompt.

    Formula, over the S supervised tokens y_t of a sample (the assistant's turns; in raw text, all tokens):

        nll = -(1/S) sum over t of ln p(y_t | y_<t),    ppl = exp(nll),    score = -nll

    The tokens before an answer condition it and are not averaged. Columns: `nll`, `ppl`, `tokens` (S).

    Cost: one forward pass, 2N FLOPs per token, shared with other scores requested together; only supervised tokens go
    through the output head. Bottleneck: the device's matrix products.

    Departures: "PPL" of ADAPT's Section 2.2 is nll, to be minimised; here the sign is flipped, since higher is better.
    Selecting the *hardest* samples (LHAS, Appendix A) is `--by -nll`.

    Reference: Marion et al., "When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale",
    arXiv:2309.04564 (perplexity); ADAPT (ICLR 2026), Section 2.2.

    >>> import torch
    >>> half_and_quarter = Logits(torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    >>> [round(x, 3) for x in Nll()._token(half_and_quarter).tolist()]
    [0.693, 1.386]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True
    columns: ClassVar = {"nll": "float32", "ppl": "float32", "tokens": "int32"}

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("forward", self._score, requests={"answer": ForwardRequest(self._token)}),)

    def _token(self, at: Logits) -> Any:
        return -at.label_log_p

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        nll = requests["answer"]["mean"]
        return {"score": -nll, "nll": nll, "ppl": np.exp(nll), "tokens": requests["answer"]["tokens"]}
