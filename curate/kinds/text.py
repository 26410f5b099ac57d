"""Samples as text, cut into words once: the input of passes without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.hashing import content_id, ids_as_integers
from curate.kinds.words import WORDS, Words, split_words
from curate.preferences import prompt_length

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])  # as in POOL


class Text:
    """A batch of B samples as text; expensive results are cached."""

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(_MESSAGE)),
            ("text", pa.string()),
            ("template_kwargs", pa.string()),
            ("rejected", pa.list_(_MESSAGE)),
            ("wanted", pa.bool_()),
        ]
    )

    def __init__(self, samples: pa.Table):
        """samples: a table with the columns of `schema`, as in the pool or a target."""
        self.frame = pl.DataFrame(samples.select(self.schema.names).cast(self.schema))
        self._words: dict[tuple[str, bool, bool], Words] = {}

    @classmethod
    def of(cls, samples: Sequence[Any]) -> Text:
        """A batch from in-memory samples: each a text, a list of messages with role and content, or a mapping of a
        sample's columns."""
        rows = []
        for sample in samples:
            if not isinstance(sample, Mapping):
                sample = {"text": sample} if isinstance(sample, str) else {"messages": list(sample)}
            content: dict[str, Any] = {name: sample.get(name) for name in cls.schema.names if name != "id"}
            rows.append({"id": content_id(**content), **content})
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

    @property
    def asked(self) -> Text:
        """The same batch, of preference pairs only their prompt: what tells whether two of them repeat each other."""
        # Not cached where it is the batch itself: what holds itself keeps its memory until garbage is looked for.
        return self._prompts if self.frame["rejected"].is_not_null().any() else self

    @cached_property
    def _prompts(self) -> Text:
        conversations = zip(self.frame["messages"].to_list(), self.frame["rejected"].to_list(), strict=True)
        prompts = [a if a is None or b is None else a[: prompt_length(a, b)] for a, b in conversations]
        messages = pl.Series("messages", prompts, self.frame.schema["messages"])
        return Text(self.frame.with_columns(messages).to_arrow())

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

    def words(self, pattern: str = WORDS, lowercase: bool = True, pairs: bool = False) -> Words:
        """The words of the whole text (split_words); cached, so that several passes over the same batch share them."""
        key = (pattern, lowercase, pairs)
        if key not in self._words:
            self._words[key] = split_words(self.whole, pattern, lowercase, pairs)
        return self._words[key]
