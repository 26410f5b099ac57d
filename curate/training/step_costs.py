"""The cost of a step, and its row of the table `metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from curate.models.flops import FORWARD, TRAINING, TrainingFlops, forward_flops, paper_flops
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.numerics.statistics import effective_size
from curate.training.examples import Examples, Room, by_length, micro_batches
from curate.training.settings import TrainSettings


class StepCosts:
    """FLOPs and tokens of steps, by formula, summed over all processes. room: what a micro-batch has to fit in. device:
    the type of the device that trains; None: the model's."""

    def __init__(
        self,
        model: LanguageModel,
        settings: TrainSettings,
        processes: Any,
        room: Room | None = None,
        device: str | None = None,
    ):
        self.model, self.settings, self.processes, self.room = model, settings, processes, room
        self._worth = settings.worth_a_pass(device or model.device.type)

    def usage(self, examples: Examples, rows: list[np.ndarray], micro_batch_size: int, backward: bool = True) -> Usage:
        """The cost of a pass over a step's rows; backward: including the gradients of the trained parameters."""
        documents = np.concatenate(rows)
        usage = self.model.usage(int(examples.lengths[documents].sum()))
        usage.flops_paper = self._paper(documents, usage.tokens, TRAINING if backward else FORWARD)
        groups = micro_batches(examples, rows, micro_batch_size, self.processes.num_processes, self.room)
        for group in (part for whole in groups for part in self.parts(examples, whole)):
            longest = max(int(examples.lengths[row].sum()) for row in group)
            head = int(examples.counts[np.concatenate(group)].sum())
            head = head if self.model.plain_head else len(group) * longest
            usage.padded_tokens += len(group) * longest
            if backward:
                again = self.settings.gradient_checkpointing or self.recomputes(examples, group)
                usage.flops += self._flops.step(len(group), longest, head, again)
            else:
                usage.flops += forward_flops(self._flops.model, len(group), longest, head)
        return usage

    def parts(self, examples: Examples, group: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The parts in which a micro-batch goes through the model, so that there is little padding."""
        return by_length(examples, group, self._worth)

    def second(self, examples: Examples, groups: Sequence[Sequence[np.ndarray]]) -> Usage:
        """The cost of a pass over micro-batches, whose gradient is differentiated along a direction. By the papers'
        convention, which knows of no such pass, three training steps."""
        documents = np.concatenate([row for group in groups for row in group])
        usage = self.model.usage(int(examples.lengths[documents].sum()))
        usage.flops_paper = self._paper(documents, usage.tokens, 3 * TRAINING)
        for group in groups:
            longest = max(int(examples.lengths[row].sum()) for row in group)
            head = int(examples.counts[np.concatenate(group)].sum())
            usage.padded_tokens += len(group) * longest
            usage.flops += self._flops.second(
                len(group), longest, head if self.model.plain_head else len(group) * longest
            )
        return usage

    def _paper(self, documents: np.ndarray, tokens: int, factor: int) -> float:
        """FLOPs by the papers' convention: of samples of 2,048 tokens or, where a row is not a sample (packing, pieces
        of texts), of the tokens there are."""
        if self.settings.packing or self.settings.split:
            return paper_flops(factor, self.model.n_params, 1, tokens)
        return paper_flops(factor, self.model.n_params, len(documents))

    def recomputes(self, examples: Examples, group: Sequence[np.ndarray]) -> bool:
        """Whether a micro-batch's activations are recomputed in the backward pass, since they do not fit."""
        if self.room is None:
            return False
        longest = max(int(examples.lengths[row].sum()) for row in group)
        return not self.room.fits(len(group), longest, int(examples.counts[np.concatenate(group)].sum()))

    def forget(self) -> None:
        """Drop the cached FLOP formula, as other parameters have gradients from now on."""
        self.__dict__.pop("_flops", None)

    @cached_property
    def _flops(self) -> TrainingFlops:
        return TrainingFlops(self.model.model)


def step_metrics(
    examples: Examples,
    settings: TrainSettings,
    seen: Any,
    number: int,
    epoch: int,
    steps: int,
    norm: float,
    divisor: float,
) -> dict[str, Any]:
    """A step's row of the table `metrics`. seen: step_passes.Seen. divisor: of the weighted sum of losses."""
    documents, weight, loss, _, weighted = seen
    counts = examples.counts[documents]
    multiplier, finite = 1 if settings.reduction == "sample" else counts, np.isfinite(loss)
    return {
        "step": number,
        "epoch": epoch + 1,
        "loss": float((loss * counts)[finite].sum() / counts[finite].sum()),
        "weighted_loss": float((weighted * multiplier).sum() / divisor) if divisor else 0.0,
        "lr": settings.learning_rate(number, steps),
        "grad_norm": norm,
        "samples": len(np.unique(examples.sample[documents])),
        "tokens": int(examples.lengths[documents].sum()),
        "supervised": int(counts.sum()),
        "weight_mean": float(weight.mean()),
        "weight_min": float(weight.min()),
        "weight_max": float(weight.max()),
        "weights": len(weight),
        "effective_samples": effective_size(np.abs(weight)),
        "chosen": len(np.unique(examples.sample[documents[weight != 0]])),
    }
