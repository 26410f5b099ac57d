"""Texts that models' tokenizers read as control tokens (`<|endoftext|>`, `</s>`, `[INST]`), standing in a sample.

Left by another model's template or by a corpus joined into one text, they end a document, or open another turn, in the
middle of a sample, for every trainer that lets its tokenizer parse them. Which tokens a model has is not known here:
these are the usual ones (of one model, see curate.models.control_tokens).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LITERAL = (
    *("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
)
_OPENINGS = ("<|", "<｜", *_LITERAL)  # one of these is in every text that has one
_TOKEN = re.compile(rf"<\|[^\s<>|]{{1,40}}\|>|<｜[^\s<>]{{1,40}}｜>|{'|'.join(map(re.escape, _LITERAL))}")


def special_in(texts: Sequence[str | None]) -> frozenset[str]:
    """The control tokens that occur in some texts."""
    found = frozenset[str]()
    for text in texts:
        if text and ("<" in text or "INST]" in text) and any(opening in text for opening in _OPENINGS):
            found |= frozenset(_TOKEN.findall(text))
    return found


def stripped(content: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's content (schema.CONTENT) without control tokens in its texts."""

    def of(messages: Any) -> Any:
        return messages and [{**m, "content": m["content"] and _TOKEN.sub("", m["content"])} for m in messages]

    text = content["text"]
    return {
        **content,
        "messages": of(content["messages"]),
        "rejected": of(content["rejected"]),
        "text": text and _TOKEN.sub("", text),
    }


def texts_of(content: Mapping[str, Any]) -> list[str | None]:
    """The texts of a sample's content."""
    messages = [*(content["messages"] or ()), *(content["rejected"] or ())]
    return [content["text"], *(message["content"] for message in messages)]


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
