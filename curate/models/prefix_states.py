"""Keys and values of prefixes, kept for the samples behind them, and a body that goes on from them.

Samples behind a prefix need each layer's keys and values of its tokens, and nothing else of it but, where a token of it
or right behind it is scored, its last hidden states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

KeysValues = tuple[Tensor, Tensor]  # of a layer: [B, H, T, d] each
_GROWING = ("dynamic", "longrope")  # rotary embeddings whose angles depend on how long the whole input is
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Block:
    """G prefixes, or rests of samples, of up to P tokens that were computed together, padded on the right.

    layers: each layer's keys and values, [G, H, P, d], if they are kept. valid: bool [G, P]. states: the last hidden
    states, [G, P, D].
    """

    layers: Sequence[KeysValues]
    valid: Tensor
    states: Tensor


@dataclass(frozen=True)
class Past:
    """What stands before each of B samples: a row of each block, one after the other. rows: int64 [B] for each."""

    blocks: tuple[Block, ...] = ()
    rows: tuple[Tensor, ...] = ()

    def of(self, places: Tensor, block: Block | None = None) -> Past:
        """The past of the samples at these places, int64 [B]; with a block, behind its rows at these places."""
        rows = tuple(own[places] for own in self.rows)
        return Past((*self.blocks, block), (*rows, places)) if block else Past(self.blocks, rows)

    @property
    def length(self) -> int:
        """Tokens of a sample's past, with padding."""
        return sum(block.valid.shape[1] for block in self.blocks)

    @property
    def kept(self) -> int:
        """Tokens that are kept of all prefixes, with padding."""
        return sum(block.valid.numel() for block in self.blocks)

    def valid(self, own: Tensor) -> Tensor:
        """Which tokens are no padding, bool [B, length + T]: those of the past, and the samples' own, bool [B, T]."""
        return torch.cat([*(block.valid[rows] for block, rows in zip(self.blocks, self.rows, strict=True)), own], 1)

    def states(self) -> list[Block]:
        """Of each block the rows of the samples, with the last hidden states alone."""
        return [Block((), b.valid[rows], b.states[rows]) for b, rows in zip(self.blocks, self.rows, strict=True)]

    def layer(self, index: int) -> list[KeysValues]:
        """Of each block a layer's keys and values for every sample; those of a single row are not copied."""
        return [
            (_picked(block.layers[index][0], rows), _picked(block.layers[index][1], rows))
            for block, rows in zip(self.blocks, self.rows, strict=True)
        ]


def _picked(values: Tensor, rows: Tensor) -> Tensor:
    return values.expand(len(rows), *values.shape[1:]) if len(values) == 1 else values[rows]


class ContinuingBody(Protocol):
    """The layers of a model, for tokens behind a past."""

    def after(self, ids: Tensor, valid: Tensor, places: Tensor, past: Past, keep: bool) -> Block:
        """Tokens behind their pasts, computed; keep: with their own keys and values. ids: int64 [B, T], padded on the
        right. valid: bool [B, T]. places: of the tokens in their samples, int64 [B, T]."""
        ...


class _Layer(DynamicLayer):
    """A layer's cache that keeps the batch's own keys and values only: those before them are put in front of them for
    the time of the layer, instead of being copied for every sample and layer at once."""

    def __init__(self, past: Past, index: int, keep: bool):
        super().__init__()
        self.past, self.index, self.keep = past, index, keep

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeysValues:
        """The layer's keys and values with those before them."""
        if self.keep:
            self.keys, self.values = key_states, value_states
        before = self.past.layer(self.index)
        keys, values = [keys for keys, _ in before], [values for _, values in before]
        return torch.cat([*keys, key_states], -2), torch.cat([*values, value_states], -2)

    def get_seq_length(self) -> int:
        """Tokens before the batch's own, by which transformers makes the mask."""
        return self.past.length


class CachedBody:
    """The body of one of transformers' models, with its cache. products: makes the context of a forward pass."""

    def __init__(self, body: Any, products: Callable[[], AbstractContextManager[Any]] = nullcontext):
        self.body, self.n_layers, self.products = body, len(_layers(body)), products

    def after(self, ids: Tensor, valid: Tensor, places: Tensor, past: Past, keep: bool) -> Block:
        """See ContinuingBody."""
        layers: list[Any] = [_Layer(past, index, keep) for index in range(self.n_layers)]
        # Without a past no token sees what does not belong to its sample: padding is on the right.
        mask = past.valid(valid).long() if past.blocks else None
        with self.products():
            out = self.body(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=Cache(layers), use_cache=True
            )
        return Block([(layer.keys, layer.values) for layer in layers if keep], valid, out.last_hidden_state)


def continues(model: Any) -> bool:
    """Whether a model can go on behind a past: it may, and a trial on a few tokens, with padding in between, gives what
    the whole does."""
    return may_continue(model) and _holds(CachedBody(model.base_model), model.config.vocab_size)


def may_continue(model: Any) -> bool:
    """Whether a model is one of transformers' own, and its cache is of keys and values of all tokens in every layer."""
    body, config = model.base_model, model.config
    known = type(body).__module__.startswith("transformers.models.") and not config.is_encoder_decoder
    takes = {"past_key_values", "position_ids", "attention_mask"} <= set(inspect.signature(body.forward).parameters)
    if not known or not takes or _grows(config.to_dict()):
        return False
    return all(type(layer) is DynamicLayer for layer in _layers(body))  # others are of windows, of recurrent states


def _layers(body: Any) -> list[Any]:
    return list(DynamicCache(config=body.config).layers)


def _grows(settings: Any) -> bool:
    """Whether a configuration has a rotary embedding whose angles depend on the length of the input."""
    if not isinstance(settings, dict):
        return False
    kinds = (settings.get("rope_type"), settings.get("type"))
    return any(kind in _GROWING for kind in kinds) or any(map(_grows, settings.values()))


@torch.inference_mode()
def _holds(body: CachedBody, vocabulary: int) -> bool:
    """Two samples of 7 and 6 tokens, whole, and with 4 and 3 of them as a prefix."""
    device = next(body.body.parameters()).device
    ids = (torch.arange(14, device=device).view(2, 7) * 7 + 1) % vocabulary
    places, valid = torch.arange(7, device=device).expand(2, 7), torch.ones(2, 4, dtype=torch.bool, device=device)
    whole = body.body(input_ids=ids, use_cache=False).last_hidden_state
    valid[1, 3] = False
    block = body.after(ids[:, :4], valid, places[:, :4], Past(), keep=True)
    own = torch.stack([places[0, 4:], places[1, 3:6]])
    past = Past().of(torch.arange(2, device=device), block)
    rest = body.after(ids.gather(1, own), torch.ones_like(own, dtype=torch.bool), own, past, keep=False).states
    wanted = whole.gather(1, own[:, :, None].expand(-1, -1, whole.shape[-1]))
    return bool((rest - wanted).float().norm() < _TOLERANCE[whole.dtype] * wanted.float().norm())
