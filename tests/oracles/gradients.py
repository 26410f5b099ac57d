"""Gradients of single samples, and LESS, slowly: one sample at a time by torch.autograd.grad, nothing of curate's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.oracles.training import token_losses

Tokens = tuple[list[int], list[bool]]


def gradient(model: Any, sample: Tokens, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The gradient of the mean loss of one sample's supervised tokens."""
    wanted = list(parameters.values())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)
    found = torch.autograd.grad(token_losses(model, *sample).mean(), wanted)
    for parameter in wanted:
        parameter.requires_grad_(False)
    return dict(zip(parameters, found, strict=True))


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.stack([x @ y for y in b]) for x in a])


# --- LESS, straight from its description ---------------------------------------------------------------------


def gamma(g: Tensor, m: Tensor, v: Tensor, t: int, variant: str) -> Tensor:
    """Adam's step on one gradient, number by number."""
    found = []
    for gradient, mean, square in zip(g.tolist(), m.tolist(), v.tolist(), strict=True):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        if variant == "code":
            found.append(mean / (square + 1e-8) ** 0.5)
        else:
            found.append((mean / (1 - 0.9 ** (t + 1))) / ((square / (1 - 0.999 ** (t + 1))) ** 0.5 + 1e-8))
    return torch.tensor(found, dtype=torch.float64)


def less(
    features: Sequence[Sequence[Tensor]],
    targets: Sequence[Sequence[Tensor]],
    subtasks: Sequence[str],
    rates: Sequence[float],
) -> list[float]:
    """Scores from features [checkpoint][sample] and the target's gradients [checkpoint][example], all of any length."""
    scores = []
    for i in range(len(features[0])):
        influence = [0.0] * len(subtasks)
        for c, rate in enumerate(rates):
            for j in range(len(subtasks)):
                a, b = features[c][i], targets[c][j]
                influence[j] += rate / sum(rates) * float(a @ b / (a.norm() * b.norm()))
        means = []
        for name in sorted(set(subtasks)):
            mine = [value for value, its in zip(influence, subtasks, strict=True) if its == name]
            means.append(sum(mine) / len(mine))
        scores.append(max(means))
    return scores
