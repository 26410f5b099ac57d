"""The volume that chosen vectors, or matrices, span: log det(I + alpha sum of g g^T), grown one choice at a time.

Adding g gains log(1 + alpha g^T A^-1 g), with A the matrix so far (the matrix determinant lemma); A^-1 is stored
as I - sum of w w^T, one w for each chosen vector (Sherman-Morrison). Adding R^T R gains log det(I + alpha R A^-1 R^T).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from curate.kinds.selector import Budget

_AT_ONCE = 64  # candidates whose gains are recomputed at once
_NUMBERS = 1 << 22  # of candidates' matrices in memory at once
_DIGITS = 12  # decimals of a gain; gains that differ only by rounding are equal


class Volume:
    """alpha: weight of each vector. rows(places): vectors, float64 [n, D]."""

    def __init__(self, rows: Callable[[np.ndarray], np.ndarray], count: int, alpha: float):
        self._rows, self._alpha = rows, alpha
        self.square = np.concatenate(
            [_squares(rows(np.arange(a, min(a + 4096, count)))) for a in range(0, count, 4096)]
        )
        self._held = np.zeros((16, rows(np.zeros(1, np.int64)).shape[1]))  # the w so far, with room to grow
        self._count = 0
        self._seen = np.zeros(count, np.int64)  # how many of the w are already in `square`
        self.flops = 2.0 * count * self._held.shape[1]

    @property
    def _w(self) -> np.ndarray:
        return self._held[: self._count]

    def gains(self, places: np.ndarray) -> np.ndarray:
        """What each of these candidates would add now, float64 [n]."""
        for applied in np.unique(self._seen[places]):
            members = places[self._seen[places] == applied]
            if applied < len(self._w):
                self.square[members] -= _squares(self._rows(members) @ self._w[applied:].T)
                self.flops += 2.0 * len(members) * self._w[applied:].size
        self._seen[places] = len(self._w)
        return np.round(np.log1p(self._alpha * np.maximum(self.square[places], 0)), _DIGITS)

    def add(self, place: int) -> None:
        g = self._rows(np.array([place]))[0]
        self.gains(np.array([place]))
        solved = g - self._w.T @ (self._w @ g)
        scale = np.sqrt(self._alpha / (1 + self._alpha * max(float(self.square[place]), 0)))
        if self._count == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._count] = scale * solved
        self._count += 1
        self.flops += 4.0 * self._w.size


class Diagonal:
    """The same with only the diagonal of the matrix, to which g adds g^4 (SPICE's published code)."""

    def __init__(self, rows: Callable[[np.ndarray], np.ndarray], count: int, alpha: float):
        self._rows, self._alpha = rows, alpha
        self._diagonal, self.flops = np.ones(rows(np.zeros(1, np.int64)).shape[1]), 0.0

    def gains(self, places: np.ndarray) -> np.ndarray:
        self.flops += 2.0 * len(places) * len(self._diagonal)
        return np.round(np.log1p(self._alpha * (self._rows(places) ** 2 / self._diagonal).sum(1)), _DIGITS)

    def add(self, place: int) -> None:
        self._diagonal = self._diagonal + self._alpha * self._rows(np.array([place]))[0] ** 4


class Moments:
    """The same for candidates that are matrices R, each of which adds R^T R. matrices(places): float64 [n, d, d]."""

    def __init__(self, matrices: Callable[[np.ndarray], np.ndarray], d: int, alpha: float):
        self._matrices, self._alpha, self.flops = matrices, alpha, 0.0
        self._sum, self._root = np.eye(d), np.eye(d)  # A, and W with W^T W = A^-1

    def gains(self, places: np.ndarray) -> np.ndarray:
        d, gains = len(self._sum), []
        size = max(1, _NUMBERS // d**2)
        for start in range(0, len(places), size):
            turned = self._matrices(places[start : start + size]) @ self._root.T
            gains.append(np.linalg.slogdet(np.eye(d) + self._alpha * turned @ turned.transpose(0, 2, 1))[1])
        self.flops += (4 + 2 / 3) * d**3 * len(places)
        return np.round(np.concatenate(gains), _DIGITS)

    def add(self, place: int) -> None:
        matrix = self._matrices(np.array([place]))[0]
        self._sum = self._sum + self._alpha * matrix.T @ matrix
        self._root = np.linalg.inv(np.linalg.cholesky(self._sum))
        self.flops += 3.0 * len(self._sum) ** 3


def greedy(
    volume: Volume | Diagonal | Moments,
    sizes: np.ndarray,
    budget: Budget,
    penalty: Callable[[np.ndarray], np.ndarray],
    added: Callable[[int], None],
    threshold: float = 0.0,
) -> np.ndarray:
    """Places in the order chosen: repeatedly the highest gain minus its penalty, ties going to the first. Lazy: a gain
    only shrinks as more are chosen and penalties are never negative, so an older gain is an upper bound.

    added(place): called after each choice. threshold: stop where a choice gains no more than this share of the first.
    """
    first = np.concatenate([volume.gains(np.arange(a, min(a + 4096, len(sizes)))) for a in range(0, len(sizes), 4096)])
    heap = [(-gain, i) for i, gain in enumerate(first.tolist())]
    heapq.heapify(heap)
    chosen, spent, first_gain = list[int](), 0.0, 0.0
    while heap:
        updated: dict[int, float] = {}  # up-to-date gains
        best = (np.inf, len(sizes))
        while heap and (heap[0][0], heap[0][1]) < best:
            batch = np.array([heapq.heappop(heap)[1] for _ in range(min(_AT_ONCE, len(heap)))])
            gains = volume.gains(batch)
            updated |= dict(zip(batch.tolist(), gains.tolist(), strict=True))
            worth = gains - penalty(batch)
            best = min(best, *((-value, place) for value, place in zip(worth.tolist(), batch.tolist(), strict=True)))
        place = best[1]
        first_gain = first_gain or updated[place]
        if not budget.pays(spent, float(sizes[place])) or chosen and updated[place] <= threshold * first_gain:
            break
        chosen.append(place)
        spent += float(sizes[place])
        volume.add(place)
        added(place)
        for candidate, gain in updated.items():
            if candidate != place:
                heapq.heappush(heap, (-gain, candidate))
    return np.array(chosen, np.int64)


def _squares(rows: np.ndarray) -> np.ndarray:
    return (rows**2).sum(1)
