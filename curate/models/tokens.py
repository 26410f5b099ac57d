"""Tokenising samples and marking the supervised tokens: those of the assistant's turns, or all tokens of a raw text.

A chat is rendered by the model's own template, which also shows where the turns are (curate.models.rendering).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeAlias

import numpy as np

from curate.models.rendering import DATE, Rendered, Span, Template, Unrenderable
from curate.preferences import prompt_length

# A sample: {"messages": [{"role", "content", "extra"}], "text": None, "template_kwargs": JSON text or None}, or
# {"messages": None, "text": "…"}.
Sample: TypeAlias = Mapping[str, Any]


@dataclass
class Encoded:
    """One tokenised sample.

    ids: int32 [n]. supervised: bool [n]; never the first token. cut: whether it was truncated to the context.
    weight: float32 [n], how much each token's loss counts, where turns have weights of their own; else None.
    partial: whether some of the assistant's turns could not be located, and are not supervised, or something of the
    sample is not shown.
    error: why it cannot go through the model, or ''.
    """

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    supervised: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cut: bool = False
    partial: bool = False
    error: str = ""
    weight: np.ndarray | None = None


def encode(
    tokenizer: Any,
    samples: Sequence[Sample],
    context: int,
    too_long: str = "cut",
    view: str = "whole",
    today: date = DATE,
    add_eos_token: bool = False,
) -> list[Encoded]:
    """Tokenise samples to at most `context` tokens each; too_long: 'cut' (truncate the end) or 'refuse'; view: see
    kinds.passes.ForwardRequest; today: the date that a chat template prints, if it prints one; add_eos_token: whether
    raw texts end with EOS (once, also if they have it themselves)."""
    last = view == "last"
    if view == "text":
        return _plain(tokenizer, [_contents(sample) for sample in samples], context, too_long)
    if view in ("chosen", "rejected"):
        halves = [_half(sample, view) for sample in samples]
        encoded = encode(tokenizer, [half or _NOTHING for half in halves], context, too_long, "whole", today)
        no_pair = Encoded(error="has no rejected answer: it is no preference pair")
        return [item if half else no_pair for item, half in zip(encoded, halves, strict=True)]
    encoded, template = [Encoded() for _ in samples], Template(tokenizer, today)
    chats: dict[int, Rendered] = {}
    for i, sample in enumerate(samples):
        if sample["messages"] is not None:
            try:
                chat = template.render(sample["messages"], sample.get("template_kwargs"), sample.get("start", 0))
                chats[i] = replace(chat, spans=chat.spans[-1:], weights=chat.weights[-1:]) if last else chat
                encoded[i].partial = chat.partial
            except Unrenderable as error:
                encoded[i].error = str(error)
    raw = [i for i, sample in enumerate(samples) if sample["messages"] is None]
    documents = _tokens(tokenizer, [samples[i]["text"] or "" for i in raw], special=True)
    ends = _ends(tokenizer, documents, add_eos_token)
    _fill(encoded, raw, [_bounded(tokenizer, ids, ends) for ids, _ in documents], None)
    _fill(encoded, list(chats), _tokens(tokenizer, [chat.text for chat in chats.values()], special=False), chats)
    for item in encoded:
        _fit(item, context, too_long)
    return (
        [_answer(item, s, tokenizer) for item, s in zip(encoded, samples, strict=True)] if view == "answer" else encoded
    )


_NOTHING: Sample = {"messages": None, "text": ""}


def _half(sample: Sample, view: str) -> Sample | None:
    """One conversation of a preference pair, supervised behind the prompt (`start`); None if the sample is no pair."""
    chosen, rejected = sample["messages"], sample.get("rejected")
    if chosen is None or rejected is None:
        return None
    shown = chosen if view == "chosen" else rejected
    return {**sample, "messages": shown, "start": prompt_length(chosen, rejected)}


def weights_of(encoded: Sequence[Encoded]) -> np.ndarray | None:
    """How much each supervised token counts, float64 [S], sample after sample; None if all count 1."""
    if all(item.weight is None for item in encoded):
        return None
    one = [np.ones(len(item.ids)) if item.weight is None else item.weight for item in encoded]
    return np.concatenate([w[item.supervised] for w, item in zip(one, encoded, strict=True)]).astype(np.float64)


def marked(encoded: Sequence[Encoded]) -> dict[str, int]:
    """How many samples were cut, and of how many some turns could not be located, as fields of a Usage."""
    return {"cut": sum(item.cut for item in encoded), "partial": sum(item.partial for item in encoded)}


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
    weight = encoded.weight
    if weight is not None:
        weight = np.concatenate([np.zeros(len(begin)), weight[encoded.supervised]]).astype(np.float32)
    error = encoded.error or ("" if len(ids) else "has no tokens")
    return Encoded(ids, np.arange(len(ids)) > 0, encoded.cut, error=error, weight=weight)


def _tokens(tokenizer: Any, texts: list[str], special: bool) -> list[tuple[list[int], list[Span]]]:
    if not texts:
        return []
    # verbose=False: no warning about long texts, which are truncated later
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    encoding = tokenizer(texts, add_special_tokens=special, **options)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def _ends(tokenizer: Any, documents: Sequence[Any], wanted: bool) -> bool:
    """Whether raw texts end with EOS: if it is wanted, or the tokenizer itself adds it."""
    return wanted or bool(documents) and tokenizer("x")["input_ids"][-1:] == [tokenizer.eos_token_id]


def _bounded(tokenizer: Any, ids: list[int], ends: bool) -> tuple[list[int], list[Span]]:
    """The tokens of a document with one BOS, where the tokenizer adds one to a text that has it, and one EOS or none,
    whether the text has it or not. Without offsets, which nothing asks for where all tokens are supervised."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = 1 if bos is not None and ids[:2] == [bos, bos] else 0
    stop = len(ids)
    while eos is not None and stop > start and ids[stop - 1] == eos:
        stop -= 1
    if stop == start or stop == start + 1 and ids[start] == bos:  # a document of nothing else
        return ids, []
    return ids[start:stop] + ([eos] if ends and eos is not None else []), []


def _fill(
    encoded: list[Encoded],
    places: list[int],
    tokens: list[tuple[list[int], list[Span]]],
    chats: Mapping[int, Rendered] | None,
) -> None:
    for i, (ids, offsets) in zip(places, tokens, strict=True):
        encoded[i].ids = np.array(ids, np.int32)
        ends = np.array([end for _, end in offsets] if chats else [], np.int64)
        inside = np.full(len(ids), chats is None)
        weight = np.zeros(len(ids), np.float32)
        for (start, stop), turn_weight in zip(chats[i].spans, chats[i].weights, strict=True) if chats else []:
            turn = (ends > start) & (ends <= stop)  # also a token that begins before the turn and ends in it
            inside |= turn
            weight[turn] = turn_weight
        inside[:1] = False
        encoded[i].supervised = inside
        if chats and any(turn_weight != 1 for turn_weight in chats[i].weights):
            encoded[i].weight = weight


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
        encoded.weight = None if encoded.weight is None else encoded.weight[:context]


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], today: date = DATE, template_kwargs: str | None = None
) -> Rendered:
    """The messages rendered by the chat template, and where the assistant's turns are. Raises Unrenderable."""
    return Template(tokenizer, today).render(messages, template_kwargs)


def rendered(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], today: date = DATE, template_kwargs: str | None = None
) -> str:
    """The messages rendered by the chat template, with the generation prompt. Raises Unrenderable."""
    return Template(tokenizer, today).prompt(messages, template_kwargs)
