from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from curate.hashing import pair_number
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import BETWEEN_SPACES

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
_EMPTY_LINES = r"\n[^\S\n]*\n\s*"


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

    Cost: reads the pool once; no FLOPs. Bottleneck: splitting texts into words.

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
        whole = batch.whole
        between = {"line": whole, "paragraph": whole.str.replace_all(_EMPTY_LINES, "\n\n")}
        for kind, separator in (("line", "\n"), ("paragraph", "\n\n")):
            pieces = _Pieces.of(between[kind].str.split(separator), stripped=True)
            repeated = pieces.seen_before()
            shares[f"dup_{kind}"] = pieces.share(repeated, np.ones(len(repeated)))
            shares[f"dup_{kind}_chars"] = pieces.share(repeated, pieces.chars)
        words = _Pieces.of(whole.str.extract_all(BETWEEN_SPACES))
        shares |= _ngram_shares(words)
        worst = np.max([shares[name] / limit for name, limit in _LIMITS.items()], axis=0)
        has_words = np.bincount(words.text, minlength=len(batch)) > 0
        return {**shares, "score": -worst + 0.0, "error": np.where(has_words, "", "has no words")}


@dataclass(frozen=True)
class _Pieces:
    """The N lines, paragraphs or words of B texts: the text of each, ascending, its hash (uint64, the same within a
    process) and its characters, int64, each [N]."""

    n_texts: int
    text: np.ndarray
    number: np.ndarray
    chars: np.ndarray

    @classmethod
    def of(cls, lists: pl.Series, stripped: bool = False) -> _Pieces:
        """stripped: of white space at the ends of each; what is then empty is none."""
        sizes = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        text, flat = np.repeat(np.arange(len(lists)), sizes), lists.explode().drop_nulls()  # of an empty list, a null
        if stripped:
            flat = flat.str.strip_chars()
            kept = flat != ""
            text, flat = text[kept.to_numpy()], flat.filter(kept)
        return cls(len(lists), text, flat.hash().to_numpy(), flat.str.len_chars().to_numpy().astype(np.int64))

    def share(self, counted: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Size of the counted pieces over the size of all, per text; 0 where there is none."""
        n = self.n_texts
        return np.bincount(self.text, size * counted, n) / np.maximum(np.bincount(self.text, size, n), 1)

    def seen_before(self) -> np.ndarray:
        """Whether the same piece occurred earlier in the same text, bool [N]."""
        groups = _Groups.of(self.text, self.number)
        return groups.of_several & ~groups.first


@dataclass(frozen=True)
class _Groups:
    """Equal grams of a text among M grams.

    order: the grams, one group after the other. starts: where each group begins in `order`. sizes: grams in each.
    """

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, text: np.ndarray, gram: np.ndarray) -> _Groups:
        """gram: any 64-bit hashes."""
        keys = pair_number(gram.astype(np.uint64), text.astype(np.uint64))
        order = np.argsort(keys)
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)))
        return cls(order, starts, np.diff(starts, append=len(keys)))

    @cached_property
    def of_several(self) -> np.ndarray:
        """Whether each gram occurs twice or more, bool [M]."""
        several = np.zeros(len(self.order), bool)
        several[self.order] = np.repeat(self.sizes > 1, self.sizes)
        return several

    @cached_property
    def first(self) -> np.ndarray:
        """Whether each gram is the first of its group, bool [M]."""
        first = np.zeros(len(self.order), bool)
        if len(self.order):
            first[np.minimum.reduceat(self.order, self.starts)] = True
        return first


def _ngram_shares(words: _Pieces) -> dict[str, np.ndarray]:
    """An n-gram can only be repeated where the two shorter ones in it are, so that each step looks at few."""
    text, chars = words.text, words.chars
    chars_before = np.concatenate([[0], np.cumsum(chars)])  # characters before each word
    total = np.maximum(np.bincount(text, chars, words.n_texts), 1)
    shares: dict[str, np.ndarray] = {}
    places = np.flatnonzero(text[:-1] == text[1:])
    places, grams = _maybe_repeated(text, places, pair_number(words.number[places], words.number[places + 1]))
    for n in range(2, 11):
        groups = _Groups.of(text[places], grams)
        if n <= 4:
            repeated = _top_chars(groups, text[places], chars_before[places + n] - chars_before[places], words.n_texts)
        else:
            covered = _covered(places[groups.of_several & ~groups.first], n, len(text))
            repeated = np.bincount(text, chars * covered, words.n_texts)
        shares[f"{'top' if n <= 4 else 'dup'}_{n}gram"] = np.minimum(repeated / total, 1.0)
        repeats = np.zeros(len(text) + 1, bool)
        repeats[places[groups.of_several]] = True
        longer = groups.of_several & repeats[places + 1]  # the next one, which lies in the same text
        places = places[longer]
        grams = pair_number(grams[longer], words.number[places + n])
    return shares


def _maybe_repeated(text: np.ndarray, places: np.ndarray, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places and grams without most of those that occur once in their text: counted by a few bits of their hash."""
    bits = max(len(grams), 1).bit_length() + 1
    bucket = pair_number(grams, text[places].astype(np.uint64)) >> np.uint64(64 - bits)
    several = np.bincount(bucket.astype(np.int64), minlength=1 << bits)[bucket] > 1
    return places[several], grams[several]


def _top_chars(groups: _Groups, text: np.ndarray, chars: np.ndarray, n_texts: int) -> np.ndarray:
    """Characters in all occurrences of each text's most frequent n-gram; 0 where none occurs twice."""
    several = groups.sizes > 1
    one, size = groups.order[groups.starts[several]], groups.sizes[several]
    total = size * chars[one]
    order = np.lexsort([total, size, text[one]])
    last = np.flatnonzero(np.diff(text[one][order], append=-1))  # of each text, in ascending order of size and total
    repeated = np.zeros(n_texts, dtype=np.int64)
    repeated[text[one][order[last]]] = total[order[last]]
    return repeated


def _covered(starts: np.ndarray, n: int, n_words: int) -> np.ndarray:
    """Whether each word is in one of the n-grams that begin at `starts`, bool [N]."""
    steps = np.bincount(starts, minlength=n_words + 1) - np.bincount(starts + n, minlength=n_words + 1)
    return np.cumsum(steps)[:n_words] > 0
