"""Metrics: the questions of a target, and how a model's answers to them are evaluated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.method import Method


@dataclass(frozen=True)
class Question:
    """One sample of a target, as posed to a model.

    shots: the messages of the few-shot examples that precede it. messages: None for raw text. subtask: '' if there is
    none. options: the candidate answers, including the correct one; empty if none are known. meta: the other fields of
    the input record. template_kwargs: tools and the like, as in the pool; few-shot examples are shown none of their
    own. borrowed: whether the options are the answers to the other questions of its sub-task.
    """

    messages: list[dict[str, Any]] | None
    text: str | None = None
    shots: tuple[dict[str, Any], ...] = ()
    subtask: str = ""
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: str | None = None
    borrowed: bool = False

    def shape(self) -> dict[str, Any]:
        """What results depend on, as a fingerprint takes it."""
        fields = asdict(self)
        del fields["borrowed"]  # follows from the others
        return fields

    @property
    def answer(self) -> str:
        """The content of the final assistant turn; '' if there is none."""
        last = self.messages[-1] if self.messages else None
        return last["content"] or "" if last and last["role"] == "assistant" else ""

    def prompt(self) -> list[dict[str, Any]]:
        """The few-shot examples and the messages before the answer."""
        return [*self.shots, *(self.messages or [])[: -1 if self.answer else None]]

    def sample(self, answer: str | None = None) -> dict[str, Any]:
        """The question as a sample that a model can score, with the reference answer or the given one."""
        if self.messages is None:
            return {"messages": None, "text": self.text, "template_kwargs": None}
        answers = [{"role": "assistant", "content": self.answer if answer is None else answer}]
        messages = [*self.prompt(), *(answers if self.answer or answer is not None else [])]
        return {"messages": messages, "text": None, "template_kwargs": self.template_kwargs}


@dataclass(frozen=True)
class EvalResult:
    """The values of a metric on N questions.

    values: float64 [N], NaN for a question that could not be evaluated. error: the reason, '' if it was evaluated.
    usage: the cost (curate.models.usage.Usage). answers: the generated answers; None if nothing was generated. note:
    what is to be known of how it was done, which is stored and said; '' if nothing is. weights: by which each value
    counts in the summary, float64 [N]; None if all count the same.
    """

    values: np.ndarray
    error: np.ndarray
    usage: Any
    answers: list[str] | None = None
    note: str = ""
    weights: np.ndarray | None = None


class Metric(Method):
    """How well a model answers. better: whether higher or lower values are better."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    later: ClassVar[tuple[str, ...]] = ()  # settings that came without a new version: their defaults change nothing

    def require(self) -> None:
        """Raises CurateError if this machine lacks what the metric needs; asked before anything is computed."""

    def shaping(self) -> dict[str, Any]:
        """The settings that results depend on, as a fingerprint takes them: without later ones at their defaults."""
        usual = type(self)().settings() if self.later else {}
        return {k: v for k, v in self.settings().items() if k not in self.later or v != usual[k]}

    def options_from(self) -> Literal["auto", "own", "subtask"]:
        """Where a question's options come from: the input's fields, the distinct answers of its sub-task, or (auto)
        these where no question of the target has options of its own."""
        return "auto"

    def posed(self, question: Question) -> Question:
        """A question, or few-shot example, as this metric poses it."""
        return question

    @abstractmethod
    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        """Evaluate a LanguageModel on every question."""

    def summary(self, values: np.ndarray) -> float:
        """One value that summarises the questions that could be evaluated; NaN if there are none."""
        return float(np.mean(values)) if len(values) else float("nan")

    def weighted(self, values: np.ndarray, weights: np.ndarray) -> float:
        """The same where values count by weights, float64 [N], not all 0."""
        return float(np.average(values, weights=weights)) if len(values) else float("nan")
