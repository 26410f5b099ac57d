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
    """Share of questions whose final answer, as the model says it, is the right one.

    Formula: 1 where  final(said) = final(answer),  else 0; said greedily. final is the last number (behind `####` where
    that stands, as in GSM8K; thousands' commas and a trailing .0 do not count), the last line, or the whole, the latter
    two without case, outer white space and a final full stop.

    Cost: 2N FLOPs for every token of the prompt and of what is said.

    Reference: GSM8K (Cobbe et al. 2021), the final number; BBH, the answer as a text.

    >>> ExactMatch().final("He has 1,200 + 5 shells.\\n#### 1,205.0"), ExactMatch("whole").final(" The Corv. ")
    ('1205', 'the corv')
    """

    final_answer: Literal["number", "last_line", "whole"] = "number"
    """What of an answer counts."""
    max_new_tokens: int = 256
    """The most that the model may say."""

    def __post_init__(self) -> None:
        require(f"exact_match.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        answers, error, usage = generate_answers(
            model, [question.prompt() for question in questions], self.max_new_tokens
        )
        right = [self.final(question.answer) for question in questions]
        for i, final in enumerate(right):
            if not (error[i] or final):
                error[i] = f"its answer has no {self.final_answer.replace('_', ' ')}"
        same = np.array([self.final(s) == r for s, r in zip(answers, right, strict=True)], np.float64)
        return EvalResult(np.where(error == "", same, np.nan), error, usage, answers)

    def final(self, text: str) -> str:
        """What counts of an answer; '' where it has none."""
        if self.final_answer == "number":
            found = _NUMBER.findall(text.rpartition("####")[2])
            return re.sub(r"\.0*$", "", found[-1].replace(",", "")) if found else ""
        lines = text.strip().splitlines() or [""]
        chosen = lines[-1] if self.final_answer == "last_line" else " ".join(lines)
        return " ".join(chosen.lower().split()).removesuffix(".")
