from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.ngrams import MOST_BUCKETS, HashedNgrams
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import WORDS_AND_MARKS
from curate.numerics.logistic import auroc, calibration_error, fitted, log_loss

_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_LEFT_OUT = "has no words"
_NONE = {"id": np.zeros(0, np.uint64)}


@dataclass(frozen=True)
class NgramClassifier(Score):
    """Log odds that a sample is one of the target's rather than the pool's, by a classifier that is trained here.

    Formula: x, the counts of a text's hashed n-grams (all orders from 1 to `ngrams`), scaled to length 1;

        score = w x + b

    with w, b the logistic regression of the target's val samples (positives) against `negatives` times as many samples
    of the pool, drawn at random, that are not the target's (by id). The ridge penalty is the one of 1e-6 to 1e-2 that
    gives the least log loss on samples that were left out.

    No sample is scored by a classifier that was trained on it: positives and negatives are in `folds` parts, there is
    one classifier for each part, trained on the others; a sample that was trained on has the score of its part's, any
    other one the mean of all. The same scores give the AUROC, log loss and calibration that are reported, of samples
    not seen, with the penalty chosen without them.

    Positives may be any set: `curate sql "SELECT messages, text FROM samples WHERE …" -o good.parquet`, then
    `curate target good good.parquet`.

    Cost: reads and tokenises the pool twice; no FLOPs. Bottleneck: hashing the distinct n-grams of a unit.

    Departures: DataComp-LM trains fastText, whose features are the same up to their scaling and whose classifier is
    linear too, of a rank below the vocabulary's; it takes 200,000 positives and as many negatives.

    Reference: Li et al., "DataComp-LM: In search of the next generation of training sets for language models",
    NeurIPS 2024, arXiv:2406.11794, Section 4.4; Joulin et al., "Bag of Tricks for Efficient Text Classification",
    2017, arXiv:1607.01759.

    >>> from curate.kinds.score import run
    >>> target = Target.of([f"the apple number {i} is red" for i in range(20)])
    >>> pool = Text.of([*(f"x = {i}; print(x)" for i in range(20)), "a red apple", "print(apple)"])
    >>> scores = run(NgramClassifier(), [pool], target)[0]["score"]
    >>> bool(scores[20] > scores[:20].max())
    True
    """

    scope: ClassVar = "pool"
    uses_target: ClassVar = True
    columns: ClassVar = {"trained": "int8"}

    ngrams: int = 2
    """Highest order of n-gram."""
    buckets: int = 2_000_000
    """Number of hash buckets."""
    negatives: float = 1.0
    """Samples of the pool for each of the target's."""
    folds: int = 5
    """Parts, each scored by what was trained on the others."""
    seed: int = 0
    """Seed of the negatives and of the parts."""

    def __post_init__(self) -> None:
        if self.ngrams < 1 or not 2 <= self.buckets <= MOST_BUCKETS or self.folds < 3 or not self.negatives > 0:
            raise CurateError(
                f"ngram_classifier needs ngrams >= 1, buckets from 2 to {MOST_BUCKETS:,}, folds >= 3, negatives > 0, "
                f"not {self.ngrams}, {self.buckets}, {self.folds}, {self.negatives}."
            )

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        shaped_by = ("target", "ngrams", "buckets", "negatives", "folds", "seed")
        draw, train = partial(self._drawn, target), partial(self._trained, target)
        classifiers = Pass("classifiers", draw, partial(self._fewest, target), shaped_by=shaped_by, then=train)
        return classifiers, Pass("score", self._score)

    def _wanted(self, target: Target) -> int:
        return max(1, round(self.negatives * len(target.text)))

    def _drawn(self, target: Target, batch: Text, _: Arrays) -> Arrays:
        """The n-grams of the samples that may be negatives: of all that are not the target's, those with the lowest
        random numbers."""
        number = keyed_uniform(batch.ids, self.seed, "negatives")
        words = batch.words(WORDS_AND_MARKS, lowercase=True).lengths()
        number[np.isin(batch.ids, target.text.ids) | (words == 0)] = 1.0
        kept = np.sort(np.argsort(number, kind="stable")[: self._wanted(target)])
        kept = kept[number[kept] < 1.0]
        part = Text(batch.frame[kept].to_arrow())
        return {"id": batch.ids[kept], "number": number[kept], **self._counts(part)}

    def _counts(self, batch: Text) -> Arrays:
        """The counts of a batch's buckets, and up to where in them each text's are."""
        text, bucket, count = HashedNgrams.of(batch, self.ngrams, self.buckets).counts(self.buckets)
        return {"bucket": bucket, "count": count, "stop": np.cumsum(np.bincount(text, minlength=len(batch)))}

    def _fewest(self, target: Target, partials: Iterable[Arrays]) -> Arrays:
        """The samples with the lowest random numbers of all partials."""
        found = _joined(list(partials))
        kept = np.lexsort((found["id"], found["number"]))[: self._wanted(target)]
        kept = kept[np.concatenate([[True], np.diff(found["id"][kept].astype(np.int64)) != 0])[: len(kept)]]
        return _taken(found, kept)

    def _trained(self, target: Target, drawn: Arrays, _: Mapping[str, np.ndarray]) -> Arrays:
        """A classifier for each part, and what they say of samples that they have not seen; of an empty pool none."""
        if not len(drawn["id"]):
            return _NONE
        words = target.text.words(WORDS_AND_MARKS, lowercase=True).lengths()
        distinct = np.unique(target.text.ids, return_index=True)[1]
        distinct = distinct[words[distinct] > 0]
        positives = Text(target.text.frame[np.sort(distinct)].to_arrow())
        of_target = {"id": positives.ids, "number": np.zeros(len(positives)), **self._counts(positives)}
        both = _joined([of_target, drawn])
        label = np.arange(len(both["id"])) < len(positives)
        self._refuse_few(target, label)
        part, number = np.zeros(len(label), np.int64), keyed_uniform(both["id"], self.seed, "folds")
        for own in (np.flatnonzero(label), np.flatnonzero(~label)):
            part[own[np.argsort(number[own])]] = np.arange(len(own)) % self.folds
        used, place = np.unique(both["bucket"], return_inverse=True)
        x = _features(place, both["count"], both["stop"], len(used))
        weights, intercepts, penalties, odds = [], [], [], np.zeros(len(label))
        for fold in range(self.folds):
            w, b, penalty = _classifier(x, label, part, fold, self.folds)
            weights, intercepts, penalties = [*weights, w], [*intercepts, b], [*penalties, penalty]
            odds[part == fold] = x[part == fold] @ w + b
        order = np.argsort(both["id"])
        figures = {"auroc": auroc(odds, label), "loss": log_loss(odds, label), "off": calibration_error(odds, label)}
        return {
            "bucket": used,
            "weights": np.array(weights),
            "intercepts": np.array(intercepts),
            "penalties": np.array(penalties),
            "id": both["id"][order],
            "part": part[order],
            "label": label[order],
            **{name: np.array([value]) for name, value in figures.items()},
        }

    def _refuse_few(self, target: Target, label: np.ndarray) -> None:
        """Raises CurateError if not every part can have a positive and a negative."""
        positives, negatives = int(label.sum()), int((~label).sum())
        if min(positives, negatives) < self.folds:
            raise CurateError(
                f"the target '{target.name}' has {positives} examples, and {negatives} other samples of the pool were "
                f"drawn: with folds={self.folds} a classifier takes at least as many of each."
            )

    def _score(self, batch: Text, state: Arrays) -> Columns:
        if not len(state["id"]):
            return {"score": np.full(len(batch), np.nan), "trained": np.zeros(len(batch), np.int8)}
        counts = self._counts(batch)
        place = np.minimum(np.searchsorted(state["bucket"], counts["bucket"]), max(len(state["bucket"]) - 1, 0))
        known = state["bucket"][place] == counts["bucket"]
        # Buckets that no classifier knows have no weight, but are part of a text's length.
        x = _features(np.where(known, place, len(state["bucket"])), counts["count"], counts["stop"],
                      len(state["bucket"]) + 1)  # fmt: skip
        odds = x @ np.pad(state["weights"], ((0, 0), (0, 1))).T + state["intercepts"]
        at = np.minimum(np.searchsorted(state["id"], batch.ids), len(state["id"]) - 1)
        seen = state["id"][at] == batch.ids
        score = np.where(seen, odds[np.arange(len(batch)), state["part"][at]], odds.mean(1))
        empty = np.diff(counts["stop"], prepend=0) == 0
        return {
            "score": np.where(empty, np.nan, score),
            "trained": np.where(seen, np.where(state["label"][at], 1, -1), 0),
            "error": np.where(empty, _LEFT_OUT, "").astype(object),
        }

    def state_note(self, before: Mapping[str, np.ndarray]) -> str:
        if not len(before["id"]):
            return ""
        label = np.asarray(before["label"])
        loss, off, share = float(before["loss"][0]), float(before["off"][0]), label.mean()
        without = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        return (
            f"told {int(label.sum()):,} of the target from {int((~label).sum()):,} of the pool; on samples that it had "
            f"not seen its AUROC is {float(before['auroc'][0]):.3f}, its log loss {loss:.3f} nats ({without:.3f} "
            f"without it), its probabilities off by {off:.3f} on average"
        )


def _classifier(
    x: csr_array, label: np.ndarray, part: np.ndarray, fold: int, folds: int
) -> tuple[np.ndarray, float, float]:
    """Weights, intercept and penalty of the classifier for one part, which has not seen it. The penalty is the best on
    the next part, of those trained without both."""
    beside = part == (fold + 1) % folds
    rest = (part != fold) & ~beside
    losses = []
    for penalty in _PENALTIES:
        w, b = fitted(x[rest], label[rest], penalty)
        losses.append(log_loss(x[beside] @ w + b, label[beside]))
    best = _PENALTIES[int(np.argmin(losses))]
    return (*fitted(x[part != fold], label[part != fold], best), best)


def _features(place: np.ndarray, count: np.ndarray, stop: np.ndarray, width: int) -> csr_array:
    """Counts as rows of length 1, [B, width]; a text without n-grams is 0."""
    x = csr_array((count.astype(np.float64), place, np.concatenate([[0], stop])), shape=(len(stop), width))
    text = np.repeat(np.arange(len(stop)), np.diff(stop, prepend=0))
    length = np.sqrt(np.bincount(text, count.astype(np.float64) ** 2, len(stop)))
    return csr_array((x.data / length[text], x.indices, x.indptr), shape=x.shape)


def _joined(parts: list[Arrays]) -> Arrays:
    """Samples with their n-grams, one after the other."""
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "stop"}
    before = np.cumsum([0, *(len(part["bucket"]) for part in parts)])
    return {**found, "stop": np.concatenate([part["stop"] + n for part, n in zip(parts, before, strict=False)])}


def _taken(found: Arrays, kept: np.ndarray) -> Arrays:
    """Some of the samples with their n-grams, in this order."""
    start = np.concatenate([[0], found["stop"][:-1]])[kept] if len(found["stop"]) else np.zeros(0, np.int64)
    length = found["stop"][kept] - start
    own = np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())
    taken: dict[str, Any] = {name: found[name][kept] for name in ("id", "number")}
    return {**taken, "bucket": found["bucket"][own], "count": found["count"][own], "stop": np.cumsum(length)}
