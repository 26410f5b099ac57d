"""What of a text stands in others, slowly: n-grams as tuples of words."""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def overlap(text: str, examples: Sequence[str], n: int, shortest: int) -> tuple[float, int]:
    """The share of its words that lie in an n-gram of an example (one message), and the most words in a row of which
    every n-gram does; an example of fewer than n words counts whole."""
    mine = words(text)
    wanted: dict[int, set[tuple[str, ...]]] = {}
    for example in map(words, examples):
        length = min(n, len(example))
        if length >= min(shortest, n):
            wanted.setdefault(length, set()).update(
                tuple(example[i : i + length]) for i in range(len(example) - length + 1)
            )
    covered, longest = [False] * len(mine), 0
    for length, grams in wanted.items():
        row = 0
        for i in range(len(mine) - length + 1):
            row = row + 1 if tuple(mine[i : i + length]) in grams else 0
            if row:
                longest = max(longest, row + length - 1)
                covered[i : i + length] = [True] * length
    return sum(covered) / len(mine), longest
