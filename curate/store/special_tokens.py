"""Texts that models' tokenizers read as control tokens (`<|endoftext|>`, `</s>`, `[INST]`), standing in a sample.

Left by another model's template or by a corpus joined into one text, they end a document, or open another turn, in the
middle of a sample, for every trainer that lets its tokenizer parse them. Which tokens a model has is not known here:
these are the usual ones (of one model, see curate.models.control_tokens).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Two patterns, since one that begins with a character is searched for several times as fast.
_ANGLED = re.compile(
    r"<(?:\|[^\s<>|]{1,40}\||｜[^\s<>]{1,40}｜|/?s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|</?SYS>)>"
)
_SQUARE = re.compile(r"\[/?INST\]")


def special_in(texts: Sequence[str | None]) -> frozenset[str]:
    """The control tokens that occur in some texts."""
    found = frozenset[str]()
    for text in texts:
        if text and "<" in text:
            found |= frozenset(_ANGLED.findall(text))
        if text and "[" in text:
            found |= frozenset(_SQUARE.findall(text))
    return found


def stripped(content: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's content (schema.CONTENT) without control tokens in its texts."""

    def without(text: Any) -> Any:
        return text and _SQUARE.sub("", _ANGLED.sub("", text))

    def of(messages: Any) -> Any:
        return messages and [{**m, "content": without(m["content"])} for m in messages]

    return {
        **content,
        "messages": of(content["messages"]),
        "rejected": of(content["rejected"]),
        "text": without(content["text"]),
    }


def texts_of(content: Mapping[str, Any]) -> list[str | None]:
    """The texts of a sample's content."""
    messages = [*(content["messages"] or ()), *(content["rejected"] or ())]
    return [content["text"], *[message["content"] for message in messages]]


def special_notes(
    samples: Mapping[str, int], tokens: Mapping[str, int], added: Mapping[str, int], strip: bool
) -> list[str]:
    """What to say of samples with control tokens. samples, added: by source; tokens: token -> samples."""
    if not samples:
        return []
    most = ", ".join(sorted(tokens, key=lambda token: -tokens[token])[:5])
    shares = ", ".join(f"{source} {n / added[source]:.0%}" for source, n in samples.items())
    told = f"control tokens of models stood in the texts of {sum(samples.values()):,} samples ({most}; of {shares})"
    left = "scores and training read them as text (model.special_tokens); --strip-special leaves them out"
    return [f"{told}, and were left out" if strip else f"{told}: {left}"]
