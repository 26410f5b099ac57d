"""What UDS asks of a sample's logits, had from the last states and the output head: the logits are never made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from curate.kinds.signals import Forward


def singular_values(batch: Forward) -> np.ndarray:
    """Of each sample's logits [N, V], its prompt included: float64 [B, min(T, E)], zero beyond its own."""
    import torch

    states = batch.head.states(batch.hidden, batch.lengths)
    return torch.linalg.svdvals(states @ batch.head.root).double().cpu().numpy()


def projected(batch: Forward, d1: int, d2: int, seed: int) -> np.ndarray:
    """D^T L C of each sample's logits L, with C [V, d1] and D [N, d2] of signs by lot over the roots of d1 and d2, a
    row of D belonging to a place in the sample: float32 [B, d2 d1]. Squared distances are kept in expectation."""
    from curate.numerics.projections import Rademacher

    assert batch.hidden is not None
    states, device = batch.head.states(batch.hidden, batch.lengths), batch.hidden.device
    places = Rademacher(d2, seed).entries("places", 0, states.shape[1], device)
    return (places.T.to(states.dtype) @ (states @ _columns(batch.head, d1, seed))).flatten(1).cpu().numpy()


def _columns(head: Any, d1: int, seed: int) -> Tensor:
    """W^T C, [E, d1], made once for each head."""
    from curate.numerics.projections import Rademacher

    if (d1, seed) not in head.kept:
        entries = Rademacher(d1, seed).entries("vocabulary", 0, head.vocabulary, head.weight.device)
        head.kept[d1, seed] = head.projected(entries)
    return head.kept[d1, seed]


def released_scale(vocabulary: int, length: int) -> float:
    """By which UDS's published code, whose transform is not normalised, makes distances larger: sqrt(V T) / 2."""
    return (vocabulary * length) ** 0.5 / 2


class Memory:
    """The last vectors that were put in, first in, first out: float64 [n, width]."""

    def __init__(self, most: int, kept: np.ndarray):
        self._most, self.kept = most, kept

    def push(self, raw: np.ndarray) -> None:
        self.kept = np.concatenate([self.kept, raw])[-self._most :] if self._most else self.kept

    def distance(self, raw: np.ndarray) -> np.ndarray:
        """Mean distance of each from those in memory; 0 where it is empty."""
        if not len(self.kept):
            return np.zeros(len(raw))
        squares = np.square(raw).sum(1)[:, None] + np.square(self.kept).sum(1) - 2 * raw @ self.kept.T
        return np.sqrt(np.maximum(squares, 0.0)).mean(1)
