"""What a step of a training will cost, from the lengths of its rows, before it is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from curate.kinds.weighting import Weighting
from curate.training.examples import micro_batches
from curate.training.settings import TrainSettings
from curate.training.step_costs import StepCosts


def step_flops(
    costs: StepCosts,
    examples: Any,
    rows: list[np.ndarray],
    settings: TrainSettings,
    weighting: Weighting,
    target_length: float,
    masked: bool = False,
) -> tuple[float, float]:
    """FLOPs and tokens of a step on these rows, without those of anchors. target_length: of the target's samples,
    relative to the mean of those trained on. masked: whether a mask says what is trained."""
    micro = settings.micro_batch_size
    whole = costs.usage(examples, rows, micro)
    if weighting.chooses:
        return _choosing(costs, examples, rows, settings, weighting, target_length, masked), whole.tokens
    world = costs.processes.num_processes
    together = weighting.scope == "batch" or settings.shuffle_weights
    twice = together and len(micro_batches(examples, rows, micro, world, costs.room)) > world
    again = costs.usage(examples, rows, micro, backward=False).flops if twice else 0.0
    return whole.flops + again, whole.tokens


def _choosing(
    costs: StepCosts,
    examples: Any,
    rows: list[np.ndarray],
    settings: TrainSettings,
    weighting: Weighting,
    target_length: float,
    masked: bool,
) -> float:
    """FLOPs of a step of a weighting that chooses: all candidates go forward (and back, where gradients are compared),
    and those chosen are trained on. target_length: of its samples, relative to the mean of those trained on."""
    forward, both = (costs.usage(examples, rows, settings.micro_batch_size, backward=b).flops for b in (False, True))
    matching = weighting.matching()
    if matching is None:
        return forward + both / settings.oversample
    target = target_length * settings.target_batch / settings.target_every / len(rows) if matching.target else 0.0
    scaled = masked or matching.candidates and matching.precondition == "before"  # whole gradients, number by number
    usage = costs.usage(examples, rows, settings.micro_batch_size)
    formed, sketched, size = _sketches(costs, settings, usage, len(rows) if scaled else 0)
    world = costs.processes.num_processes
    compared = 2.0 * size * len(rows) ** 2 * world  # each compares them all
    again = 0 < settings.micro_batch_size * world < len(rows)  # the factors of all candidates are not kept
    chosen = (both if again else formed) / settings.oversample
    return 2 * forward * (1 + target) + sketched + compared + target * formed + chosen


def _sketches(costs: StepCosts, settings: TrainSettings, usage: Any, whole: int) -> tuple[float, float, int]:
    """FLOPs of forming the gradients of a step's rows, of linear layers, and of sketching them; a sketch's elements.
    whole: the rows whose gradients are formed to be sketched; 0: sketches are made of the layers' factors."""
    model, tokens = costs.model.model, usage.padded_tokens
    head = model.get_output_embeddings()
    formed, sketched, size = 0.0, 0.0, 0
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim != 2 or module is head or isinstance(module, nn.Embedding):
            continue
        if not weight.requires_grad:
            continue
        m, n = weight.shape
        r, c = (min(side, settings.projection or side) for side in (m, n))
        formed += 2.0 * tokens * m * n
        if whole:
            across, down = (2.0 * m * n * c if c < n else 0.0), (2.0 * r * m * c if r < m else 0.0)
            sketched += 2.0 * tokens * m * n + whole * (across + down)
            size += r * c
            continue
        sketched += tokens * ((2.0 * m * r if r < m else 0.0) + (2.0 * n * c if c < n else 0.0) + 2.0 * r * c)
        size += r * c
    return formed, sketched, size
