from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.answers import answer_losses


@dataclass(frozen=True)
class Loss(Metric):
    """Mean loss of the answer's tokens, in nats; lower is better.

    Formula: of a question, the mean over the tokens t of its last answer of  -log p(t | all before);  of a target, the
    mean over its questions. Raw text: over all its tokens but the first.

    Cost: one forward pass, 2N FLOPs per token.

    Reference: the answer's cross-entropy, as every trainer reports it.

    >>> Loss().summary(np.array([1.0, 3.0]))
    2.0
    """

    better: ClassVar = "lower"

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        columns, usage = answer_losses(model, [question.sample() for question in questions])
        return EvalResult(np.asarray(columns["mean"]), columns["error"], usage)
