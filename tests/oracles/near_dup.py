"""Near-duplicates, slowly: every pair of samples is compared, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Chat = Sequence[str]  # a sample's messages


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    before = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[-1], before[j + 1]))
        before = row
    return before[-1]


def alike(a: Chat, b: Chat, threshold: float, replaced: float) -> bool:
    if len(a) != len(b):
        return False
    for x, y in zip(map(words, a), map(words, b), strict=True):
        common = (Counter(x) & Counter(y)).total()
        if common < threshold * (len(x) + len(y) - common):
            return False
        if replaced < 1 and longest_common_subsequence(x, y) < (1 - replaced) * min(len(x), len(y)):
            return False
    return True


def clusters(samples: Sequence[Chat], threshold: float = 0.7, replaced: float = 0.03) -> list[set[int]]:
    """Sets of positions: what is alike, and what is alike to that."""
    found = [{i} for i in range(len(samples))]
    for i in range(len(samples)):
        for j in range(i):
            if alike(samples[i], samples[j], threshold, replaced):
                mine, its = (next(c for c in found if x in c) for x in (i, j))
                if mine is not its:
                    found.remove(its)
                    mine |= its
    return found
