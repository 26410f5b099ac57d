"""Questions about a sample that a language model answers by one token, and the files that they are in.

A file is TOML: `question`, a text in which {sample}, {prompt}, {answer} and {examples} stand for what is asked about;
`answers`, each a word or a list of spellings of one; `values`, a number for each answer; and `system`, if the question
has a system prompt. What is the same for all samples should come first, since a model computes it once.

A question about a pair has {first} and {second} in place of these fields, and two answers, one for each, without
values.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from curate.errors import CurateError, nearest
from curate.kinds.sample_text import NoText, Sample, answer_of, as_chat, prompt_of

FIELDS = ("sample", "prompt", "answer", "examples", "first", "second")
PAIR = ("first", "second")
_FIELD = re.compile(rf"\{{({'|'.join(FIELDS)})\}}")
_KEYS = {"question", "answers", "values", "system"}


@dataclass(frozen=True)
class Asked:
    """A view of a sample: a question about it, of which a language model predicts the first token of the answer.

    question: with fields (FIELDS). answers: K of them, each in one or several spellings. examples: what {examples}
    stands for.
    """

    question: str
    answers: tuple[tuple[str, ...], ...]
    system: str = ""
    examples: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields in the question, each once."""
        return tuple(dict.fromkeys(_FIELD.findall(self.question)))

    def texts(self, sample: Sample) -> dict[str, str]:
        """What the fields of the sample stand for. Raises NoText if it has no prompt, or has no text at all.

        sample: of a question about a pair, the two samples, under the names of its fields."""
        found: dict[str, Any] = {"sample": as_chat, "prompt": prompt_of, "answer": answer_of}
        found |= {name: lambda pair, name=name: as_chat(pair[name]) for name in PAIR}
        texts = {name: found[name](sample) for name in self.fields if name in found}
        if lacking := [name for name, text in texts.items() if not text.strip()]:
            raise NoText(f"has no {lacking[0] if lacking[0] in ('prompt', 'answer') else 'text'} to ask about")
        return texts

    def filled(self, texts: Mapping[str, str]) -> str:
        """The question about what these texts say, which are not looked through for fields."""
        every = {**texts, "examples": self.examples}
        return _FIELD.sub(lambda field: every[field[1]], self.question)


@dataclass(frozen=True)
class Question:
    """A question with the value of each answer."""

    question: str
    answers: tuple[tuple[str, ...], ...]
    values: tuple[float, ...]
    system: str = ""

    @classmethod
    def of(cls, name: str, pair: bool = False) -> Question:
        """A ready question, or one in a file; about a pair of samples, or one. Raises CurateError if there is none, or
        it is not as described above."""
        file = Path(name)
        if file.suffix != ".toml":
            if name not in ready(pair):
                what = "question about a pair" if pair else "question"
                raise CurateError(
                    f"there is no {what} '{name}': {nearest(name, ready(pair))} A question of your own is a file .toml."
                )
            return cls._parsed(_folder(pair).joinpath(f"{name}.toml").read_text(), name, pair)
        try:
            return cls._parsed(file.read_text(encoding="utf-8"), name, pair)
        except FileNotFoundError:
            raise CurateError(f"{name}: there is no such file with a question.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CurateError(f"{name} cannot be read as a question ({type(error).__name__}: {error}).") from None

    @classmethod
    def _parsed(cls, text: str, where: str, pair: bool) -> Question:
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CurateError(f"{where} is not TOML: {error}.") from None
        keys = _KEYS - {"values"} if pair else _KEYS
        if unknown := sorted(set(table) - keys):
            raise CurateError(
                f"{where} has the key '{unknown[0]}', which a question{' about a pair' if pair else ''} has not: "
                f"{nearest(unknown[0], keys)}"
            )
        question, system = _question(table.get("question"), where, pair), table.get("system", "")
        if not isinstance(system, str):
            raise CurateError(f"{where} has a `system` that is no text.")
        answers, values = table.get("answers"), [1, 0] if pair else table.get("values")
        if not isinstance(answers, list) or len(answers) < 2 or not all(map(_is_answer, answers)):
            raise CurateError(f"{where} needs `answers`, a list of two or more words, or lists of spellings of one.")
        if pair and len(answers) != 2:
            raise CurateError(f"{where} is about a pair, so it has two `answers`: for the first, and for the second.")
        spelled = tuple((a,) if isinstance(a, str) else tuple(a) for a in answers)
        if not isinstance(values, list) or len(values) != len(spelled) or not all(map(_is_number, values)):
            raise CurateError(f"{where} needs `values`, a number for each of its {len(spelled)} answers.")
        every = [spelling for answer in spelled for spelling in answer]
        if twice := [spelling for i, spelling in enumerate(every) if spelling in every[:i]]:
            raise CurateError(f"{where} has the answer '{twice[0]}' twice.")
        return cls(question, spelled, tuple(map(float, values)), system)


def _question(question: Any, where: str, pair: bool) -> str:
    """The text of a question. Raises CurateError if it has not the fields that it needs, or others."""
    fields = set(_FIELD.findall(question)) if isinstance(question, str) else set[str]()
    if pair and fields != set(PAIR):
        raise CurateError(f"{where} needs `question`, a text with {{first}} and {{second}} in it, and no other field.")
    if not pair and (not fields - {"examples", *PAIR} or fields & set(PAIR)):
        hint = "; compare pairs by `curate score pairwise`" if fields & set(PAIR) else ""
        raise CurateError(f"{where} needs `question`, a text with {{sample}}, {{prompt}} or {{answer}} in it{hint}.")
    for word in set(re.findall(r"\{(\w+)\}", question)) - set(FIELDS):
        if (hint := nearest(word, FIELDS)).startswith("did you mean"):
            raise CurateError(f"{where} has the field {{{word}}}, which there is not: {hint}")
    return question


def _folder(pair: bool) -> Any:
    folder = resources.files("curate.kinds").joinpath("questions")
    return folder.joinpath("pairs") if pair else folder


def ready(pair: bool = False) -> list[str]:
    """The names of the ready questions, about one sample or about a pair."""
    files = _folder(pair).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def examples_of(samples: Sequence[Sample]) -> str:
    """Samples as a text, one behind the other, numbered."""
    return "\n\n".join(f"{i}. {as_chat(sample)}" for i, sample in enumerate(samples, 1))


def _is_answer(answer: Any) -> bool:
    spellings = [answer] if isinstance(answer, str) else answer
    return isinstance(spellings, list) and bool(spellings) and all(isinstance(s, str) and s.strip() for s in spellings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
