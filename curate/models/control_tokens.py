"""Control tokens of a tokenizer (`<|im_end|>`, `</s>`) that stand, as text, in what a sample says.

A chat template prints control tokens; a tokenizer reads those in a content in the same way, so that a text that only
mentions `<|im_end|>` ends its turn there, and one with `<|im_start|>system` opens another. Tokenised as text they are
the characters that they are (Hugging Face's `split_special_tokens`), as tiktoken and Llama's own code have it, while
the template's own stay control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from curate.models.rendering import Unrenderable

Sample: TypeAlias = Mapping[str, Any]
Tokens: TypeAlias = tuple[list[int], list[tuple[int, int]]]

# Unicode's two planes of characters that mean nothing: of a content's control token, and of the template's own.
_HIDDEN, _OWN = 0xF0000, 0x100000
_PLANE = 0xFFFE
_RUN = re.compile("([\U000f0000-\U000ffffd])\\1*")  # of one character
_MEANINGLESS = re.compile("[\U000f0000-\U0010fffd]")
# Templates look for these in contents, and take the reasoning from there.
_REASONING = {"<think>", "</think>"}
_AMBIGUOUS = "has control tokens of the model beside private-use characters in its texts, and they cannot be told apart"


class ControlTokens:
    """The control tokens of one tokenizer, and texts of chats tokenised with those of their contents as text."""

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {str(token): token for token in added.values() if token.special}
        literals = {token for token in [*tokenizer.all_special_tokens, *special] if token.strip()} - _REASONING
        self.literals = sorted(literals, key=lambda token: (-len(token), token))[:_PLANE]  # the longest matches first
        self._added = special
        self._backend = tokenizer.backend_tokenizer
        self._openings = {token[:2] for token in self.literals}
        self._pattern = re.compile("|".join(map(re.escape, self.literals)) or r"(?!)")

    def in_text(self, text: str | None) -> bool:
        """Whether a text has one."""
        return bool(text) and any(o in text for o in self._openings) and self._pattern.search(text) is not None

    def in_chat(self, sample: Sample) -> bool:
        """Whether the texts of a chat (contents, calls, tools, documents) have one."""
        texts = [sample.get("template_kwargs")]
        for message in sample["messages"]:
            texts += [message["content"], message.get("extra")]
        return any(self.in_text(text) for text in texts)

    def hidden(self, sample: Sample) -> Sample:
        """The chat with marks of the same length in place of its control tokens, for a template to print. Raises
        Unrenderable."""
        messages = [{**m, **{key: self._hide(m.get(key)) for key in ("content", "extra")}} for m in sample["messages"]]
        return {**sample, "messages": messages, "template_kwargs": self._hide(sample.get("template_kwargs"))}

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids and offsets of rendered chats whose contents were hidden."""
        encodings = self._reader.encode_batch([self._shown(text) for text in texts], add_special_tokens=False)
        return [([self._ids.get(i, i) for i in e.ids], e.offsets) for e in encodings]

    def _hide(self, text: str | None) -> str | None:
        if text and _MEANINGLESS.search(text):
            raise Unrenderable(_AMBIGUOUS)
        return text and self._pattern.sub(lambda found: _mark(_HIDDEN, self._place[found[0]], found[0]), text)

    def _shown(self, rendered: str) -> str:
        """The template's own control tokens replaced by those of the reader, and the contents' as they were."""
        own = self._pattern.sub(lambda found: _mark(_OWN, self._place[found[0]], found[0]), rendered)
        return _RUN.sub(lambda run: self._of_run(run[0]), own)

    def _of_run(self, run: str) -> str:
        """Control tokens that were hidden by a run of one character."""
        literal = self.literals[ord(run[0]) - _HIDDEN]
        return literal * (len(run) // len(literal))

    @cached_property
    def _place(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.literals)}

    @cached_property
    def _reader(self) -> Any:
        """A copy of the tokenizer that reads its control tokens as text, and other marks as control tokens, with the
        same rules for the white space around them."""
        from tokenizers import AddedToken, Tokenizer

        reader = Tokenizer.from_str(self._backend.to_str())
        reader.encode_special_tokens = True
        reader.no_truncation()
        reader.no_padding()
        rules = ("lstrip", "rstrip", "single_word")
        reader.add_tokens(
            [
                AddedToken(
                    _mark(_OWN, i, token),
                    special=False,
                    normalized=False,
                    **{rule: getattr(self._added[token], rule) for rule in rules if token in self._added},
                )
                for i, token in enumerate(self.literals)
            ]
        )
        return reader

    @cached_property
    def _ids(self) -> Mapping[int, int]:
        """The reader's id of a control token -> the tokenizer's."""
        read, known = self._reader, self._backend
        places = self._place.items()
        pairs = [(read.token_to_id(_mark(_OWN, i, token)), known.token_to_id(token)) for token, i in places]
        return {mark: token for mark, token in pairs if token is not None}


_KNOWN: WeakKeyDictionary[Any, ControlTokens] = WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens:
    """The control tokens of a tokenizer; made once for each."""
    if tokenizer not in _KNOWN:
        _KNOWN[tokenizer] = ControlTokens(tokenizer)
    return _KNOWN[tokenizer]


def without_bounds(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """A raw text without the BOS at its beginning and the EOS at its end, which bound a document also where they are
    spelled out; and the BOS's id, if it had one. A text of nothing else says nothing."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    inner = text.removeprefix(bos) if bos else text
    begins = [tokenizer.bos_token_id] if len(inner) < len(text) else []
    if eos:
        inner = re.sub(rf"(?:{re.escape(eos)})+\s*\Z", "", inner)
    return (begins, inner) if inner.strip() or inner == text else ([], "")


def _mark(plane: int, place: int, literal: str) -> str:
    return chr(plane + place) * len(literal)
