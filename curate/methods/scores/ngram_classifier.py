from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.ngrams import MOST_BUCKETS, HashedNgrams
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.numerics.logistic import auroc, calibration_error, fitted, log_loss

_PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_LEFT_OUT = "has no words"
_NONE = {"key": np.zeros(0, np.uint64)}


@dataclass(frozen=True)
class NgramClassifier(Score):
    """Log odds that a sample is one of the target's rather than the pool's, by a classifier that is trained here.

    Formula: x, the counts of a text's hashed n-grams (all orders from 1 to `ngrams`), scaled to length 1;

        score = w x + b

    with w, b the logistic regression of the target's val samples (positives) against `negatives` times as many samples
    of the pool, drawn at random, whose text is none of the target's. The ridge penalty is the one of 1e-6 to 1e-2 that
    gives the least log loss on samples that were left out.

    No sample is scored by a classifier that was trained on its text: positives and negatives are in `folds` parts,
    there is one classifier for each part, trained on the others; a sample that was trained on has the score of its
    part's, any other one the mean of all. The column `trained` is 1 for a positive, -1 for a negative, 0 for others.
    The same scores give the AUROC, log loss and calibration that are reported; they have seen the choice of the
    penalty alone.

    Positives may be any set: `curate sql "SELECT messages, text FROM samples WHERE …" -o good.parquet`, then
    `curate target good good.parquet`.

    Cost: reads and tokenises the pool, reads it twice more; and one process trains five classifiers for each part,
    which takes seconds with a thousand examples, a minute with ten thousand. No FLOPs. Bottleneck: hashing the distinct
    n-grams of a unit.

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
        drawn = ("target", "negatives", "seed")
        lowest, train = partial(self._lowest, target), partial(self._trained, target)
        negatives = Pass("negatives", partial(self._numbered, target), lowest, shaped_by=drawn)
        counts = Pass(
            "classifiers", self._counted, _joined, shaped_by=(*drawn, "ngrams", "buckets", "folds"), then=train
        )
        return negatives, counts, Pass("score", self._score)

    def _wanted(self, target: Target) -> int:
        return max(1, round(self.negatives * len(target.text)))

    def _numbered(self, target: Target, batch: Text, _: Arrays) -> Arrays:
        """The texts that may be negatives: of all that are not the target's, those with the lowest random numbers."""
        there = (batch.whole.str.strip_chars() != "") & ~batch.whole.is_in(target.text.whole.implode())
        key = np.unique(_keys(batch.whole.filter(there)))
        number = keyed_uniform(key, self.seed, "negatives")
        kept = np.argsort(number, kind="stable")[: self._wanted(target)]
        return {"drawn": key[kept], "drawn_number": number[kept], "pool": np.array([len(batch)])}

    def _lowest(self, target: Target, partials: Iterable[Arrays]) -> Arrays:
        """The texts with the lowest random numbers of all partials, in the order of their keys."""
        found, number, pool = np.zeros(0, np.uint64), np.zeros(0), 0
        for part in partials:
            found, first = np.unique(np.concatenate([found, part["drawn"]]), return_index=True)
            number = np.concatenate([number, part["drawn_number"]])[first]
            kept = np.argsort(number, kind="stable")[: self._wanted(target)]
            found, number, pool = found[kept], number[kept], pool + int(part["pool"][0])
        return {"drawn": np.sort(found), "pool": np.array([pool])}

    def _counted(self, batch: Text, state: Arrays) -> Arrays:
        """The n-grams of the negatives in a batch."""
        key = _keys(batch.whole)
        part = Text(batch.frame[np.flatnonzero(np.isin(key, state["drawn"]))].to_arrow())
        return {"key": _keys(part.whole), **self._counts(part)}

    def _counts(self, batch: Text) -> Arrays:
        """The counts of a batch's buckets, and up to where in them each text's are."""
        text, bucket, count = HashedNgrams.of(batch, self.ngrams, self.buckets).counts(self.buckets)
        return {
            "bucket": bucket.astype(np.int32),
            "count": count.astype(np.int32),
            "stop": np.cumsum(np.bincount(text, minlength=len(batch))),
        }

    def _trained(self, target: Target, negatives: Arrays, before: Mapping[str, np.ndarray]) -> Arrays:
        """A classifier for each part, and what they say of samples that they have not seen; of an empty pool none."""
        if not before["pool"][0]:
            return _NONE
        positives = {"key": _keys(target.text.whole), **self._counts(target.text)}
        both = _joined([_distinct(positives), _distinct(negatives)])
        label = np.arange(len(both["key"])) < len(np.unique(positives["key"]))
        worded = np.diff(both["stop"], prepend=0) > 0
        self._refuse_few(target, label[worded])
        part, number = np.zeros(len(label), np.int64), keyed_uniform(both["key"], self.seed, "folds")
        for own in (np.flatnonzero(label & worded), np.flatnonzero(~label & worded)):
            part[own[np.argsort(number[own])]] = np.arange(len(own)) % self.folds
        used, place = np.unique(both["bucket"], return_inverse=True)
        x = _features(place, both["count"], both["stop"], len(used))[np.flatnonzero(worded)]
        key, label, part = both["key"][worded], label[worded], part[worded]
        fits = [_fits(x[part != fold], label[part != fold]) for fold in range(self.folds)]
        held_out = np.zeros((len(_PENALTIES), len(label)))
        for i, fold in itertools.product(range(len(_PENALTIES)), range(self.folds)):
            held_out[i, part == fold] = x[part == fold] @ fits[fold][i][0] + fits[fold][i][1]
        best = int(np.argmin([log_loss(odds, label) for odds in held_out]))
        odds, order = held_out[best], np.argsort(key)
        figures = {"auroc": auroc(odds, label), "loss": log_loss(odds, label), "off": calibration_error(odds, label)}
        return {
            "bucket": used,
            "weights": np.array([fit[best][0] for fit in fits]),
            "intercepts": np.array([fit[best][1] for fit in fits]),
            "key": key[order],
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
        if not len(state["key"]):
            return {"score": np.full(len(batch), np.nan), "trained": np.zeros(len(batch), np.int8)}
        counts, bucket, key = self._counts(batch), state["bucket"], _keys(batch.whole)
        place = np.minimum(np.searchsorted(bucket, counts["bucket"]), len(bucket) - 1)
        # Buckets that no classifier knows have no weight, but are part of a text's length.
        place = np.where(bucket[place] == counts["bucket"], place, len(bucket))
        x = _features(place, counts["count"], counts["stop"], len(bucket) + 1)
        odds = x @ np.pad(state["weights"], ((0, 0), (0, 1))).T + state["intercepts"]
        at = np.minimum(np.searchsorted(state["key"], key), len(state["key"]) - 1)
        seen = state["key"][at] == key
        score = np.where(seen, odds[np.arange(len(batch)), state["part"][at]], odds.mean(1))
        empty = np.diff(counts["stop"], prepend=0) == 0
        return {
            "score": np.where(empty, np.nan, score),
            "trained": np.where(seen, np.where(state["label"][at], 1, -1), 0),
            "error": np.where(empty, _LEFT_OUT, "").astype(object),
        }

    def state_note(self, before: Mapping[str, np.ndarray]) -> str:
        if not len(before["key"]):
            return ""
        label = np.asarray(before["label"])
        loss, off, share = float(before["loss"][0]), float(before["off"][0]), label.mean()
        without = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        return (
            f"told {int(label.sum()):,} of the target from {int((~label).sum()):,} of the pool; on samples that it had "
            f"not seen its AUROC is {float(before['auroc'][0]):.3f}, its log loss {loss:.3f} nats ({without:.3f} "
            f"without it), its probabilities off by {off:.3f} on average"
        )


def _keys(texts: pl.Series) -> np.ndarray:
    """A number for each text, uint64 [B], by which a sample is known whatever else it has beside its text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)


def _fits(x: csr_array, label: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Weights and intercept with each penalty, from the largest on, each fit beginning where the last one ended."""
    found, start = list[tuple[np.ndarray, float]](), None
    for penalty in _PENALTIES:
        w, b = fitted(x, label, penalty, start)
        found, start = [*found, (w, b)], np.append(w, b)
    return found


def _distinct(found: Arrays) -> Arrays:
    """Texts with their n-grams, each once, in the order of their keys."""
    return _taken(found, np.unique(found["key"], return_index=True)[1])


def _features(place: np.ndarray, count: np.ndarray, stop: np.ndarray, width: int) -> csr_array:
    """Counts as rows of length 1, [B, width]; a text without n-grams is 0."""
    x = csr_array((count.astype(np.float64), place, np.concatenate([[0], stop])), shape=(len(stop), width))
    text = np.repeat(np.arange(len(stop)), np.diff(stop, prepend=0))
    length = np.sqrt(np.bincount(text, count.astype(np.float64) ** 2, len(stop)))
    return csr_array((x.data / length[text], x.indices, x.indptr), shape=x.shape)


def _joined(partials: Iterable[Arrays]) -> Arrays:
    """Texts with their n-grams, one after the other."""
    parts = list(partials)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "stop"}
    before = np.cumsum([0, *(len(part["bucket"]) for part in parts)])
    return {**found, "stop": np.concatenate([part["stop"] + n for part, n in zip(parts, before, strict=False)])}


def _taken(found: Arrays, kept: np.ndarray) -> Arrays:
    """Some of the texts with their n-grams, in this order."""
    start = np.concatenate([[0], found["stop"][:-1]])[kept] if len(found["stop"]) else np.zeros(0, np.int64)
    length = found["stop"][kept] - start
    own = np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())
    return {
        "key": found["key"][kept],
        "bucket": found["bucket"][own],
        "count": found["count"][own],
        "stop": np.cumsum(length),
    }
