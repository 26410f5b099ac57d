"""Records of questions: with a plain answer, a passage to read (SQuAD), or options to choose from (MMLU, ARC)."""

from __future__ import annotations

import string
from typing import Literal, TypeAlias

from curate.store.turns import Message, Record, Refused, as_text

ChoiceAnswer: TypeAlias = Literal["letter", "text"]

_PASSAGES = ("context", "passage")
_OPTIONS = ("choices", "options")
_ARE_OPTIONS = frozenset(_OPTIONS)
_KEYS = ("answerKey", "answer", "answer_index", "answer_idx")
# Where the question has another name: it, and the fields of its options, a list of them or one each.
_OTHER_NAMES = {
    "goal": ("sol1", "sol2"),  # PIQA
    "ctx": ("endings",),  # HellaSwag
    "question_stem": ("choices",),  # OpenBookQA
}


def is_question(fields: Record) -> bool:
    """Whether the record is a question with an answer."""
    if _other_name(fields):
        return True
    return "question" in fields and ("answer" in fields or "answers" in fields or _is_choice(fields))


def question(fields: Record, choice_answer: ChoiceAnswer) -> list[Message]:
    """Question and answer, as messages; what is not printed as it is stays in the fields. Options are stored as
    `options`, which metrics read. Raises Refused."""
    if name := _other_name(fields):
        _rename(fields, name)
    if _is_choice(fields):
        return _choice(fields, choice_answer)
    _refuse_unclear_options(fields)
    answer = _answer(fields)
    return [_said("user", _asked(fields)), _said("assistant", answer)]


def _other_name(fields: Record) -> str | None:
    """The field that the question is in, where that is not `question` and the options are beside it."""
    if "question" in fields:
        return None
    return next((name for name, options in _OTHER_NAMES.items() if fields.keys() >= {name, *options}), None)


def _rename(fields: Record, name: str) -> None:
    """Give question and options the names that all others have. Raises Refused where none of the options is right."""
    fields["question"] = fields.pop(name)
    options = [fields.pop(option) for option in _OTHER_NAMES[name]]
    fields["choices"] = options[0] if len(options) == 1 else options
    if not _is_choice(fields):
        given = next((f"{key} {fields[key]!r}" for key in (*_KEYS, "label") if key in fields), "answer")
        raise Refused(f"has a question with options, and its {given} is none of them")


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content, "extra": None}


def _asked(fields: Record) -> str:
    """The question behind the passage that it is about, as tests of reading print them."""
    passages = [fields.pop(name, None) for name in _PASSAGES]
    texts = [as_text(text, name) for name, text in zip(_PASSAGES, passages, strict=True) if text not in (None, "")]
    return "\n\n".join([*texts, as_text(fields.pop("question"), "question")])


def _answer(fields: Record) -> str:
    """`answer`, or the first of `answers`, which stay in the fields."""
    if "answer" in fields:
        return as_text(fields.pop("answer"), "answer")
    answers = fields["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else answers
    if texts == []:
        raise Refused("answers is empty: the question has no answer in its passage")
    first = texts[0] if isinstance(texts, list) else texts
    return as_text(first.get("text") if isinstance(first, dict) else first, "answers")


# --- options ---------------------------------------------------------------------------------------------


def _options(fields: Record) -> tuple[list[str], list[str]] | None:
    """The texts of the options and their labels (A, B, … where they have none of their own); None without options."""
    if _ARE_OPTIONS.isdisjoint(fields):  # as of most records
        return None
    value = next((fields[name] for name in _OPTIONS if fields.get(name)), None)
    if isinstance(value, dict) and "text" not in value:  # MedQA's, by their labels; in tables null where there is none
        labels = [label for label, text in value.items() if text is not None]
        texts = [value[label] for label in labels]
    elif isinstance(value, dict):  # ARC's, CommonsenseQA's
        texts, labels = value["text"], value.get("label")
    elif isinstance(value, list) and value and all(isinstance(v, dict) and "text" in v and "label" in v for v in value):
        texts, labels = [v["text"] for v in value], [v["label"] for v in value]
    else:
        texts, labels = value, list(string.ascii_uppercase)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or not isinstance(labels, list):
        return None
    labels = [str(label) for label in labels[: len(texts)]]
    return (texts, labels) if 2 <= len(texts) == len(labels) else None


def _right(fields: Record, texts: list[str], labels: list[str]) -> int | None:
    """Which option is right, by its label or its number from 0; None if the answer is no such thing."""
    says_answer = "answer" in fields or "answers" in fields
    for name in _KEYS if says_answer else (*_KEYS, "label"):  # beside an answer a label may be something else
        key = fields.get(name)
        if isinstance(key, str) and key in labels and key not in texts:
            return labels.index(key)
        if isinstance(key, str) and key.isdecimal() and not any(label.isdecimal() for label in labels):
            key = int(key) if key not in texts else None  # of a table of texts
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(texts):
            return key  # whatever the texts are: a text would be written as one
    return None


def _is_choice(fields: Record) -> bool:
    """Whether there are options and the answer says which one, rather than what it is."""
    options = _options(fields)
    return options is not None and _right(fields, *options) is not None


def _choice(fields: Record, choice_answer: ChoiceAnswer) -> list[Message]:
    options = _options(fields)
    assert options is not None
    texts, labels = options
    right = _right(fields, texts, labels)
    assert right is not None
    asked = "\n".join([_asked(fields), *(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))])
    fields["options"] = labels if choice_answer == "letter" else texts
    return [_said("user", asked), _said("assistant", fields["options"][right])]


def _refuse_unclear_options(fields: Record) -> None:
    """Raises Refused for a question with options whose answer is a number or a letter, and none of theirs."""
    options, answer = _options(fields), fields.get("answer")
    if options is None or _is_choice(fields) or str(answer) in options[0] or len(str(answer)) > 2:
        return
    if isinstance(answer, str | int):
        raise Refused(f"has {len(options[0])} options, and its answer {answer!r} is none of them")
