"""A model's output head: what can be had of its logits without making them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.models.forward import wide

_ROWS = 1 << 14  # of the vocabulary, widened at once


class Head:
    """What makes logits of the last layer's states h: W h + b. weight: [V, D]. bias: [V]; null where there is none.

    Logits of N tokens are [N, V] and large. What is wanted of them only up to a rotation, or projected, can be had of
    the states alone: as [N, E], which are the states, and behind them a one where there is a bias; so E is D, or D + 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight.detach(), bias if bias is None else bias.detach()
        self.kept: dict[Any, Tensor] = {}  # what a method makes of it once

    @property
    def vocabulary(self) -> int:
        return len(self.weight)

    def states(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        """Last states [B, T, D], zero beyond a sample's end, as [B, T, E]."""
        if self.bias is None:
            return hidden
        places = torch.arange(hidden.shape[1], device=hidden.device)
        there = places[None] < torch.from_numpy(lengths).to(hidden.device)[:, None]
        return torch.cat([hidden, there[:, :, None].to(hidden.dtype)], dim=2)

    def _rows(self) -> list[Tensor]:
        """W, with b behind it, a part of the vocabulary at a time: [v, E]."""
        parts = self.weight.split(_ROWS)
        if self.bias is None:
            return list(parts)
        return [torch.cat([w, b[:, None]], dim=1) for w, b in zip(parts, self.bias.split(_ROWS), strict=True)]

    @cached_property
    def root(self) -> Tensor:
        """S [E, E] with S S^T = W^T W: states @ S has the singular values of the logits. 2 V E^2 FLOPs, once."""
        gram = torch.stack([part.double().T @ part.double() for part in self._rows()]).sum(0)
        values, vectors = torch.linalg.eigh(gram)
        return (vectors * values.clamp(min=0).sqrt()).to(wide(self.weight[:1]).dtype)

    def projected(self, directions: Tensor) -> Tensor:
        """Directions [V, k] of the vocabulary as [E, k]: states @ it are the logits' products with them."""
        sums = [
            wide(part).T @ some.to(wide(part)) for part, some in zip(self._rows(), directions.split(_ROWS), strict=True)
        ]
        return torch.stack(sums).sum(0)
