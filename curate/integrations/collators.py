"""Collators around a trainer's own, so that more of a sample goes with its tokens, or less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

PLACES = "curate_place"  # of a batch, and of the training set: where its samples are in that


class TokensOnly:
    """A collator that is given the rows' tokens and what is trained on of them, and no other column."""

    def __init__(self, collator: Any):
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The batch of these rows."""
        tokens = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks")
        return self._collator([{key: row[key] for key in tokens if key in row} for row in rows])


class Carrying:
    """A collator whose batches also have the values of a column, [n], as `name`, where every row has it."""

    def __init__(self, collator: Any, column: str, name: str):
        self._collator, self._column, self._name = collator, column, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collator, name)

    def __call__(self, rows: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The batch of these rows, with the column's values."""
        values = [row.get(self._column) for row in rows]
        others = [{key: value for key, value in row.items() if key != self._column} for row in rows]
        batch = dict(self._collator(others, *args, **kwargs))
        if any(value is None for value in values):
            return batch
        return {**batch, self._name: torch.from_numpy(np.asarray(values, np.int64 if self._name == PLACES else float))}


def shape_of(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows, tokens of a row, and tokens without padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return ids.shape[0], ids.shape[1], ids.numel() if mask is None else int(mask.sum())
