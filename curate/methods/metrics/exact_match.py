from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.errors import require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.answers import generate_answers

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Share of questions for which the generated final answer is the right one.

    Formula: 1 where  final(generated) = final(answer),  else 0; decoding is greedy. final is the last number (after
    `####` if that occurs, as in GSM8K; thousands' commas and a trailing .0 are ignored), the last line, or the whole,
    the latter two ignoring case, surrounding white space and a final full stop.

    Cost: 2N FLOPs for every token of the prompt and of the generated answer.

    Reference: GSM8K (Cobbe et al. 2021), the final number; BBH, the answer as a text.

    >>> ExactMatch().final("He has 1,200 + 5 shells.\\n#### 1,205.0"), ExactMatch("whole").final(" The Corv. ")
    ('1205', 'the corv')
    """

    final_answer: Literal["number", "last_line", "whole"] = "number"
    """Which part of an answer counts."""
    max_new_tokens: int = 256
    """Maximum number of tokens to generate."""

    def __post_init__(self) -> None:
        require(f"exact_match.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        answers, error, usage = generate_answers(model, questions, self.max_new_tokens)
        right = [self.final(question.answer) for question in questions]
        for i, final in enumerate(right):
            if not (error[i] or final):
                error[i] = f"its answer has no {self.final_answer.replace('_', ' ')}"
        correct = np.array([self.final(s) == r for s, r in zip(answers, right, strict=True)], np.float64)
        return EvalResult(np.where(error == "", correct, np.nan), error, usage, answers)

    def final(self, text: str) -> str:
        """The part of an answer that counts; '' where it has none."""
        if self.final_answer == "number":
            numbers = _NUMBER.findall(text.rpartition("####")[2])
            return re.sub(r"\.0*$", "", numbers[-1].replace(",", "")) if numbers else ""
        lines = text.strip().splitlines() or [""]
        chosen = lines[-1] if self.final_answer == "last_line" else " ".join(lines)
        return " ".join(chosen.lower().split()).removesuffix(".")
