"""Where the documents of a trainer's batch are: padded, padding-free, or packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True)
class Documents:
    """The n documents of R rows of T tokens that have a supervised token, in the order of the rows.

    document: int64 [R, T], which of the n a token belongs to; n for padding, and for documents without one. place:
    int64 [R, T], a token's position in its document, from 0. labels: int64 [S], of the supervised tokens; supervised:
    int64 [S], where they are in the flattened [R, T], ascending; none is the first of its row. counts: int64 [n], how
    many each document has. kept: int64 [n], the position of each among all documents of the batch.
    """

    document: Tensor
    place: Tensor
    labels: Tensor
    supervised: Tensor
    counts: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def before(self) -> Tensor:
        """Where the tokens are from which the supervised ones are predicted, in the flattened [R, T]."""
        return self.supervised - 1


def documents_of(inputs: Mapping[str, Any]) -> Documents:
    """The documents of a batch, by `position_ids`, which begin anew with each, or by an `attention_mask` that numbers
    them within a row (1 1 2 2 2 0); else a row each, less what the mask leaves out. Raises CurateError for a batch that
    is not of token ids and labels."""
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or labels.shape != ids.shape:
        given = ", ".join(sorted(inputs))
        raise CurateError(
            f"the batches have {given}; weights need input_ids and labels of one shape, as a collator for language "
            "modeling makes them (shift_labels, and context parallelism, are not supported)."
        )
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else _padding(mask, ids)
    if positions is None and mask is not None and bool((mask > 1).any()):
        begins = torch.diff(mask, dim=1, prepend=torch.full_like(mask[:, :1], -1)) != 0
        positions = _since(begins)
    if positions is None:
        place = (there.cumsum(1) - 1).clamp(min=0)
        document = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        total = len(ids)
    else:
        if positions.shape != ids.shape:
            raise CurateError(f"position_ids of shape {tuple(positions.shape)} say nothing of where documents begin.")
        place = positions
        document = ((positions == 0).flatten().cumsum(0) - 1).clamp(min=0).view_as(ids)
        total = int(document.max()) + 1
    supervised = labels != IGNORED
    supervised[:, 0] = False  # what is first of its row has no predecessor
    places = supervised.flatten().nonzero()[:, 0]
    every = torch.bincount(document.flatten()[places], minlength=total)
    has_any = every > 0
    n = int(has_any.sum())
    number = torch.where(has_any, has_any.cumsum(0) - 1, n)
    return Documents(
        torch.where(there, number[document], n),
        place,
        labels.flatten()[places],
        places,
        every[has_any].cpu().numpy(),
        has_any.nonzero()[:, 0].cpu().numpy(),
    )


def _since(begins: Tensor) -> Tensor:
    """How far every token is from the last one that begins something in its row, int64 [R, T]."""
    number = torch.arange(begins.shape[1], device=begins.device).expand_as(begins)
    return number - torch.where(begins, number, 0).cummax(1).values


def _padding(mask: Tensor, ids: Tensor) -> Tensor:
    if mask.shape != ids.shape:
        raise CurateError(f"an attention_mask of shape {tuple(mask.shape)} does not say what is padding; leave it out.")
    return mask.bool()
