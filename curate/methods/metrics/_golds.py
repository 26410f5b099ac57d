"""The right answers of a question: the one that is shown as an example, and others that count as well."""

from __future__ import annotations

from typing import Any

from curate.kinds.metric import Question


def golds(question: Question) -> tuple[str, ...]:
    """The reference answer, and those in the input's field `answers` (a list, or SQuAD's {"text": […]}), each once."""
    return tuple(dict.fromkeys(filter(None, (question.answer, *_listed(question.meta.get("answers"))))))


def _listed(given: Any) -> list[str]:
    if isinstance(given, dict):
        given = given.get("text")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        return []
    texts = [item.get("text") if isinstance(item, dict) else item for item in given]
    return [str(text) for text in texts if isinstance(text, str | int | float) and not isinstance(text, bool)]
