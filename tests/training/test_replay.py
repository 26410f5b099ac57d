"""Trainings undone step by step, against finite differences of whole trainings in float64."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded
from curate.training.adjoint import Adjoint, Taken
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Batch, Examples
from curate.training.loop import Trainer
from curate.training.objective import Losses, Objective
from curate.training.replay import metagradients, segment_of, steps_in_all
from curate.training.settings import TrainSettings
from curate.training.subsets import SubsetTrainer
from curate.training.trainable import redraw, trainable
from tests.support.narrow import NARROW
from tests.support.replays import ADAMW, ASKED, LEARNT, Case, made_up, toy
from tests.training.test_training_flops import small

DIRECTION = np.random.default_rng(0).normal(0, 1, 7)
UP_AND_DOWN = [np.where(np.arange(7) < 3, 1 + side, 1) for side in (0.01, -0.01)]

CASES = {
    "adamw": Case(),
    "mean of samples": Case(replace(ADAMW, reduction="sample", schedule="linear", micro_batch_size=0), tied=True),
    "unclipped, no warm-up": Case(replace(ADAMW, clip=0.0, warmup=0.0)),
    "packed": Case(replace(ADAMW, packing=True, epochs=6, batch_size=2, micro_batch_size=1)),
    "steps by tokens": Case(replace(ADAMW, batch_size=32, batch_tokens=30, schedule="constant")),
    "lora": Case(replace(ADAMW, lora_r=2)),
    "weighted by a column": Case(weighting=AdaptStatic(tau=0.3)),
    "moments carried on": Case(carried=True),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_the_finite_differences_of_whole_trainings(name: str) -> None:
    case = CASES[name]
    found = metagradients(case.trainer(), ASKED)
    assert found.loss == pytest.approx(case.loss(), rel=1e-12)
    assert found.values @ DIRECTION == pytest.approx(case.difference(DIRECTION), rel=1e-6)


def test_so_they_are_sample_by_sample() -> None:
    """Of the sample that occurs twice, of that of two documents, and of one that weighs nothing."""
    found = metagradients(CASES["adamw"].trainer(np.array([1.0, 0, 1, 1, 1, 1, 1])), ASKED)
    assert found.values[1] == 0 and np.abs(np.delete(found.values, 1)).min() > 0
    found = metagradients(CASES["adamw"].trainer(), ASKED)
    for i in (2, 5):
        assert found.values[i] == pytest.approx(CASES["adamw"].difference(np.eye(7)[i]), rel=1e-6)


@pytest.mark.parametrize("lr", [1e-3, 3e-2])
def test_and_with_adamw_s_usual_epsilon(lr: float) -> None:
    """There an update is the gradient's sign unless that is as small as 1e-8: the loss may have steep places."""
    case = Case(replace(ADAMW, eps=1e-8, lr=lr))
    found = metagradients(case.trainer(), ASKED)
    assert found.values @ DIRECTION == pytest.approx(case.difference(DIRECTION), rel=1e-5)


# --- one step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.7, 100.0])
def test_an_undone_step_is_what_autograd_makes_of_it(clip: float) -> None:
    torch.manual_seed(0)
    w, m, g = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    v = torch.rand(2, 4, dtype=torch.float64).requires_grad_(True)
    by_w, by_m, by_v = (torch.randn(2, 4, dtype=torch.float64) for _ in range(3))
    group = {"betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.2}
    norm = torch.linalg.vector_norm(g)
    h = g * (clip / (norm + 1e-6)).clamp(max=1) if clip else g
    mean, square = 0.9 * m + 0.1 * h, 0.95 * v + 0.05 * h**2
    ratio = mean / (1 - 0.9**3) / ((square / (1 - 0.95**3)).sqrt() + 1e-3)
    after = (1 - 0.1 * 0.2) * w - 0.1 * ratio
    want = torch.autograd.grad((after * by_w + mean * by_m + square * by_v).sum(), [w, m, v, g])
    adjoint = Adjoint({"a": by_w}, {"a": by_m}, {"a": by_v})
    step = Taken({"a": h.detach()}, {"a": mean.detach()}, {"a": square.detach()}, 3, float(norm.detach()), 0.1)
    by_g = adjoint.undo(step, {"a": group}, clip)
    for found, wanted in zip((adjoint.weight, adjoint.mean, adjoint.square, by_g), want, strict=True):
        torch.testing.assert_close(found["a"], wanted, rtol=1e-12, atol=1e-14)


def test_where_every_gradient_was_zero_the_update_is_its_mean_by_epsilon() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    adjoint = Adjoint.of({"a": torch.ones(1, dtype=torch.float64)})
    step = Taken({"a": zero}, {"a": zero}, {"a": zero}, 1, 1.0, 0.5)
    by_g = adjoint.undo(step, {"a": {"betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.0}}, 0.0)
    assert by_g["a"].tolist() == pytest.approx([-0.5 / 1e-3])
    assert adjoint.mean["a"].tolist() == pytest.approx([-0.9 * 0.5 / 0.1 / 1e-3]) and adjoint.square["a"].item() == 0


# --- however it is computed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Any:
    return metagradients(Case().trainer(), ASKED)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_snapshots_may_be_anywhere(plain: Any, tmp_path: Path, every: int) -> None:
    told: list[str] = []
    trainer, folder = Case().trainer(), tmp_path / "kept" if every != 2 else None
    found = metagradients(trainer, ASKED, every=every, folder=folder, told=told.append)
    assert found.values.tolist() == plain.values.tolist() and found.loss == plain.loss and found.drift == 0
    again = 9 - {1: 1, 2: 1, 4: 1, 100: 9}[every]
    assert [told.count(phase) for phase in ("train", "replay", "undo")] == [9, again, 9]
    assert len(told) == steps_in_all(9, every) and list(tmp_path.glob("kept/*")) == []


def test_as_many_steps_are_kept_as_snapshots() -> None:
    assert [segment_of(n) for n in (0, 1, 2, 4, 5, 9, 10, 100)] == [1, 1, 2, 2, 3, 3, 4, 10]
    assert [steps_in_all(n) for n in (0, 1, 9, 10)] == [0, 2, 24, 28]


def test_the_model_is_the_trained_one_afterwards(plain: Any) -> None:
    trained, replayed = Case().trainer(), Case().trainer()
    for _ in trained.run():
        pass
    metagradients(replayed, ASKED)
    assert replayed.step == plain.steps == 9
    for a, b in zip(trained.model.model.parameters(), replayed.model.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [replace(ADAMW, micro_batch_size=1), replace(ADAMW, activation_gib=1e-9)])
def test_micro_batches_may_be_of_any_size(plain: Any, settings: TrainSettings) -> None:
    """So little memory for activations means rows one by one, whose activations are computed again in training."""
    found = metagradients(Case(settings).trainer(), ASKED)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-9)


def test_a_micro_batch_that_needs_too_much_memory_is_divided(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, whole = Case().trainer(), Objective.losses
    sizes: list[int] = []

    def losses(self: Objective, batch: Batch, *more: Any) -> Losses:
        sizes.append(len(batch.documents))
        if len(batch.documents) > 1:
            raise torch.OutOfMemoryError
        return whole(self, batch, *more)

    def told(phase: str) -> None:
        if phase == "train" and trainer.step == 8:  # from the last step on
            monkeypatch.setattr(Objective, "losses", losses)

    found = metagradients(trainer, ASKED, every=9, told=told)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-9)
    assert sizes.count(2) == 1 + 6 * 2  # of the target's three examples; of six steps' four rows


def test_float32_comes_near(plain: Any) -> None:
    trainer = Case().trainer()
    lm = toy()
    lm.model.to(torch.float32)
    narrow = Trainer(lm, trainer.data, ADAMW, Uniform(), Alone(), seed=3)
    np.testing.assert_allclose(
        metagradients(narrow, ASKED).values, plain.values, atol=1e-3 * np.abs(plain.values).max()
    )


@pytest.mark.parametrize("lora_r", [0, 4])
def test_a_model_as_it_is_loaded_for_training(lora_r: int) -> None:
    """In float32, with Llama's own norms: a step of the difference so long that rounding is 1 % shows the same."""
    settings = TrainSettings(steps=4, batch_size=4, lr=1e-3, eps=1e-3, lora_r=lora_r, precision="float32")
    model = trainable(ModelChoice(str(NARROW), device="cpu"), settings)
    losses = [SubsetTrainer(model, Data.of(LEARNT, weights=w), settings, Uniform(), ASKED) for w in UP_AND_DOWN]
    up, down = (float(one.train(np.ones(7, bool), 0).loss.mean()) for one in losses)
    again = trainable(ModelChoice(str(NARROW), device="cpu"), settings)
    if again.adapter is not None:
        redraw(again.adapter, 0)
    found = metagradients(Trainer(again.model, Data.of(LEARNT), settings, Uniform(), Alone()), ASKED)
    assert found.values[:3].sum() == pytest.approx((up - down) / 0.02, rel=0.02)


# --- the target ------------------------------------------------------------------------------------------


def test_a_target_is_the_sum_of_its_examples_by_their_shares(plain: Any) -> None:
    one, others = (metagradients(Case().trainer(), ASKED, shares=np.array(s)) for s in ([1.0, 0, 0], [0, 0.5, 0.5]))
    np.testing.assert_allclose((one.values + 2 * others.values) / 3, plain.values, rtol=1e-9)
    assert [one.loss, others.loss] == pytest.approx([plain.losses[0], plain.losses[1:].mean()], rel=1e-12)


def test_an_example_without_supervised_tokens_has_no_part(plain: Any) -> None:
    silent = Encoded(np.arange(3, 8, dtype=np.int32), np.zeros(5, bool))
    found = metagradients(Case().trainer(), Examples.of([silent, *made_up(3, 1)]))
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-9)
    assert np.isnan(found.losses).tolist() == [True, False, False, False] and found.loss == pytest.approx(plain.loss)
    with pytest.raises(CurateError, match="none of the target's 1 examples has a supervised token"):
        metagradients(Case().trainer(), Examples.of([silent]))


@pytest.mark.parametrize("shares", [[1.0, 2.0], [1.0, np.nan, 1.0], [[1.0, 1.0, 1.0]]])
def test_shares_are_one_number_for_each_example(shares: Any) -> None:
    with pytest.raises(CurateError, match="shares are 3 finite numbers"):
        metagradients(Case().trainer(), ASKED, shares=np.array(shares))


# --- what it costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tied", "trainings"), [("full", True, 3.0), ("full", False, 3.0), ("lora", True, 2.1)]
)
def test_flops_are_those_counted(kind: str, tied: bool, trainings: float) -> None:
    model = small(64, 1, tied)
    model.requires_grad_(True)
    if kind == "lora":
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, config).get_base_model()
    lm = LanguageModel(ModelChoice("tiny", device="cpu"), (model, load(ModelChoice("tiny"))[1]))
    examples = Examples.of([Encoded(np.arange(24, dtype=np.int32), np.arange(24) > 12) for _ in range(4)])
    settings = TrainSettings(batch_size=2, epochs=2, count_flops=True)
    found = metagradients(Trainer(lm, Data.of(examples), settings, Uniform(), Alone()), examples)
    whole = found.usage["train"].flops_counted
    assert whole
    for phase, usage in found.usage.items():
        assert usage.flops_counted and usage.flops == pytest.approx(usage.flops_counted, rel=0.05), phase
    counted = {phase: (usage.flops_counted or 0.0) / whole for phase, usage in found.usage.items()}
    assert counted == pytest.approx({"train": 1, "replay": 0.5, "target": 0.5, "undo": trainings}, rel=0.05)
