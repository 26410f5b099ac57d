"""Choosing within a step of a training that has a mask: what is trained is what is compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curate.errors import CurateError
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.models.language_model import LanguageModel
from curate.training.masked_parameters import Refreshed
from tests.support.choosing import STEP, compared, near, trainer_of


def drawn(parameters: Mapping[str, Tensor], seed: int = 0) -> dict[str, np.ndarray]:
    """Half of the numbers of two in three parameters."""
    rng, found = np.random.default_rng(seed), {}
    for i, (name, parameter) in enumerate(parameters.items()):
        if i % 3:
            found[name] = np.flatnonzero(rng.random(parameter.numel()) < 0.5)
    return found


def half(lm: LanguageModel) -> Refreshed:
    return Refreshed(drawn(dict(lm.model.named_parameters())))


@pytest.mark.parametrize("side", ["target", "candidates"])
@pytest.mark.parametrize("precondition", ["before", "none"])
def test_products_are_those_of_what_is_trained(side: Any, precondition: Any) -> None:
    weighting = FilterThenWeight(side=side, precondition=precondition)
    steps, trainer = compared(weighting, lora=False, mask=half)
    assert trainer.chooser is not None and 0 < len(trainer.chooser.sketcher.shapes) < len(trainer.chooser.parameters)
    assert np.ptp(steps[0]["d"]) == 0 < np.ptp(steps[1]["d"])
    for its in steps:
        g, d = its["g"], its["d"] if precondition == "before" else 1.0
        assert 0.4 < (g != 0).any(0).mean() < 0.6
        one, other = (g * d, its["target"]) if side == "candidates" else (g, d * its["target"])
        products = its["products"]
        assert near(products.gram, one @ one.T) and near(products.aligned, one @ other)


def test_the_choice_is_by_these() -> None:
    weighting = FilterThenWeight(filter="top", weigh="none", precondition="none")
    for its in compared(weighting, replace(STEP, batch_size=3), lora=False, mask=half)[0]:
        along = its["g"] @ its["target"]
        best = {i for i in np.argsort(-along)[: len(along) // 3] if along[i] > 0}
        assert set(np.flatnonzero(its["given"].values)) == best and best


def test_the_moments_of_projected_gradients_are_of_what_is_trained() -> None:
    """Unprojected, so that they are Adam's own, of the selected elements; clipped as the optimizer's are."""
    settings = replace(STEP, steps=2, clip=0.1)
    trainer = trainer_of(FilterThenWeight(precondition="projected"), settings, lora=False, mask=half)
    list(trainer.run())
    assert trainer.chooser is not None and trainer.masked is not None
    for name, second in trainer.chooser.products.second.items():
        own = trainer.optimizer.state[trainer.masked.parameters[name]]["exp_avg_sq"]
        assert torch.allclose(second, trainer.masked.spread(name, own), rtol=1e-8)


def test_what_is_not_selected_stays_bit_for_bit() -> None:
    trainer = trainer_of(LessOnline(), lora=False, mask=half)
    before = copy.deepcopy(dict(trainer.model.model.named_parameters()))
    assert trainer.masked is not None
    selected = trainer.masked.selected()
    list(trainer.run())
    moved = 0
    for name, parameter in trainer.model.model.named_parameters():
        changed = np.flatnonzero((parameter.detach() != before[name].detach()).flatten().numpy())
        assert set(changed) <= set(selected.get(name, np.zeros(0, int)).tolist())
        moved += len(changed)
    assert moved > 100


def test_a_mask_that_changes_is_compared_anew() -> None:
    def refreshed(lm: LanguageModel) -> Refreshed:
        return Refreshed(drawn(dict(lm.model.named_parameters())), 1, lambda values, step: drawn(values, step))

    steps, trainer = compared(FilterThenWeight(), lora=False, mask=refreshed)
    kept = [its["g"].any(0) for its in steps]
    assert len(kept[0]) == len(kept[1]) and 0.2 < (kept[0] & kept[1]).mean() < 0.3
    for its in steps:
        q = its["d"] * its["target"]
        assert near(its["products"].gram, its["g"] @ its["g"].T) and near(its["products"].aligned, its["g"] @ q)
    assert trainer.selection is not None and trainer.selection.chooser is trainer.chooser


def test_a_mask_of_everything_is_none_at_all() -> None:
    def every(lm: LanguageModel) -> Refreshed:
        return Refreshed({name: np.arange(p.numel()) for name, p in lm.model.named_parameters()})

    ends = []
    for mask in (every, None):
        trainer = trainer_of(GradNorm(), replace(STEP, steps=3), lora=False, mask=mask)
        weights = np.concatenate([step.weight for step in trainer.run()])
        ends.append((weights, torch.cat([p.detach().flatten() for p in trainer.model.model.parameters()])))
    assert np.allclose(ends[0][0], ends[1][0]) and torch.allclose(ends[0][1], ends[1][1], atol=1e-12)


@pytest.mark.parametrize(
    "weighting",
    [
        FilterThenWeight(positions="same", precondition="projected"),
        FilterThenWeight(unit="token", filter="top", weigh="none"),
        Greats(hessian="kfac_target"),
    ],
)
def test_what_goes_by_tokens_or_layers_is_refused(weighting: Any) -> None:
    with pytest.raises(CurateError, match="with a mask, gradients are compared as wholes"):
        trainer_of(weighting, lora=False, mask=half)
