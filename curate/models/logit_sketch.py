"""The quantities of a sample's logits that UDS uses, computed from the last hidden states and the output head without
materialising the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from curate.kinds.signals import Forward


MOST_TOKENS = 1_000_000  # no vocabulary has more


def singular_values(batch: Forward) -> np.ndarray:
    """Singular values of each sample's logits [N, V], prompt included: float64 [B, min(T, E)], padded with zeros."""
    import torch

    states = batch.head.states(batch.hidden, batch.lengths)
    return torch.linalg.svdvals(states @ batch.head.root).double().cpu().numpy()


def projected(batch: Forward, d1: int, d2: int, seed: int) -> np.ndarray:
    """D^T L C for each sample's logits L [N, V], float32 [B, d2 d1]: C [V, d1] and D [N, d2] are random signs divided
    by sqrt(d1) and sqrt(d2), a row of D per token position. Preserves squared distances in expectation."""
    from curate.numerics.projections import Rademacher

    assert batch.hidden is not None
    states, device = batch.head.states(batch.hidden, batch.lengths), batch.hidden.device
    places = Rademacher(d2, seed).entries("places", 0, states.shape[1], device)
    return (places.T.to(states.dtype) @ (states @ _columns(batch.head, d1, seed))).flatten(1).cpu().numpy()


def _columns(head: Any, d1: int, seed: int) -> Tensor:
    """W^T C, [E, d1], computed once per head."""
    from curate.numerics.projections import Rademacher

    if (d1, seed) not in head.kept:
        entries = Rademacher(d1, seed).entries("vocabulary", 0, head.vocabulary, head.weight.device)
        head.kept[d1, seed] = head.projected(entries)
    return head.kept[d1, seed]


def released_scale(vocabulary: int, length: int) -> float:
    """sqrt(V T) / 2: the factor by which distances are larger in UDS's published code, whose transform is not
    normalised."""
    return (vocabulary * length) ** 0.5 / 2


class Memory:
    """A first-in-first-out buffer of the most recent vectors, float64 [n, width]. most: its capacity."""

    def __init__(self, most: int, kept: np.ndarray):
        self._most, self.kept = most, kept

    def push(self, raw: np.ndarray) -> None:
        """Append vectors [n, width], dropping the oldest beyond the capacity."""
        self.kept = np.concatenate([self.kept, raw])[-self._most :] if self._most else self.kept

    def distance(self, raw: np.ndarray) -> np.ndarray:
        """Mean Euclidean distance of each vector from those in the buffer, float64 [n]; 0 if it is empty."""
        if not len(self.kept):
            return np.zeros(len(raw))
        squares = np.square(raw).sum(1)[:, None] + np.square(self.kept).sum(1) - 2 * raw @ self.kept.T
        return np.sqrt(np.maximum(squares, 0.0)).mean(1)
