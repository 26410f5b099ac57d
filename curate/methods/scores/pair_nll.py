from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class PairNll(Score):
    """How much likelier a model finds the chosen answer of a preference pair than the rejected one.

    Formula, with nll the mean negative log likelihood of an answer's tokens, given the prompt that both share:

        score = nll(rejected) - nll(chosen)

    Below 0 the model prefers the answer that is not wanted. Columns: `chosen` and `rejected`, the two nll, so that
    `--by` may take either: `--by -NAME_chosen`. The margin is the score itself. A sample that is no pair has no score.

    Cost: two forward passes, 2N FLOPs per token, over the conversation with each of the answers. Bottleneck: the
    device's matrix products.

    Departures: it is the reward of SimPO, the mean log likelihood, without its factor beta and its target margin; there
    it is a term of a loss, here a column. Where a conversation is cut to the model's context, its answer is cut too.

    Reference: Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", NeurIPS 2024,
    arXiv:2405.14734, Equation 4.

    >>> requests = {"chosen": {"mean": np.array([1.0, 2.0])}, "rejected": {"mean": np.array([1.5, 1.0])}}
    >>> PairNll().passes(None)[0].map(requests, None)["score"].tolist()
    [0.5, -1.0]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    of_pairs: ClassVar = True
    columns: ClassVar = {"chosen": "float32", "rejected": "float32"}

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        requests = {
            "chosen": ForwardRequest(self._token, view="chosen"),
            "rejected": ForwardRequest(self._token, view="rejected"),
        }
        return (Pass("forward", self._score, requests=requests),)

    def _token(self, at: Logits) -> Any:
        return -at.label_log_p

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        chosen, rejected = requests["chosen"]["mean"], requests["rejected"]["mean"]
        return {"score": np.subtract(rejected, chosen), "chosen": chosen, "rejected": rejected}
