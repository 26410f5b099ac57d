"""Choosing within a step against slow references: products, choices, weights, and the gradient that is learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.signals import Products, Step
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.tracin_online import TracinOnline
from curate.models.tokens import Encoded
from tests.oracles import choosing as slow
from tests.support.choosing import STEP, TARGET, compared, near
from tests.support.gradients import tokens

RESCALED: tuple[Any, ...] = ("none", "match_span", "match_norm")


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("lora", [True, False])
def test_products_are_those_of_whole_gradients(lora: bool, reduction: Any) -> None:
    steps, _ = compared(FilterThenWeight(), replace(STEP, reduction=reduction), lora=lora)
    assert np.ptp(steps[0]["d"]) == 0 and steps[1]["d"].max() > 10 * steps[1]["d"].min()
    for its in steps:  # D = 1, and Adam's
        products, q = its["products"], its["d"] * its["target"]
        assert near(products.gram, its["g"] @ its["g"].T)
        assert near(products.aligned, its["g"] @ q)
        assert products.square == pytest.approx(q @ q, rel=1e-10)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_filter_s_order_and_the_weights_are_the_formula_s(ridge: float) -> None:
    steps, _ = compared(FilterThenWeight(ridge=ridge), replace(STEP, batch_size=4))
    for its in steps:
        g, q, weights = its["g"], its["d"] * its["target"], its["given"].values
        chosen = slow.filtered(g, q, 4)
        assert set(np.flatnonzero(weights)) <= set(chosen)
        assert near(weights[chosen], slow.weighed(g[chosen], g[chosen] @ q, ridge), 1e-8)


@pytest.mark.parametrize("rescale", ["match_norm", "match_span"])
def test_what_is_sought_is_as_long_as_a_mean_batch_of_candidates(rescale: Any) -> None:
    its = compared(FilterThenWeight(ridge=0.1, rescale=rescale), replace(STEP, batch_size=4))[0][1]
    g, q = its["g"], its["d"] * its["target"]
    within = g.T @ np.linalg.lstsq(g.T, q, rcond=None)[0]  # q projected onto the span of the candidates
    long = {"match_norm": q, "match_span": within}[rescale]
    q = q / np.linalg.norm(long) * np.linalg.norm(g.mean(0)) * 4
    chosen = slow.filtered(g, q, 4)
    assert near(its["given"].values[chosen], slow.weighed(g[chosen], g[chosen] @ q, 0.1), 1e-8)


def test_only_a_target_as_long_as_the_candidates_is_filtered_against_itself() -> None:
    """Of a target that lies mostly outside the candidates' span, match_norm leaves less inside than one candidate's
    length, so the residual turns away from it after the first choice. The paper's form and match_span keep to it."""
    rng, trials, room = np.random.default_rng(5), 100, 4
    made = {rescale: FilterThenWeight(rescale=rescale, weigh="none") for rescale in RESCALED}
    made["unavoidable"] = FilterThenWeight(filter="top", weigh="none")  # where fewer than `room` go the target's way
    against = dict.fromkeys(made, 0)
    for _ in range(trials):
        g = rng.normal(size=(16, 2000)) + 0.3 * rng.normal(size=2000)  # gradients have a part in common
        q = 1e4 * rng.normal(size=2000)
        step = Step(1, products=Products(g @ g.T, g @ q, float(q @ q)), room=room)
        for rescale, weighting in made.items():
            given, _ = weighting.update(step, {})
            against[rescale] += int((g[given.values > 0] @ q < 0).sum())
    shares = {rescale: n / (trials * room) for rescale, n in against.items()}
    assert shares["none"] == shares["unavoidable"] and shares["match_span"] < 0.03 < 0.1 < shares["match_norm"], shares


def test_d_on_the_candidates_side_changes_their_products_with_each_other() -> None:
    for its in compared(FilterThenWeight(side="candidates"))[0]:
        products, scaled = its["products"], its["g"] * its["d"]
        assert near(products.gram, scaled @ scaled.T) and near(products.aligned, scaled @ its["target"])
        assert products.square == pytest.approx(its["target"] @ its["target"], rel=1e-10)


def test_one_sample_s_weight_is_d_on_one_side_and_1_over_d_on_the_other() -> None:
    d, one = 8.0, np.ones((1, 1))
    for side, gram, wanted in (("target", one, d), ("candidates", d * d * one, 1 / d)):
        step = Step(1, products=Products(gram, np.array([d]), 1.0), room=1)
        given, _ = FilterThenWeight(side=side, ridge=0.0).update(step, {})  # type: ignore[arg-type]
        assert given.values == pytest.approx([wanted])


@pytest.mark.parametrize("name", ["greats", "tracin_online", "less_online", "grad_norm"])
def test_the_other_choices_are_their_formulas(name: str) -> None:
    made: dict[str, Any] = {"greats": Greats(), "tracin_online": TracinOnline(), "less_online": LessOnline()}
    for its in compared(made.get(name, GradNorm()), replace(STEP, batch_size=4))[0]:
        g, target = its["g"], its["target"]
        if name == "greats":
            chosen = slow.greats(g, target, its["lr"], 4)
        else:
            value = {"tracin_online": g @ target, "less_online": g @ (its["d"] * target)}
            chosen = np.argsort(-value.get(name, np.linalg.norm(g, axis=1)))[:4].tolist()
        assert sorted(chosen) == np.flatnonzero(its["given"].values).tolist()
        assert set(its["given"].values) == {0.0, 1.0}


def test_alignment_is_what_one_step_of_adam_with_its_scale_frozen_takes_off_the_target_s_loss() -> None:
    short = FilterThenWeight(rescale="match_norm")  # a first step after which the loss is smooth
    steps, trainer = compared(short, replace(STEP, reduction="sample"))
    g, target, d = (steps[1][key] for key in ("g", "target", "d"))
    aligned, small = steps[1]["products"].aligned, 1e-8
    again = compared(short, replace(STEP, reduction="sample"), steps=1)[1]  # as before the second step
    those = {name: again.chooser.parameters[name] for name in again.chooser.sketcher.shapes}  # type: ignore[union-attr]
    lm, start = again.model.model.eval(), {name: p.detach().clone() for name, p in those.items()}

    def loss_after(i: int, size: float) -> float:
        at = 0
        for name, p in those.items():
            n = p.numel()
            p.data = start[name] - size * torch.from_numpy((d * g[i])[at : at + n]).view_as(p)
            at += n
        with torch.no_grad():
            return float(np.mean([float(slow_loss(lm, one)) for one in TARGET]))

    for i in range(len(g)):
        slope = (loss_after(i, -small) - loss_after(i, small)) / (2 * small)
        assert slope == pytest.approx(aligned[i], rel=1e-5, abs=1e-7 * float(np.abs(aligned).max()))


def slow_loss(lm: Any, one: Encoded) -> torch.Tensor:
    from tests.oracles.training import token_losses

    return token_losses(lm, *tokens(one)).mean()
