"""Where the prompt of a preference pair, or of a labelled answer (KTO), ends, for all that read, show or write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What selects the samples that a trainer of answers can learn.
PLAIN = "rejected IS NULL AND wanted IS NULL"


def prompt_length(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """How many messages of two conversations are their prompt: the common ones, cut back so that both go on with the
    assistant's turn; 0 if there is none."""
    length, most = 0, min(len(chosen), len(rejected)) - 1
    while length < most and _same(chosen[length], rejected[length]):
        length += 1
    while length > 0 and not chosen[length]["role"] == rejected[length]["role"] == "assistant":
        length -= 1
    return max(length, 0)


def asked_length(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages of one conversation come before its last answer, which may call tools between its turns; all of
    them if it ends with no answer."""
    length = len(messages)
    while length and messages[length - 1]["role"] in ("assistant", "tool"):
        length -= 1
    while length < len(messages) and messages[length]["role"] != "assistant":
        length += 1
    return length


def says_nothing(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no message of an answer has a text or a call."""
    return not any((m["content"] or "").strip() or m.get("extra") for m in messages if m["role"] == "assistant")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("role", "content", "extra"))
