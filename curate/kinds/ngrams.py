"""The hashed n-grams of a batch of texts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from curate.kinds.text import Text
from curate.kinds.words import WORDS_AND_MARKS

MOST_BUCKETS = 10_000_000


@dataclass(frozen=True)
class HashedNgrams:
    """The n-grams of all orders from 1 to n of B texts, each in a bucket: SHA-256 of its lower-cased WordPunct tokens,
    joined by spaces, mod the number of buckets.

    text, bucket: of every n-gram, int64 [G]. tokens: of every text, int64 [B].
    """

    text: np.ndarray
    bucket: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, batch: Text, ngrams: int, buckets: int) -> HashedNgrams:
        """Those of a batch."""
        words = batch.words(WORDS_AND_MARKS, lowercase=True)
        text, grams, order = words.texts(), words.codes.astype(np.int64), words.vocabulary
        texts, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for n in range(1, ngrams + 1):
            if n > 1:  # extend every (n-1)-gram by its next word, within a text
                pairs = grams[:-1] * len(words.vocabulary) + words.codes[n - 1 :]
                distinct, grams = np.unique(pairs, return_inverse=True)
                inside = text[: len(grams)] == text[n - 1 :]
                prefix, last = np.divmod(distinct, max(len(words.vocabulary), 1))
                order = order.gather(prefix) + " " + words.vocabulary.gather(last)
            else:
                inside = np.ones(len(grams), dtype=bool)
            if not inside.any():  # no text has so many words, nor more
                break
            texts.append(text[: len(grams)][inside])
            places.append(_buckets(order, buckets)[grams[inside]])
        return cls(np.concatenate(texts), np.concatenate(places), words.lengths())

    def counts(self, buckets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """text, bucket and count of each bucket that is in a text, int64 [E], in this order."""
        keys, counts = np.unique(self.text * buckets + self.bucket, return_counts=True)
        return (*np.divmod(keys, buckets), counts)


def _buckets(grams: pl.Series, buckets: int) -> np.ndarray:
    digests = (hashlib.sha256(gram.encode()).digest() for gram in grams)
    return np.array([int.from_bytes(digest, "big") % buckets for digest in digests], dtype=np.int64)
