"""Sample weights in transformers' Trainer: a column `loss_weight` besides the tokens multiplies each row's loss.

    from curate.training.weighted_trainer import WeightedTrainer
    WeightedTrainer(model=model, args=args, train_dataset=data, data_collator=collator).train()

with `data` whose rows have `loss_weight` (`curate export NAME --to jsonl`, or parquet) besides the collator's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers.trainer import Trainer

from curate.errors import CurateError

COLUMN = "loss_weight"


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, divisor: Tensor | float | None = None) -> Tensor:
    """Sum over rows i of  w_i (sum of i's token losses) / D.

    logits: [B, T, V]. labels: int64 [B, T], -100 where ignored; the one at t is predicted at t - 1. weights: [B],
    non-negative. divisor: D; None: the number of labels that are not ignored.
    """
    shifted = pad(labels, (0, 1), value=-100)[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), ignore_index=-100, reduction="none")
    total = (losses.view_as(shifted) * weights.to(losses)[:, None]).sum()
    return total / ((shifted != -100).sum() if divisor is None else divisor)


class WeightedCollator:
    """Wraps a collator and passes the rows' weights on, [B]; 1 for a row without one. Raises CurateError for invalid
    weights."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        weights = torch.tensor([float(row.get(COLUMN, 1.0)) for row in rows])
        if not bool(((weights >= 0) & weights.isfinite()).all()):
            raise CurateError(f"{COLUMN} is a number of 0 or more, not {weights[~(weights >= 0)].tolist()[:3]}.")
        batch = self.collator([{key: value for key, value in row.items() if key != COLUMN} for row in rows])
        return {**batch, COLUMN: weights}


class WeightedTrainer(Trainer):
    """transformers' Trainer with each row's loss multiplied by its `loss_weight`; evaluation is not weighted.

    The divisor is the Trainer's own count of supervised tokens (with gradient accumulation too), so weights with mean
    1, as `curate weigh` writes them, preserve the gradient's scale.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False  # otherwise the weights would be removed as an unused column
        self.data_collator = WeightedCollator(self.data_collator)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        weights = inputs.pop(COLUMN, None)
        if weights is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        divisor = num_items_in_batch if self.model_accepts_loss_kwargs else None
        loss = weighted_loss(outputs.logits, labels, weights, divisor)
        if divisor is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the gradients of the processes are averaged
        return (loss, outputs) if return_outputs else loss
