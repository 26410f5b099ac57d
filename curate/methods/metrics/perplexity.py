from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.answers import answer_losses


@dataclass(frozen=True)
class Perplexity(Metric):
    """Perplexity of the answer: how many tokens the model hesitates between; lower is better.

    Formula: of a question, exp of the mean loss of its last answer's tokens; of a target, exp of the mean of those
    losses over its questions (a geometric mean).

    Cost: one forward pass, 2N FLOPs per token.

    Reference: exp of the cross-entropy.

    >>> round(Perplexity().summary(np.array([2.0, 8.0])), 6)
    4.0
    """

    better: ClassVar = "lower"

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        columns, usage = answer_losses(model, [question.sample() for question in questions])
        return EvalResult(np.exp(columns["mean"]), columns["error"], usage)

    def summary(self, values: np.ndarray) -> float:
        return float(np.exp(np.log(values).mean())) if len(values) else float("nan")
