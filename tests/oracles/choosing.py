"""Choosing within a step, slowly: whole gradients of one sample at a time, vectors taken from vectors, plain loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tests.oracles.gradients import Tokens, gradient

Parameters = Mapping[str, torch.nn.Parameter]


def vectors(model: Any, samples: Sequence[Tokens], parameters: Parameters) -> np.ndarray:
    """The gradient of each one's mean loss, float64 [n, all numbers]."""
    each = [gradient(model, one, parameters) for one in samples]
    return np.stack([np.concatenate([its[name].flatten().double().numpy() for name in parameters]) for its in each])


def adams_d(optimizer: torch.optim.Optimizer, parameters: Parameters) -> np.ndarray:
    """Eq. 9, number by number; 1 before the first step."""
    group, found = optimizer.param_groups[0], []
    for parameter in parameters.values():
        state = optimizer.state.get(parameter)
        if not state:
            found.append(np.ones(parameter.numel()))
            continue
        t, (beta1, beta2) = float(state["step"]) + 1, group["betas"]
        hat = state["exp_avg_sq"].double().numpy().flatten() / (1 - beta2 ** (t - 1))
        found.append((1 - beta1) / ((1 - beta1**t) * (np.sqrt(hat) + group["eps"])))
    return np.concatenate(found)


def filtered(candidates: np.ndarray, sought: np.ndarray, room: int) -> list[int]:
    """Algorithm 1: the residual is a vector."""
    r, chosen = sought.copy(), []
    for _ in range(room):
        best = max((i for i in range(len(candidates)) if i not in chosen), key=lambda i: float(candidates[i] @ r))
        chosen.append(best)
        r = r - candidates[best]
    return chosen


def weighed(candidates: np.ndarray, aligned: np.ndarray, ridge: float) -> np.ndarray:
    """Least w >= 0 of  w^T (G + lambda I) w - 2 b^T w,  by its Cholesky factor and SciPy's NNLS."""
    gram = candidates @ candidates.T
    lower = np.linalg.cholesky(gram + ridge * np.diagonal(gram).mean() * np.eye(len(gram)))
    from scipy.optimize import nnls

    return nnls(lower.T, np.linalg.solve(lower, aligned))[0]


def greats(candidates: np.ndarray, sought: np.ndarray, eta: float, room: int) -> list[int]:
    """The written recursion: a, B, argmax, subtract a row, never again."""
    a = [eta * float(g @ sought) for g in candidates]
    b = [[eta**2 * float(g @ h) for h in candidates] for g in candidates]
    chosen = []
    for _ in range(room):
        i = int(np.argmax(a))
        chosen.append(i)
        a = [x - y for x, y in zip(a, b[i], strict=True)]
        for done in chosen:
            a[done] = -np.inf
    return chosen


def pursued_by_trial(candidates: np.ndarray, sought: np.ndarray, ridge: float, room: int) -> list[int]:
    """Algorithm 2: every candidate is tried, and the one that leaves the least objective is added; until none helps."""
    chosen: list[int] = []

    def objective(some: list[int]) -> float:
        a = candidates[some].T
        w = np.linalg.solve(a.T @ a + ridge * np.eye(len(some)), a.T @ sought)
        return float(np.sum((a @ w - sought) ** 2) + ridge * w @ w) if (w >= 0).all() else np.inf

    for _ in range(room):
        chosen.append(
            min((i for i in range(len(candidates)) if i not in chosen), key=lambda i: objective([*chosen, i]))
        )
    return chosen
