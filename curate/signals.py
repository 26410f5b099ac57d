"""What a pass through a model is given. Plain holders of tensors: they know no model and no method.

Shapes: B samples, T tokens of the longest of them, S supervised tokens of all of them, V the vocabulary, D the model's
width. A token is supervised where its loss is what the sample teaches: in the assistant's turns of a chat, everywhere
in raw text; never the first, which nothing predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """The model's distribution at some supervised tokens, n of the S, and what stands there.

    log_p: natural log probabilities, float32 [n, V]. labels: int64 [n].
    """

    log_p: Tensor
    labels: Tensor

    @cached_property
    def p(self) -> Tensor:
        """Probabilities, float32 [n, V]."""
        return self.log_p.exp()

    @cached_property
    def label_log_p(self) -> Tensor:
        """Log probability of the token that stands there, float32 [n]."""
        return self.log_p.gather(1, self.labels[:, None])[:, 0]


@dataclass(frozen=True)
class Forward:
    """B samples that went through a model once.

    per_token: what the leg asked for at each supervised token, float64 [S], sample after sample; null where it asked
    for nothing. counts: supervised tokens of each sample, int64 [B]. hidden: the last layer's states, float32
    [B, T, D], zero beyond a sample's end; null where not asked for. lengths: tokens of each sample, int64 [B]. pooled:
    the vector a sentence encoder was made to give, float32 [B, D]; null where not asked for.
    """

    per_token: np.ndarray | None
    counts: np.ndarray
    hidden: Tensor | None
    lengths: np.ndarray
    pooled: Tensor | None = None

    def mean(self) -> np.ndarray:
        """The mean of `per_token` over each sample's supervised tokens, float64 [B]; not a number where it has none."""
        assert self.per_token is not None
        sums = np.add.reduceat(np.append(self.per_token, 0.0), np.cumsum(self.counts) - self.counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counts > 0, sums / self.counts, np.nan)


def means(batch: Forward) -> dict[str, np.ndarray]:
    """Of each sample: the mean over its supervised tokens, and how many they are."""
    return {"mean": batch.mean(), "tokens": batch.counts}
