from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.answers import answer_losses


@dataclass(frozen=True)
class Choice(Metric):
    """Accuracy of choosing among options by their likelihood, without generating text.

    Formula: 1 where the right answer is the option of the greatest  sum over its tokens of log p  (by=sum), or of the
    greatest mean (by=mean), else 0. A tie counts as wrong.

    The options are the question's own (a field `options` or `choices` of the input), or the distinct answers of its
    sub-task in the target, if there are 2 to 26 of them.

    Cost: a forward pass for every option, 2N FLOPs per token.

    Reference: the accuracy of lm-evaluation-harness (`acc`, and by tokens what `acc_norm` is by bytes); DualSFT's
    protocol for PIQA and ARC.

    >>> Choice().summary(np.array([1.0, 0.0]))
    0.5
    """

    by: Literal["sum", "mean"] = "sum"
    """The log-likelihood of an option as a whole, or averaged over its tokens."""

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        owners = [(i, option) for i, question in enumerate(questions) for option in question.options]
        columns, usage = answer_losses(model, [questions[i].sample(option) for i, option in owners])
        loss = columns["mean"] if self.by == "mean" else columns["mean"] * columns["tokens"]
        values, error = np.full(len(questions), np.nan), np.full(len(questions), "", object)
        question_of = np.array([i for i, _ in owners], np.int64)
        for i, question in enumerate(questions):
            candidates = np.flatnonzero(question_of == i).tolist()
            right = [k for k in candidates if owners[k][1] == question.answer]
            error[i] = self._problem(question, right, columns["error"][candidates])
            if not error[i]:
                values[i] = float(all(loss[right[0]] < loss[k] for k in candidates if k != right[0]))
        return EvalResult(values, error, usage)

    def _problem(self, question: Question, right: list[int], errors: np.ndarray) -> str:
        if len(question.options) < 2:
            return "has no options: no field options or choices, and its sub-task not 2 to 26 distinct answers"
        if len(right) != 1:
            return f"its answer is {len(right)} times among its options"
        return next((str(why) for why in errors if why), "")
