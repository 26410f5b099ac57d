from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError, require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.methods.metrics import _final_answer as final_answers
from curate.methods.metrics._golds import golds
from curate.models.answers import generate_answers

_MISSING = {
    "number": "no number",
    "answer_is": 'no "the answer is …", and several lines',
    "boxed": "no \\boxed{…}, and several lines",
    "regex": "nothing that the pattern finds, and several lines",
}


@dataclass(frozen=True)
class ExactMatch(Metric):
    r"""Share of questions for which the generated final answer is a right one.

    Formula: 1 where  final(generated) = final(a)  for one of the right answers a, else 0; decoding is greedy. The right
    answers are the question's own, and those in the input's field `answers` (SQuAD's, or a list). final is, by
    final_answer:

    number: the last number (after `####` if that occurs, as in GSM8K; thousands' commas and a trailing .0 are ignored).
    answer_is: what follows the last "the answer is" or "Answer:", to the end of the line, or, of what was generated,
    to the end of the sentence. boxed: what is in the last \boxed{…}, in one form of LaTeX (\frac12, \dfrac{1}{2}, 1/2
    and 0.5 are the same). regex: what `pattern` finds last. last_line, whole: these. words: the whole without
    punctuation and English articles, as SQuAD's exact match.

    Case, surrounding white space and a final full stop are always ignored; by answer_is and regex also Markdown's stars
    and quotation marks around the answer, and the form of numbers ($1,200.00 is 1200), and an option is its letter:
    (B), B and "(B) blue" are the same. Where a right answer has no such final answer, and is a single line, it counts
    as a whole: worked answers are compared with short ones.

    Cost: 2N FLOPs for every token of the prompt and of the generated answer.

    Reference: GSM8K (Cobbe et al. 2021), the final number; BBH (Suzgun et al. 2022), "So the answer is X."; MATH
    (Hendrycks et al. 2021), the box; SQuAD (Rajpurkar et al. 2016), several right answers.

    >>> ExactMatch().final("He has 1,200 + 5 shells.\n#### 1,205.0"), ExactMatch("whole").final(" The Corv. ")
    ('1205', 'the corv')
    >>> ExactMatch("answer_is").final("Not (A), since it rains. So the answer is (B)."), ExactMatch("boxed").final(
    ...     r"so \boxed{\dfrac{1}{2}}")
    ('b', '1/2')
    """

    version: ClassVar[int] = 2  # several right answers

    final_answer: Literal["number", "answer_is", "boxed", "regex", "last_line", "whole", "words"] = "number"
    """Which part of an answer counts."""
    max_new_tokens: int = 256
    """Maximum number of tokens to generate."""
    pattern: str = ""
    """Regular expression for final_answer=regex; its first group counts, or all that it matches."""
    take: Literal["last", "first"] = "last"
    """Which number, "the answer is", box or match counts, if there are several. A model that goes on with a question of
    its own has its answer first."""

    def __post_init__(self) -> None:
        require(f"exact_match.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")
        if (self.final_answer == "regex") != bool(self.pattern):
            raise CurateError(
                "exact_match.pattern is the regular expression of exact_match.final_answer=regex; give both, or none."
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise CurateError(f"exact_match.pattern={self.pattern} is no regular expression: {error}.") from None

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        answers, error, usage = generate_answers(model, questions, self.max_new_tokens)
        values = np.full(len(questions), np.nan)
        for i, question in enumerate(questions):
            right = self.right(question)
            if not (error[i] or right):
                error[i] = self._problem(question)
            if not error[i]:
                values[i] = float(bool(right.intersection(self._readings(answers[i]))))
        return EvalResult(values, error, usage, answers)

    def final(self, text: str) -> str:
        """The part of an answer that counts; '' where it has none."""
        return next(iter(self._readings(text)), "")

    def right(self, question: Question) -> set[str]:
        """The final answers that count as right; empty if the question has none."""
        return {final for gold in golds(question) if (final := self.final(gold) or self._short(gold))}

    def _readings(self, text: str) -> tuple[str, ...]:
        """What may be meant by the part that counts, the most likely first: `final`, and its first sentence."""
        if self.final_answer == "answer_is":
            return final_answers.answer_is(text, self.take)
        one = self._one(text)
        return (one,) if one else ()

    def _one(self, text: str) -> str:
        if self.final_answer == "number":
            return final_answers.number(text, self.take)
        if self.final_answer == "boxed":
            return final_answers.boxed(text, self.take)
        if self.final_answer == "regex":
            return final_answers.by_pattern(text, self.pattern, self.take)
        if self.final_answer == "words":
            return final_answers.words_form(text)
        lines = text.strip().splitlines() or [""]
        return final_answers.text_form(lines[-1] if self.final_answer == "last_line" else " ".join(lines))

    def _short(self, gold: str) -> str:
        """A right answer that is a short one already; '' if it is none."""
        if self.final_answer not in ("answer_is", "boxed", "regex") or len(gold.strip().splitlines()) != 1:
            return ""
        return final_answers.latex_form(gold) if self.final_answer == "boxed" else final_answers.short_form(gold)

    def _problem(self, question: Question) -> str:
        if golds(question) and self.final_answer in _MISSING:
            return f"its answer has {_MISSING[self.final_answer]}"
        return "has no answer"
