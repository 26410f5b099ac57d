"""The options of a question: their texts, letters, which is right, and how a prompt lists them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curate.kinds.metric import Question

FIELDS = ("options", "choices")  # the input fields that list a question's options
_KEYS = ("answerKey", "answer", "answer_idx", "answer_index", "label")  # those that say which is right


@dataclass(frozen=True)
class Options:
    """A question's options: their texts and labels, the place of the right one (None if that is not said), and the
    question without the options; listed: whether its prompt lists them, as "A. red"."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    right: int | None
    stem: str
    listed: bool

    def prompt(self, listed: bool) -> str:
        """The question, with the options listed or not."""
        lines = [f"{label}. {text}" for label, text in zip(self.labels, self.texts, strict=True)]
        return "\n".join([self.stem, *(lines if listed else [])])


def listed_in(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that the input's fields list, or their letters where these are what it answers with; empty if it
    lists none."""
    return next((texts for name in FIELDS if (texts := _parts(meta.get(name))[0])), ())


def _parts(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels: of a list of texts or numbers; of ARC's {"text": […], "label": […]}, MedQA's {"A": text, …},
    or a list of {"text", "label"}; else empty."""
    texts, labels = value, None
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label")
    elif isinstance(value, dict):
        labels = [label for label, text in value.items() if text is not None]
        texts = [value[label] for label in labels]
    elif isinstance(value, list) and value and all(isinstance(v, dict) and "text" in v for v in value):
        texts, labels = [v["text"] for v in value], [v.get("label") for v in value]
    if not isinstance(texts, list) or any(isinstance(text, dict | list | None) for text in texts):
        return (), ()
    if not isinstance(labels, list) or len(labels) != len(texts) or None in labels:
        labels = string.ascii_uppercase[: len(texts)]
    return tuple(map(str, texts)), tuple(map(str, labels)) if len(labels) == len(texts) else ()


def options_of(question: Question) -> Options | None:
    """The options of a question, as its fields, its prompt and its answer have them; None if it has no two."""
    said, meta = question.options, question.meta
    texts, labels = _parts(meta.get("choices"))
    if len(texts) != len(said) or said not in (texts, labels):  # `choices` is something else
        labels = _parts(meta.get("options"))[1] if _parts(meta.get("options"))[0] == said else ()
        texts, labels = said, labels or tuple(string.ascii_uppercase[: len(said)])
    if len(texts) < 2 or len(labels) != len(texts):
        return None
    stem, in_prompt = _without_list(_asked(question), said, labels)
    if in_prompt and said == labels:
        texts = in_prompt
    return Options(texts, labels, _right(question, said, texts, labels), stem, bool(in_prompt))


def _asked(question: Question) -> str:
    return next((m["content"] or "" for m in reversed(question.messages or []) if m["role"] == "user"), "")


def _without_list(asked: str, said: Sequence[str], labels: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The question before the options that it ends with, and their texts, none if it does not list them."""
    lines = "".join(rf"\n{re.escape(label)}\. (.*?)" for label in labels)
    match = re.fullmatch(rf"(.*){lines}", asked, re.DOTALL)
    if not match or (tuple(said) != tuple(labels) and match.groups()[1:] != tuple(said)):
        return asked, ()
    return match[1], match.groups()[1:]


def _right(question: Question, said: Sequence[str], texts: Sequence[str], labels: Sequence[str]) -> int | None:
    forms = (said, texts, labels)
    if question.answer and (place := _place(question.answer, *forms)) is not None:
        return place
    for name in _KEYS:
        key = question.meta.get(name)
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(texts):
            return key  # the number of one, whatever the texts are
        if isinstance(key, str) and key:
            own = (labels, said, texts) if name == "answerKey" else forms  # a key is a label before it is a text
            if (place := _place(key, *own)) is not None:
                return place
    return None


def _place(key: str, *forms: Sequence[str]) -> int | None:
    """The option of that text or label, if there is one; else of that number from 0."""
    for form in forms:
        if key in form:
            return form.index(key) if form.count(key) == 1 else None
    if not key.isdecimal() or any(label.isdecimal() for label in forms[-1]):
        return None
    return int(key) if int(key) < len(forms[0]) else None


def posed(question: Question, listed: str, answer_by: str) -> Question:
    """A question with its options listed in its prompt or not (yes, no), to be answered by the letter or the text of
    one; as_stored: as it is, but that an answer which is a number or letter of a text becomes that text."""
    options = options_of(question)
    if options is None or options.right is None or not question.answer or question.messages is None:
        return question
    by_letter = answer_by == "letter" or answer_by == "as_stored" and question.options == options.labels
    offered = options.labels if by_letter else options.texts
    prompt = options.prompt(options.listed if listed == "as_stored" else listed == "yes")
    messages = [dict(message) for message in question.messages]
    messages[-1]["content"] = offered[options.right]
    asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
    if asked is not None:
        messages[asked]["content"] = prompt
    return replace(question, messages=messages, options=offered)
