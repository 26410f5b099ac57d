"""Tokenised samples as flat arrays, the order of an epoch, and rows of them as tensors.

A document is a sample, or a piece of a long one. A row holds one document or, packed, several; each document has its
own attention, positions and weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from curate.models.forward import to_device
from curate.models.tokens import Encoded
from curate.training.joined_arrays import Flat


@dataclass(frozen=True)
class Examples:
    """N tokenised documents.

    ids: int32 [all tokens]. supervised: bool [all tokens]; of a document's first token it is not asked. weight: float32
    [all tokens], by which their losses are multiplied, where turns have weights of their own; else None. These may lie
    in files, of which only the documents of a step are read. starts, lengths: int64 [N], where each document's tokens
    are. counts: int64 [N], how many of them are supervised. sample: int64 [N], the position of each document's sample
    among the training samples.
    """

    ids: Flat
    supervised: Flat
    starts: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    sample: np.ndarray
    weight: Flat | None = None

    @classmethod
    def of(cls, encoded: Sequence[Encoded], sample: Sequence[int] | None = None) -> Examples:
        """From tokenised samples; those without a supervised token must have been left out."""
        lengths = np.array([len(item.ids) for item in encoded], np.int64)
        return cls(
            np.concatenate([item.ids for item in encoded] or [np.zeros(0, np.int32)]),
            np.concatenate([item.supervised for item in encoded] or [np.zeros(0, bool)]),
            np.cumsum(lengths) - lengths,
            lengths,
            np.array([item.supervised.sum() for item in encoded], np.int64),
            np.arange(len(encoded)) if sample is None else np.asarray(sample, np.int64),
            _weights(encoded),
        )

    def __len__(self) -> int:
        return len(self.sample)

    def encoded(self, document: int) -> Encoded:
        """A document as it was tokenised."""
        ids, supervised = self.tokens_of(document)
        return Encoded(ids, supervised, weight=self.weight_of(document))

    def tokens_of(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """A document's token ids, int32 [n], and which are supervised, bool [n]."""
        span = self._span(document)
        supervised = self.supervised[span]
        if supervised[:1].any():  # the first token has no predecessor, also where a piece of a text begins
            supervised = supervised.copy()
            supervised[0] = False
        return self.ids[span], supervised

    def weight_of(self, document: int) -> np.ndarray | None:
        """The weights of a document's tokens, float32 [n]; None if they are all 1."""
        return None if self.weight is None else self.weight[self._span(document)]

    def checksum(self) -> int:
        """The sum of all documents' token ids."""
        return sum(int(self.tokens_of(i)[0].sum(dtype=np.int64)) for i in range(len(self)))

    def _span(self, document: int) -> slice:
        start = int(self.starts[document])
        return slice(start, start + int(self.lengths[document]))


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
) -> Sequence[np.ndarray]:
    """The rows of an epoch, each given by the documents it holds (int64); a pure function of the arguments.

    documents: int64, those of an epoch, repeated ones several times. room: tokens per packed row, which takes the next
    document as long as it fits (greedy packing); 0: every document is a row of its own.
    """
    order = np.random.default_rng([seed % 2**63, epoch]).permutation(documents) if shuffle else documents
    if not room:
        return cast("Sequence[np.ndarray]", order[:, None])  # a list of its rows would take ten times as much
    rows: list[list[int]] = []
    remaining = 0
    for document, length in zip(order.tolist(), examples.lengths[order].tolist(), strict=True):
        if length > remaining or not rows:
            rows.append([])
            remaining = room
        rows[-1].append(document)
        remaining -= length
    return [np.array(row, np.int64) for row in rows]


def step_bounds(examples: Examples, rows: Sequence[np.ndarray], size: int, tokens: int = 0) -> list[int]:
    """Where each step's rows begin among an epoch's, and where the last one's end. size: rows of a step. tokens: if
    given, in their place: a step takes the next row as long as its tokens, without padding, are no more than these in
    all; a row of more is a step of its own."""
    if not tokens:
        return [*range(0, len(rows), size), len(rows)]
    lengths = examples.lengths[np.ravel(rows)] if isinstance(rows, np.ndarray) else _row_lengths(examples, rows)
    ends, bounds = np.cumsum(lengths), [0]
    while (start := bounds[-1]) < len(rows):
        before = int(ends[start - 1]) if start else 0
        bounds.append(max(int(np.searchsorted(ends, before + tokens, "right")), start + 1))
    return bounds


def _row_lengths(examples: Examples, rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([examples.lengths[row].sum() for row in rows], np.int64)


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
                weight[r, span] = examples.weight_of(int(index))
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
    lengths = _row_lengths(examples, rows)
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


def by_length(examples: Examples, rows: Sequence[np.ndarray], worth: int) -> list[list[np.ndarray]]:
    """A micro-batch's rows, the longest first, in the parts that go through the model with the least padding, if each
    further part is worth so many tokens of it; 0: one part."""
    return [list(rows[start:stop]) for start, stop in length_parts(_row_lengths(examples, rows), worth)]


def length_parts(lengths: np.ndarray, worth: int) -> list[tuple[int, int]]:
    """Where the parts of `by_length` begin and end, from the rows' lengths, int64 [n], the longest first: of all
    divisions, the one with the fewest tokens, each part's rows as long as its first and `worth` for each part."""
    n = len(lengths)
    if not worth or n < 2:
        return [(0, n)]
    least, first = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    for stop in range(1, n + 1):
        tokens = least[:stop] + (stop - np.arange(stop)) * lengths[:stop] + worth
        first[stop] = tokens.argmin()
        least[stop] = tokens[first[stop]]
    parts, stop = list[tuple[int, int]](), n
    while stop:
        parts.append((int(first[stop]), stop))
        stop = int(first[stop])
    return parts[::-1]


def _fit(room: Room | None, rows: int, longest: int, supervised: int) -> bool:
    return room is None or room.fits(rows, longest, supervised)
