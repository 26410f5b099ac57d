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


def current_scores(a: np.ndarray) -> np.ndarray:
    """The performance on each stage's own target after it: a[t, t], float64 [T]."""
    t = np.arange(_stages(a))
    return a[t + 1, t]


def immediate_gains(a: np.ndarray) -> np.ndarray:
    """The gain of each stage on its own target: a[t, t] - a[t - 1, t], float64 [T] (Equation 1)."""
    t = np.arange(_stages(a))
    return a[t + 1, t] - a[t, t]


def drops(a: np.ndarray, after: int, window: Window = "start", with_last: bool = False) -> np.ndarray:
    """The drop of each earlier stage's target from its best value, after stage `after`, float64 [after - 1].

    window: the best historical value, since before the first stage ('start'), or since that stage was trained ('own').
    with_last: whether the value after `after` itself counts towards the best, so that no drop is negative.
    """
    first = [s if window == "own" else 0 for s in range(1, after)]
    return np.array([a[k : after + with_last, s].max() - a[after, s] for s, k in enumerate(first)])


def forgetting(
    a: np.ndarray, after: int | None = None, window: Window = "start", with_last: bool = False, clip: bool = False
) -> float:
    """F_t: the mean drop of earlier stages' targets from their best, after stage `after` (default: the last).

    window, with_last: as in `drops`. clip: count a rise as 0. After the first stage the result is 0, as there is no
    earlier stage.
    """
    its = drops(a, _stages(a) if after is None else after, window, with_last)
    return float(np.mean(np.maximum(its, 0.0) if clip else its)) if len(its) else 0.0


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


def scaled(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Values from 0, the lowest over some axes, to 1, the highest; 0 where all are equal. NaN stays NaN."""
    known = np.isfinite(values)
    low = np.min(values, axis=axes, keepdims=True, initial=np.inf, where=known)
    high = np.max(values, axis=axes, keepdims=True, initial=-np.inf, where=known)
    with np.errstate(invalid="ignore"):
        return (values - low) / np.where(high > low, high - low, 1.0)


def long_utility(
    a: np.ndarray,
    adaptation: np.ndarray,
    out_of_domain: float,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    window: Window = "start",
    with_last: bool = False,
    clip: bool = False,
    of: Literal["stages", "tasks"] = "stages",
) -> float:
    """Long-horizon utility (Equation 2): sum of a[T, t] + alpha sum of adaptation - beta sum of F_t + gamma R_ood.

    adaptation: the future-adaptation AUC of every stage but the last, [T - 1]. out_of_domain: mean final performance on
    targets of no stage; 0 if there are none. weights: alpha, beta, gamma, which the paper does not give. window,
    with_last, clip: as in `forgetting`. of: whether F_t is the mean drop of the earlier targets after stage t (the
    text below Equation 2), or the drop of stage t's own target in the end. A target shared by two stages counts for
    both.
    """
    alpha, beta, gamma = weights
    last = _stages(a)
    if of == "tasks":
        final = drops(a, last, window, with_last)
        forgot = float(np.sum(np.maximum(final, 0.0) if clip else final))
    else:
        forgot = sum(forgetting(a, t, window, with_last, clip) for t in range(1, last + 1))
    return float(a[-1].sum() + alpha * np.sum(adaptation) - beta * forgot + gamma * out_of_domain)


def _stages(a: np.ndarray) -> int:
    if a.ndim != 2 or a.shape[0] != a.shape[1] + 1:
        raise ValueError(f"a performance matrix is [T + 1, T], not {list(a.shape)}")
    return a.shape[1]
