"""The training loop against slow references: what a step is, however it is cut, weighted, packed or interrupted."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.extremes import Extremes
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.linear import Linear
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.quadratic import Quadratic
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.talr import Talr
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.examples import Examples, batch_of, epoch_rows, micro_batches, pieces
from curate.training.inference import base_losses
from curate.training.loop import Trainer
from curate.training.objective import Objective
from curate.training.settings import _HUGGING_FACE, TrainSettings, from_hugging_face
from curate.training.step_weights import Diverged
from curate.training.trainable import trainable
from tests.oracles import training as slow
from tests.support.narrow import NARROW
from tests.support.training import ONE_STEP, PLAIN, Given, closest, gradient_of, narrow, pairs, trained

# --- plain training --------------------------------------------------------------------------------------


def test_uniform_is_plain_training_bit_for_bit(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(PLAIN, schedule="cosine", warmup=0.2, padding_per_pass=10**6)
    lm, done = trained(processes, encoded, Uniform(), settings)
    examples, plain = Examples.of(encoded), narrow()
    rows = epoch_rows(examples, np.arange(len(encoded)), 0, 0, True, 0)
    batches = []
    for start in range(0, len(rows), 8):
        (group,) = micro_batches(examples, rows[start : start + 8], 0)
        batch = batch_of(examples, group, torch.device("cpu"))
        supervised = torch.zeros(batch.ids.shape, dtype=torch.bool)
        supervised.view(-1)[batch.supervised] = True
        batches.append((batch.ids, supervised))
    lrs = [settings.learning_rate(step, 6) for step in range(1, 7)]
    losses = slow.plain_training(plain.model, batches, lrs, 1.0)
    for (name, a), b in zip(lm.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [d.metrics["loss"] for d in done] == pytest.approx(losses, rel=1e-6)


class Ones(Uniform):
    """Weights of 1 through the whole machinery of a weighting that sees the step at once, and normalises."""

    scope = "batch"
    normalize = "mean1"


def test_weights_of_one_are_plain_training_bit_for_bit(processes: Any, encoded: list[Encoded]) -> None:
    plain, _ = trained(processes, encoded, Uniform(), PLAIN)
    ones, _ = trained(processes, encoded, Ones(), PLAIN)
    for a, b in zip(plain.model.parameters(), ones.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_transformers_own_trainer_takes_the_same_steps(processes: Any, encoded: list[Encoded], tmp_path: Any) -> None:
    """Six steps of Hugging Face's Trainer over the same batches, from the same model."""
    from transformers import Trainer as Theirs
    from transformers import TrainingArguments

    if "train_sampling_strategy" not in TrainingArguments.__dataclass_fields__:
        pytest.skip("this version of transformers shuffles whatever is asked of it")
    settings = replace(PLAIN, schedule="linear", warmup=0.2, weight_decay=0.1, order="rank")
    lm, done = trained(processes, encoded, Uniform(), settings)
    plain = narrow()

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        padded = [[*r["input_ids"], *[0] * (longest - len(r["input_ids"]))] for r in rows]
        labels = [[*r["labels"], *[-100] * (longest - len(r["labels"]))] for r in rows]
        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        return {"input_ids": torch.tensor(padded), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}

    data = [{"input_ids": e.ids.tolist(), "labels": np.where(e.supervised, e.ids, -100).tolist()} for e in encoded]
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, learning_rate=1e-3, lr_scheduler_type="linear", warmup_steps=2,
        num_train_epochs=1, weight_decay=0.1, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    theirs = Theirs(model=plain.model, args=arguments, train_dataset=data, data_collator=collate)
    theirs.train()
    logged = [row["loss"] for row in theirs.state.log_history if "loss" in row]
    assert logged == pytest.approx([d.metrics["loss"] for d in done], abs=2e-4)
    for (name, a), b in zip(lm.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name


# --- weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(encoded: list[Encoded]) -> list[Encoded]:
    """Half of the samples, for what goes through the model in float64, or one by one."""
    return encoded[::2]


def test_weights_of_0_and_2_are_dropping_and_doubling(processes: Any, some: list[Encoded]) -> None:
    weights = np.array([2.0, 0.0] * 12)
    weighted, _ = gradient_of(processes, some, Uniform(), ONE_STEP, weights=weights)
    doubled = [one for one, weight in zip(some, weights, strict=True) for _ in range(int(weight))]
    n = sum(int(one.supervised.sum()) for one in some)
    want = slow.weighted_gradient(narrow("float64").model, pairs(doubled), [1.0] * len(doubled), n)
    closest(weighted, want)
    normalized, done = gradient_of(processes, some, Normalised(), ONE_STEP, weights=weights)
    plain, _ = gradient_of(processes, doubled, Uniform(), ONE_STEP)
    closest(normalized, plain)
    assert done.metrics["weight_mean"] == 1.0 and done.metrics["effective_samples"] == 12


class Normalised(Uniform):
    normalize = "mean1"


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_gradient_is_the_weighted_loss_s(
    processes: Any, some: list[Encoded], reduction: Any, packing: bool
) -> None:
    column = np.random.default_rng(0).uniform(0, 3, len(some))
    settings = replace(ONE_STEP, reduction=reduction, packing=packing, micro_batch_size=5)
    got, done = gradient_of(processes, some, Given(), settings, column=column)
    counts = np.array([one.supervised.sum() for one in some])
    weights = column if reduction == "token" else column / counts
    want = slow.weighted_gradient(
        narrow("float64").model, pairs(some), weights.tolist(), counts.sum() if reduction == "token" else len(some)
    )
    closest(got, want)
    assert done.metrics["samples"] == 24


WEIGHTINGS = [
    Uniform(),
    Adapt(),
    Adapt(normalize="mean1"),
    Linear(),
    Linupper(),
    Quadratic(),
    Extremes(),
    Talr(),
    Flow(),
    Stm(),
]


@pytest.fixture(scope="module")
def base(some: list[Encoded]) -> np.ndarray:
    return base_losses(Objective(narrow("float64")), Examples.of(some))[0]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: f"{w.name}-{w.normalize}")
def test_accumulation_is_one_batch(processes: Any, some: list[Encoded], base: np.ndarray, weighting: Weighting) -> None:
    """Four micro-batches of 6 against one of 24."""
    examples = Examples.of(some)
    means = np.array([part.mean() for part in np.split(base, np.cumsum(examples.counts)[:-1])])
    data = {"anchors": Examples.of(some[:5]), "base_token_loss": base, "column": means}
    whole, one = gradient_of(processes, some, weighting, ONE_STEP, **data)
    parts, four = gradient_of(processes, some, weighting, replace(ONE_STEP, micro_batch_size=6), **data)
    closest(parts, whole)
    assert one.metrics["weighted_loss"] == pytest.approx(four.metrics["weighted_loss"], rel=1e-6)
    twice = weighting.scope == "batch"
    assert ("losses" in four.usage) == twice and "losses" not in one.usage
    order = np.argsort(four.documents), np.argsort(one.documents)
    assert four.weight[order[0]] == pytest.approx(one.weight[order[1]], rel=1e-6)


def test_accumulation_with_dropout_sees_the_same_losses_twice(processes: Any, encoded: list[Encoded]) -> None:
    """LinUpper's losses are those of the pass that learns, dropout and all."""
    settings = replace(ONE_STEP, micro_batch_size=12, lora_r=4, lora_dropout=0.3)
    model = trainable(ModelChoice(NARROW, device="cpu"), settings).model
    for name, parameter in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    seen: list[np.ndarray] = []

    class Spy(Linupper):
        def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
            assert step.loss is not None
            seen.append(step.loss)
            return super().update(step, state)

    _, (done,) = trained(processes, encoded, Spy(), settings, model)
    assert done.loss.tolist() == seen[0].tolist()


# --- rows ------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_document_once_and_packed_rows_keep_to_the_context() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 200)
    examples = Examples.of([Encoded(np.zeros(n, np.int32), np.arange(n) > 0) for n in lengths])
    for epoch in (0, 1):
        rows = epoch_rows(examples, np.arange(200), epoch, 3, True, 64)
        assert sorted(np.concatenate(rows).tolist()) == list(range(200))
        assert all(lengths[row].sum() <= 64 for row in rows)
        assert len(rows) < 1.3 * lengths.sum() / 64 + 1
    first, second = (np.concatenate(epoch_rows(examples, np.arange(200), e, 3, True, 0)).tolist() for e in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    assert np.concatenate(epoch_rows(examples, np.arange(200), 0, 3, False, 0)).tolist() == list(range(200))


def test_a_long_text_in_pieces_loses_no_token() -> None:
    one = Encoded(np.arange(10, dtype=np.int32), np.arange(10) > 0)
    found = pieces(one, 4)
    assert np.concatenate([p.ids for p in found]).tolist() == list(range(10))
    assert [p.supervised.tolist() for p in found] == [
        [False, True, True, True],
        [False, True, True, True],
        [False, True],
    ]


def test_packed_documents_do_not_see_each_other(encoded: list[Encoded]) -> None:
    objective, examples = Objective(narrow("float64")), Examples.of(encoded[:6])
    rows = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5])]
    packed = objective.losses(batch_of(examples, rows, torch.device("cpu")), states=True)
    apart = [objective.losses(batch_of(examples, [np.array([i])], torch.device("cpu")), states=True) for i in range(6)]
    assert packed.token.tolist() == pytest.approx(torch.cat([a.token for a in apart]).tolist(), abs=1e-6)
    assert packed.states is not None
    for i, alone in enumerate(apart):
        assert packed.states[i].tolist() == pytest.approx(alone.states[0].tolist(), abs=1e-6)  # type: ignore[index]


# --- going on, and stopping ------------------------------------------------------------------------------


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_no_weight(
    processes: Any, encoded: list[Encoded], monkeypatch: Any
) -> None:
    settings = replace(PLAIN, padding_per_pass=10**6)
    whole, done = trained(processes, encoded, Linupper(), settings)
    forward, sizes = Objective.losses, []

    def losses(self: Any, batch: Any, *asked: bool) -> Any:
        sizes.append(len(batch.ids))
        if len(batch.ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, *asked)

    monkeypatch.setattr(Objective, "losses", losses)
    lm, again = trained(processes, encoded, Linupper(), settings)
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2
    for a, b in zip(done, again, strict=True):
        assert a.metrics["weighted_loss"] == pytest.approx(b.metrics["weighted_loss"], rel=1e-4)


def test_a_snapshot_goes_on_as_if_nothing_had_been(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(PLAIN, epochs=2, schedule="cosine", warmup=0.1)
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4]))
    undisturbed = narrow()
    metrics = [d.metrics for d in Trainer(undisturbed, data, settings, Adapt(refresh=5), processes).run()]
    lm = narrow()
    first = Trainer(lm, data, settings, Adapt(refresh=5), processes)
    half = [next(steps).metrics for steps in [first.run()] for _ in range(7)]
    snapshot = copy.deepcopy(first.snapshot())
    again = Trainer(lm, data, settings, Adapt(refresh=5), processes, start=snapshot)
    assert half + [d.metrics for d in again.run()] == metrics
    for a, b in zip(lm.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weighting", [Uniform(), Linupper()], ids=["uniform", "linupper"])
def test_a_loss_that_is_no_number_stops_before_anything_is_learnt_from_it(
    processes: Any, encoded: list[Encoded], weighting: Weighting
) -> None:
    lm = narrow()
    trainer = Trainer(lm, Data.of(Examples.of(encoded)), PLAIN, weighting, processes)
    steps = trainer.run()
    next(steps)
    with torch.no_grad():
        lm.model.lm_head.weight[5] = float("nan")
    before = [p.clone() for p in lm.model.parameters()]
    with pytest.raises(Diverged, match="at step 2"):
        next(steps)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(lm.model.parameters(), before, strict=True))


def test_names_of_hugging_face_s_arguments_are_taken() -> None:
    given = {"learning_rate": "1e-3", "num_train_epochs": "2", "warmup_ratio": "0.1", "seed_of_nothing": "1"}
    assert from_hugging_face(given) == {"lr": "1e-3", "epochs": "2", "warmup": "0.1", "seed_of_nothing": "1"}
    batch = {"per_device_train_batch_size": "4", "gradient_accumulation_steps": "2"}
    assert from_hugging_face(batch, processes=3) == {"micro_batch_size": "4", "batch_size": "24"}
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    assert set(from_hugging_face(dict.fromkeys(_HUGGING_FACE, "1"))) <= fields
