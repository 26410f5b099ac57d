"""Questions about a sample that a language model answers by one token, and the files that they are in.

A file is TOML: `question`, a text in which {sample}, {prompt}, {answer} and {examples} stand for what is asked about;
`answers`, each a word or a list of spellings of one; `values`, a number for each answer; and `system`, if the question
has a system prompt. What is the same for all samples should come first, since a model computes it once.
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

FIELDS = ("sample", "prompt", "answer", "examples")
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
        """What the fields of the sample stand for. Raises NoText if it has no prompt, or has no text at all."""
        found = {"sample": as_chat, "prompt": prompt_of, "answer": answer_of}
        texts = {name: found[name](sample) for name in self.fields if name in found}
        if lacking := [name for name, text in texts.items() if not text.strip()]:
            raise NoText(f"has no {'text' if lacking[0] == 'sample' else lacking[0]} to ask about")
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
    def of(cls, name: str) -> Question:
        """A ready question, or one in a file. Raises CurateError if there is none, or it is not as described above."""
        file = Path(name)
        if file.suffix != ".toml":
            if name not in ready():
                raise CurateError(
                    f"there is no question '{name}': {nearest(name, ready())} A question of your own is a file .toml."
                )
            return cls._parsed(resources.files("curate.kinds").joinpath(f"questions/{name}.toml").read_text(), name)
        try:
            return cls._parsed(file.read_text(encoding="utf-8"), name)
        except FileNotFoundError:
            raise CurateError(f"{name}: there is no such file with a question.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CurateError(f"{name} cannot be read as a question ({type(error).__name__}: {error}).") from None

    @classmethod
    def _parsed(cls, text: str, where: str) -> Question:
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CurateError(f"{where} is not TOML: {error}.") from None
        if unknown := sorted(set(table) - _KEYS):
            raise CurateError(
                f"{where} has the key '{unknown[0]}', which a question has not: {nearest(unknown[0], _KEYS)}"
            )
        question, system = table.get("question"), table.get("system", "")
        if not isinstance(question, str) or not set(_FIELD.findall(question)) - {"examples"}:
            raise CurateError(f"{where} needs `question`, a text with {{sample}}, {{prompt}} or {{answer}} in it.")
        for word in set(re.findall(r"\{(\w+)\}", question)) - set(FIELDS):
            if (hint := nearest(word, FIELDS)).startswith("did you mean"):
                raise CurateError(f"{where} has the field {{{word}}}, which there is not: {hint}")
        if not isinstance(system, str):
            raise CurateError(f"{where} has a `system` that is no text.")
        answers, values = table.get("answers"), table.get("values")
        if not isinstance(answers, list) or len(answers) < 2 or not all(map(_is_answer, answers)):
            raise CurateError(f"{where} needs `answers`, a list of two or more words, or lists of spellings of one.")
        spelled = tuple((a,) if isinstance(a, str) else tuple(a) for a in answers)
        if not isinstance(values, list) or len(values) != len(spelled) or not all(map(_is_number, values)):
            raise CurateError(f"{where} needs `values`, a number for each of its {len(spelled)} answers.")
        every = [spelling for answer in spelled for spelling in answer]
        if twice := [spelling for i, spelling in enumerate(every) if spelling in every[:i]]:
            raise CurateError(f"{where} has the answer '{twice[0]}' twice.")
        return cls(question, spelled, tuple(map(float, values)), system)


def ready() -> list[str]:
    """The names of the ready questions."""
    files = resources.files("curate.kinds").joinpath("questions").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def examples_of(samples: Sequence[Sample]) -> str:
    """Samples as a text, one behind the other, numbered."""
    return "\n\n".join(f"{i}. {as_chat(sample)}" for i, sample in enumerate(samples, 1))


def _is_answer(answer: Any) -> bool:
    spellings = [answer] if isinstance(answer, str) else answer
    return isinstance(spellings, list) and bool(spellings) and all(isinstance(s, str) and s.strip() for s in spellings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
