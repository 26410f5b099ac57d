"""Samples as text and words: the input of passes without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.hashing import content_id, ids_as_integers

# Runs of two or more word characters, lower-cased: the usual words of rank-bm25, scikit-learn and bm25s.
# Equal to \b\w\w+\b, since matches are leftmost and greedy, but faster without the look-around.
WORDS = r"\w\w+"
# In scripts without spaces between words, each character is a word; for use in a character class, [{ALONE}].
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])  # as in POOL


@dataclass(frozen=True)
class Words:
    """The N words of B texts as integer codes.

    vocabulary: the V distinct words, sorted. codes: int32 [N], positions in the vocabulary, text after text. ends:
    int64 [B + 1], text i is codes[ends[i]:ends[i + 1]].
    """

    vocabulary: pl.Series
    codes: np.ndarray
    ends: np.ndarray

    def numbers(self, width: int) -> np.ndarray:
        """A hash of every word, the same on all machines, uint64 [N]: `width` bytes of its BLAKE2b digest."""
        digests = b"".join(blake2b(word.encode(), digest_size=width).digest() for word in self.vocabulary)
        return np.frombuffer(digests, f"<u{width}").astype(np.uint64)[self.codes]

    def lengths(self) -> np.ndarray:
        """Words per text, int64 [B]."""
        return np.diff(self.ends)

    def texts(self) -> np.ndarray:
        """The index of the text that each word belongs to, int64 [N]."""
        return np.repeat(np.arange(len(self.ends) - 1), self.lengths())

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, code, count) of every distinct word of every text, sorted by text and then by code."""
        keys = self.texts() * len(self.vocabulary) + self.codes
        keys.sort()  # in place; numpy sorts 64-bit integers with vector instructions
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        count = np.diff(first, append=len(keys))
        text, code = np.divmod(keys[first], max(len(self.vocabulary), 1))
        return text, code, count

    def some(self, keep: np.ndarray) -> Words:
        """Only the words whose code is true in `keep`, bool [V]; the vocabulary is unchanged."""
        kept = keep[self.codes]
        ends = np.concatenate([[0], np.cumsum(kept)])[self.ends]
        return Words(self.vocabulary, self.codes[kept], ends)


def split_words(texts: pl.Series, pattern: str = WORDS, lowercase: bool = True) -> Words:
    """All matches of a regular expression (Rust syntax) in each text, as integer codes."""
    lists = (texts.str.to_lowercase() if lowercase else texts).str.extract_all(pattern)
    ends = np.concatenate([[0], lists.list.len().fill_null(0).to_numpy().astype(np.int64)]).cumsum()
    flat = lists.explode().drop_nulls()  # exploding an empty list gives a null
    vocabulary = flat.unique().sort()
    codes = flat.cast(pl.Enum(vocabulary)).to_physical().to_numpy().astype(np.int32)
    return Words(vocabulary, codes, ends)


class Text:
    """A batch of B samples as text; expensive results are cached."""

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(_MESSAGE)),
            ("text", pa.string()),
            ("template_kwargs", pa.string()),
        ]
    )

    def __init__(self, samples: pa.Table):
        """samples: a table with the columns of `schema`, as in the pool or a target."""
        self.frame = pl.DataFrame(samples.select(self.schema.names).cast(self.schema))
        self._words: dict[tuple[str, bool], Words] = {}

    @classmethod
    def of(cls, samples: Sequence[str | Sequence[Mapping[str, str]]]) -> Text:
        """A batch from in-memory samples: each a text, or a list of messages with role and content."""
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
        """The ids as integers, uint64 [B]."""
        return ids_as_integers(self.frame["id"].to_list())

    def samples(self) -> list[dict[str, Any]]:
        """The samples as a model takes them: messages, text and template_kwargs, B of them."""
        return self.frame.drop("id").to_dicts()

    @cached_property
    def whole(self) -> pl.Series:
        """Every message's content, or the raw text, joined by newlines; string [B]."""
        return self._joined(pl.element().struct.field("content"))

    @cached_property
    def answer(self) -> pl.Series:
        """The assistant's contents, or the raw text; string [B]."""
        message_field = pl.element().struct.field
        return self._joined(pl.when(message_field("role") == "assistant").then(message_field("content")))

    def _joined(self, part: pl.Expr) -> pl.Series:
        chat = pl.col("messages").list.eval(part).list.join("\n", ignore_nulls=True)
        return self.frame.select(pl.coalesce(chat, "text").fill_null("")).to_series()

    def words(self, pattern: str = WORDS, lowercase: bool = True) -> Words:
        """The words of the whole text; cached, so that several passes over the same batch share them."""
        key = (pattern, lowercase)
        if key not in self._words:
            self._words[key] = split_words(self.whole, pattern, lowercase)
        return self._words[key]
