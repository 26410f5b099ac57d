"""Measures of a training in stages, from one matrix: how well each stage's target is answered after each stage.

a: float64 [T + 1, T], a[t, s - 1] the performance on stage s's target after stage t, higher is better; row 0 is the
model before any stage. What is not known is not a number, and so is all that needs it.

Source: "The Long-Term Effects of Data Selection in LLM Fine-Tuning" (LHAS), arXiv:2605.30537, Section 4.1; where it
leaves a measure open, the choice is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Window = Literal["own", "start"]


def immediate_gains(a: np.ndarray) -> np.ndarray:
    """What each stage gave its own target: a[t, t] - a[t - 1, t], float64 [T] (Equation 1)."""
    t = np.arange(_stages(a))
    return a[t + 1, t] - a[t, t]


def forgetting(
    a: np.ndarray, after: int | None = None, window: Window = "own", with_last: bool = False, clip: bool = False
) -> float:
    """The mean drop of earlier stages' targets from their best, after stage `after` (default: the last).

    window: the best since the stage itself was learnt ('own'), or since the beginning ('start'). with_last: whether the
    state after `after` counts among those, so that no drop is below 0. clip: take what rose as 0. 0 after the first
    stage, which has none before it.
    """
    last = _stages(a) if after is None else after
    drops = [a[(s if window == "own" else 0) : last + with_last, s - 1].max() - a[last, s - 1] for s in range(1, last)]
    if not drops:
        return 0.0
    return float(np.mean(np.maximum(drops, 0.0) if clip else drops))


def forward_transfer(a: np.ndarray, targets: Sequence[str] = ()) -> float:
    """What the stages before gave each stage's target before it was learnt: mean over t >= 2 of a[t - 1, t] - a[0, t].

    targets: of the stages; one that an earlier stage has learnt is left out. Not a number with one stage. The paper
    names it; this is the usual definition (Lopez-Paz and Ranzato, 2017).
    """
    t = np.array([i for i in range(1, _stages(a)) if not targets or targets[i] not in targets[:i]], np.int64)
    return float(np.mean(a[t, t] - a[0, t])) if len(t) else float("nan")


def worst_task(a: np.ndarray) -> float:
    """The lowest performance on any stage's target in the end."""
    return float(a[-1].min())


def imbalance(scores: np.ndarray, ddof: int = 0) -> float:
    """Standard deviation of the tasks' scores in the end. scores: [T], on one scale (see `normalized`)."""
    return float(np.std(scores, ddof=ddof)) if len(scores) > ddof else float("nan")


def normalized(scores: np.ndarray) -> np.ndarray:
    """Scores of several selectors, [K, T], each task from 0 (the lowest of them) to 1 (the highest); 0 where all are
    the same. The paper says 'normalized' and not how."""
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

    adaptation: the future-adaptation AUC of every stage but the last, [T - 1]. out_of_domain: the mean performance on
    targets of no stage, in the end; 0 where there are none. weights: alpha, beta, gamma, which the paper does not give.
    window, with_last, clip: as of `forgetting`. A target of two stages counts for both.
    """
    alpha, beta, gamma = weights
    forgot = sum(forgetting(a, t, window, with_last, clip) for t in range(1, _stages(a) + 1))
    return float(a[-1].sum() + alpha * np.sum(adaptation) - beta * forgot + gamma * out_of_domain)


def _stages(a: np.ndarray) -> int:
    if a.ndim != 2 or a.shape[0] != a.shape[1] + 1:
        raise ValueError(f"a performance matrix is [T + 1, T], not {list(a.shape)}")
    return a.shape[1]
