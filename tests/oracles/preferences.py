"""What models make of a preference pair, slowly: one answer at a time, token by token."""

from __future__ import annotations

from typing import Any

import torch


def log_likelihoods(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """The log likelihood of each token of an answer, each by a pass of its own over what comes before it."""
    found, before = [], list(prompt)
    for token in answer:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before])).logits[0, -1].double()
        found.append(float(logits.log_softmax(-1)[token]))
        before.append(token)
    return found


def nll_margin(model: Any, prompt: list[int], chosen: list[int], rejected: list[int]) -> float:
    good, bad = (log_likelihoods(model, prompt, answer) for answer in (chosen, rejected))
    return sum(good) / len(good) - sum(bad) / len(bad)


def dpo_margin(
    base: Any, reference: Any, prompt: list[int], chosen: list[int], rejected: list[int], beta: float
) -> float:
    rewards = []
    for answer in (chosen, rejected):
        policy, before = (sum(log_likelihoods(model, prompt, answer)) for model in (base, reference))
        rewards.append(beta * (policy - before))
    return rewards[0] - rewards[1]
