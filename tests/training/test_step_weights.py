"""Weights of a step's samples: ADAPT and those by loss, against slow references and by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.kinds.signals import Step
from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.extremes import Extremes
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.linear import Linear
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.quadratic import Quadratic
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.talr import Talr
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.loop import Trainer
from curate.training.objective import Objective
from tests.oracles import training as slow
from tests.support.training import ONE_STEP, PLAIN, Given, closest, gradient_of, narrow, pairs, trained

# --- adapt -----------------------------------------------------------------------------------------------


def test_adapt_is_the_paper_s_equations_whatever_else_is_in_the_batch(processes: Any, encoded: list[Encoded]) -> None:
    model, encoded = narrow("float64"), encoded[::2]
    anchors = encoded[20:]
    want = [slow.adapt(model.model, one.ids.tolist(), [a.ids.tolist() for a in anchors], 0.5) for one in encoded]
    for settings in (ONE_STEP, replace(ONE_STEP, micro_batch_size=7), replace(ONE_STEP, packing=True)):
        _, done = gradient_of(processes, encoded, Adapt(tau=0.5), settings, anchors=Examples.of(anchors))
        assert done.weight[np.argsort(done.documents)] == pytest.approx(want, abs=1e-6)
    got, _ = gradient_of(processes, encoded, Adapt(tau=0.5), ONE_STEP, anchors=Examples.of(anchors))
    n = sum(int(one.supervised.sum()) for one in encoded)
    closest(got, slow.weighted_gradient(model.model, pairs(encoded), want, n))


@pytest.mark.parametrize("center", ["states", "cosine"])
def test_adapt_without_what_all_samples_have_in_common(processes: Any, encoded: list[Encoded], center: Any) -> None:
    model, encoded = narrow("float64"), encoded[::2]
    anchors, ids = encoded[20:], [one.ids.tolist() for one in encoded]
    want = slow.centred_adapt(model.model, ids, [a.ids.tolist() for a in anchors], center, 0.05)
    plain = Adapt(tau=0.05)
    spread = []
    for weighting in (plain, replace(plain, center=center)):  # the mean is over all samples, as there are so few
        _, done = gradient_of(processes, encoded, weighting, ONE_STEP, anchors=Examples.of(anchors))
        weights = done.weight[np.argsort(done.documents)]
        spread.append(weights.std() / weights.mean())
    assert weights == pytest.approx(want, abs=1e-6)
    assert spread[1] > 2 * spread[0]
    assert done.samples["anchors"] == len(anchors) + len(encoded)


def test_adapt_s_mean_is_over_samples_drawn_at_every_look(processes: Any, encoded: list[Encoded]) -> None:
    means = []
    for seed in (0, 0, 1):
        weighting = Adapt(center="states", center_samples=5, refresh=2)
        data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4]))
        trainer = Trainer(narrow(), data, replace(PLAIN, lr=1e-9, steps=3), weighting, processes, seed)
        means.append([trainer.weigher.state["mean"] for done in trainer.run() if "anchors" in done.usage])
        assert trainer.looks.samples(data) == 9
    for a, b, same in ((means[0], means[1], True), (means[0], means[2], False)):
        assert np.array_equal(a[0], b[0]) == same and np.array_equal(a[1], b[1]) == same
    assert len(means[0]) == 2 and np.abs(means[0][0] - means[0][1]).max() > 1e-3  # at the same model, nearly
    with pytest.raises(CurateError, match="center_samples=0"):
        Adapt(center_samples=0)


def test_adapt_looks_at_the_target_again_every_so_many_steps(processes: Any, encoded: list[Encoded]) -> None:
    lm = narrow()
    trainer = Trainer(
        lm,
        Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4])),
        replace(PLAIN, epochs=2),
        Adapt(refresh=4),
        processes,
    )
    anchors = []
    for done in trainer.run():
        anchors.append(trainer.weigher.state["anchor"].tolist())
        assert ("anchors" in done.usage) == (done.step in (1, 5, 9))
    assert anchors[0] == anchors[3] != anchors[4] == anchors[7]


def test_adapt_looks_again_every_so_many_epochs_also_when_resumed(processes: Any, encoded: list[Encoded]) -> None:
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4]))
    settings = replace(PLAIN, epochs=5)

    def looked(weighting: Adapt, start: Any = None, stop: int = 99) -> tuple[list[tuple[int, int]], Any]:
        trainer = Trainer(narrow(), data, settings, weighting, processes, start=start)
        found = []
        for done in trainer.run():
            found += [(done.epoch, done.step)] if "anchors" in done.usage else []
            if done.step == stop:
                break
        return found, trainer.snapshot()

    whole, _ = looked(Adapt(refresh=2, refresh_unit="epochs"))
    assert [epoch for epoch, _ in whole] == [0, 2, 4] and whole[0] == (0, 1)
    per_epoch = whole[1][1] // 2
    assert [step for _, step in whole] == [1, 2 * per_epoch + 1, 4 * per_epoch + 1]
    begun, snapshot = looked(Adapt(refresh=2, refresh_unit="epochs"), stop=2 * per_epoch)
    rest, _ = looked(Adapt(refresh=2, refresh_unit="epochs"), copy.deepcopy(snapshot))
    assert begun + rest == whole
    assert looked(Adapt(refresh=10**9, refresh_unit="epochs"))[0] == [(0, 1)]


@pytest.mark.parametrize("center", ["none", "states", "cosine"])
def test_adapt_s_scales_are_a_spread_and_a_mean_by_hand(center: Any) -> None:
    rng = np.random.default_rng(3)
    states, anchors, some = (rng.normal(1.0, 1.0, (n, 6)) for n in (5, 4, 9))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    off = some.mean(0) if center == "states" else np.zeros(6)
    near = {
        k: (unit(x - off) @ unit(anchors - off).T).mean(1)
        for k, x in {"own": states, "anchors": anchors, "some": some}.items()
    }
    common = near["some"].mean() if center == "cosine" else 0.0
    divisors = {"none": 1.0, "pool": near["some"].std(), "target": near["anchors"].mean() - common}
    for scale, divisor in divisors.items():
        adapt = Adapt(tau=0.7, center=center, scale=scale)  # type: ignore[arg-type]
        tensors = [torch.from_numpy(x) for x in (anchors, some)]
        state = adapt.refreshed(tensors[0], {}, tensors[1] if adapt.background else None)
        found, _ = adapt.update(Step(1, states=torch.from_numpy(states)), state)
        want = 1 / (1 + np.exp(-(near["own"] - common) / divisor / 0.7))
        assert found.values == pytest.approx(want, rel=1e-12)


def test_a_similarity_that_has_no_unit_is_refused() -> None:
    with pytest.raises(CurateError, match="2 or more"):
        Adapt(scale="pool", center_samples=1)
    anchors, some = torch.eye(3), torch.ones(4, 3) + 0.01 * torch.eye(4, 3)
    with pytest.raises(CurateError, match="no nearer to itself"):
        Adapt(center="cosine", scale="target").refreshed(anchors, {}, some)
    with pytest.raises(CurateError, match="divisor"):
        Adapt(scale="pool").refreshed(anchors, {}, torch.ones(4, 3))


def test_clipping_and_a_zero_state_are_finite() -> None:
    state = Adapt().refreshed(torch.zeros(2, 3), {})
    weights, _ = Adapt(clip_low=0.4, clip_high=0.45).update(Step(1, states=torch.zeros(2, 3)), state)
    assert weights.values.tolist() == [0.45, 0.45]


# --- by loss ---------------------------------------------------------------------------------------------


def test_linupper_s_worked_table_and_its_limits() -> None:
    def of(weighting: Any, losses: list[float], step: int = 1) -> np.ndarray:
        return weighting.update(Step(step, loss=np.array(losses)), {})[0].values

    w = of(Linupper(r=1.0), [1.0, 2.0, 3.0])
    assert w / w[1] == pytest.approx([np.exp(-1), 1, 1]) and w.sum() == pytest.approx(3)
    assert of(Linupper(r=1e9), [1.0, 2.0, 3.0]) == pytest.approx([1, 1, 1])
    assert of(Linear(), [2.0, 2.0, 2.0]).tolist() == [1.0, 1.0, 1.0]
    assert of(Linear(), [2.0, 2.0 + 1e-15, 2.0]).sum() == pytest.approx(3)
    scheduled = Linupper(r=0.1, first_r=1e9, first_steps=2)
    assert of(scheduled, [1.0, 2.0], step=2) == pytest.approx([1, 1])
    assert of(scheduled, [1.0, 2.0], step=3)[0] < 1e-3


@pytest.mark.parametrize(
    ("weighting", "f"),
    [
        (Linear(r=0.5), [-1.0, -0.5, 1.0]),
        (Linupper(r=0.5), [0.0, 0.5, 1.0]),
        (Quadratic(r=0.5), [0.0, 0.75, 0.0]),
        (Extremes(r=0.5), [1.0, 0.5, 1.0]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_weights_by_loss_are_the_table_worked_by_hand(weighting: Weighting, f: list[float]) -> None:
    """Losses 2, 3, 6 stand at h = -1, -0.5, 1; a weight is its share of exp(f / r), three times."""
    raised = [2.718281828459045 ** (value / 0.5) for value in f]
    want = [3 * value / sum(raised) for value in raised]
    got = weighting.update(Step(1, loss=np.array([2.0, 3.0, 6.0])), {})[0].values
    assert got.tolist() == pytest.approx(want, rel=1e-12)


def test_talr_is_the_minimiser_on_the_simplex_but_for_its_floor_and_scale() -> None:
    """Normalised, exp(-l / tau) minimises  sum of w l + tau sum of w log w  on the simplex: by a solver."""
    from scipy.optimize import minimize

    loss = np.array([0.3, 1.0, 1.7, 2.9])
    tau = float(np.median(loss))
    w = Talr(floor=0.0, unit="sample").update(Step(1, loss=loss), {})[0].values
    entropic = minimize(
        lambda v: float(v @ loss + tau * (v * np.log(v)).sum()), np.full(4, 0.25), bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert w / w.sum() == pytest.approx(entropic.x, abs=1e-5)


def test_talr_by_hand_of_tokens_and_of_samples() -> None:
    """Two samples, of tokens with losses 0, 1, 5 and 4: their means are 2 and 4, the medians 3 and 2.5."""
    step = Step(1, np.array([2.0, 4.0]), counts=np.array([3, 1]), token_loss=np.array([0.0, 1.0, 5.0, 4.0]))
    e = 2.718281828459045
    want: dict[tuple[str, str], list[float]] = {
        ("token", "samples"): [1.0, e ** (-1 / 3), e ** (-5 / 3), e ** (-4 / 3)],
        ("token", "tokens"): [1.0, e**-0.4, 0.2, e**-1.6],  # e^-2 is below the floor
        ("sample", "samples"): [e ** (-2 / 3), e ** (-4 / 3)],
        ("sample", "tokens"): [e**-0.8, e**-1.6],
    }
    for (unit, median), weights in want.items():
        talr = Talr(0.2 if median == "tokens" else 0.0, unit, median)  # type: ignore[arg-type]
        assert talr.update(step, {})[0].values == pytest.approx(weights, rel=1e-12), (unit, median)
        assert ("token_loss" in talr.needs) == ((unit, median) != ("sample", "samples"))


@pytest.mark.parametrize("micro", [0, 5])
def test_talr_trains_every_token_by_its_own_weight(processes: Any, encoded: list[Encoded], micro: int) -> None:
    """The weights are numbers, through which no gradient goes; in micro-batches the step is weighted as a whole."""
    model = narrow("float64").model
    with torch.no_grad():
        losses = [slow.token_losses(model, *pair) for pair in pairs(encoded)]
    tau = float(np.median([float(loss.mean()) for loss in losses]))
    total = sum(
        (torch.clamp(torch.exp(-now / tau), min=0.05) * slow.token_losses(model, *pair)).sum()
        for now, pair in zip(losses, pairs(encoded), strict=True)
    )
    (total / sum(map(len, losses))).backward()
    got, _ = gradient_of(processes, encoded, Talr(floor=0.05), replace(ONE_STEP, micro_batch_size=micro))
    closest(got, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_flow_and_stm_go_by_the_base_model(processes: Any, encoded: list[Encoded]) -> None:
    examples, model = Examples.of(encoded), narrow("float64")
    base, usage = base_losses(Objective(model), examples)
    with torch.no_grad():
        want = torch.cat([slow.token_losses(model.model, *pair) for pair in pairs(encoded)]).numpy()
    assert base == pytest.approx(want, abs=1e-6) and usage.tokens == examples.lengths.sum()
    column = np.array([part.mean() for part in np.split(base, np.cumsum(examples.counts)[:-1])])
    _, done = gradient_of(processes, encoded, Flow(), ONE_STEP, column=column)
    weights = done.weight[np.argsort(done.documents)]
    assert weights == pytest.approx(np.exp(-column / np.median(column)))
    limit = round(float(np.exp(np.median(base))), 3)
    got, _ = gradient_of(processes, encoded, Stm(limit), ONE_STEP, base_token_loss=base)
    kept, start = [], 0
    for one in encoded:
        supervised, n = one.supervised.copy(), int(one.supervised.sum())
        supervised[np.flatnonzero(supervised)[base[start : start + n] > np.log(limit)]] = False
        kept.append((one.ids.tolist(), supervised.tolist()))
        start += n
    left = sum(sum(supervised) for _, supervised in kept)
    closest(
        got,
        slow.weighted_gradient(model.model, [k for k in kept if any(k[1])], [1.0] * sum(any(k[1]) for k in kept), left),
    )


@pytest.mark.parametrize("size", [0, 1, 7])
def test_the_null_deals_the_same_weights_out_among_the_whole_step(
    processes: Any, encoded: list[Encoded], size: int
) -> None:
    encoded, column = encoded[::2], np.arange(1.0, 25.0)
    _, plain = gradient_of(processes, encoded, Given(), ONE_STEP, column=column)
    null = replace(ONE_STEP, shuffle_weights=True, micro_batch_size=size)
    _, dealt = gradient_of(processes, encoded, Given(), null, column=column)
    assert sorted(plain.weight.round(9)) == sorted(dealt.weight.round(9))
    moved = dealt.weight[np.argsort(dealt.documents)]
    assert (moved == column).mean() < 0.2 and ("losses" in dealt.usage) == (size > 0)


def test_a_model_whose_head_is_not_plain_is_counted_and_weighted_too(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(ONE_STEP, count_flops=True, micro_batch_size=12)
    lm, plain = narrow(), narrow()
    lm.plain_head = False
    _, (done,) = trained(processes, encoded, Linupper(), settings, lm)
    _, (want,) = trained(processes, encoded, Linupper(), settings, plain)
    assert done.metrics["weighted_loss"] == pytest.approx(want.metrics["weighted_loss"], rel=1e-5)
    assert done.usage["train"].flops > 1.05 * want.usage["train"].flops
    for usage in (*done.usage.values(), *want.usage.values()):  # fused attention counts as none
        assert usage.flops_counted and 0.8 < usage.flops_counted / usage.flops <= 1.001
