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
