"""The words of samples, message by message, and which pairs of samples are alike by them: many pairs at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

from curate.machine import usable_cores

_WORDS = 1 << 20  # of the pairs that are compared at once
_SHORT = 4_096  # words of a message; the search for the longest common subsequence takes time by their square
_FEW = 64  # pairs that are not worth threads


class Told:
    """The words of N samples, message by message."""

    def __init__(
        self, ids: np.ndarray, messages: np.ndarray, roles: np.ndarray, lengths: np.ndarray, words: np.ndarray
    ):
        """ids: uint64 [N]. messages: how many each sample has, int64 [N]. roles, lengths: of each message, its role and
        its number of words, uint32 and int64 [M]. words: hashes of words, message after message, uint32."""
        self.ids, self._words, self._roles, self._lengths = ids, words, roles, lengths
        self._messages, self._ends = messages, np.append(0, np.cumsum(lengths))
        self._first = np.append(0, np.cumsum(messages))
        self.sizes = np.diff(self._ends[self._first])

    def alike(self, pairs: np.ndarray, threshold: float, replaced: float) -> np.ndarray:
        """Whether pairs of samples are alike, bool [P]: all messages of one are to their counterparts of the same role.

        pairs: rows, int64 [P, 2]. threshold, replaced: as NearDup has them.
        """
        a, b = pairs.T
        found = self._messages[a] == self._messages[b]
        counts = np.where(found, self._messages[a], 0)
        pair = np.repeat(np.arange(len(pairs)), counts)
        turn = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
        x, y = self._first[a[pair]] + turn, self._first[b[pair]] + turn
        fits = self._roles[x] == self._roles[y]
        fits &= self._shorter(x, y) >= threshold * self._longer(x, y)  # even if all of it were in common
        found[pair[~fits]] = False
        left = found[pair]
        for part in self._parts(x[left], y[left]):
            alike = self._alike_messages(x[left][part], y[left][part], threshold, replaced)
            found[pair[left][part][~alike]] = False
        return found

    def _shorter(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.minimum(self._lengths[x], self._lengths[y])

    def _longer(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.maximum(self._lengths[x], self._lengths[y])

    def _parts(self, x: np.ndarray, y: np.ndarray) -> Iterator[slice]:
        """Pairs of messages that together have few words, or one pair."""
        ends, start = np.cumsum(self._lengths[x] + self._lengths[y]), 0
        while start < len(x):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _WORDS, "right")))
            yield slice(start, stop)
            start = stop

    def _alike_messages(self, x: np.ndarray, y: np.ndarray, threshold: float, replaced: float) -> np.ndarray:
        """Whether pairs of messages are alike, bool [P]. Of short ones the order of words is compared first, by which
        nearly all pairs fall, and which takes less time; of long ones the words."""
        short, long = self._shorter(x, y), self._longer(x, y)
        required, is_short = (1 - replaced) * short, long <= _SHORT
        found = np.ones(len(x), bool)

        def compare_order(which: np.ndarray) -> None:
            rows = np.flatnonzero(found & which)
            found[rows] = self._in_order(x[rows], y[rows]) >= required[rows]

        if replaced < 1:
            compare_order(is_short)
        rows = np.flatnonzero(found)
        common = self._in_common(x[rows], y[rows])
        found[rows] = common >= threshold * (short[rows] + long[rows] - common)
        if replaced < 1:
            compare_order(~is_short)
        return found

    def _in_common(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """How many words pairs of messages have in common, each as often as in both, int64 [P]."""
        words, pair, of_y = self._gathered(x, y)
        keys = (pair.astype(np.uint64) << np.uint64(33)) | (words.astype(np.uint64) << np.uint64(1)) | of_y
        keys.sort()
        same = keys >> np.uint64(1)
        if not len(keys):
            return np.zeros(len(x), np.int64)
        runs = np.flatnonzero(np.append(True, same[1:] != same[:-1]))
        second = np.add.reduceat((keys & np.uint64(1)).astype(np.int64), runs)
        both = np.minimum(second, np.diff(runs, append=len(keys)) - second)
        return np.bincount((keys[runs] >> np.uint64(33)).astype(np.int64), both, len(x)).astype(np.int64)

    def _in_order(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The length of the longest common subsequence of pairs of messages, in words, int64 [P]; by all cores."""
        words = [array("I", self._words[self._ends[m] : self._ends[m + 1]].tobytes()) for m in (*x, *y)]
        n, cores = len(x), usable_cores()
        return cpdist(words[:n], words[n:], scorer=LCSseq.similarity, dtype=np.int64, workers=cores if n > _FEW else 1)

    def _gathered(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The words of x[0], y[0], x[1], …; which pair each is of, and whether of y."""
        messages = np.stack([x, y], 1).ravel()
        lengths = self._lengths[messages]
        of = np.repeat(np.arange(len(messages)), lengths)
        places = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + self._ends[messages[of]]
        return self._words[places], of >> 1, (of & 1).astype(np.uint64)
