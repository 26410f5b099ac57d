"""How often a step would wait for a GPU: as often for many layers as for few, counted on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from tests.support.syncs import Syncs
from tests.support.training import narrow

SETTINGS = TrainSettings(batch_size=8, lr=1e-4, warmup=0.0, steps=3, epochs=9, target_batch=4, oversample=2)
MICRO = {"micro_batch_size": 4}
CANDIDATES = {"oversample": 2, "batch_size": 4}


@pytest.mark.parametrize(
    ("weighting", "settings", "most"),
    [
        (Uniform(), {}, 3),  # the model's own look at the positions, the losses, the gradient's norm
        (Uniform(), MICRO, 5),
        (Uniform(), {"packing": True}, 3),
        (Adapt(refresh=100), {}, 4),
        (Adapt(refresh=100, normalize="mean1"), MICRO, 7),
        (FilterThenWeight(), CANDIDATES, 27),
        (FilterThenWeight(side="candidates"), CANDIDATES, 27),
    ],
)
def test_a_step_waits_a_few_times(
    encoded: list[Encoded], weighting: Weighting, settings: dict[str, Any], most: int
) -> None:
    data = Data.of(Examples.of(encoded[:16]), anchors=Examples.of(encoded[16:20]))
    steps = Trainer(narrow(), data, replace(SETTINGS, **settings), weighting, Alone()).run()
    next(steps)  # Adam has a state from then on
    with Syncs() as waited:
        next(steps)
    assert waited.total <= most, waited.where()


def test_what_waits_is_counted() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with Syncs() as waited:
        float(values[0]), values[mask], values.cpu().numpy(), values.tolist(), bool((values > 1).any()), mask.nonzero()
        values[mask] = torch.ones(3)
    assert waited.total == 7
    with Syncs() as waited:
        values.index_select(0, torch.tensor([1, 2])) + values[1:3]
    assert not waited.total
