"""FLOPs of passes through a model: by our formula, by the papers' convention, and measured.

Our formula counts what is computed: two FLOPs per matrix element and token, padding included; the attention products;
in training, also the products of the backward pass, where a frozen matrix needs only the gradient of its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FORWARD, TRAINING, PAPER_LENGTH = 2, 6, 2048  # FLOPs per parameter and token (twice); tokens papers assume per sample


def paper_flops(factor: int, n_params: float, samples: float, length: float = PAPER_LENGTH) -> float:
    """FLOPs by the papers' convention (ADAPT, Appendix C): 2N per token forward, 6N in training, 2,048 tokens a
    sample. factor: FORWARD or TRAINING."""
    return float(factor) * n_params * samples * length


def forward_flops(model: nn.Module, batch: int, length: int, head_rows: int, before: int = 0) -> float:
    """FLOPs of a forward pass over [batch, length] tokens, of which `head_rows` go through the output head.

    Two per matrix element and token, and 4 T^2 D for the attention of a sample of T tokens in each layer (scores and
    sums over all pairs, as the eager kernels compute them). before: preceding tokens that are in the KV cache.
    """
    matrices = sum(weight.numel() for weight in _matrices(model).values())
    return 2.0 * matrices * batch * length + _attention(model, batch, length, before) + 2.0 * head_rows * _head(model)


class TrainingFlops:
    """FLOPs of training steps of a model whose `requires_grad` flags are already set.

    Where gradients flow is found by one forward pass over two tokens.
    """

    def __init__(self, model: Any):
        self.model, self._backward, self._both = model, 0, 0
        self._head_back = _head(model) * _learns_head(model)
        matrices, hooks = _matrices(model), []

        def look(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
            weight: Any = matrices[id(module)]
            self._backward += weight.numel() * (weight.requires_grad + inputs[0].requires_grad)
            self._both += weight.numel() * (weight.requires_grad and inputs[0].requires_grad)

        for module in model.modules():
            if id(module) in matrices:
                hooks.append(module.register_forward_hook(look))
        device, mixed = next(model.parameters()).device, len({p.dtype for p in model.parameters()}) > 1
        try:
            with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
                flows = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.requires_grad
        finally:
            for hook in hooks:
                hook.remove()
        self._head_back += _head(model) * flows
        self._head_both = _head(model) * (flows and _learns_head(model))

    def step(self, batch: int, length: int, head_rows: int, recompute: bool = False) -> float:
        """FLOPs of a step on [batch, length] tokens, forward and backward; recompute: the forward pass is done twice
        (gradient checkpointing)."""
        forward = forward_flops(self.model, batch, length, head_rows)
        recomputed = forward - 2.0 * head_rows * _head(self.model) if recompute else 0.0
        attention = 2.0 * _attention(self.model, batch, length)
        backward = 2.0 * self._backward * batch * length + attention + 2.0 * head_rows * self._head_back
        return forward + recomputed + backward

    def second(self, batch: int, length: int, head_rows: int) -> float:
        """FLOPs of a step on [batch, length] tokens whose gradient is differentiated along a direction: forward,
        backward, and backward through both. A product y = W x has up to two products in the backward pass (the
        gradients of x and of W); these are differentiated with respect to the gradient of y, one product each, and, if
        x and W both have gradients, with respect to x and W, two more; y itself has its two again."""
        forward, attention = forward_flops(self.model, batch, length, head_rows), _attention(self.model, batch, length)
        body = 2.0 * batch * length * (3 * self._backward + 2 * self._both) + 8.0 * attention
        return forward + body + 2.0 * head_rows * (3 * self._head_back + 2 * self._head_both)


@contextmanager
def counted(usage: Any, wanted: bool) -> Iterator[None]:
    """Add the measured FLOPs of the enclosed code to `usage` if `wanted`. On a CPU fused attention is counted as 0."""
    if not wanted:
        yield
        return
    from torch.utils.flop_counter import FlopCounterMode

    def product(a: Any, b: Any, *_: Any, **__: Any) -> int:
        """FLOPs of a batched matrix product, ignoring further arguments (torch's own formula accepts no dtype)."""
        return 2 * a[0] * a[1] * a[2] * b[2]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: product}) as counter:
        yield
    usage.flops_counted = (usage.flops_counted or 0.0) + counter.get_total_flops()


def _matrices(model: nn.Module) -> dict[int, Tensor]:
    """The matrices that every token is multiplied by (all but embeddings and the head), by the id of their module."""
    excluded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    excluded.add(id(getattr(model.get_output_embeddings(), "weight", None)))  # type: ignore[operator]
    matrices = {}
    for module in model.modules():
        weight = module._parameters.get("weight")  # its own only: LoRA wrappers expose the weight of what they wrap
        if weight is not None and weight.ndim == 2 and id(weight) not in excluded:
            matrices[id(module)] = weight
    return matrices


def _attention(model: Any, batch: int, length: int, before: int = 0) -> float:
    config = model.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 4.0 * config.num_hidden_layers * batch * length * (length + before) * width


def _head(model: Any) -> int:
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return 0 if weight is None else weight.numel()


def _learns_head(model: Any) -> bool:
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return weight is not None and weight.requires_grad
