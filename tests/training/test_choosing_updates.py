"""What is learnt of a choice within a step: the gradient, however it is cut, repeated or gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uniform import Uniform
from tests.oracles import choosing as slow
from tests.support.choosing import CANDIDATES, STEP, Given, gradient_learnt, told, trainer_of
from tests.support.gradients import tokens


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("lora", [True, False])
def test_the_update_is_the_gradient_of_the_weighted_loss(lora: bool, reduction: Any, size: int) -> None:
    """Of factors that one pass leaves (size 0), and by a second pass; embeddings, norms, biases and the head too."""
    settings = replace(STEP, batch_size=4, reduction=reduction, micro_batch_size=size)
    given, data = {1: 0.5, 4: 2.0, 7: 1.25}, np.linspace(0.5, 2.0, 12)
    found = gradient_learnt(Given(given), settings, lora=lora, weights=data)
    wanted: dict[str, torch.Tensor] = {}
    reference = trainer_of(Uniform(), settings, lora=lora)
    lm, those = reference.model.model.eval(), reference.parameters
    counts = reference.data.examples.counts
    divisor = 4 * float(counts.mean()) if reduction == "token" else 4.0  # of as many candidates as there is room for
    for document, weight in given.items():
        gradient = slow.gradient(lm, tokens(CANDIDATES[document]), those)
        each = weight * data[document] * (counts[document] if reduction == "token" else 1) / divisor
        wanted = {n: wanted.get(n, torch.zeros_like(g)) + each * g for n, g in gradient.items()}
    assert found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name in wanted:
        assert float((found[name] - wanted[name]).abs().max()) <= 1e-10 * scale, name


def test_the_update_does_not_depend_on_how_many_have_a_weight() -> None:
    """What was compared is a sum of w g, so a weight that is all but 0 changes it as little."""
    settings = replace(STEP, batch_size=4)
    one, more = (gradient_learnt(Given({1: 4.0, **others}), settings) for others in ({}, {2: 1e-9, 3: 1e-9, 4: 1e-9}))
    assert all(torch.allclose(one[name], more[name], rtol=1e-6, atol=1e-9) for name in one)


def test_chance_is_the_seed_s_where_there_is_dropout() -> None:
    found = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        for size in (0, 3):
            trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=3, micro_batch_size=size), dropout=0.1)
            torch.manual_seed(noise)
            found.append([d.metrics["grad_norm"] for d in trainer.run()])
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1]


def test_what_weighs_nothing_in_the_data_is_no_candidate() -> None:
    weights = (np.arange(12) % 2).astype(float)
    for weighting in (MaxLoss(), TracinOnline()):
        for done in trainer_of(weighting, replace(STEP, steps=3), weights=weights).run():
            assert (done.documents % 2 == 1).all() and done.metrics["chosen"] == 2 and done.metrics["grad_norm"] > 0


@pytest.mark.parametrize("projection", [0, 4])
@pytest.mark.parametrize("lora", [True, False])
def test_products_in_bfloat16_are_near_those_in_float32(lora: bool, projection: int) -> None:
    made = [FilterThenWeight(), TracinOnline(hessian="kfac_candidates"), Greats(hessian="kfac_target")]
    for weighting in [*made, FilterThenWeight(unit="token")] if lora else made:
        losses = []
        for precision in ("bfloat16", "float32"):
            settings = replace(STEP, steps=2, projection=projection, precision=precision)
            (*_, done) = trainer_of(weighting, settings, lora=lora, dtype=torch.float32).run()
            losses.append(done.metrics["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_sample_that_stands_twice_among_the_candidates_is_two_of_them() -> None:
    found = []
    for size in (0, 3):
        trainer = trainer_of(MaxLoss() if size else FilterThenWeight(), replace(STEP, steps=2, micro_batch_size=size),
                             documents=np.array([3, 3, 5, 5, 5, 1]))  # fmt: skip
        found += [(sorted(d.documents.tolist()), np.count_nonzero(d.weight), d.metrics["loss"]) for d in trainer.run()]
    assert all(documents == [1, 3, 3, 5, 5, 5] and 1 <= n <= 2 and np.isfinite(loss) for documents, n, loss in found)
    again = Twice()
    trainer = trainer_of(again, replace(STEP, steps=1, micro_batch_size=3), documents=np.array([3, 3, 5, 5, 5, 1]))
    told(trainer, again)
    again.counts = trainer.data.examples.counts
    kept: dict[str, torch.Tensor] = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None})
    )
    list(trainer.run())
    reference, counts = trainer_of(Uniform()), again.counts
    wanted = slow.gradient(reference.model.model.eval(), tokens(CANDIDATES[5]), reference.parameters)
    each = (1 + 3) * counts[5] / (2 * counts[[3, 3, 5, 5, 5, 1]].mean())
    for name, gradient in wanted.items():
        assert torch.allclose(kept[name], each * gradient, rtol=1e-9, atol=1e-14), name


class Twice(Given):
    """Document 5 where it stands first and second, with weights of 1 and 3."""

    counts: np.ndarray

    def __init__(self) -> None:
        super().__init__({})

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        values = np.zeros(len(self.documents))
        values[np.flatnonzero(self.documents == 5)[:2]] = 1.0, 3.0
        return Weights(values), state


def test_choosing_all_with_weights_of_1_is_plain_training() -> None:
    settings = replace(STEP, batch_size=6, steps=4, clip=1.0)
    for size in (0, 2):
        plain = trainer_of(Uniform(), replace(settings, micro_batch_size=size), lora=False)
        chosen = trainer_of(
            FilterThenWeight(weigh="none"), replace(settings, oversample=1, micro_batch_size=size), lora=False
        )
        a, b = ([d.metrics["weighted_loss"] for d in t.run()] for t in (plain, chosen))
        assert a == pytest.approx(b, rel=1e-10)
        for name, p in plain.parameters.items():
            assert torch.allclose(p, chosen.parameters[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("precondition", ["before", "projected"])
def test_a_step_does_not_depend_on_its_micro_batches(precondition: Any) -> None:
    settings = replace(STEP, steps=3, projection=4, target_every=2)
    found = []
    for size in (0, 1, 4):
        trainer = trainer_of(FilterThenWeight(precondition=precondition), replace(settings, micro_batch_size=size))
        found.append([(d.documents.tolist(), d.weight, d.measure) for d in trainer.run()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a[0] == b[0] and a[1] == pytest.approx(b[1], rel=1e-6) and a[2] == pytest.approx(b[2], rel=1e-6)


@pytest.mark.parametrize("precondition", ["before", "projected"])
@pytest.mark.parametrize("size", [0, 4])
def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(precondition: Any, size: int) -> None:
    weighting = FilterThenWeight(precondition=precondition)
    settings = replace(STEP, steps=5, projection=4, target_every=3, micro_batch_size=size)
    whole = trainer_of(weighting, settings)
    wanted = [d.metrics for d in whole.run()]
    cut = trainer_of(weighting, settings)
    steps = cut.run()
    first = [next(steps).metrics for _ in range(2)]
    snapshot, model = cut.snapshot(), {n: p.detach().clone() for n, p in cut.model.model.named_parameters()}
    rest = trainer_of(weighting, settings, start=snapshot, state=model)
    assert [*first, *(d.metrics for d in rest.run())] == wanted
