from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import ClassVar

import numpy as np
import polars as pl

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import ALONE

_WORDS = rf"[{ALONE}]|[\w--[{ALONE}]]+"
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by a power of it mod 2^64 loses no bit
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_ROOM = (
    4  # bits more than are needed to number the n-grams of a target: one in 16 to 32 begins as one of them by chance
)


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

    Cost: reads and tokenises the pool once; no FLOPs. Bottleneck: tokenising. Memory: 32 to 48 bytes per n-gram of the
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
        words = _Hashed.of(batch.asked.whole)
        steps = np.zeros(len(words) + 1, np.int64)
        longest, example = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.uint64)
        for length, known in evaluation.of_length.items():
            starts, nearest = known.among(words.grams(length))
            text, inside = words.inside(starts, length)
            nearest, starts, text = nearest[inside], starts[inside], text[inside]
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
                known.ids[nearest[first[best[better]]]],
            )
        lengths = np.diff(words.ends)
        covered = np.bincount(words.text_of(np.flatnonzero(np.cumsum(steps) > 0)), minlength=len(batch))
        share = covered / np.maximum(lengths, 1)
        error = np.where(lengths == 0, "has no words", evaluation.trouble)
        return {"score": 0.0 - share, "longest": longest, "example": example, "error": error}


class _Evaluation:
    """The n-grams of a target, by their length."""

    def __init__(self, target: Target, n: int, shortest: int, _: Arrays):
        contents = pl.col("messages").list.eval(pl.element().struct.field("content"))
        messages = target.text.frame.select(pl.coalesce(contents, pl.concat_list("text"))).to_series()
        example = np.repeat(target.text.ids, np.maximum(messages.list.len().to_numpy(), 1))
        words = _Hashed.of(messages.explode().fill_null(""))
        lengths = np.minimum(np.diff(words.ends), n)  # a short message is matched as a whole
        message = f"no message of the target has the {min(shortest, n)} words to be looked for; set shortest lower"
        self.trouble = "" if (lengths >= min(shortest, n)).any() else message
        self.of_length: dict[int, _Known] = {}
        for length in np.unique(lengths[lengths >= min(shortest, n)]).tolist():
            grams = words.grams(length)
            text, inside = words.inside(np.arange(len(grams)), length)
            matching = inside & (lengths[text] == length)
            numbers, first = np.unique(grams[matching], return_index=True)
            self.of_length[length] = _Known(numbers, example[text[matching][first]])


@dataclass(frozen=True)
class _Known:
    """Hashes of n-grams, uint64 [G] ascending, and the id of the first example that has each."""

    hashes: np.ndarray
    ids: np.ndarray

    def among(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of those of the given hashes that are here, ascending, and their places here."""
        places = np.flatnonzero(self._beginnings[hashes >> self._shift])
        nearest = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        same = self.hashes[nearest] == hashes[places]
        return places[same], nearest[same]

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - (len(self.hashes).bit_length() + _ROOM))

    @cached_property
    def _beginnings(self) -> np.ndarray:
        """Whether a hash begins with these bits: one look that nearly all n-grams of a pool fail, not a search."""
        begun = np.zeros(1 << (64 - int(self._shift)), bool)
        begun[self.hashes >> self._shift] = True
        return begun


@dataclass(frozen=True)
class _Hashed:
    """The words of texts.

    prefix: uint64 [N + 1], sums of the hashes of the first words, each times a power of the base, mod 2^64. ends: int64
    [B + 1], text i has the words from ends[i] to ends[i + 1].
    """

    prefix: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, texts: pl.Series) -> _Hashed:
        """A word's hash is that of polars, which is the same within a process, where these are compared."""
        lists = texts.str.to_lowercase().str.extract_all(_WORDS)
        ends = np.concatenate([[0], lists.list.len().fill_null(0).to_numpy().astype(np.int64)]).cumsum()
        words = lists.explode().drop_nulls().hash().to_numpy()
        prefix = np.zeros(len(words) + 1, np.uint64)
        np.cumsum(words * _powers(_BASE, len(words)), out=prefix[1:])
        return cls(prefix, ends)

    def __len__(self) -> int:
        return len(self.prefix) - 1

    def grams(self, n: int) -> np.ndarray:
        """The hash of the run of n words from each word on, uint64 [max(N - n + 1, 0)].

        It is the sum of the words' own 64-bit hashes, each times a power of an odd base, mod 2^64: of two sums up to
        its ends the difference, divided by the power at its beginning. Two different runs collide with probability
        2^-64.
        """
        sums = self.prefix[n:] - self.prefix[: max(len(self.prefix) - n, 0)]
        return sums * _powers(_INVERSE, len(sums))

    def text_of(self, places: np.ndarray) -> np.ndarray:
        """The index of the text that the word at each place belongs to."""
        return np.searchsorted(self.ends, places, side="right") - 1

    def inside(self, starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The text of the run of n words from each start on, and whether it ends within it."""
        text = self.text_of(starts)
        return text, starts + n <= self.ends[text + 1]


def _powers(base: np.uint64, n: int) -> np.ndarray:
    """base^0 … base^(n - 1) mod 2^64, uint64 [n]."""
    return _powers_of_two_many(base, n.bit_length())[:n]


@lru_cache(maxsize=2)
def _powers_of_two_many(base: np.uint64, bits: int) -> np.ndarray:
    """The same for 2^bits, so that batches of about the same size share them."""
    powers = np.full(1 << bits, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)
