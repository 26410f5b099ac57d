from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.kinds.asking import Asked, Question, examples_of
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.signals import Forward, Logits

_DOUBTFUL = 0.5  # of the probability on no answer: the model then says something else more often than an answer


@dataclass(frozen=True)
class Judge(Score):
    """A language model's opinion of the sample, read from the probabilities of its answers; no text is generated.

    Formula, with the question put to the model by its chat template, p_k the probability that its next token begins
    answer k (as written, or behind a space), and v_k the answer's value:

        score = sum over k of v_k p_k / (sum over k of p_k)

    With yes = 1 and no = 0 that is P(yes) against P(no); with ratings 1 to 6 their expectation. among=vocabulary leaves
    the divisor out, so that what falls on no answer counts 0: of yes and no the probability of yes itself, Ask-LLM's
    form. Columns: `unanswered`, the share of probability that is on no answer; `entropy` of the answers, in nats, 0
    where the model is sure.

    question: `quality`, `complexity` (1 to 6, DEITA's form), `difficulty` (1 to 5), `educational` (0 to 5),
    `informative` (yes or no, Ask-LLM's form), `teaches` (yes or no: would the sample teach the target, of which the
    first `examples` are in the question; needs --target), or a file NAME.toml of your own with `question` (with
    {sample}, {prompt}, {answer} or {examples} in it), `answers`, `values`, and `system`. The answer {answer} is the
    last one, {prompt} what stands before it. Of a sample that is too long its end is left out, never the question's.

    Cost: one forward pass, 2N FLOPs per token, with one row of the output head per sample. What the questions begin
    with in common goes through the model once for many samples (of models with keys and values of all tokens), so put
    the sample behind the instructions. Bottleneck: the device's matrix products.

    Departures: the ready questions are ours, not the papers' wording. DEITA's own scorers are models trained for its
    wording, and of a chat it adds up complexity times quality over the turns; here a sample has one value.

    Reference: Sachdeva et al., "How to Train Data-Efficient LLMs", 2024, arXiv:2402.09668, Section 3.1 (Ask-LLM);
    Liu et al., "What Makes Good Data for Alignment?", ICLR 2024, arXiv:2312.15685, Section 2 (DEITA).

    >>> batch = Forward(np.log([[0.3, 0.1]]), np.array([1]), None, np.array([9]))
    >>> found = Judge(question="informative")._score({"asked": {"log_p": batch.per_token}}, {})
    >>> round(float(found["score"][0]), 3), round(float(found["unanswered"][0]), 3)
    (0.75, 0.6)
    """

    version: ClassVar[int] = 2  # 1: of a question with two fields that was too long the longer one alone was cut
    scope: ClassVar = "row"
    models: ClassVar = ("base",)
    columns: ClassVar = {"unanswered": "float32", "entropy": "float32"}

    question: str = "quality"
    """A ready question's name, or a file ending in .toml."""
    among: Literal["answers", "vocabulary"] = "answers"
    """Whether the answers' probabilities are divided by their sum."""
    examples: int = 4
    """How many of the target's examples {examples} stands for, from the first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_asks", Question.of(self.question))
        if self.examples < 1:
            raise CurateError(f"examples={self.examples} of judge is a number of the target's examples, at least 1.")

    @property
    def asks(self) -> Question:
        """The question, as it was read when this object was made."""
        return self._asks  # type: ignore[attr-defined]  # no setting, and yet sent to the workers

    @property
    def uses_target(self) -> bool:  # type: ignore[override]
        """Whether the target's examples are in the question."""
        return "{examples}" in self.asks.question

    def settings(self) -> dict[str, Any]:
        """The settings, and what the question says, which may be in a file that changes."""
        asks = self.asks
        says = {"says": [asks.system, asks.question, [list(answer) for answer in asks.answers], list(asks.values)]}
        return {**super().settings(), **says}

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        examples = examples_of(target.text.samples()[: self.examples]) if target and self.uses_target else ""
        view = Asked(self.asks.question, self.asks.answers, self.asks.system, examples)
        return (Pass("judge", self._score, requests={"asked": ForwardRequest(self._answers, of=self._one, view=view)}),)

    def _answers(self, at: Logits) -> Any:
        return at.answer_log_p

    def _one(self, batch: Forward) -> Columns:
        """The answers' log probabilities, [B, K]: each sample has one supervised token."""
        assert batch.per_token is not None
        return {"log_p": batch.per_token.reshape(len(batch.counts), len(self.asks.values))}

    def _score(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        log_p = np.asarray(requests["asked"]["log_p"], np.float64)
        with np.errstate(invalid="ignore"):  # of what could not be asked about
            total = np.logaddexp.reduce(log_p, axis=1)
        shares = np.exp(log_p - total[:, None])
        score = shares @ np.array(self.asks.values)
        if self.among == "vocabulary":
            score = score * np.exp(total)
        entropy = -(shares * np.where(shares > 0, log_p - total[:, None], 0.0)).sum(1)
        return {"score": score, "unanswered": np.clip(1 - np.exp(total), 0.0, 1.0), "entropy": entropy}

    def note(self, columns: Mapping[str, np.ndarray], target: Target | None = None) -> str:
        missed = columns["unanswered"][np.isfinite(columns["unanswered"])]
        if not len(missed) or (mean := float(missed.mean())) <= _DOUBTFUL:
            return ""
        return (
            f"{mean:.0%} of the model's probability is on none of the answers: it does not follow the question; use a "
            "model that follows instructions, or another question"
        )
