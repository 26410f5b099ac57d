from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.metric import EvalResult, Metric, Question
from curate.kinds.options import posed
from curate.models.answers import answer_losses


@dataclass(frozen=True)
class Choice(Metric):
    """Accuracy of choosing among options by their likelihood, without generating text.

    Formula: 1 where the right answer is the option of the greatest  sum over its tokens of log p  (by=sum), or of the
    greatest sum per token (mean), character (chars) or byte (bytes), else 0. A tie counts as wrong. The tokens are
    those of what the option says; end_of_turn=true adds the token that ends the turn, as a chat model is trained.

    The options are the question's own (a field `options` or `choices` of the input: a list, or ARC's or MedQA's
    object), and the right one is the answer's text, letter or number from 0, or that in a field answerKey, answer,
    answer_idx, answer_index or label. A target that has none offers the 2 to 26 distinct answers of the question's
    sub-task, which is printed and stored as a note.

    Cost: a forward pass for every option, 2N FLOPs per token; what the options of a question, and the questions, have
    in common (few-shot examples) is computed once, if the model's layout allows it.

    Reference: lm-evaluation-harness, whose `acc` is by=sum, `acc_norm` by=chars and `acc_bytes` by=bytes (its ties go
    to the first option); DualSFT's protocol for PIQA and ARC.

    >>> Choice().summary(np.array([1.0, 0.0]))
    0.5
    """

    version: ClassVar[int] = 2  # without the end of the turn

    by: Literal["sum", "mean", "chars", "bytes"] = "sum"
    """The log-likelihood of an option as a whole, or divided by its number of tokens, characters or bytes (UTF-8)."""
    end_of_turn: bool = False
    """Whether the token that ends the answer's turn belongs to an option, as in version 1 of this metric."""
    options: Literal["auto", "own", "subtask"] = "auto"
    """Whose options: the question's own; the distinct answers of its sub-task; or its own, and the sub-task's only
    where no question of the target has any (auto), which is said."""
    listed: Literal["as_stored", "yes", "no"] = "as_stored"
    """Whether the prompt lists the options, each on a line with its letter (`A. red`); as_stored: as the target has
    it."""
    answer_by: Literal["as_stored", "letter", "text"] = "as_stored"
    """What is scored of an option: its letter, or its text; as_stored: as the target's answers are."""

    def options_from(self) -> Literal["auto", "own", "subtask"]:
        return self.options

    def posed(self, question: Question) -> Question:
        return posed(question, self.listed, self.answer_by)

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        owners = [(i, option) for i, question in enumerate(questions) for option in question.options]
        view = "last" if self.end_of_turn else "content"
        columns, usage = answer_losses(model, [questions[i].sample(option) for i, option in owners], view)
        loss = columns["mean"] * columns["tokens"] / self._lengths(owners, columns["tokens"])
        values, error = np.full(len(questions), np.nan), np.full(len(questions), "", object)
        question_of = np.array([i for i, _ in owners], np.int64)
        for i, question in enumerate(questions):
            candidates = np.flatnonzero(question_of == i).tolist()
            right = [k for k in candidates if owners[k][1] == question.answer]
            error[i] = self._problem(question, right, columns["error"][candidates])
            if not error[i]:
                values[i] = float(all(loss[right[0]] < loss[k] for k in candidates if k != right[0]))
        return EvalResult(values, error, usage, note=self._note(questions, usage))

    def _lengths(self, owners: Sequence[tuple[int, str]], tokens: np.ndarray) -> np.ndarray:
        if self.by == "mean":
            return tokens
        if self.by == "sum":
            return np.ones(len(owners))
        return np.array([len(option if self.by == "chars" else option.encode()) or 1 for _, option in owners], float)

    def _problem(self, question: Question, right: list[int], errors: np.ndarray) -> str:
        if len(question.options) < 2:
            without = "has no options of its own (a field options or choices)"
            more = "; choice.options=subtask offers the distinct answers of its sub-task, if these are 2 to 26"
            return without + (more if self.options != "subtask" else ", and its sub-task not 2 to 26 distinct answers")
        if len(right) != 1:
            return f"its answer is {len(right)} times among its options"
        return next((str(why) for why in errors if why), "")

    def _note(self, questions: Sequence[Question], usage: Any) -> str:
        borrowed = any(question.borrowed for question in questions)
        notes = []
        if borrowed and self.options == "auto":
            notes.append(
                "choice: the questions have no options of their own, so each was offered the distinct "
                "answers of its sub-task; choice.options=own refuses that, subtask asks for it"
            )
        if usage.cut:
            notes.append("choice: options were cut to the context, and scored as far as they are in it")
        return "; ".join(notes)
