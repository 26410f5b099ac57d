"""A model's output head: quantities of the logits that can be computed without materialising them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.models.forward import wide

_ROWS = 1 << 14  # rows of the vocabulary converted to float32 at once


class Head:
    """The linear map from the last hidden states h to logits: W h + b. weight: [V, D]. bias: [V]; None if absent.

    Logits of N tokens are [N, V] and large. Quantities that are needed only up to a rotation, or projected, can be
    computed from the hidden states alone, as [N, E]: the states, with a 1 appended if there is a bias, so that E is D
    or D + 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight.detach(), bias if bias is None else bias.detach()
        self.kept: dict[Any, Tensor] = {}  # what methods derive from it once and reuse

    @property
    def vocabulary(self) -> int:
        """V, the number of logits per token."""
        return len(self.weight)

    def states(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        """Last hidden states [B, T, D], zero beyond a sample's end, as [B, T, E]."""
        if self.bias is None:
            return hidden
        places = torch.arange(hidden.shape[1], device=hidden.device)
        valid = places[None] < torch.from_numpy(lengths).to(hidden.device)[:, None]
        return torch.cat([hidden, valid[:, :, None].to(hidden.dtype)], dim=2)

    def _rows(self) -> list[Tensor]:
        """W, with b as its last column if there is one, a slice of the vocabulary at a time: [v, E]."""
        parts = self.weight.split(_ROWS)
        if self.bias is None:
            return list(parts)
        return [torch.cat([w, b[:, None]], dim=1) for w, b in zip(parts, self.bias.split(_ROWS), strict=True)]

    @cached_property
    def root(self) -> Tensor:
        """S [E, E] with S S^T = W^T W, so states @ S has the singular values of the logits. 2 V E^2 FLOPs, once."""
        gram = torch.stack([part.double().T @ part.double() for part in self._rows()]).sum(0)
        values, vectors = torch.linalg.eigh(gram)
        return (vectors * values.clamp(min=0).sqrt()).to(wide(self.weight[:1]).dtype)

    def projected(self, directions: Tensor) -> Tensor:
        """Directions [V, k] over the vocabulary mapped to [E, k]: states @ result equals logits @ directions."""
        sums = [
            wide(part).T @ block.to(wide(part))
            for part, block in zip(self._rows(), directions.split(_ROWS), strict=True)
        ]
        return torch.stack(sums).sum(0)
