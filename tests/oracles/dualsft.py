"""DualSFT, slowly: Shapley values by enumeration, distillation token by token, scores from whole gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb, log
from typing import Any

import numpy as np
import torch
from torch import Tensor


def shapley(value: Callable[[Sequence[int]], float], n: int) -> list[float]:
    """Each of n players' mean marginal value over all orders, from the value of every set."""
    found = []
    for player in range(n):
        others, total = [i for i in range(n) if i != player], 0.0
        for size in range(n):
            weight = 1 / (n * comb(n - 1, size))
            for before in combinations(others, size):
                total += weight * (value([*before, player]) - value(before))
        found.append(total)
    return found


def gain(gradient: np.ndarray, hessian: np.ndarray, step: np.ndarray) -> float:
    """What a quadratic loss loses by a step."""
    return float(-gradient @ step - step @ hessian @ step / 2)


def distillation(
    student: Any, teacher: Any, ids: list[int], supervised: list[bool], tau: float, confidence: str, squared: bool
) -> Tensor:
    """CWSD of one anchor."""
    given = torch.tensor([ids])
    theirs, ours = teacher(given).logits[0].detach(), student(given).logits[0]
    divergences, weights = [], []
    for t in range(1, len(ids)):
        if supervised[t]:
            p0, p = torch.softmax(theirs[t - 1] / tau, 0), torch.softmax(ours[t - 1] / tau, 0)
            divergences.append((p0 * (p0.log() - p.log())).sum())
            entropy = -(p0 * p0.log()).sum()
            weights.append(
                {"entropy_inv": 1 - float(entropy) / log(len(p0)), "max_prob": float(p0.max()), "uniform": 1.0}[
                    confidence
                ]
            )
    factor = tau**2 if squared else 1.0
    return sum(weights) / len(weights) * factor * torch.stack(divergences).mean()


def scores(
    gradients: Sequence[Tensor], v: Tensor, curved: Callable[[Tensor], Tensor], eta: float, by_mean: bool
) -> tuple[list[float], list[float]]:
    """The two terms of each sample's score: gradients of the pool, of the validation loss, and what bends a step."""
    whole = torch.stack(list(gradients)).sum(0)
    s = eta / len(gradients) if by_mean else eta
    bent = curved(whole)
    return [float(s * (v @ g)) for g in gradients], [float(s * s / 2 * (bent @ g)) for g in gradients]
