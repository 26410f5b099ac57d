"""A sample, or a part of it, as one plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Sample: TypeAlias = Mapping[str, Any]  # as curate.models.tokens has it


class NoText(Exception):
    """A sample has no such text; the message gives the reason."""


def contents(sample: Sample) -> str:
    """Every message's content, or the raw text, joined by newlines."""
    if sample["messages"] is None:
        return sample["text"] or ""
    return "\n".join(m["content"] for m in sample["messages"] if m["content"] is not None)


def as_chat(sample: Sample) -> str:
    """Of a chat each turn behind its role, with the tools that it calls; else the raw text."""
    if sample["messages"] is None:
        return sample["text"] or ""
    return "\n".join(map(_turn, sample["messages"]))


def says_something(sample: Sample) -> bool:
    """Whether a sample has a text, or a turn that says or calls something."""
    if sample["messages"] is None:
        return bool((sample["text"] or "").strip())
    return any(_said(message).strip() for message in sample["messages"])


def answer_of(sample: Sample) -> str:
    """The last answer, '' if there is none; or the raw text."""
    return _turns(sample)[1]


def prompt_of(sample: Sample) -> str:
    """What stands before the last answer: of a single turn what it says; of several, each behind its role. Raises
    NoText if nothing does."""
    before, _ = _turns(sample)
    if before is None:
        raise NoText("has no prompt: it is raw text")
    if not before:
        raise NoText("has no prompt: the assistant speaks first")
    return _said(before[0]) if len(before) == 1 else "\n".join(map(_turn, before))


def _turns(sample: Sample) -> tuple[Sequence[Mapping[str, Any]] | None, str]:
    """What stands before the last answer, None for a raw text; and that answer, or the raw text."""
    messages = sample["messages"]
    if messages is None:
        return None, sample["text"] or ""
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not places:
        return messages, ""
    return messages[: places[-1]], _said(messages[places[-1]])


def _turn(message: Mapping[str, Any]) -> str:
    return f"{message['role']}: {_said(message)}"


def _said(message: Mapping[str, Any]) -> str:
    """A message's content, and what it calls, as JSON."""
    calls = json.loads(message["extra"]).get("tool_calls") if message.get("extra") else None
    called = json.dumps(calls, ensure_ascii=False) if calls else ""
    return "\n".join(part for part in (message["content"], called) if part)
