"""Memory that a micro-batch needs between its forward and its backward pass, so that a step fits into what there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from curate.training.examples import Batch
from curate.training.objective import Objective
from curate.training.settings import TrainSettings

_GIB = 1 << 30
_ON_CPU = 1.5  # GiB, unless a setting says otherwise
_TOKENS = 32  # of the trials
_LOGITS = 3  # a token's logits, their log probabilities and the gradient of these are in memory at once


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model keeps for its backward pass. token: for each token, padding included. supervised: for each
    token that is learnt. limit: for a micro-batch."""

    token: float
    supervised: float
    limit: float

    def of(self, rows: int, longest: int, supervised: int) -> float:
        """Bytes of a micro-batch of so many rows, padded to the longest, with so many supervised tokens."""
        return rows * longest * self.token + supervised * self.supervised

    def fits(self, rows: int, longest: int, supervised: int) -> bool:
        """Whether it is within the limit."""
        return self.of(rows, longest, supervised) <= self.limit


def footprint(objective: Objective, settings: TrainSettings) -> Footprint | None:
    """The memory of a model in training, found by two trials on a few tokens; None where there is no limit.

    Without a setting the limit is 1.5 GiB on a CPU, where the system ends a process that takes too much, and none on a
    GPU, where the micro-batch is halved when memory runs out.
    """
    gib = settings.activation_gib or (_ON_CPU if objective.model.device.type == "cpu" else 0.0)
    if not gib:
        return None
    small, large = (_kept(objective, n) for n in (_TOKENS, 2 * _TOKENS))
    logits = 4.0 * _LOGITS * objective.model.model.config.vocab_size
    return Footprint((large - small) / _TOKENS, logits, gib * _GIB)


def _kept(objective: Objective, tokens: int) -> int:
    """Bytes kept of a forward pass over one row of tokens, without its logits and the parameters."""
    model = objective.model.model
    found = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in found:
            found.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    place = torch.arange(tokens, device=objective.model.device)[None]
    ids, none = place % model.config.vocab_size, torch.zeros_like(place)
    batch = Batch(none[0, :1].cpu().numpy(), ids, place, none, none == 0, packed=False)
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), saved_tensors_hooks(count, lambda tensor: tensor):
            objective.states(batch)
    finally:
        model.train(training)
    return total
