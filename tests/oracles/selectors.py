"""What the selectors on vectors choose, slowly: every distance of every pair, in float64, one choice at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def farthest_first(unit: np.ndarray, first: int, k: int) -> list[int]:
    """unit: float64 [N, D]."""
    chosen = [first]
    while len(chosen) < k:
        best, farthest = -1, -np.inf
        for i in range(len(unit)):
            distance = min(1 - float(unit[i] @ unit[j]) for j in chosen)
            if i not in chosen and distance > farthest:
                best, farthest = i, distance
        chosen.append(best)
    return chosen


def turns(unit: np.ndarray, examples: Sequence[np.ndarray], k: int) -> list[int]:
    """examples: the vectors of each list that takes turns."""
    lists = [sorted(range(len(unit)), key=lambda i: (-max(float(v @ unit[i]) for v in own), i)) for own in examples]
    chosen: list[int] = []
    while len(chosen) < k:
        for ranking in lists:
            free = [i for i in ranking if i not in chosen]
            if free and len(chosen) < k:
                chosen.append(free[0])
    return chosen


def volume(rows: np.ndarray, k: int, alpha: float, lam: float) -> tuple[list[int], list[float]]:
    """The highest gain of log det(I + alpha sum g g^T), by slogdet, less what pulls against the mean of the chosen;
    and the gains. rows: float64 [N, D]."""

    def log_det(some: list[int]) -> float:
        return float(np.linalg.slogdet(np.eye(rows.shape[1]) + alpha * rows[some].T @ rows[some])[1])

    chosen, gains = list[int](), list[float]()
    while len(chosen) < k:
        best, most, its = -1, -np.inf, 0.0
        for i in range(len(rows)):
            if i in chosen:
                continue
            gain, against = log_det([*chosen, i]) - log_det(chosen), 0.0
            if chosen:
                mean = rows[chosen].mean(0)
                against = max(0.0, -float(rows[i] @ mean / np.linalg.norm(rows[i]) / np.linalg.norm(mean)))
            if gain - lam * against > most + 1e-12:
                best, most, its = i, gain - lam * against, gain
        chosen.append(best)
        gains.append(its)
    return chosen, gains


def design(tokens: Sequence[np.ndarray], k: int, sigma0: float) -> tuple[list[int], list[float]]:
    """The highest gain of log det(sigma0^2 I + sum over the tokens of the chosen of x x^T), by slogdet of sums of outer
    products; and the gains. tokens: of each candidate, float64 [T, D]."""

    def log_det(some: list[int]) -> float:
        matrix = sigma0**2 * np.eye(tokens[0].shape[1])
        for x in (x for i in some for x in tokens[i]):
            matrix = matrix + np.outer(x, x)
        return float(np.linalg.slogdet(matrix)[1])

    chosen, gains = list[int](), list[float]()
    while len(chosen) < k:
        now = {i: log_det([*chosen, i]) - log_det(chosen) for i in range(len(tokens)) if i not in chosen}
        chosen.append(max(now, key=lambda i: (round(now[i], 10), -i)))
        gains.append(now[chosen[-1]])
    return chosen, gains


def facility(unit: np.ndarray, k: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < k:
        worth = {
            i: round(sum(max((1 + float(unit[x] @ unit[j])) / 2 for j in [*chosen, i]) for x in range(len(unit))), 9)
            for i in range(len(unit))
            if i not in chosen
        }
        chosen.append(max(worth, key=lambda i: (worth[i], -i)))
    return chosen


def earlier_likeness(unit: np.ndarray, cluster: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The highest cosine of each sample with one of its cluster that comes before it in `order`; -1 for the first."""
    place = {i: p for p, i in enumerate(order)}
    found = np.full(len(unit), -1.0)
    for j in range(len(unit)):
        for i in range(len(unit)):
            if cluster[i] == cluster[j] and place[i] < place[j]:
                found[j] = max(found[j], float(unit[i] @ unit[j]))
    return found


def utility_and_diversity(
    values: np.ndarray, raw: np.ndarray, batches: Sequence[Sequence[int]], keep: int, memory: int, alpha: float
) -> list[int]:
    """Of every micro-batch the `keep` highest in value + alpha mean distance from the last `memory` chosen ones."""
    chosen: list[int] = []
    for batch in batches:
        last = chosen[-memory:] if memory else []
        score = {}
        for i in batch:
            apart = [float(np.linalg.norm(raw[i] - raw[j])) for j in last]
            score[i] = values[i] + alpha * (sum(apart) / len(apart) if apart else 0.0)
        chosen += sorted(batch, key=lambda i: (-score[i], i))[:keep]
    return chosen


def long_horizon(
    values: np.ndarray,
    unit: np.ndarray,
    proxy: np.ndarray,
    history: np.ndarray,
    weights: tuple[float, float, float],
) -> np.ndarray:
    """LHAS's score: [u] + lam [c] + eta [p] - rho [a], one sample at a time. weights: lam, eta, rho."""

    def scaled(term: list[float]) -> np.ndarray:
        return (np.array(term) - np.mean(term)) / np.std(term)

    middle = sum(history) / len(history)
    c = [1 - max(float(v @ h) for h in history) for v in unit]
    p = [sum(float(v @ q) for q in proxy) / len(proxy) for v in unit]
    a = [(float(v @ middle) / float(np.linalg.norm(middle))) ** 2 for v in unit]
    lam, eta, rho = weights
    return scaled(list(values)) + lam * scaled(c) + eta * scaled(p) - rho * scaled(a)


def one_by_one(
    score: np.ndarray,
    values: np.ndarray,
    raw: np.ndarray,
    past: Sequence[np.ndarray],
    count: int,
    memory: int,
    alpha: float,
) -> list[int]:
    """The highest in `score` and the distance from the last `memory` of past and chosen, in units of the values'
    standard deviation, `count` times."""
    chosen: list[int] = []
    for _ in range(count):
        last = [*past, *(raw[i] for i in chosen)][-memory:] if memory else []
        best, most = -1, -np.inf
        for i in range(len(score)):
            apart = sum(float(np.linalg.norm(raw[i] - one)) for one in last) / len(last) if last else 0.0
            if i not in chosen and score[i] + alpha * apart / np.std(values) > most:
                best, most = i, score[i] + alpha * apart / np.std(values)
        chosen.append(best)
    return chosen
