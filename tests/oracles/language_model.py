"""What a model makes of one sample, slowly: one sample at a time, in float64, all logits at once."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def token_scores(model: Any, ids: list[int], supervised: list[bool]) -> dict[str, float]:
    """nll, entropy and el2n of a sample; the model is in float64."""
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    nll, entropy, el2n, n = 0.0, 0.0, 0.0, 0
    for t in range(1, len(ids)):
        if supervised[t]:
            p = torch.softmax(logits[t - 1], dim=-1)
            one_hot = torch.zeros_like(p)
            one_hot[ids[t]] = 1.0
            nll += -torch.log(p[ids[t]]).item()
            entropy += -(p * torch.log(p)).sum().item()
            el2n += torch.linalg.norm(p - one_hot).item()
            n += 1
    return {"nll": nll / n, "entropy": entropy / n, "el2n": el2n / n, "tokens": n}


def ifd(model: Any, ids: list[int], supervised: list[bool], begin: int, given: float | None = None) -> float:
    """The ratio of the answer's losses with and without what stands before it; given: the first, where it is known."""
    answer = [token for token, s in zip(ids, supervised, strict=True) if s]
    alone = token_scores(model, [begin, *answer], [False] + [True] * len(answer))
    return (token_scores(model, ids, supervised)["nll"] if given is None else given) / alone["nll"]


@torch.no_grad()
def position_weighted(model: Any, ids: list[int]) -> list[float]:
    """The unit vector of a sample: the mean of its last states in which the l-th token has weight l."""
    states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    total = torch.zeros_like(states[0])
    for place, state in enumerate(states, start=1):
        total += place * state
    return (total / torch.linalg.norm(total)).tolist()


@torch.no_grad()
def states_before(model: Any, ids: list[int], supervised: list[bool]) -> torch.Tensor:
    """The last states that the supervised tokens of a sample are predicted from, [S, D]."""
    states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return torch.stack([states[t - 1] for t in range(1, len(ids)) if supervised[t]])


def gradient(model: Any, ids: list[int], supervised: list[bool]) -> torch.Tensor:
    """The gradient of the mean loss of a sample's supervised tokens, all parameters one after another."""
    model.zero_grad()
    log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
    losses = [-log_p[t - 1, ids[t]] for t in range(1, len(ids)) if supervised[t]]
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])
