from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Logits


@dataclass(frozen=True)
class DpoMargin(Score):
    """By how much a model's implicit reward of the chosen answer of a preference pair exceeds the rejected one's.

    Formula, with log p(y|x) the sum of the log likelihoods of an answer's tokens, given the prompt that both answers
    share, and y_c, y_r the chosen and the rejected answer:

        reward(y) = beta (log p_base(y|x) - log p_reference(y|x))
        score = reward(y_c) - reward(y_r)

    It is what DPO's loss is the negative log sigmoid of: pairs of a low or negative margin are those that the base has
    yet to learn. The base is the model that is or was trained, the reference the one that it began with: --model
    base=FOLDER --model reference=M. Columns: `chosen`, `rejected`, the two rewards. A sample that is no pair has no
    score.

    Cost: two forward passes through each model, 2N FLOPs per token, over the conversation with each of the answers.
    Bottleneck: the device's matrix products.

    Departures: a weight that a turn has in the loss multiplies its tokens' terms. Where a conversation is cut to the
    model's context, its answer is cut too, for both models if they have the same context.

    Reference: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    NeurIPS 2023, arXiv:2305.18290, Equation 7.

    >>> answer = lambda mean, tokens: {"mean": np.array([mean]), "tokens": np.array([tokens])}
    >>> passed = {"base_chosen": answer(1.0, 4), "reference_chosen": answer(2.0, 4)}
    >>> passed |= {"base_rejected": answer(3.0, 2), "reference_rejected": answer(2.5, 2)}
    >>> DpoMargin().passes(None)[0].map(passed, None)["score"].tolist()
    [0.5]
    """

    scope: ClassVar = "row"
    models: ClassVar = ("base", "reference")
    of_pairs: ClassVar = True
    columns: ClassVar = {"chosen": "float32", "rejected": "float32"}

    beta: float = 0.1
    """DPO's factor of the log ratios."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise CurateError(f"dpo_margin needs a finite beta above 0, not {self.beta}.")

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        requests = {
            "base_chosen": ForwardRequest(self._token, view="chosen"),
            "base_rejected": ForwardRequest(self._token, view="rejected"),
            "reference_chosen": ForwardRequest(self._token, model="reference", view="chosen"),
            "reference_rejected": ForwardRequest(self._token, model="reference", view="rejected"),
        }
        return (Pass("forward", self._score, requests=requests),)

    def _token(self, at: Logits) -> Any:
        return -at.label_log_p

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        loss = {which: columns["mean"] * columns["tokens"] for which, columns in requests.items()}  # sums over tokens
        chosen, rejected = (self.beta * (loss[f"reference_{y}"] - loss[f"base_{y}"]) for y in ("chosen", "rejected"))
        return {"score": np.subtract(chosen, rejected), "chosen": chosen, "rejected": rejected}
