from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.errors import require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.methods.metrics._final_answer import words
from curate.methods.metrics._golds import golds
from curate.models.answers import generate_answers


@dataclass(frozen=True)
class TokenF1(Metric):
    """Word overlap of the generated and the nearest right answer (SQuAD's F1).

    Formula: 2 p r / (p + r), with p and r the shares of the generated and of the right answer's words that both have,
    with multiplicity; 0 where there are none; words are in lower case, without punctuation and articles. Decoding is
    greedy. The greatest value over the right answers: the question's own, and those in the input's field `answers`
    (SQuAD's, or a list).

    Cost: 2N FLOPs for every token of the prompt and of the generated answer.

    Reference: Rajpurkar et al., "SQuAD" (2016); TyDiQA's F1 in the Filter-then-Weight protocol.

    >>> round(TokenF1().of("The Corv river", "It is the Corv."), 3)
    0.4
    """

    version: ClassVar[int] = 2  # several right answers

    max_new_tokens: int = 64
    """Maximum number of tokens to generate."""

    def __post_init__(self) -> None:
        require(f"token_f1.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        answers, error, usage = generate_answers(model, questions, self.max_new_tokens)
        for i, question in enumerate(questions):
            if not error[i] and not golds(question):
                error[i] = "has no answer"
        pairs = zip(answers, questions, strict=True)
        values = np.array([max((self.of(s, a) for a in golds(q)), default=np.nan) for s, q in pairs], np.float64)
        return EvalResult(np.where(error == "", values, np.nan), error, usage, answers)

    def of(self, answers: str, wanted: str) -> float:
        """F1 of two texts."""
        a, b = Counter(words(answers)), Counter(words(wanted))
        both = (a & b).total()
        return 2 * both / (a.total() + b.total()) if both else float(a == b)
