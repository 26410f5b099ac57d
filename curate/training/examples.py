"""Tokenised samples as flat arrays, the order of an epoch, and rows of them as tensors.

A document is a sample, or a piece of a long one. A row holds one document or, packed, several; each document has its
own attention, positions and weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from curate.models.forward import to_device
from curate.models.tokens import Encoded


@dataclass(frozen=True)
class Examples:
    """N tokenised documents.

    ids: int32 [all tokens]. supervised: bool [all tokens]. ends: int64 [N + 1], the boundaries of the documents.
    sample: int64 [N], the position of each document's sample among the training samples. weight: float32 [all tokens],
    by which their losses are multiplied, where turns have weights of their own; else None.
    """

    ids: np.ndarray
    supervised: np.ndarray
    ends: np.ndarray
    sample: np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def of(cls, encoded: Sequence[Encoded], sample: Sequence[int] | None = None) -> Examples:
        """From tokenised samples; those without a supervised token must have been left out."""
        lengths = [len(item.ids) for item in encoded]
        return cls(
            np.concatenate([item.ids for item in encoded] or [np.zeros(0, np.int32)]),
            np.concatenate([item.supervised for item in encoded] or [np.zeros(0, bool)]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.arange(len(encoded)) if sample is None else np.asarray(sample, np.int64),
            _weights(encoded),
        )

    def __len__(self) -> int:
        return len(self.sample)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document, int64 [N]."""
        return np.diff(self.ends)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of supervised tokens of each document, int64 [N]."""
        cumulative = np.concatenate([[0], np.cumsum(self.supervised)])
        return cumulative[self.ends[1:]] - cumulative[self.ends[:-1]]

    def encoded(self, document: int) -> Encoded:
        """A document as it was tokenised."""
        span = slice(self.ends[document], self.ends[document + 1])
        weight = None if self.weight is None else self.weight[span]
        return Encoded(self.ids[span], self.supervised[span], weight=weight)

    def tokens_of(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """A document's token ids, int32 [n], and which are supervised, bool [n]."""
        start, stop = self.ends[document], self.ends[document + 1]
        return self.ids[start:stop], self.supervised[start:stop]


def _weights(encoded: Sequence[Encoded]) -> np.ndarray | None:
    if all(item.weight is None for item in encoded):
        return None
    weights = [np.ones(len(item.ids), np.float32) if item.weight is None else item.weight for item in encoded]
    return np.concatenate(weights)


def pieces(one: Encoded, context: int) -> list[Encoded]:
    """A text in pieces of at most `context` tokens; the first token of each is unsupervised, having no predecessor."""
    parts = []
    for start in range(0, len(one.ids), context):
        supervised = one.supervised[start : start + context].copy()
        supervised[:1] = False
        parts.append(replace(one, ids=one.ids[start : start + context], supervised=supervised, cut=False))
    return parts


# --- the order -------------------------------------------------------------------------------------------


def epoch_rows(
    examples: Examples, documents: np.ndarray, epoch: int, seed: int, shuffle: bool, room: int
) -> list[np.ndarray]:
    """The rows of an epoch, each given by the documents it holds (int64); a pure function of the arguments.

    documents: int64, those of an epoch, repeated ones several times. room: tokens per packed row, which takes the next
    document as long as it fits (greedy packing); 0: every document is a row of its own.
    """
    order = np.random.default_rng([seed % 2**63, epoch]).permutation(documents) if shuffle else documents
    if not room:
        return list(order[:, None])
    rows: list[list[int]] = []
    remaining = 0
    for document, length in zip(order.tolist(), examples.lengths[order].tolist(), strict=True):
        if length > remaining or not rows:
            rows.append([])
            remaining = room
        rows[-1].append(document)
        remaining -= length
    return [np.array(row, np.int64) for row in rows]


# --- rows as tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """R rows of T tokens that hold n documents, in the order of the rows, padded on the right.

    documents: int64 [n]. ids: int64 [R, T]. place: int64 [R, T], a token's position in its document, from 0; 0 for
    padding. document: int64 [R, T], which of the n a token belongs to; n for padding. supervised: int64 [S], the places
    of the supervised tokens in the flattened [R, T], ascending; none is the first of its row. packed: whether any row
    holds more than one document. weight: float32 [R, T], by which the tokens' losses are multiplied; None if by 1.

    Places, and not a mask: how many there are is known here, and a GPU that had to count them would be waited for.
    """

    documents: np.ndarray
    ids: Tensor
    place: Tensor
    document: Tensor
    supervised: Tensor
    packed: bool
    weight: Tensor | None = None

    def at(self, values: Tensor, before: int = 0) -> Tensor:
        """Values [R, T, ...] at the S supervised tokens, or at the tokens `before` them: [S, ...]."""
        return values.flatten(0, 1).index_select(0, self.supervised - before)


def batch_of(examples: Examples, rows: Sequence[np.ndarray], device: torch.device) -> Batch:
    """Rows as tensors on a device."""
    longest = max(int(examples.lengths[row].sum()) for row in rows)
    n = sum(map(len, rows))
    shape = (len(rows), longest)
    ids, place, supervised = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    document, number = np.full(shape, n, np.int64), 0
    weight = None if examples.weight is None else np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        start = 0
        for index in row:
            tokens, is_supervised = examples.tokens_of(int(index))
            span = slice(start, start + len(tokens))
            ids[r, span], supervised[r, span], document[r, span] = tokens, is_supervised, number
            place[r, span] = np.arange(len(tokens))
            if weight is not None:
                weight[r, span] = examples.encoded(int(index)).weight
            start, number = start + len(tokens), number + 1
    supervised[:, 0] = False  # what is first of its row has no predecessor
    tensors = [to_device(a, device) for a in (ids, place, document, np.flatnonzero(supervised))]
    packed = any(len(row) > 1 for row in rows)
    weights = None if weight is None else to_device(weight, device)
    return Batch(np.concatenate(rows), tensors[0], tensors[1], tensors[2], tensors[3], packed, weights)


class Room(Protocol):
    """What says whether a micro-batch may be so large."""

    def fits(self, rows: int, longest: int, supervised: int) -> bool:
        """Whether so many rows fit, padded to the longest one's tokens, with so many supervised tokens."""
        ...


def micro_batches(
    examples: Examples, rows: Sequence[np.ndarray], size: int, world: int = 1, room: Room | None = None
) -> list[list[np.ndarray]]:
    """A step's rows in groups of at most `size` rows of similar length, the longest first, that fit in the room; a row
    that does not fit is a group of its own. size 0: one group for each of `world` processes, if they fit. A process
    takes every world-th group, beginning with that of its rank."""
    lengths = np.array([examples.lengths[row].sum() for row in rows])
    size = size or -(-len(rows) // world)
    groups: list[list[np.ndarray]] = []
    longest = supervised = 0
    for i in np.argsort(-lengths, kind="stable"):
        own = int(examples.counts[rows[i]].sum())
        if groups and len(groups[-1]) < size and _fit(room, len(groups[-1]) + 1, longest, supervised + own):
            groups[-1].append(rows[i])
            supervised += own
        else:
            groups.append([rows[i]])
            longest, supervised = int(lengths[i]), own
    return groups


def _fit(room: Room | None, rows: int, longest: int, supervised: int) -> bool:
    return room is None or room.fits(rows, longest, supervised)
