from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import polars as pl

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import ALONE, split_words

_WORDS = rf"[{ALONE}]|[\w--[{ALONE}]]+"
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by a power of it mod 2^64 loses no bit


@dataclass(frozen=True)
class Decontaminate(Score):
    """How little of a sample occurs verbatim in an evaluation set: n-grams shared with a target, val and test.

    Formula, over the words of the sample and of every message of the target's examples (or of a raw text), in lower
    case: runs of letters and digits, and single characters of scripts written without spaces,

        score = - (words of the sample that lie in an n-gram of the target) / (words of the sample)

    so -1 means fully copied, and 0 (`--where "decontaminate_T = 0"`) no match. Of a preference pair only the prompt is
    searched, since answers to a copied exercise may well be new. A target message of fewer than `n` words, but at least
    `shortest`, is matched as a whole; shorter ones, such as most answers, are not searched for. An evaluation file
    becomes a target by `curate target NAME FILE --split test`. Columns: `longest`, the length in words of the longest
    run of which every n-gram occurs in the target; `example`, the id of an example that contains the first of them,
    NULL where there is none.

    Cost: reads and tokenises the pool once; no FLOPs. Bottleneck: tokenising. Memory: 16 bytes per n-gram of the
    target.

    Departures: GPT-3's filter removes the n-gram and 200 characters around it; here the sample is only reported, and
    you decide what to do with it. GPT-3 ignored n-grams that many documents share; here they count, as common phrases
    of 13 words are rare enough among instructions to be inspected.

    Reference: Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv:2005.14165, Appendix C (13-grams,
    lower case, no punctuation).

    >>> from curate.kinds.score import run
    >>> batch = Text.of(["he said: the red fox ran over the old stone bridge today", "a different text"])
    >>> columns = run(Decontaminate(n=5), [batch], Target.of(["The red fox ran over the old bridge."]))[0]
    >>> columns["score"].round(2).tolist(), columns["longest"].tolist()
    ([-0.58, 0.0], [7, 0])
    """

    scope: ClassVar = "row"
    uses_target: ClassVar = True
    splits: ClassVar = ("val", "test")
    columns: ClassVar = {"longest": "int32", "example": "id"}

    n: int = 13
    """Number of words in an n-gram."""
    shortest: int = 8
    """Fewest words of a target message that is searched for. [chosen here: GPT-3 takes n from the 5 % shortest
    examples, 8 to 13]"""

    def __post_init__(self) -> None:
        if min(self.n, self.shortest) < 1:
            values = f"n={self.n}, shortest={self.shortest}"
            raise CurateError(f"decontaminate needs n and shortest of 1 or more, not {values}.")

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        return (Pass("match", self._match, open=partial(_Evaluation, target, self.n, self.shortest)),)

    def _match(self, batch: Text, evaluation: _Evaluation) -> Columns:
        split = batch.asked.words(_WORDS)
        words, ends = split.numbers(8), split.ends
        steps = np.zeros(len(words) + 1, np.int64)
        longest, example = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.uint64)
        for length, (grams, ids) in evaluation.of_length.items():
            hashes, starts, text = _grams(words, ends, length)
            nearest = np.minimum(np.searchsorted(grams, hashes), len(grams) - 1)
            hit = grams[nearest] == hashes
            nearest, starts, text = nearest[hit], starts[hit], text[hit]
            steps += np.bincount(starts, minlength=len(steps)) - np.bincount(starts + length, minlength=len(steps))
            # Runs of n-grams that start at consecutive words; the longest of each text, ties going to the first.
            first = np.flatnonzero((np.diff(starts, prepend=-2) != 1) | (np.diff(text, prepend=-1) != 0))
            run_lengths = np.diff(first, append=len(starts)) + length - 1
            order = np.lexsort([first, -run_lengths, text[first]])
            best = order[np.flatnonzero(np.diff(text[first][order], prepend=-1))]
            texts = text[first[best]]
            better = run_lengths[best] > longest[texts]
            longest[texts[better]], example[texts[better]] = (
                run_lengths[best[better]],
                ids[nearest[first[best[better]]]],
            )
        lengths = np.diff(ends)
        covered = np.append(0, np.cumsum(np.cumsum(steps)[:-1] > 0))
        share = np.diff(covered[ends]) / np.maximum(lengths, 1)
        error = np.where(lengths == 0, "has no words", evaluation.trouble)
        return {"score": 0.0 - share, "longest": longest, "example": example, "error": error}


class _Evaluation:
    """The n-grams of a target: length -> their hashes, ascending, and the id of the first example that has each."""

    def __init__(self, target: Target, n: int, shortest: int, _: Arrays):
        contents = pl.col("messages").list.eval(pl.element().struct.field("content"))
        messages = target.text.frame.select(pl.coalesce(contents, pl.concat_list("text"))).to_series()
        example = np.repeat(target.text.ids, np.maximum(messages.list.len().to_numpy(), 1))
        split = split_words(messages.explode().fill_null(""), _WORDS)
        words, ends = split.numbers(8), split.ends
        lengths = np.minimum(np.diff(ends), n)  # a short message is matched as a whole
        message = f"no message of the target has the {min(shortest, n)} words to be looked for; set shortest lower"
        self.trouble = "" if (lengths >= min(shortest, n)).any() else message
        self.of_length: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length in np.unique(lengths[lengths >= min(shortest, n)]).tolist():
            grams, _starts, text = _grams(words, ends, length)
            matching = lengths[text] == length
            numbers, first = np.unique(grams[matching], return_index=True)
            self.of_length[length] = (numbers, example[text[matching][first]])


def _grams(words: np.ndarray, ends: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every run of n words within a text: its hash, uint64, where it starts, and the index of its text.

    The hash is the sum of the words' own 64-bit hashes, each times a power of an odd base, mod 2^64; two different runs
    collide with probability 2^-64.
    """
    if len(words) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(n):
            numbers = numbers * _BASE + words[k : k + len(numbers)]
    lengths, starts = np.diff(ends), np.arange(len(numbers))
    text = np.repeat(np.arange(len(lengths)), lengths)[: len(numbers)]
    inside = starts + n <= ends[1:][text]
    return numbers[inside], starts[inside], text[inside]
