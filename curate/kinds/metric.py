"""Metrics: the questions of a target, and what a model's answers are worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.method import Method


@dataclass(frozen=True)
class Question:
    """One sample of a target, as a model is asked it.

    shots: the messages of worked examples that stand before it. messages: null for raw text. subtask: '' where there is
    none. options: the answers to choose among, the right one with them; empty where none are known. meta: the fields
    that the input had beside.
    """

    messages: list[dict[str, Any]] | None
    text: str | None = None
    shots: tuple[dict[str, Any], ...] = ()
    subtask: str = ""
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The last assistant's turn; '' where there is none."""
        last = self.messages[-1] if self.messages else None
        return last["content"] or "" if last and last["role"] == "assistant" else ""

    def prompt(self) -> list[dict[str, Any]]:
        """The worked examples and what comes before the answer."""
        return [*self.shots, *(self.messages or [])[: -1 if self.answer else None]]

    def sample(self, answer: str | None = None) -> dict[str, Any]:
        """As a sample that a model can score, with its own answer or another."""
        if self.messages is None:
            return {"messages": None, "text": self.text}
        answers = [{"role": "assistant", "content": self.answer if answer is None else answer}]
        return {"messages": [*self.prompt(), *(answers if self.answer or answer is not None else [])], "text": None}


@dataclass(frozen=True)
class EvalResult:
    """What a metric finds of each question.

    values: float64 [N], NaN where a question could not be evaluated. error: why it could not, '' where it was. usage:
    what it cost (curate.models.usage.Usage). answers: what the model answered; None where it generated nothing.
    """

    values: np.ndarray
    error: np.ndarray
    usage: Any
    answers: list[str] | None = None


class Metric(Method):
    """How well a model answers. better: whether a higher value is, or a lower one."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        """Ask a LanguageModel every question."""

    def summary(self, values: np.ndarray) -> float:
        """One number of all that could be judged."""
        return float(np.mean(values)) if len(values) else float("nan")
