"""Samples as text and words: what a pass without a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

from curate.hashing import content_id, ids_as_integers

# Lower-cased runs of two or more word characters: what rank-bm25's users, scikit-learn and bm25s take as words.
# The same as \b\w\w+\b, since a match is leftmost and as long as it can be, but without the look-around.
WORDS = r"\w\w+"
# Of scripts that put no blanks between words, each character is one; for the inside of a class, [{ALONE}].
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])  # as the pool has it


@dataclass(frozen=True)
class Words:
    """The words of B texts as integers.

    vocabulary: sorted distinct words, V of them. codes: int32 [N], positions in the vocabulary, text after
    text. ends: int64 [B + 1], text i is codes[ends[i]:ends[i + 1]].
    """

    vocabulary: pl.Series
    codes: np.ndarray
    ends: np.ndarray

    def numbers(self, width: int) -> np.ndarray:
        """Every word as a number that is the same everywhere, uint64 [N], of so many bytes of its BLAKE2b."""
        digests = b"".join(blake2b(word.encode(), digest_size=width).digest() for word in self.vocabulary)
        return np.frombuffer(digests, f"<u{width}").astype(np.uint64)[self.codes]

    def lengths(self) -> np.ndarray:
        """Words per text, int64 [B]."""
        return np.diff(self.ends)

    def texts(self) -> np.ndarray:
        """The text each word stands in, int64 [N]."""
        return np.repeat(np.arange(len(self.ends) - 1), self.lengths())

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, code, count) of every distinct word of every text, by text and then by word."""
        keys = self.texts() * len(self.vocabulary) + self.codes
        keys.sort()  # in place; numpy sorts 64-bit integers with vector instructions
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        count = np.diff(first, append=len(keys))
        text, code = np.divmod(keys[first], max(len(self.vocabulary), 1))
        return text, code, count

    def some(self, keep: np.ndarray) -> Words:
        """Only the words whose code is true in `keep`, bool [V]; the vocabulary stays."""
        kept = keep[self.codes]
        ends = np.concatenate([[0], np.cumsum(kept)])[self.ends]
        return Words(self.vocabulary, self.codes[kept], ends)


def split_words(texts: pl.Series, pattern: str = WORDS, lowercase: bool = True) -> Words:
    """All matches of a regular expression (Rust's dialect) in each text, coded."""
    lists = (texts.str.to_lowercase() if lowercase else texts).str.extract_all(pattern)
    ends = np.concatenate([[0], lists.list.len().fill_null(0).to_numpy().astype(np.int64)]).cumsum()
    flat = lists.explode().drop_nulls()  # an empty list explodes to a null
    vocabulary = flat.unique().sort()
    codes = flat.cast(pl.Enum(vocabulary)).to_physical().to_numpy().astype(np.int32)
    return Words(vocabulary, codes, ends)


class Text:
    """A batch of B samples as text; what is costly is made once and kept."""

    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(_MESSAGE)), ("text", pa.string())])

    def __init__(self, samples: pa.Table):
        """samples: columns id, messages, text of the pool's or a target's schema."""
        self.frame = pl.DataFrame(samples.select(self.schema.names).cast(self.schema))
        self._words: dict[tuple[str, bool], Words] = {}

    @classmethod
    def of(cls, samples: Sequence[str | Sequence[Mapping[str, str]]]) -> Text:
        """A batch from memory: each sample a text, or a list of messages with role and content."""
        rows = [
            {
                "id": content_id(None, sample) if isinstance(sample, str) else content_id(sample, None),
                "messages": None if isinstance(sample, str) else list(sample),
                "text": sample if isinstance(sample, str) else None,
            }
            for sample in samples
        ]
        return cls(pa.Table.from_pylist(rows, schema=cls.schema))

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def ids(self) -> np.ndarray:
        """The ids as numbers, uint64 [B]."""
        return ids_as_integers(self.frame["id"].to_list())

    @cached_property
    def whole(self) -> pl.Series:
        """Every message's content, or the raw text, joined by newlines; string [B]."""
        return self._joined(pl.element().struct.field("content"))

    @cached_property
    def answer(self) -> pl.Series:
        """The assistant's contents, or the raw text; string [B]."""
        said = pl.element().struct.field
        return self._joined(pl.when(said("role") == "assistant").then(said("content")))

    def _joined(self, part: pl.Expr) -> pl.Series:
        chat = pl.col("messages").list.eval(part).list.join("\n", ignore_nulls=True)
        return self.frame.select(pl.coalesce(chat, "text").fill_null("")).to_series()

    def words(self, pattern: str = WORDS, lowercase: bool = True) -> Words:
        """The whole text's words; kept, so that the passes of one method over a batch in memory share them."""
        key = (pattern, lowercase)
        if key not in self._words:
            self._words[key] = split_words(self.whole, pattern, lowercase)
        return self._words[key]
