from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import BETWEEN_SPACES


@dataclass(frozen=True)
class Length(Score):
    """Words in the answer, a strong baseline for instruction data.

    Formula: score = number of maximal runs of characters other than white space in the assistant's turns
    (raw text: in the text). In scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each
    letter with its marks counts instead, and a run of Katakana as one; punctuation beside them does not count. So
    lengths of texts in different scripts do not compare: rank within a language. Columns: `words` and `chars` of the
    whole sample, `turns` (messages; 0 for raw text).

    Cost: reads the pool once; no FLOPs. Bottleneck: reading.

    Reference: Zhao, Andriushchenko, Croce, Flammarion, "Long Is More for Alignment", ICML 2024,
    arXiv:2402.04833, who keep the longest responses. They count a model's tokens; words need no model.

    >>> from curate.kinds.score import run
    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> run(Length(), [Text.of([said, "some raw text"])])[0]["score"].tolist()
    [2, 3]
    """

    version: ClassVar[int] = 2  # 1: a run without white space was one word in every script
    scope: ClassVar[Literal["row", "pool"]] = "row"
    unit_bytes: ClassVar[int] = 64 << 20  # a second's work; smaller units would cost more than they save
    columns: ClassVar = {"words": "int32", "chars": "int32", "turns": "int32"}

    of: Literal["answer", "whole"] = "answer"
    """Count the assistant's words, or the whole sample's."""

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (Pass("count", self._count),)

    def _count(self, batch: Text, _: Arrays) -> Columns:
        texts = batch.whole
        scored = batch.answer if self.of == "answer" else texts
        return {
            "score": _words(scored),
            "words": _words(texts),
            "chars": texts.str.len_chars().to_numpy(),
            "turns": batch.frame["messages"].list.len().fill_null(0).to_numpy(),
        }


def _words(texts: pl.Series) -> np.ndarray:
    """Words of each text, int64 [B]. Those in ASCII are counted byte by byte, in a quarter of the time."""
    ascii_only = (texts.str.len_bytes() == texts.str.len_chars()).to_numpy()
    counts = np.zeros(len(texts), np.int64)
    counts[ascii_only] = _ascii_words(texts.filter(ascii_only))
    counts[~ascii_only] = texts.filter(~ascii_only).str.count_matches(BETWEEN_SPACES).to_numpy()
    return counts


def _ascii_words(texts: pl.Series) -> np.ndarray:
    """The bytes other than white space that follow white space, or begin a text."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset :][: len(array) + 1] if len(array) else np.zeros(1, np.int64)
    joined = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    ends = ends - ends[0]
    blank = (joined == 32) | (joined - np.uint8(9) <= 4)  # and from tabulator to carriage return
    starts = ~blank
    starts[1:] &= blank[:-1]
    begin = ends[:-1][np.diff(ends) > 0]
    starts[begin] = ~blank[begin]
    return np.diff(np.searchsorted(np.flatnonzero(starts), ends))
