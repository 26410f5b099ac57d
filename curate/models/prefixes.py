"""Which beginnings of token sequences are worth computing once for all the samples that share them.

Sequences in the order of their tokens form a tree: what two neighbours have in common is a prefix of both. A prefix is
used where going without it would take a good part more tokens, so that a short one of long samples, such as the default
system prompt of a chat template, leaves the batches as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LEAST = 16  # tokens of a prefix: fewer do not pay for a row of their own
_WORTH = 1.25  # times the tokens without a prefix, at least, as the pass behind one is slower per token


@dataclass
class Prefix:
    """Tokens [start, stop) of some samples, which have all tokens before them in common, too.

    sample: one of the samples. rests: the samples that share no further prefix. longer: the prefixes behind this one.
    """

    sample: int
    start: int
    stop: int
    rests: list[int] = field(default_factory=list)
    longer: list[Prefix] = field(default_factory=list)

    def samples(self) -> list[int]:
        """All samples that begin with it."""
        found, todo = list[int](), [self]
        while todo:
            prefix = todo.pop()
            found += prefix.rests
            todo += prefix.longer
        return found


def shared_prefixes(sequences: Mapping[int, np.ndarray], least_saved: int) -> list[Prefix]:
    """The prefixes that no other precedes, each with those behind it; every sample is in one of them at most. None if
    they save fewer than `least_saved` tokens in all.

    sequences: token ids of samples, int [n] each, n > 0. Every sample keeps a token of its own.
    """
    order, common = _sorted(sequences)
    roots, saved = list[Prefix](), 0
    todo: list[tuple[_Node, Prefix | None]] = [(_tree(sequences, order, common), None)]
    while todo:
        node, before = todo.pop()
        start = before.stop if before else 0
        if node.depth - start >= LEAST and node.pays(start):
            prefix = Prefix(node.first, start, node.depth)
            (before.longer if before else roots).append(prefix)
            saved += (node.branches(node.depth + LEAST)[0] - 1) * (node.depth - start)
            before = prefix
        for child in node.children:
            if isinstance(child, _Node):
                todo.append((child, before))
            elif before:
                before.rests.append(child)
    return roots if saved >= least_saved else []


@dataclass
class _Node:
    """The samples that have their first `depth` tokens in common. children: nodes of a greater depth, and samples.

    first: one of the samples. tokens: the distinct ones behind the first `depth`, each once.
    """

    depth: int
    first: int
    tokens: int = 0
    children: list[_Node | int] = field(default_factory=list)

    def add(self, child: _Node | int, length: int) -> None:
        """length: of a child that is a sample; the depth of one that is a node."""
        self.children.append(child)
        self.tokens += length - self.depth + (child.tokens if isinstance(child, _Node) else 0)

    def branches(self, near: int) -> tuple[int, int]:
        """How many go on behind the node, and with how many tokens, if nodes less deep than `near` are not used."""
        count, tokens, todo = 0, self.tokens, list(self.children)
        while todo:
            child = todo.pop()
            if isinstance(child, _Node) and child.depth < near:
                tokens += (len(child.children) - 1) * (child.depth - self.depth)
                todo += child.children
            else:
                count += 1
        return count, tokens

    def pays(self, start: int) -> bool:
        """Whether its tokens from `start` are worth a pass of their own."""
        return pays(self.depth - start, *self.branches(self.depth + LEAST))


def pays(own: int, count: int, tokens: int) -> bool:
    """Whether a prefix of so many tokens is worth a pass of its own for so many samples with so many tokens behind."""
    return count * own + tokens >= _WORTH * (own + tokens)


def _sorted(sequences: Mapping[int, np.ndarray]) -> tuple[list[int], list[int]]:
    """The samples in the order of their tokens but the last, and how many tokens each has in common with the one before
    it, 0 for the first."""
    but_last = {sample: ids[:-1].astype(">i4").tobytes() for sample, ids in sequences.items()}
    order = sorted(sequences, key=but_last.__getitem__)
    pairs = zip(order, order[1:], strict=False)
    return order, [0] * bool(order) + [_common(sequences[a][:-1], sequences[b][:-1]) for a, b in pairs]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    n = min(len(one), len(other))
    different = one[:n] != other[:n]
    return int(different.argmax()) if different.any() else n


def _tree(sequences: Mapping[int, np.ndarray], order: Sequence[int], common: Sequence[int]) -> _Node:
    """The tree of the samples' common prefixes. Its root is of depth 0."""
    path = [_Node(0, order[0] if order else 0)]
    for place, sample in enumerate(order):
        then = common[place + 1] if place + 1 < len(order) else 0
        if then > path[-1].depth:
            path.append(_Node(then, sample))
        path[-1].add(sample, len(sequences[sample]))
        _close(path, then)
    return path[0]


def _close(path: list[_Node], depth: int) -> None:
    """End the nodes that are deeper than what the next sample shares."""
    while path[-1].depth > depth:
        ended = path.pop()
        if path[-1].depth < depth:
            path.append(_Node(depth, ended.first))
        path[-1].add(ended, ended.depth)
