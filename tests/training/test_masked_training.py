"""Training of a mask's numbers alone: the rest bit for bit, moments, refreshes, gone on with."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.methods.weightings.uniform import Uniform
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.settings import TrainSettings
from tests.methods.test_masks import tiny
from tests.oracles.training import weighted_gradient
from tests.support.checkpoints import AIM, POOL
from tests.support.training import narrow

DECAYING = TrainSettings(batch_size=3, lr=1e-3, warmup=0.0, schedule="constant", steps=100, weight_decay=0.1, clip=0.5)


def trainer(lm: LanguageModel, settings: TrainSettings, mask: Refreshed | None, **more: Any) -> Trainer:
    data = Data.of(Examples.of(encode(lm.tokenizer, [*POOL, *AIM], 512)))
    return Trainer(lm, data, settings, Uniform(), Alone(), mask=mask, **more)


def some(lm: LanguageModel, share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers drawn by lot; of every third parameter none."""
    rng, found = np.random.default_rng(seed), {}
    for i, (name, parameter) in enumerate(lm.model.named_parameters()):
        if i % 3:
            found[name] = np.flatnonzero(rng.random(parameter.numel()) < share)
    return found


def every(lm: LanguageModel) -> dict[str, np.ndarray]:
    return {name: np.arange(p.numel()) for name, p in lm.model.named_parameters()}


def test_the_sums_of_gradients_are_those_of_single_samples_before_the_clip() -> None:
    """At a learning rate that moves nothing, so all steps are at one point."""
    lm, slow = narrow(), narrow()
    settings = TrainSettings(batch_size=4, steps=5, lr=1e-30, warmup=0.0, clip=1e-3, sum_gradients=True)
    made = trainer(lm, settings, None)
    steps = made.run()
    seen = [next(steps).documents for _ in range(2)]
    made = trainer(lm, settings, None, start=copy.deepcopy(made.snapshot()))  # cut short, and gone on with
    seen += [done.documents for done in made.run()]
    wanted = {name: torch.zeros_like(p) for name, p in slow.model.named_parameters()}
    encoded = encode(slow.tokenizer, [*POOL, *AIM], 512)
    assert len(seen) == 5
    for documents in seen:
        samples = [(encoded[i].ids.tolist(), encoded[i].supervised.tolist()) for i in documents]
        divisor = sum(sum(supervised[1:]) for _, supervised in samples)
        for name, gradient in weighted_gradient(slow.model, samples, [1.0] * len(samples), divisor).items():
            wanted[name] += gradient
    sums = {n.removeprefix("sum."): t for n, t in made.snapshot().optimizer.items() if n.startswith("sum.")}
    assert sums.keys() == wanted.keys()
    for name, total in sums.items():
        assert torch.allclose(total, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max())), name


def test_what_is_not_selected_stays_bit_for_bit_and_the_state_is_as_large_as_the_budget() -> None:
    lm = narrow()
    before = copy.deepcopy(dict(lm.model.named_parameters()))
    selected = some(lm, 0.05)
    made = trainer(lm, DECAYING, Refreshed(selected))
    losses = [done.metrics["loss"] for done in made.run()]
    assert len(losses) == 100 and losses[-1] < losses[0]
    for name, parameter in lm.model.named_parameters():
        changed = np.flatnonzero((parameter.detach() != before[name].detach()).flatten().numpy())
        assert set(changed) <= set(selected.get(name, []))
        assert len(changed) >= 0.9 * len(selected.get(name, []))
    tensors = made.snapshot().optimizer
    moments = sum(t.numel() * t.element_size() for n, t in tensors.items() if n.startswith("exp_avg"))
    index = sum(t.numel() * t.element_size() for n, t in tensors.items() if n.startswith("index"))
    count = sum(map(len, selected.values()))
    assert moments + index <= 1.2 * (8 * count + index) and index == 4 * count
    held = [p.data for p in made.parameters.values()] + [p.grad for p in made.parameters.values()]
    assert all(t is None or t.numel() == 0 for t in held)


def test_the_whole_model_selected_is_training_as_ever() -> None:
    plain, masked = narrow(), narrow()
    settings = replace(DECAYING, steps=12)
    mine = [done.metrics for done in trainer(masked, settings, Refreshed(every(masked))).run()]
    theirs = [done.metrics for done in trainer(plain, settings, None).run()]
    assert mine == theirs
    for a, b in zip(masked.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_is_torch_s_adamw_with_gradient_moments_and_decay_restricted() -> None:
    """Against AdamW over everything, whose gradients are zero outside and whose numbers outside are put back."""
    lm, slow = narrow(), narrow()
    selected = some(lm, 0.3)
    settings = replace(DECAYING, steps=4, clip=0.0)
    inside = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in slow.model.named_parameters()}
    for name, places in selected.items():
        inside[name][places] = True
    first = copy.deepcopy(dict(slow.model.named_parameters()))
    plain = trainer(slow, settings, None)

    def restrict(*_: Any) -> None:
        for name, p in slow.model.named_parameters():
            assert p.grad is not None
            p.grad *= inside[name].view_as(p)

    def put_back(*_: Any) -> None:
        for name, p in slow.model.named_parameters():
            p.data = torch.where(inside[name].view_as(p), p.data, first[name].data)

    plain.optimizer.register_step_pre_hook(restrict)
    plain.optimizer.register_step_post_hook(put_back)
    list(plain.run())
    list(trainer(lm, settings, Refreshed(selected)).run())
    for (name, a), b in zip(lm.model.named_parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7), name


def test_a_refreshed_mask_keeps_the_moments_of_what_stays_and_starts_the_rest_at_zero() -> None:
    lm = tiny()
    first, second = some(lm, 0.3, seed=1), some(lm, 0.3, seed=2)
    asked = []

    def update(parameters: Any, taken: int) -> Any:
        asked.append((set(parameters), taken))
        return second

    made = trainer(lm, replace(DECAYING, steps=6), Refreshed(first, 3, update))
    steps = made.run()
    for _ in range(3):
        next(steps)
    before = made.snapshot().optimizer
    made._refresh_mask(4)
    after = made.snapshot().optimizer
    assert asked == [(set(dict(lm.model.named_parameters())), 3)]
    for name in second:
        assert after[f"index.{name}"].tolist() == second[name].tolist()
        assert after[f"step.{name}"] == before[f"step.{name}"]
        old = dict(zip(first[name], before[f"exp_avg_sq.{name}"].tolist(), strict=True))
        wanted = [old.get(place, 0.0) for place in second[name]]
        assert after[f"exp_avg_sq.{name}"].tolist() == wanted and any(wanted)
    others = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    made.step = 3
    next(steps)
    for name, p in lm.model.named_parameters():
        changed = np.flatnonzero((p.detach() != others[name]).flatten().numpy())
        assert set(changed) <= set(second.get(name, []))


@pytest.mark.parametrize("interval", [0, 2])
def test_cut_short_and_gone_on_with_it_is_as_if_nothing_had_been(interval: int) -> None:
    def mask(lm: LanguageModel) -> Refreshed:
        def largest(parameters: Any, _: int) -> Any:  # moves as the model learns
            return {
                n: np.sort(np.argsort(-p.detach().flatten().numpy())[: p.numel() // 4]) for n, p in parameters.items()
            }

        return Refreshed(some(lm, 0.3), interval, largest if interval else None)

    settings, undisturbed = replace(DECAYING, steps=7), narrow()
    whole = [done.metrics for done in trainer(undisturbed, settings, mask(undisturbed)).run()]
    lm = narrow()
    half = trainer(lm, settings, mask(lm))
    steps = half.run()
    seen = [next(steps).metrics for _ in range(4)]
    again = trainer(lm, settings, mask(lm), start=copy.deepcopy(half.snapshot()))
    assert seen + [done.metrics for done in again.run()] == whole
    for a, b in zip(lm.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(a, b)
