from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.errors import CurateError
from curate.kinds.asking import Asked, Question
from curate.kinds.passes import Arrays, Columns, ForwardRequest, Pass
from curate.kinds.score import Comparisons, Score, Target
from curate.kinds.signals import Forward, Logits
from curate.kinds.text import Text
from curate.numerics.bradley_terry import rated

_DOUBTFUL = 0.5  # of the probability on no answer: the model then says something else more often than an answer
_APART = "was compared, but not with what connects it to most of the others, so that it has no rating beside theirs"
_LEFT_OUT = "was not compared: it is not in the share that is, has no text, or the model could not take its comparisons"


@dataclass(frozen=True)
class Pairwise(Score):
    """A rating of each sample from a language model's comparisons of pairs; no text is generated.

    Formula: samples i and j are put to the model as the first and the second text of a question, and in the other
    order. With p(A) and p(B) the probabilities that its next token begins the answer for the first, or the second,

        p_ij = (P(A | i first) + P(B | j first)) / 2,    P = p / (p(A) + p(B))

    and the scores s are the Bradley-Terry ratings: those that make sum of p_ij log sigma(s_i - s_j) over all pairs the
    largest, with mean 0. s_i - s_j is the log odds that i is preferred.

    Each sample is compared with `comparisons` others, at random: neighbours on random rings through all of them, so
    that all are connected. Columns: `compared`, with how many others it was; `unanswered`, the share of probability
    that is on no answer, over its comparisons. What the model says for the first text whatever it is (position bias)
    is reported.

    question: `quality`, or one of QuRating's four criteria, `educational`, `expertise`, `facts`, `style`; or a file
    NAME.toml of your own with `question` (with {first} and {second} in it), two `answers`, and `system`. Of texts that
    are too long the ends of the longer ones are left out, never the question's.

    More comparisons tell the order better: with preferences whose log odds are off by as much as the samples' true
    ratings differ, ratings correlate with these by .84 with 4, .93 with 8, .96 with 16 (tests/numerics/
    test_bradley_terry.py).

    share: of the samples that are compared at all, drawn at random; the others have no score.

    Cost: `comparisons` forward passes of a question with two samples for each sample, 2N FLOPs per token; what
    questions begin with in common, the first sample included, goes through the model once for many of them. One
    process holds the compared samples and does it all. Bottleneck: the device's matrix products.

    Departures: the ready questions are ours, not the paper's wording. The paper asks a model that generates text, many
    times, and then trains a model on the preferences, which rates samples that were in no pair; here those that are
    compared are rated.

    Reference: Wettig, Gupta, Malik, Chen, "QuRating: Selecting High-Quality Data for Training Language Models",
    ICML 2024, arXiv:2402.09739, Section 2; Bradley and Terry, "Rank Analysis of Incomplete Block Designs", 1952.

    >>> said = {"log_p": np.log([[0.6, 0.2], [0.1, 0.3]])}
    >>> found = Pairwise()._preferences({"asked": said}, {})
    >>> found["first"].round(2).tolist(), found["unanswered"].round(2).tolist()
    ([0.75, 0.25], [0.2, 0.6])
    """

    scope: ClassVar = "pool"
    models: ClassVar = ("base",)
    columns: ClassVar = {"compared": "int32", "unanswered": "float32"}

    question: str = "quality"
    """A ready question's name, or a file ending in .toml."""
    comparisons: int = 8
    """With how many others each sample is compared, an even number, at least 4."""
    share: float = 1.0
    """The share of the samples that is compared."""
    seed: int = 0
    """Seed of the pairs and of the share."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_asks", Question.of(self.question, pair=True))
        if self.comparisons < 4 or self.comparisons % 2:
            raise CurateError(
                f"comparisons={self.comparisons} of pairwise is an even number of others, at least 4: with fewer, a "
                "pair that cannot be compared leaves samples without a rating."
            )
        if not 0 < self.share <= 1:
            raise CurateError(f"share={self.share} of pairwise is a share of the samples, above 0 and at most 1.")

    @property
    def asks(self) -> Question:
        """The question, as it was read when this object was made."""
        return self._asks  # type: ignore[attr-defined]  # no setting, and yet sent to the workers

    def settings(self) -> dict[str, Any]:
        """The settings, and what the question says, which may be in a file that changes."""
        asks = self.asks
        return {**super().settings(), "says": [asks.system, asks.question, [list(answer) for answer in asks.answers]]}

    def compared(self) -> Comparisons:
        return Comparisons(self.comparisons, self.share, self.seed)

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        view = Asked(self.asks.question, self.asks.answers, self.asks.system)
        requests = {"asked": ForwardRequest(self._answers, of=self._one, view=view)}
        shaped_by = ("says", "comparisons", "share", "seed")
        comparisons = Pass(
            "comparisons", self._preferences, self._ratings, shaped_by=shaped_by, requests=requests, over="pairs"
        )
        return comparisons, Pass("ratings", self._by_id)

    def _answers(self, at: Logits) -> Any:
        return at.answer_log_p

    def _one(self, batch: Forward) -> Columns:
        """The answers' log probabilities, [B, 2]: each question has one supervised token."""
        assert batch.per_token is not None
        return {"log_p": batch.per_token.reshape(len(batch.counts), 2)}

    def _preferences(self, requests: Mapping[str, Columns], _: Arrays) -> Columns:
        """Of each question the preference for the text that stands first, and second, and what is on no answer."""
        log_p = np.asarray(requests["asked"]["log_p"], np.float64)
        with np.errstate(invalid="ignore"):  # of what could not be asked about
            total = np.logaddexp.reduce(log_p, axis=1)
        first, second = np.exp(log_p - total[:, None]).T
        return {"first": first, "second": second, "unanswered": np.clip(1 - np.exp(total), 0.0, 1.0)}

    def _ratings(self, partials: Iterable[Arrays]) -> Arrays:
        """The ratings, in order of ids. partials: `one`, `other`, ids of the texts that stood first and second, uint64
        [Q], and the preferences, float64 [Q]; of each pair in both orders."""
        parts = list(partials)
        asked = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        ids, places = np.unique(np.stack([asked["one"], asked["other"]], 1), return_inverse=True)
        places = places.reshape(-1, 2)
        kept = np.isfinite(asked["first"])
        forth, back = _both_orders(places, kept, len(ids))
        first, second = asked["first"], asked["second"]
        one, other = places[forth].T
        preferred = np.stack([first[forth] + second[back], second[forth] + first[back]], 1) / 2
        found = rated(len(ids), one, other, preferred)
        compared = np.bincount(np.concatenate([one, other]), minlength=len(ids))
        missed = [np.concatenate([asked["unanswered"][each]] * 2) for each in (forth, back)]
        sums = [np.bincount(np.concatenate([one, other]), each, len(ids)) for each in missed]
        answered = np.concatenate([forth, back])
        figures = {
            "pairs": len(forth),
            "bias": first[answered].mean() if len(forth) else np.nan,
            "swayed": ((first[forth] > second[forth]) == (first[back] > second[back])).mean() if len(forth) else np.nan,
            "missed": asked["unanswered"][answered].mean() if len(forth) else np.nan,
            "loss": found.loss,
            "floor": found.floor,
            "apart": (np.isnan(found.rating) & (compared > 0)).sum(),
            "settled": found.settled,
        }
        return {
            "ids": ids,
            "rating": found.rating,
            "compared": compared,
            "unanswered": np.where(compared > 0, sum(sums) / np.maximum(2 * compared, 1), np.nan),
            **{name: np.array([value], np.float64) for name, value in figures.items()},
        }

    def _by_id(self, batch: Text, state: Arrays) -> Columns:
        places = np.minimum(np.searchsorted(state["ids"], batch.ids), max(len(state["ids"]) - 1, 0))
        inside = state["ids"][places] == batch.ids if len(state["ids"]) else np.zeros(len(batch), bool)
        score = np.full(len(inside), np.nan)
        score[inside] = state["rating"][places[inside]]
        unanswered = np.full(len(inside), np.nan)
        unanswered[inside] = state["unanswered"][places[inside]]
        compared = np.zeros(len(inside), np.int32)
        compared[inside] = state["compared"][places[inside]]
        error = np.where(np.isfinite(score), "", np.where(compared > 0, _APART, _LEFT_OUT)).astype(object)
        return {"score": score, "compared": compared, "unanswered": unanswered, "error": error}

    def state_note(self, before: Mapping[str, np.ndarray]) -> str:
        pairs, bias, swayed, missed, loss, floor = (
            float(before[name][0]) for name in ("pairs", "bias", "swayed", "missed", "loss", "floor")
        )
        if not pairs:
            return "no pair could be compared"
        told = (
            f"{int(pairs):,} pairs in both orders: the text that stands first has {bias:.0%} of the preference, and in "
            f"{swayed:.0%} of the pairs the order decides; cross-entropy {loss:.3f} nats under the ratings, "
            f"{floor:.3f} at best, {np.log(2):.3f} without"
        )
        if apart := int(before["apart"][0]):
            told += f"; {apart:,} samples are not connected with the others by what was answered"
        if not before["settled"][0]:
            told += "; the ratings of what is all but certain were still changing when they were given up on"
        if missed > _DOUBTFUL:
            told += (
                f"; {missed:.0%} of the model's probability is on none of the answers: it does not follow the "
                "question; use a model that follows instructions, or another question"
            )
        return told


def _both_orders(places: np.ndarray, kept: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair that was answered in both orders the positions of its two questions, in the order of the pairs.
    places: what stood first and second, int64 [Q, 2]."""
    asked = np.flatnonzero(kept)
    one, other = places[asked].T
    order = np.lexsort((one > other, np.maximum(one, other), np.minimum(one, other)))
    pair = np.minimum(one, other) * n + np.maximum(one, other)
    twins = np.flatnonzero(pair[order][1:] == pair[order][:-1])
    return asked[order[twins]], asked[order[twins + 1]]
