"""Training and weights, slowly: one sample at a time, or a plain loop, with nothing of curate's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def token_losses(model: Any, ids: list[int], supervised: list[bool]) -> torch.Tensor:
    """The losses of one sample's supervised tokens, with their gradient, by the model's own logits."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    labels, at = torch.tensor(ids[1:]), torch.tensor(supervised[1:])
    return cross_entropy(logits[at], labels[at], reduction="none")


def weighted_gradient(
    model: Any, samples: Sequence[tuple[list[int], list[bool]]], weights: Sequence[float], divisor: float
) -> dict[str, torch.Tensor]:
    """The gradient of  sum of w_i (sum of i's token losses) / D, by the parameters' names."""
    model.zero_grad()
    for (ids, supervised), weight in zip(samples, weights, strict=True):
        (weight * token_losses(model, ids, supervised).sum() / divisor).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def pooled(model: Any, ids: list[int]) -> np.ndarray:
    """ADAPT's Eq. 9: sum over l of  l / (1 + ... + L)  h_l."""
    states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    total = np.zeros(states.shape[1])
    for place in range(len(ids)):
        total += (place + 1) / (len(ids) * (len(ids) + 1) / 2) * states[place]
    return total


def adapt(model: Any, ids: list[int], anchors: Sequence[list[int]], tau: float) -> float:
    """ADAPT's Eqs. 9 to 11 for one sample."""
    phi, cosines = pooled(model, ids), []
    for anchor in anchors:
        other = pooled(model, anchor)
        cosines.append(float(phi @ other) / (float(np.linalg.norm(phi)) * float(np.linalg.norm(other))))
    return 1 / (1 + float(np.exp(-(sum(cosines) / len(cosines)) / tau)))


def centred_adapt(
    model: Any, samples: Sequence[list[int]], anchors: Sequence[list[int]], center: str, tau: float
) -> list[float]:
    """The weights of samples where what all of them have in common is taken away: from their states, or cosines."""
    own, others = [pooled(model, ids) for ids in samples], [pooled(model, ids) for ids in anchors]
    if center == "states":
        mean = sum(own) / len(own)
        own, others = [a - mean for a in own], [b - mean for b in others]
    means = []
    for a in own:
        cosines = [float(a @ b) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b))) for b in others]
        means.append(sum(cosines) / len(cosines))
    common = sum(means) / len(means) if center == "cosine" else 0.0
    return [1 / (1 + float(np.exp(-(s - common) / tau))) for s in means]


def plain_training(
    model: Any, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], lrs: Sequence[float], clip: float
) -> list[float]:
    """A plain loop: mean loss of the supervised tokens, clipped, AdamW. batches: ids and supervised [B, T], padded on
    the right. Returns the losses."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": rest}], lr=1.0, weight_decay=0.0, fused=True)
    losses = []
    for (ids, supervised), lr in zip(batches, lrs, strict=True):
        at = supervised[:, 1:]
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        loss = cross_entropy(model.get_output_embeddings()(states[:, :-1][at]), ids[:, 1:][at])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
