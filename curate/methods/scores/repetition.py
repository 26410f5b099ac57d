from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from curate.hashing import pair_number
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import BETWEEN_SPACES, Words, split_words

# Rae et al. 2021, Table A1: the largest share of each kind that a document may have.
_LIMITS = {
    "dup_line": 0.30,
    "dup_paragraph": 0.30,
    "dup_line_chars": 0.20,
    "dup_paragraph_chars": 0.20,
    **{"top_2gram": 0.20, "top_3gram": 0.18, "top_4gram": 0.16},
    **{"dup_5gram": 0.15, "dup_6gram": 0.14, "dup_7gram": 0.13},
    **{"dup_8gram": 0.12, "dup_9gram": 0.11, "dup_10gram": 0.10},
}
# From the first to the last non-space character, within a line or with single line breaks between.
_PIECES = {"line": r"\S(?:[^\S\n]*\S)*", "paragraph": r"\S(?:[^\S\n]*\n?[^\S\n]*\S)*"}


@dataclass(frozen=True)
class Repetition(Score):
    """How little a sample repeats itself: Gopher's repetition heuristics as one number.

    Formula: score = - max over the thirteen shares below of share / limit, so a sample passes Gopher's filter where
    score >= -1 (`--where "repetition >= -1"`); 0 means no repetition at all. Each share is a column:

        dup_line, dup_paragraph              lines (paragraphs) that occurred before / all
        dup_line_chars, dup_paragraph_chars  the characters in these / all characters
        top_2gram … top_4gram                characters in the most frequent n-gram's occurrences / all
        dup_5gram … dup_10gram               characters in n-grams that occurred before, counted once / all

    Words are separated by white space, lines by newlines, paragraphs by empty lines, the latter two stripped of the
    white space at their ends; all characters are those of lines, paragraphs or words, without the separators. Among
    equally frequent n-grams the one with the most characters counts; an n-gram that occurs once is not a repetition; a
    share is at most 1. In scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a word is
    a letter with its marks and the punctuation around it, or a run of Katakana.

    Cost: reads the pool once; no FLOPs. Bottleneck: sorting the n-grams (nine sorts of the batch's words).

    Departures: the paper gives shares and limits and says of the n-grams only that overlaps count once; it is our
    choice that the first occurrence is not a repetition, and that the score is the worst ratio. The limits are for
    words of English: n letters of Chinese repeat more easily than n words, so choose a limit by looking.

    Reference: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021,
    arXiv:2112.11446, Table A1.

    >>> from curate.kinds.score import run
    >>> batch = Text.of(["all is said once", "and again and again and again"])
    >>> run(Repetition(), [batch])[0]["score"].round(2).tolist()
    [0.0, -6.25]
    """

    version: ClassVar[int] = 2  # 1: a run without white space was one word in every script
    scope: ClassVar[Literal["row", "pool"]] = "row"
    columns: ClassVar = dict.fromkeys(_LIMITS, "float32")

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("measure", self._measure),)

    def _measure(self, batch: Text, _: Arrays) -> Columns:
        shares: dict[str, np.ndarray] = {}
        for kind, pattern in _PIECES.items():
            pieces = split_words(batch.whole, pattern, lowercase=False)
            repeated = _seen_before(pieces.texts(), pieces.codes)
            shares[f"dup_{kind}"] = _share(pieces, repeated, np.ones(len(repeated)))
            shares[f"dup_{kind}_chars"] = _share(pieces, repeated, _lengths(pieces))
        words = split_words(batch.whole, BETWEEN_SPACES, lowercase=False)
        shares |= _ngram_shares(words)
        worst = np.max([shares[name] / limit for name, limit in _LIMITS.items()], axis=0)
        return {**shares, "score": -worst + 0.0, "error": np.where(words.lengths() == 0, "has no words", "")}


def _lengths(words: Words) -> np.ndarray:
    """Characters of every word, int64 [N]."""
    return words.vocabulary.str.len_chars().to_numpy().astype(np.int64)[words.codes]


def _seen_before(text: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Whether the same gram (any 64-bit hash) occurred earlier in the same text, bool [N]."""
    keys = pair_number(gram.astype(np.uint64), text.astype(np.uint64))
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
    repeated = np.ones(len(keys), dtype=bool)
    if len(keys):
        repeated[np.minimum.reduceat(order, starts)] = False
    return repeated


def _share(pieces: Words, counted: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Size of the counted pieces over the size of all, per text; 0 where there is none."""
    text, n = pieces.texts(), len(pieces.ends) - 1
    return np.bincount(text, size * counted, n) / np.maximum(np.bincount(text, size, n), 1)


def _ngram_shares(words: Words) -> dict[str, np.ndarray]:
    text, chars, n_texts = words.texts(), _lengths(words), len(words.ends) - 1
    chars_before = np.concatenate([[0], np.cumsum(chars)])  # characters before each word
    total = np.maximum(np.bincount(text, chars, n_texts), 1)
    shares, codes = {}, words.codes.astype(np.uint64)
    grams = codes
    for n in range(2, 11):
        grams = pair_number(grams[:-1], codes[n - 1 :])  # the hash of the n-gram that begins at each word
        starts = np.flatnonzero(text[: len(grams)] == text[n - 1 :])
        gram_text, gram = text[starts], grams[starts]
        if n <= 4:
            repeated = _top_chars(gram_text, gram, chars_before[starts + n] - chars_before[starts], n_texts)
        else:
            covered = _covered(starts[_seen_before(gram_text, gram)], n, len(text))
            repeated = np.bincount(text, chars * covered, n_texts)
        shares[f"{'top' if n <= 4 else 'dup'}_{n}gram"] = np.minimum(repeated / total, 1.0)
    return shares


def _top_chars(text: np.ndarray, gram: np.ndarray, chars: np.ndarray, n_texts: int) -> np.ndarray:
    """Characters in all occurrences of each text's most frequent n-gram; 0 where none occurs twice."""
    frame = pl.DataFrame({"text": text, "gram": gram, "chars": chars})
    counted = frame.group_by("text", "gram").agg(pl.len(), pl.col("chars").first())
    top = (
        counted.filter(pl.col("len") > 1)
        .group_by("text")
        .agg((pl.col("len") * pl.col("chars")).filter(pl.col("len") == pl.col("len").max()).max().alias("repeated"))
    )
    repeated = np.zeros(n_texts, dtype=np.int64)
    repeated[top["text"].to_numpy()] = top["repeated"].to_numpy()
    return repeated


def _covered(starts: np.ndarray, n: int, n_words: int) -> np.ndarray:
    """Whether each word is in one of the n-grams that begin at `starts`, bool [N]."""
    steps = np.bincount(starts, minlength=n_words + 1) - np.bincount(starts + n, minlength=n_words + 1)
    return np.cumsum(steps)[:n_words] > 0
