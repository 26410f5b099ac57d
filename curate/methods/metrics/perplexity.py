from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.answers import answer_losses, sliding_losses


@dataclass(frozen=True)
class Perplexity(Metric):
    """Perplexity of the answer: how many tokens the model hesitates between; lower is better.

    Formula: of a question, exp of the mean loss of its last answer's tokens (of raw text: of all but the first); of a
    target, exp of the mean of those losses over its questions (over=documents, a geometric mean), or over all their
    tokens (over=tokens, a corpus's perplexity).

    A text that is longer than the context is cut there, which is said; with a stride it is read in windows of the
    context's length, stride tokens apart: every token is scored once, behind at least context - stride others.

    Cost: one forward pass, 2N FLOPs per token; with a stride up to context / stride times that for long texts.

    Reference: exp of the cross-entropy; "Perplexity of fixed-length models" of the Transformers documentation, for
    windows.

    >>> round(Perplexity().summary(np.array([2.0, 8.0])), 6)
    4.0
    >>> round(Perplexity(over="tokens").weighted(np.array([2.0, 8.0]), np.array([2.0, 1.0])), 6)
    3.174802
    """

    better: ClassVar = "lower"
    later: ClassVar = ("over", "stride")

    over: Literal["documents", "tokens"] = "documents"
    """Whether each question counts the same, or each token."""
    stride: int = 0
    """Tokens between the windows of a long text, fewer than the context; 0: it is cut to the context."""

    def __post_init__(self) -> None:
        require(f"perplexity.stride={self.stride}", self.stride >= 0, "0 or more")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        samples = [question.sample() for question in questions]
        columns, usage = sliding_losses(model, samples, self.stride) if self.stride else answer_losses(model, samples)
        note = f"perplexity: longer texts were cut to the context of {model.context} tokens; perplexity.stride=N"
        weights = np.asarray(columns["tokens"], np.float64) if self.over == "tokens" else None
        told = f"{note} reads them whole" if usage.cut else ""
        return EvalResult(np.exp(columns["mean"]), columns["error"], usage, note=told, weights=weights)

    def summary(self, values: np.ndarray) -> float:
        return float(np.exp(np.log(values).mean())) if len(values) else float("nan")

    def weighted(self, values: np.ndarray, weights: np.ndarray) -> float:
        return float(np.exp(np.average(np.log(values), weights=weights))) if len(values) else float("nan")
