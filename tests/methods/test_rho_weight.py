"""rho_weight: the tokens are those of the slow reference, and the gradient is that of their mean loss alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.kinds.signals import Step
from curate.methods.weightings.rho_weight import RhoWeight
from curate.models.tokens import Encoded
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.objective import Objective
from tests.oracles.rho_weight import rho_weight
from tests.oracles.training import token_losses
from tests.support.training import ONE_STEP, closest, gradient_of, narrow, pairs


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 1.0])
def test_the_tokens_are_those_of_the_highest_excess(share: float) -> None:
    rng = np.random.default_rng(1)
    now, reference = rng.gamma(1.0, size=50), rng.gamma(1.0, size=50)
    now[10:20], reference[10:20] = 1.0, 0.5  # equals: the first
    step = Step(1, counts=np.array([20, 30]), token_loss=now, base_token_loss=reference)
    got = RhoWeight(share).update(step, {})[0].values.tolist()
    assert got == rho_weight(now.tolist(), reference.tolist(), share)
    with pytest.raises(CurateError, match=r"rho_weight\.share=0"):
        RhoWeight(0.0)


@pytest.mark.parametrize("micro", [0, 7])
def test_the_gradient_is_that_of_these_tokens_mean_loss(processes: Any, encoded: list[Encoded], micro: int) -> None:
    examples, model = Examples.of(encoded), narrow("float64")
    with torch.no_grad():
        now = [token_losses(model.model, *pair).tolist() for pair in pairs(encoded)]
    reference = np.random.default_rng(2).gamma(1.0, size=sum(map(len, now)))
    got, _ = gradient_of(
        processes, encoded, RhoWeight(), replace(ONE_STEP, micro_batch_size=micro), base_token_loss=reference
    )
    weights = torch.tensor(rho_weight([x for one in now for x in one], reference.tolist(), 0.6), dtype=torch.float64)
    model.model.zero_grad()
    every = torch.cat([token_losses(model.model, *pair) for pair in pairs(encoded)])
    ((weights * every).sum() / weights.sum()).backward()
    closest(got, {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None})
    assert len(every) == len(base_losses(Objective(model), examples)[0])
