"""The body and the head of a language model with products in bfloat16 and everything between them in float32.

A processor with bfloat16 instructions multiplies matrices four times as fast as in float32. A model that is cast as a
whole (`model.dtype=bfloat16`) also adds its layers up in bfloat16, whose 8 bits of precision lose most of what a late
layer adds. Here only the inputs of a product are rounded: weights, normalised states, queries, keys and values. The
residual stream, norms, rotations and sums are float32, as are the logit of the actual token and all probabilities.

Known are the layouts of Llama, Mistral, Qwen2 and Qwen3, which are: norm, attention with rotary positions, norm, gated
MLP. The products of an input with several matrices are one product. Any other model runs under torch's autocast, which
rounds the products' results, too, and takes a little longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curate.models.prefix_states import Block, KeysValues, Past

LAYOUTS = ("llama", "mistral", "qwen2", "qwen3")  # model_type in config.json
_ROWS = 128  # tokens whose logits are in memory at once; their buffers are used again and again


def is_known(config: Any) -> bool:
    """Whether a model has one of the layouts here, without attention in a sliding window. config: transformers'."""
    full = getattr(config, "sliding_window", None) is None
    full = full or all(layer == "full_attention" for layer in getattr(config, "layer_types", None) or ["sliding"])
    return config.model_type in LAYOUTS and config.hidden_act == "silu" and full


def round_frozen(model: nn.Module, trained: Iterable[Tensor]) -> None:
    """Keep the weights of linear layers that are not trained in bfloat16, to which autocast would round them for every
    product anew: the results are the same, in less time and half the memory. Those that embeddings share stay.
    """
    kept = {id(p) for p in trained} | {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not any(id(p) in kept for p in module.parameters(recurse=False)):
            module.to(torch.bfloat16)


@dataclass(frozen=True)
class _Product:
    """The product of inputs [N, in] with matrices of the same input: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: Any, dtype: torch.dtype, after: Any = None) -> _Product:
        """after: a norm before it, whose weight becomes the matrix's, so that it costs nothing."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        bias = torch.cat([b.detach() for b in biases]).to(dtype) if biases else None
        weight = torch.cat([layer.weight.detach().float() for layer in layers])
        return cls((weight if after is None else weight * after.weight.detach().float()).to(dtype), bias)

    def with_first(self, order: Tensor) -> _Product:
        """The product whose first results, as many as there are numbers in `order`, are in that order."""
        n = len(order)
        bias = None if self.bias is None else torch.cat([self.bias[order], self.bias[n:]])
        return _Product(torch.cat([self.weight[order], self.weight[n:]]), bias)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight.T, out=out)
        return torch.addmm(self.bias, x, self.weight.T, out=out)


@dataclass(frozen=True)
class _Norm:
    """RMSNorm in float32 of [..., D], rounded to the dtype of `out`."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any, order: Tensor | None = None) -> _Norm:
        """order: of the numbers that are normalised, if not their own."""
        weight = norm.weight.detach().float()
        return cls(weight if order is None else weight[order], norm.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _normalise(x: Tensor, eps: float, out: Tensor) -> Tensor:
    """RMSNorm without its weight of x, float32 [N, D], rounded to the dtype of `out`."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).pow_(2).div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale, out=out)


@dataclass(frozen=True)
class _Layer:
    eps: tuple[float, float]  # of the norms before attention and before the MLP
    qkv: _Product
    heads: tuple[int, int]  # of queries, and of keys
    scale: float
    norms: tuple[_Norm, _Norm] | None  # of queries and keys, before they are rotated
    out: _Product
    gate_up: _Product
    down: _Product

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> _Layer:
        a, mlp = layer.self_attn, layer.mlp
        order = _paired(a.head_dim).to(layer.input_layernorm.weight.device)
        norms = (_Norm.of(a.q_norm, order), _Norm.of(a.k_norm, order)) if hasattr(a, "q_norm") else None
        queries, keys = a.q_proj.out_features // a.head_dim, a.k_proj.out_features // a.head_dim
        qkv = _Product.of(a.q_proj, a.k_proj, a.v_proj, dtype=dtype, after=layer.input_layernorm)
        rotated = (
            torch.arange((queries + keys) * a.head_dim, device=order.device).view(-1, a.head_dim)[:, order].flatten()
        )
        return cls(
            (layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon),
            qkv.with_first(rotated),
            (queries, keys),
            float(a.scaling),
            norms,
            _Product.of(a.o_proj, dtype=dtype),
            _Product.of(mlp.gate_proj, mlp.up_proj, dtype=dtype, after=layer.post_attention_layernorm),
            _Product.of(mlp.down_proj, dtype=dtype),
        )


@dataclass
class _Buffers:
    """Memory that every layer uses again: to ask the system for it costs as much as a product."""

    dtype: torch.dtype
    device: torch.device
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return self.kept[name][:size].view(shape)


class MixedBody:
    """The layers of a model from token ids to the last hidden states.

    dtype: of the products' inputs; float32 gives the model's own results up to the order of sums.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.bfloat16):
        """model: transformers' model with its output head, in float32; it is not changed."""
        body = model.base_model
        self.embeddings, self.rotary = body.embed_tokens, body.rotary_emb
        self.layers, self.norm = [_Layer.of(layer, dtype) for layer in body.layers], _Norm.of(body.norm)
        self.buffers = _Buffers(dtype, self.norm.weight.device)

    def __call__(self, input_ids: Tensor, **_: Any) -> Any:
        """input_ids: [B, T], padded on the right. Returns an object with `last_hidden_state`, float32 [B, T, D].

        Attention is causal, so that no token sees the padding behind it.
        """
        batch, longest = input_ids.shape
        x = self.embeddings(input_ids).float().flatten(0, 1)
        rotation = self._rotation(x, torch.arange(longest, device=x.device)[None])
        for layer in self.layers:
            q, k, v = self._projected(layer, x, (batch, longest), rotation)
            self._add(layer, x, _attended(layer, q, k, v, is_causal=True))
            self._transform(layer, x)
        return SimpleNamespace(last_hidden_state=self.norm(x).view(batch, longest, -1))

    def after(self, ids: Tensor, valid: Tensor, places: Tensor, past: Past, keep: bool) -> Block:
        """See curate.models.prefix_states.ContinuingBody."""
        x = self.embeddings(ids).float().flatten(0, 1)
        rotation, shape = self._rotation(x, places), (ids.shape[0], ids.shape[1])
        # Without a past no token sees the padding, which is behind it.
        how = {"attn_mask": _mask(past, valid, self.buffers.dtype)} if past.blocks else {"is_causal": True}
        layers = list[KeysValues]()
        for index, layer in enumerate(self.layers):
            q, k, v = self._projected(layer, x, shape, rotation)
            if keep:
                layers.append((k.clone(), v.clone()))
            keys, values = self._joined(past.layer(index), k, v)
            self._add(layer, x, _attended(layer, q, keys, values, **how))
            self._transform(layer, x)
        return Block(layers, valid, self.norm(x).view(*shape, -1))

    def _rotation(self, x: Tensor, places: Tensor) -> Tensor:
        """The rotation of each pair by the tokens' places, int64 [B, T], complex [B, T, 1, d / 2]."""
        cos, sin = self.rotary(x[None], places)
        half = cos.shape[-1] // 2
        return torch.complex(cos[..., :half].float(), sin[..., :half].float())[:, :, None]

    def _projected(
        self, layer: _Layer, x: Tensor, shape: tuple[int, int], rotation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the residual stream x, float32 [N, D], each [B, H, T, d], in memory that the next
        layer uses again."""
        (batch, longest), (n_queries, n_keys) = shape, layer.heads
        n, rows = len(layer.qkv.weight), len(x)
        normal = _normalise(x, layer.eps[0], self.buffers("normal", *x.shape))
        qkv = layer.qkv(normal, self.buffers("qkv", rows, n))
        qkv = qkv.view(batch, longest, n_queries + 2 * n_keys, -1)
        rotated = self.buffers("rotated", batch, longest, n_queries + n_keys, qkv.shape[-1])
        unrotated = qkv[:, :, : n_queries + n_keys]
        if layer.norms:
            parts = zip(layer.norms, unrotated.float().split([n_queries, n_keys], 2), strict=True)
            unrotated = torch.cat([norm(part) for norm, part in parts], 2)
        self._rotate(unrotated, rotation, rotated)
        q, k = rotated.split([n_queries, n_keys], 2)
        return q.transpose(1, 2), k.transpose(1, 2), qkv[:, :, n_queries + n_keys :].transpose(1, 2)

    def _joined(self, before: Sequence[KeysValues], k: Tensor, v: Tensor) -> KeysValues:
        """A layer's keys and values with those before them."""
        if not before:
            return k, v
        keys, values = [k for k, _ in before], [v for _, v in before]
        return self._in_a_row("keys", [*keys, k]), self._in_a_row("values", [*values, v])

    def _in_a_row(self, name: str, parts: list[Tensor]) -> Tensor:
        (batch, heads, _, size), length = parts[-1].shape, sum(part.shape[2] for part in parts)
        return torch.cat(parts, 2, out=self.buffers(name, batch, heads, length, size))

    def _add(self, layer: _Layer, x: Tensor, attended: Tensor) -> None:
        """Add a layer's attention, [B, H, T, d], to the residual stream."""
        flat = attended.transpose(1, 2).reshape(len(x), -1)
        x += layer.out(flat, self.buffers("added", *x.shape))

    def _transform(self, layer: _Layer, x: Tensor) -> None:
        """Add a layer's MLP to the residual stream."""
        normal = _normalise(x, layer.eps[1], self.buffers("normal", *x.shape))
        both = layer.gate_up(normal, self.buffers("both", len(x), len(layer.gate_up.weight)))
        gate, up = both.chunk(2, -1)
        inner = self.buffers("inner", *gate.shape)
        torch.ops.aten.silu.out(gate, out=inner)
        x += layer.down(inner.mul_(up), self.buffers("added", *x.shape))

    def _rotate(self, x: Tensor, rotation: Tensor, out: Tensor) -> None:
        """Rotate queries and keys, [B, T, H, d] in pairs, in float32. rotation: complex, [B or 1, T, 1, d / 2]."""
        wide = self.buffers("wide", *x.shape, dtype=torch.float32).copy_(x)
        torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(rotation)
        out.copy_(wide)


def _paired(size: int) -> Tensor:
    """The order of a head's numbers in which the two that are rotated together are neighbours: 0, d / 2, 1, … Products
    of queries with keys are the same in any order that both have."""
    return torch.arange(size).view(2, -1).T.flatten()


def _attended(layer: _Layer, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """Sums of values for each query, [B, H, T, d]."""
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, scale=layer.scale, enable_gqa=grouped, **how)


def _mask(past: Past, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the products of queries with keys: 0 where a token sees another, [B, 1, T, length + T]."""
    n = valid.shape[1]
    causal = torch.ones(n, past.length + n, dtype=torch.bool, device=valid.device).tril(past.length)
    seen = past.valid(valid)[:, None, None] & causal
    return torch.zeros(seen.shape, dtype=dtype, device=valid.device).masked_fill_(~seen, float("-inf"))


class MixedHead:
    """The output head: log probabilities of the vocabulary at some tokens, float32."""

    def __init__(self, head: Any, dtype: torch.dtype = torch.bfloat16):
        """head: the linear layer in float32, with or without a bias; it is not changed."""
        self.exact, self.product = head, _Product.of(head, dtype=dtype)
        self.buffers = _Buffers(dtype, head.weight.device)

    def log_p(self, states: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of [N, D] last hidden states and the tokens that follow, [N]: log probabilities [n, V], which hold
        until the next piece, and labels [n]. A token's own logit is computed in float32."""
        weight, bias = self.exact.weight, getattr(self.exact, "bias", None)
        for start in range(0, len(labels), _ROWS):
            piece, own = states[start : start + _ROWS].float(), labels[start : start + _ROWS]
            shape = (len(own), len(weight))
            rounded = self.buffers("rounded", *piece.shape).copy_(piece)
            products = self.product(rounded, self.buffers("products", *shape))
            logits = self.buffers("logits", *shape, dtype=torch.float32).copy_(products)
            exact = (piece * weight[own].float()).sum(-1)
            logits.scatter_(1, own[:, None], (exact if bias is None else exact + bias[own])[:, None])
            out = self.buffers("log_p", *shape, dtype=torch.float32)
            yield torch.log_softmax(logits, -1, out=out), own
