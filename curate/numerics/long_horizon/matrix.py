"""Measures of staged training, from one matrix: the performance on each stage's target after each stage.

a: float64 [T + 1, T], a[t, s - 1] the performance on stage s's target after stage t, higher is better; row 0 is the
model before any stage. Unknown entries are NaN, and so is every measure that needs them.

Source: "The Long-Term Effects of Data Selection in LLM Fine-Tuning" (LHAS), arXiv:2605.30537, Section 4.1; where it
leaves a measure open, the choice is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Window = Literal["own", "start"]


def immediate_gains(a: np.ndarray) -> np.ndarray:
    """The gain of each stage on its own target: a[t, t] - a[t - 1, t], float64 [T] (Equation 1)."""
    t = np.arange(_stages(a))
    return a[t + 1, t] - a[t, t]


def forgetting(
    a: np.ndarray, after: int | None = None, window: Window = "own", with_last: bool = False, clip: bool = False
) -> float:
    """The mean drop of earlier stages' targets from their best, after stage `after` (default: the last).

    window: the best since that stage was trained ('own'), or since the beginning ('start'). with_last: whether the
    value after `after` itself counts towards the best, so that no drop is negative. clip: count a rise as 0. After the
    first stage the result is 0, as there is no earlier stage.
    """
    last = _stages(a) if after is None else after
    drops = [a[(s if window == "own" else 0) : last + with_last, s - 1].max() - a[last, s - 1] for s in range(1, last)]
    if not drops:
        return 0.0
    return float(np.mean(np.maximum(drops, 0.0) if clip else drops))


def forward_transfer(a: np.ndarray, targets: Sequence[str] = ()) -> float:
    """What earlier stages contribute to each target before its own stage: mean over t >= 2 of a[t - 1, t] - a[0, t].

    targets: of the stages; one that an earlier stage was already trained for is left out. NaN with one stage. The paper
    only names this measure; this is the usual definition (Lopez-Paz and Ranzato, 2017).
    """
    t = np.array([i for i in range(1, _stages(a)) if not targets or targets[i] not in targets[:i]], np.int64)
    return float(np.mean(a[t, t] - a[0, t])) if len(t) else float("nan")


def worst_task(a: np.ndarray) -> float:
    """The lowest final performance on any stage's target."""
    return float(a[-1].min())


def imbalance(scores: np.ndarray, ddof: int = 0) -> float:
    """Standard deviation of the tasks' final scores. scores: [T], on a common scale (see `normalized`)."""
    return float(np.std(scores, ddof=ddof)) if len(scores) > ddof else float("nan")


def normalized(scores: np.ndarray) -> np.ndarray:
    """Scores of K selectors, [K, T], scaled per task from 0 (lowest) to 1 (highest); 0 where all are equal. The paper
    says 'normalized' without defining it."""
    low, high = np.nanmin(scores, axis=0), np.nanmax(scores, axis=0)
    return (scores - low) / np.where(high > low, high - low, 1.0)


def long_utility(
    a: np.ndarray,
    adaptation: np.ndarray,
    out_of_domain: float,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    window: Window = "own",
    with_last: bool = False,
    clip: bool = False,
) -> float:
    """Long-horizon utility (Equation 2): sum of a[T, t] + alpha sum of adaptation - beta sum of F_t + gamma R_ood.

    adaptation: the future-adaptation AUC of every stage but the last, [T - 1]. out_of_domain: mean final performance on
    targets of no stage; 0 if there are none. weights: alpha, beta, gamma, which the paper does not give. window,
    with_last, clip: as in `forgetting`. A target shared by two stages counts for both.
    """
    alpha, beta, gamma = weights
    forgot = sum(forgetting(a, t, window, with_last, clip) for t in range(1, _stages(a) + 1))
    return float(a[-1].sum() + alpha * np.sum(adaptation) - beta * forgot + gamma * out_of_domain)


def _stages(a: np.ndarray) -> int:
    if a.ndim != 2 or a.shape[0] != a.shape[1] + 1:
        raise ValueError(f"a performance matrix is [T + 1, T], not {list(a.shape)}")
    return a.shape[1]
