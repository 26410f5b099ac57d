from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class Ifd(Score):
    """Instruction-following difficulty: how little the prompt helps the model predict the answer.

    Formula, with nll(A | Q) the mean negative log likelihood of the answer's tokens given the prompt, and nll(A) that
    of the same tokens without it (after the beginning-of-text token):

        loss:  ifd = nll(A | Q) / nll(A)                      Cherry
        ppl:   ifd = exp(nll(A | Q)) / exp(nll(A))            Superfiltering

    A high ratio marks a hard sample; above 1 the prompt misleads, so the papers take the highest ratios that are at
    most 1, and those above get no score here unless `above_one=keep`. Columns: `given` = nll(A | Q), `alone` = nll(A),
    `ratio`.

    Cost: two forward passes, 2N FLOPs per token, over the whole sample and over its answer; the first is shared with
    other scores requested together. Bottleneck: the device's matrix products.

    Departures: Cherry puts "### Response:" before the answer where it is scored alone, Superfiltering puts nothing
    there, so its first token is not averaged. Here both losses are over the same tokens, those of the chat template;
    where the tokenizer has no beginning-of-text token, the answer's first token is averaged in nll(A | Q) only. Cherry
    first fine-tunes the model on a few of the samples; pass such a model as --model.

    Reference: Li et al., "From Quantity to Quality" (Cherry LLM), NAACL 2024, arXiv:2308.12032, Equation 3; Li et al.,
    "Superfiltering", ACL 2024, arXiv:2402.00530.

    >>> requests = {"given": {"mean": np.array([0.5, 2.0])}, "alone": {"mean": np.array([1.0, 1.0])}}
    >>> Ifd().passes(None)[0].map(requests, None)["score"].tolist()
    [0.5, nan]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    ranks_in_bfloat16: ClassVar = True
    columns: ClassVar = {"given": "float32", "alone": "float32", "ratio": "float32"}

    of: Literal["loss", "ppl"] = "loss"
    """Ratio of losses (Cherry) or of perplexities (Superfiltering)."""
    above_one: Literal["null", "keep"] = "null"
    """Whether a ratio above 1 gets no score, as in the papers, or is kept."""

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        requests = {"given": ForwardRequest(self._token), "alone": ForwardRequest(self._token, view="answer")}
        return (Pass("forward", self._score, requests=requests),)

    def _token(self, at: Logits) -> Any:
        return -at.label_log_p

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        given, alone = requests["given"]["mean"], requests["alone"]["mean"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = given / alone if self.of == "loss" else np.exp(given - alone)
        misled = (ratio > 1) & (self.above_one == "null")
        error = np.where(misled, "its ratio is above 1: the prompt does not help", "")
        return {
            "score": np.where(misled, np.nan, ratio),
            "given": given,
            "alone": alone,
            "ratio": ratio,
            "error": error,
        }
