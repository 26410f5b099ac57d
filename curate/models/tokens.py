"""Tokenising samples and marking the supervised tokens: those of the assistant's turns, or all tokens of a raw text.

A chat is rendered by the model's own template. The bounds of a turn are not searched for in the text but derived from
the template: the messages are rendered up to the turn (with the generation prompt) and through it, and the first must
be a prefix of the second, and both of the whole. A template that marks the assistant's tokens itself
(`{% generation %}`) is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

# A sample: {"messages": [{"role", "content", "extra"}], "text": None} or {"messages": None, "text": "…"}.
Sample: TypeAlias = Mapping[str, Any]
Span: TypeAlias = tuple[int, int]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# For models without a template: the contents, each on a line of its own; an answer ends with the EOS token.
PLAIN = (
    "{{ bos_token or '' }}"
    "{% for m in messages %}{{ m['content'] }}"
    "{{ (eos_token or '') if m['role'] == 'assistant' else '' }}{{ '' if loop.last else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt and messages %}{{ '\\n' }}{% endif %}"
)


@dataclass
class Encoded:
    """One tokenised sample.

    ids: int32 [n]. supervised: bool [n]; never the first token. cut: whether it was truncated to the context. error:
    why it cannot go through the model, or ''.
    """

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    supervised: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cut: bool = False
    error: str = ""


def encode(
    tokenizer: Any, samples: Sequence[Sample], context: int, too_long: str = "cut", view: str = "whole"
) -> list[Encoded]:
    """Tokenise samples to at most `context` tokens each; too_long: 'cut' (truncate the end) or 'refuse'; view: see
    kinds.passes.ForwardRequest."""
    last = view == "last"
    if view == "text":
        return _plain(tokenizer, [_contents(sample) for sample in samples], context, too_long)
    encoded = [Encoded() for _ in samples]
    chats: dict[int, tuple[str, list[Span]]] = {}
    for i, sample in enumerate(samples):
        if sample["messages"] is not None:
            try:
                text, spans = render(tokenizer, sample["messages"])
                chats[i] = text, spans[-1:] if last else spans
            except Unrenderable as error:
                encoded[i].error = str(error)
    raw = [i for i, sample in enumerate(samples) if sample["messages"] is None]
    _fill(encoded, raw, _tokens(tokenizer, [samples[i]["text"] or "" for i in raw], special=True), None)
    _fill(encoded, list(chats), _tokens(tokenizer, [text for text, _ in chats.values()], special=False), chats)
    for item in encoded:
        _fit(item, context, too_long)
    return (
        [_answer(item, s, tokenizer) for item, s in zip(encoded, samples, strict=True)] if view == "answer" else encoded
    )


def _contents(sample: Sample) -> str:
    """Every message's content, or the raw text, joined by newlines."""
    if sample["messages"] is None:
        return sample["text"] or ""
    return "\n".join(m["content"] for m in sample["messages"] if m["content"] is not None)


def _plain(tokenizer: Any, texts: list[str], context: int, too_long: str) -> list[Encoded]:
    """Texts with the tokenizer's special tokens around them, which a truncated text keeps."""
    encoded = []
    for text, (ids, _) in zip(texts, _tokens(tokenizer, [text.strip() for text in texts], special=True), strict=True):
        item = Encoded(np.array(ids, np.int32), np.zeros(len(ids), bool))
        if not text.strip():
            item.error = "has no text"
        elif len(ids) > context and too_long == "cut":
            kept = tokenizer(text.strip(), truncation=True, max_length=context)["input_ids"]
            item = Encoded(np.array(kept, np.int32), np.zeros(len(kept), bool), cut=True)
        _fit(item, context, too_long)
        encoded.append(item)
    return encoded


def _answer(encoded: Encoded, sample: Sample, tokenizer: Any) -> Encoded:
    """The supervised tokens without their context: the same token ids, since re-tokenising the answer alone could split
    it differently."""
    if sample["messages"] is None:
        return Encoded(error=encoded.error or "has no prompt: it is raw text")
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = np.concatenate([begin, encoded.ids[encoded.supervised]]).astype(np.int32)
    return Encoded(ids, np.arange(len(ids)) > 0, encoded.cut, encoded.error or ("" if len(ids) else "has no tokens"))


def _tokens(tokenizer: Any, texts: list[str], special: bool) -> list[tuple[list[int], list[Span]]]:
    if not texts:
        return []
    # verbose=False: no warning about long texts, which are truncated later
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    encoding = tokenizer(texts, add_special_tokens=special, **options)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def _fill(
    encoded: list[Encoded],
    places: list[int],
    tokens: list[tuple[list[int], list[Span]]],
    chats: Mapping[int, tuple[str, list[Span]]] | None,
) -> None:
    for i, (ids, offsets) in zip(places, tokens, strict=True):
        encoded[i].ids = np.array(ids, np.int32)
        ends = np.array([end for _, end in offsets], np.int64)
        inside = np.full(len(ids), chats is None)
        for start, stop in chats[i][1] if chats else []:
            inside |= (ends > start) & (ends <= stop)  # also a token that begins before the turn and ends in it
        inside[:1] = False
        encoded[i].supervised = inside


def _fit(encoded: Encoded, context: int, too_long: str) -> None:
    n = len(encoded.ids)
    if encoded.error:
        return
    if n == 0:
        encoded.error = "has no tokens"
    elif n > context and too_long == "refuse":
        encoded.error = f"has {n} tokens, more than the context of {context}"
    elif n > context:
        encoded.ids, encoded.supervised, encoded.cut = encoded.ids[:context], encoded.supervised[:context], True


# --- chats -----------------------------------------------------------------------------------------------


class Unrenderable(Exception):
    """The chat template cannot render these messages; the message gives the reason."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Span]]:
    """The messages rendered by the chat template, and the character spans of the assistant's turns. Raises
    Unrenderable."""
    chat = [_message(m) for m in messages]
    template = tokenizer.chat_template or PLAIN
    if _MARKS.search(template):
        return _marked(tokenizer, chat)
    text, spans = _rendered(tokenizer, chat), []
    for i, message in enumerate(chat):
        if message["role"] == "assistant":
            prefix = _rendered(tokenizer, chat[:i], open_turn=True) if i else ""
            through = text if i == len(chat) - 1 else _rendered(tokenizer, chat[: i + 1])
            if not (text.startswith(through) and through.startswith(prefix)):
                raise Unrenderable("its chat template renders a turn differently when more messages follow")
            spans.append((len(prefix), len(through.rstrip())))  # trailing white space belongs to the template
    return text, spans


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages rendered by the chat template, with the generation prompt. Raises Unrenderable."""
    return _rendered(tokenizer, [_message(m) for m in messages], open_turn=True)


def _message(m: Mapping[str, Any]) -> dict[str, Any]:
    extra = json.loads(m["extra"]) if m.get("extra") else {}
    return {"role": m["role"], "content": m["content"], **extra}


def _rendered(tokenizer: Any, chat: list[dict[str, Any]], open_turn: bool = False) -> str:
    template = tokenizer.chat_template or PLAIN
    try:
        return tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=open_turn
        )
    except Exception as error:  # a template may raise anything, e.g. for unknown roles  # noqa: BLE001
        raise Unrenderable(f"its chat template refuses it: {(str(error).splitlines() or [''])[0][:200]}") from None


def _marked(tokenizer: Any, chat: list[dict[str, Any]]) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            [chat],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # as above  # noqa: BLE001
        raise Unrenderable(f"its chat template refuses it: {(str(error).splitlines() or [''])[0][:200]}") from None
    return str(texts[0]), [(int(a), int(b)) for a, b in spans[0]]
