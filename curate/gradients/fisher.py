"""Losses whose gradients' outer products make a Fisher matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.kinds.passes import Fisher
from curate.models.tokens import Encoded, weights_of


def fisher_losses(
    logits: Tensor, _: Tensor | None, sample: Tensor, n: int, *, encoded: Sequence[Encoded], fisher: Fisher
) -> Tensor:
    """Of every sample the sum of its T supervised tokens' losses over sqrt(T), [n], at logits [S, V] of the samples' S
    supervised tokens in order; sample: which of the n each belongs to, int64 [S].

    The gradients of different tokens' losses of drawn labels are independent with mean 0, so the expected outer product
    of the sum's is the sum of theirs, and that of sqrt(T) times the mean's is the Gauss-Newton matrix of the mean. A
    token's weight counts by its root, as the matrix has the weight once.
    """
    predicted = [_predicted(one) for one in encoded]
    if fisher.kind == "true":
        uniform = [_uniform(one, int(some.sum()), fisher.seed) for one, some in zip(encoded, predicted, strict=True)]
        labels = _drawn(logits.detach(), torch.from_numpy(np.concatenate(uniform)).to(logits.device))
    else:
        own = np.concatenate([one.ids[1:][some] for one, some in zip(encoded, predicted, strict=True)])
        labels = torch.from_numpy(own.astype(np.int64)).to(logits.device)
    losses = cross_entropy(logits, labels, reduction="none")
    weights = weights_of(encoded)
    if weights is not None:
        losses = losses * torch.from_numpy(weights[weights > 0]).to(losses).sqrt()
    sums = losses.new_zeros(n).index_add(0, sample, losses)
    return sums / sample.bincount(minlength=n).clamp(min=1).to(losses).sqrt()


def _drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """A label for each row of logits [S, V], by inversion of its cumulative distribution at uniform [S]."""
    cumulative = logits.softmax(-1).cumsum(-1)
    labels = torch.searchsorted(cumulative, (uniform.to(logits) * cumulative[:, -1])[:, None])
    return labels[:, 0].clamp(max=logits.shape[-1] - 1)


def _predicted(one: Encoded) -> np.ndarray:
    """Which tokens after the first are predicted, and count: bool."""
    return one.supervised[1:] if one.weight is None else one.supervised[1:] & (one.weight[1:] > 0)


def _uniform(one: Encoded, count: int, seed: int) -> np.ndarray:
    """As many numbers in [0, 1): of the sample's tokens and the seed alone, so that they do not depend on its batch."""
    digest = hashlib.blake2b(np.asarray(one.ids, np.int64).tobytes(), digest_size=16, key=str(seed).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)
