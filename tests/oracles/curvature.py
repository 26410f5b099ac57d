"""Influence with dense curvature, slowly: one sample at a time, matrices of all pairs of a layer's elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Tokens = tuple[list[int], list[bool]]
Labels = Callable[[int, Tensor], Tensor]  # of a sample's number and its logits [T, V]


def logits_at(model: Any, sample: Tokens) -> Tensor:
    """The logits that predict a sample's T supervised tokens, [T, V]."""
    ids, supervised = torch.tensor(sample[0]), torch.tensor(sample[1])
    logits = model(input_ids=ids[None]).logits[0]
    return logits[:-1][supervised[1:]]


def fisher_gradient(model: Any, sample: Tokens, labels: Tensor, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The gradient of sqrt(T) times the mean loss of these labels."""
    logits = logits_at(model, sample)
    loss = cross_entropy(logits, labels) * len(labels) ** 0.5
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def factors(model: Any, samples: Sequence[Tokens], labels: Labels, layer: Any) -> tuple[Tensor, Tensor]:
    """The mean over tokens of x x^T, and over samples of the sum over tokens of e e^T, by hooks on one layer."""
    seen: dict[str, Tensor] = {}

    def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["x"], seen["y"] = inputs[0].detach()[0], output
        output.retain_grad()

    inner, outer, count = torch.zeros(0), torch.zeros(0), 0
    handle = layer.register_forward_hook(hook)
    for number, sample in enumerate(samples):
        logits = logits_at(model, sample)
        drawn = labels(number, logits.detach())
        (cross_entropy(logits, drawn) * len(drawn) ** 0.5).backward()
        e = seen["y"].grad[0]
        last = max(t for t, supervised in enumerate(sample[1]) if supervised)
        for x_t, e_t in zip(seen["x"][:last], e[:last], strict=True):
            inner, outer, count = _plus(inner, x_t), _plus(outer, e_t), count + 1
    handle.remove()
    model.zero_grad()
    return inner / count, outer / len(samples)


def _plus(total: Tensor, vector: Tensor) -> Tensor:
    return torch.outer(vector, vector) + (total if total.numel() else 0.0)


def dense(kind: str, inner: Tensor, outer: Tensor, gradients: Sequence[Tensor]) -> np.ndarray:
    """F of a layer's elements, row by row; inner, outer: as `factors`; gradients: of every sample, [m, n]."""
    flat = np.stack([g.detach().numpy().ravel() for g in gradients])
    if kind == "diagonal":
        return np.diag((flat**2).mean(0))
    if kind == "kfac":
        return np.kron(outer.numpy(), inner.numpy())
    basis = np.kron(np.linalg.eigh(outer.numpy())[1], np.linalg.eigh(inner.numpy())[1])
    return basis @ np.diag(((flat @ basis) ** 2).mean(0)) @ basis.T


def damped(f: np.ndarray, damping: float, v: np.ndarray) -> np.ndarray:
    """(F + damping times its mean eigenvalue)^-1 v."""
    return np.linalg.solve(f + damping * np.trace(f) / len(f) * np.eye(len(f)), v)


def gauss_newton(model: Any, samples: Sequence[Tokens], parameter: Any) -> np.ndarray:
    """The mean over samples of the mean over tokens of J^T (diag(p) - p p^T) J, of one parameter's elements."""
    whole = np.zeros((parameter.numel(), parameter.numel()))
    for sample in samples:
        total, logits = np.zeros_like(whole), logits_at(model, sample)
        for row in logits:
            p, eye = row.detach().softmax(-1), torch.eye(len(row), dtype=row.dtype)
            rows = torch.autograd.grad(row, parameter, eye, retain_graph=True, is_grads_batched=True)[0]
            jacobian = rows.flatten(1).numpy()
            mean = p.numpy() @ jacobian
            total += (jacobian.T * p.numpy()) @ jacobian - np.outer(mean, mean)
        whole += total / len(logits) / len(samples)
    return whole
