"""Questions about samples in a model's tokens, and which tokens their answers begin with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.asking import Asked
from curate.kinds.sample_text import NoText, Sample
from curate.models.control_tokens import control_tokens
from curate.models.rendering import Template, Unrenderable
from curate.models.tokens import Encoded, Special

_TRIES = 16  # of cutting a sample; each leaves far fewer tokens too many than the one before


class Asking:
    """A question in the tokens of one model: by its chat template as a user's turn, with the generation prompt behind
    it; without a template, as a plain text that the answer goes on from."""

    def __init__(self, tokenizer: Any, view: Asked, today: date, special_tokens: Special):
        self.tokenizer, self.view, self.as_text = tokenizer, view, special_tokens != "parse"
        self.template = Template(tokenizer, today)

    def encoded(self, samples: Sequence[Sample], context: int, too_long: str) -> list[Encoded]:
        """The question about each sample, with one token behind it, the first of an answer, which alone is supervised.
        Of one that would be longer than the context the longest fields are cut at their ends ('cut'), or it is
        refused."""
        behind = self.answers()[0][0]
        return [self._one(sample, context - 1, too_long, behind) for sample in samples]

    def answers(self) -> list[list[int]]:
        """The tokens that each answer may begin with, as it is written or behind a space. Raises CurateError if two
        answers begin with the same."""
        text = self._text(self.view.filled(dict.fromkeys(self.view.fields, "x")))
        ids, found = self._ids(text), list[list[int]]()
        for answer in self.view.answers:
            own = [self._first(ids, text, space + spelling) for spelling in answer for space in ("", " ")]
            found.append(list(dict.fromkeys(token for token in own if token is not None)))
        owner: dict[int, tuple[str, ...]] = {}
        for answer, own in zip(self.view.answers, found, strict=True):
            if not own:
                raise CurateError(f"the answer '{answer[0]}' does not begin with a token of its own here.")
            for token in own:
                if owner.setdefault(token, answer) != answer:
                    raise CurateError(
                        f"the answers '{owner[token][0]}' and '{answer[0]}' begin with the same token of this model "
                        f"({self.tokenizer.decode([token])!r}); choose answers that differ in their first token."
                    )
        return found

    def in_common(self) -> int:
        """How many tokens the questions about all samples begin with in common."""
        one, other = (self._prompt(dict.fromkeys(self.view.fields, text)) for text in ("zq", "Another text."))
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def _first(self, ids: list[int], text: str, answer: str) -> int | None:
        """The token behind the prompt where it goes on with the answer; None if that changes the prompt's own, or if it
        is white space alone."""
        whole = self._ids(text + answer)
        if len(whole) <= len(ids) or whole[: len(ids)] != ids:
            return None
        return whole[len(ids)] if self.tokenizer.decode([whole[len(ids)]]).strip() else None

    def _one(self, sample: Sample, room: int, too_long: str, behind: int) -> Encoded:
        try:
            texts = self.view.texts(sample)
            ids, cut = self._prompt(texts), False
            for _ in range(_TRIES):
                if len(ids) <= room or too_long == "refuse" or not any(texts.values()):
                    break
                texts, cut = _shorter(texts, (len(ids) - room) / max(1, len(ids) - self._own)), True
                ids = self._prompt(texts)
        except (NoText, Unrenderable) as error:
            return Encoded(error=str(error))
        if len(ids) > room:
            what = "the question about it" if too_long == "refuse" else "the question alone"
            return Encoded(error=f"{what} has {len(ids)} tokens, more than the context of {room + 1} has room for")
        supervised = np.zeros(len(ids) + 1, bool)
        supervised[-1] = True
        return Encoded(np.array([*ids, behind], np.int32), supervised, cut)

    @cached_property
    def _own(self) -> int:
        """Tokens of the question itself."""
        return len(self._prompt(dict.fromkeys(self.view.fields, "")))

    def _prompt(self, texts: Mapping[str, str]) -> list[int]:
        """The tokens of the question about these texts; control tokens in them are text."""
        filled, control = self.view.filled(texts), control_tokens(self.tokenizer)
        if not self.as_text or not control.in_text(filled):
            return self._ids(self._text(filled))
        if not self.tokenizer.chat_template:
            return self._ids(filled, as_text=True)
        hidden = control.hidden({"messages": self._messages(filled)})
        return control.tokens([self.template.prompt(hidden["messages"])])[0][0]

    def _messages(self, filled: str) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.view.system}] if self.view.system else []
        return [*system, {"role": "user", "content": filled}]

    def _text(self, filled: str) -> str:
        if self.tokenizer.chat_template:
            return self.template.prompt(self._messages(filled))
        return f"{self.view.system}\n\n{filled}" if self.view.system else filled

    def _ids(self, text: str, as_text: bool = False) -> list[int]:
        """Tokens; without a chat template with those that the tokenizer puts before a text, and none behind it."""
        options = {"verbose": False, "split_special_tokens": as_text}
        ids = list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])
        bos = self.tokenizer.bos_token_id
        begins = not self.tokenizer.chat_template and self.tokenizer("x")["input_ids"][:1] == [bos]
        return [bos, *ids] if begins and bos is not None else ids


def _shorter(texts: Mapping[str, str], share: float) -> dict[str, str]:
    """The texts with this share of all that they say taken away, from the ends of the longest: none is cut below one
    that is shorter."""
    left = sum(map(len, texts.values())) - math.ceil(share * sum(map(len, texts.values()))) - 1
    level, shorter = 0, 0
    for n, length in enumerate(sorted(map(len, texts.values()))):
        level = max(0, left - shorter) // (len(texts) - n)  # of these and all longer ones alike
        if length > level:
            break
        shorter += length
    return {name: text[:level] for name, text in texts.items()}
