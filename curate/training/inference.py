"""Inference during training: hidden states or token losses of samples under the current model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.forward import out_of_memory
from curate.models.language_model import LanguageModel
from curate.models.usage import Usage
from curate.training.examples import Batch, Examples, batch_of
from curate.training.objective import Losses, Objective


def times(usage: Usage, processes: int, seconds: float) -> Usage:
    """A cost multiplied by the number of processes, each of which has done the same; seconds: as given."""
    for name in ("tokens", "padded_tokens", "flops", "flops_paper"):
        setattr(usage, name, getattr(usage, name) * processes)
    usage.seconds = seconds
    return usage


def unlearnt(
    objective: Objective, examples: Examples, usage: Usage, count_flops: bool, losses: bool
) -> Iterator[tuple[Batch, Losses]]:
    """Run documents through the model without dropout or gradients, longest first; the cost is added to `usage`.

    losses: compute their token losses; otherwise only their hidden states, without the output head. A batch is halved
    if memory runs out.
    """
    model, todo = objective.model, np.argsort(-examples.lengths, kind="stable")
    was_training = model.model.training
    model.model.eval()
    try:
        while len(todo):
            places = todo[: max(1, model.batch_tokens // int(examples.lengths[todo[0]]))]
            batch = batch_of(examples, list(places[:, None]), model.device)
            rows, longest = batch.ids.shape
            try:
                with torch.no_grad(), counted(usage, count_flops):
                    result = objective.losses(batch) if losses else objective.states(batch)
            except Exception as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                model.batch_tokens = longest * (rows // 2)
                continue
            head = int(examples.counts[places].sum()) if losses else 0
            usage.tokens += int(examples.lengths[places].sum())
            usage.padded_tokens += batch.ids.numel()
            usage.flops += forward_flops(model.model, rows, longest, head if model.plain_head else rows * longest)
            usage.flops_paper += paper_flops(FORWARD, model.n_params, rows)
            yield batch, result
            todo = todo[rows:]
    finally:
        model.model.train(was_training)


def look_flops(model: LanguageModel, examples: Examples) -> float:
    """FLOPs of the documents' hidden states by `unlearnt`."""
    todo, flops = np.sort(examples.lengths)[::-1], 0.0
    while len(todo):
        rows = min(max(1, model.batch_tokens // int(todo[0])), len(todo))
        flops += forward_flops(model.model, rows, int(todo[0]), 0)
        todo = todo[rows:]
    return flops


def in_order(found: Sequence[tuple[np.ndarray, Tensor]]) -> Tensor:
    """Rows [n, ...] of several parts, each given as (positions, rows), in the order of their positions."""
    places = torch.from_numpy(np.concatenate([places for places, _ in found]))
    rows = torch.cat([rows for _, rows in found])
    return rows[torch.argsort(places).to(rows.device)]


def base_losses(
    objective: Objective, examples: Examples, count_flops: bool = False, processes: int = 1
) -> tuple[np.ndarray, Usage]:
    """The loss of every supervised token, float64, document after document, under the current model; and the cost.

    processes: how many compute the same, which multiplies the cost.
    """
    usage, all_losses, began = objective.model.usage(), np.zeros(int(examples.counts.sum())), time.perf_counter()
    starts = np.cumsum(examples.counts) - examples.counts
    for batch, losses in unlearnt(objective, examples, usage, count_flops, losses=True):
        token_losses, offset = losses.values, 0
        for document in batch.documents:
            n = int(examples.counts[document])
            all_losses[starts[document] : starts[document] + n] = token_losses[offset : offset + n]
            offset += n
    return all_losses, times(usage, processes, time.perf_counter() - began)
