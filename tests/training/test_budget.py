"""A budget in FLOPs: met within one step, whatever a step consists of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.budget import Budget
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from tests.support.training import PLAIN, narrow

CASES: dict[str, tuple[Any, dict[str, Any], float]] = {  # the error is how far a step's cost is from what was foreseen
    "plain": (Uniform(), {}, 0.0),
    "micro-batches": (Uniform(), {"micro_batch_size": 3}, 0.0),
    "packed": (Uniform(), {"packing": True, "batch_size": 2}, 0.0),
    "by tokens": (Uniform(), {"batch_tokens": 200, "batch_size": 32}, 0.0),
    "looks at a target": (Adapt(refresh=3), {}, 0.0),
    "and at samples": (Adapt(refresh=3, center="cosine", center_samples=6), {}, 0.0),
    "of the whole step": (Linupper(), {"micro_batch_size": 3}, 0.0),
    "checkpointed": (Uniform(), {"gradient_checkpointing": True}, 0.0),
    "choosing": (FilterThenWeight(), {"batch_size": 2, "target_batch": 4}, 0.1),
    "choosing, scaled": (FilterThenWeight(side="candidates"), {"batch_size": 2, "target_batch": 4}, 0.1),
    "choosing, masked": (FilterThenWeight(), {"batch_size": 2, "target_batch": 4}, 0.1),
}


def trainer(encoded: list[Encoded], case: str, **more: Any) -> Trainer:
    weighting, settings, _ = CASES[case]
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:9]) if weighting.uses_target else None)
    lm, mask = narrow(), None
    if case.endswith("masked"):
        mask = Refreshed({name: np.arange(0, p.numel(), 3) for name, p in lm.model.named_parameters()})
    return Trainer(lm, data, replace(PLAIN, **settings, **more), weighting, Alone(), mask=mask)


@pytest.mark.parametrize("case", CASES)
def test_it_is_met_within_one_step(encoded: list[Encoded], case: str) -> None:
    most = CASES[case][2]
    epoch = [done.metrics["flops"] for done in trainer(encoded, case).run()]
    budget = 2.3 * sum(epoch)  # the second epoch has another order
    limited = trainer(encoded, case, flops=budget)
    spent = [done.metrics["flops"] for done in limited.run()]
    assert len(spent) == limited.steps > len(epoch)
    assert sum(spent) == pytest.approx(budget, abs=max(epoch) + most * budget)
    assert sum(spent) <= budget * (1 + most) + 1e-6
    if not most:
        assert spent[: len(epoch)] == epoch  # an epoch's steps cost what they cost without a budget


def test_what_was_paid_before_is_part_of_it(encoded: list[Encoded]) -> None:
    costs = [3.0, 2.0, 4.0]
    assert Budget(9.0).steps_within(costs) == 3
    assert Budget(8.9).steps_within(costs) == 2
    assert Budget(9.0, spent=4.0).steps_within(costs) == 2
    with pytest.raises(CurateError, match=r"flops=2: the first step takes 3 FLOPs.*at least 3,"):
        Budget(2.0).steps_within(costs)
    with pytest.raises(CurateError, match=r"1 of which are spent before it; give at least 4,"):
        Budget(3.5, spent=1.0).steps_within(costs)
    with pytest.raises(CurateError, match="max_steps"):
        Budget(1e30).steps_within(iter(np.ones(2_000_000)))
    with pytest.raises(CurateError, match="give one"):
        replace(PLAIN, flops=1e9, steps=3)
