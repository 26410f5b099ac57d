"""The training loop against slow references: what a step is, however it is cut, weighted, packed or interrupted."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

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
from curate.models.flops import TRAINING, TrainingFlops, paper_flops
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded, encode
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples, batch_of, epoch_rows, micro_batches, pieces
from curate.training.inference import base_losses
from curate.training.loop import StepResult, Trainer
from curate.training.objective import Objective
from curate.training.settings import TrainSettings
from curate.training.step_weights import Diverged
from curate.training.trainable import trainable
from tests.conftest import SAMPLE
from tests.oracles import training as slow

PLAIN = TrainSettings(batch_size=8, lr=1e-3, warmup=0.0, schedule="constant", epochs=1)


@pytest.fixture(scope="module")
def processes() -> Any:
    return Alone()


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    """48 samples in tokens, of many lengths."""
    lines = [json.loads(line) for line in (SAMPLE / "pool/atlas.jsonl").read_text().strip().split("\n")[:24]]
    lines += [json.loads(line) for line in (SAMPLE / "pool/school.jsonl").read_text().strip().split("\n")[:24]]
    said = [
        [r.get("question") or r["messages"][0]["content"], r.get("answer") or r["messages"][1]["content"]]
        for r in lines
    ]
    samples = [
        {
            "messages": [
                {"role": role, "content": c, "extra": None} for role, c in zip(("user", "assistant"), pair, strict=True)
            ],
            "text": None,
        }
        for pair in said
    ]
    return encode(load(ModelChoice("tiny"))[1], samples, 512)


def tiny(dtype: Any = "float32") -> LanguageModel:
    model = LanguageModel(ModelChoice("tiny", device="cpu"))
    model.model.to(getattr(torch, dtype)).requires_grad_(True)
    return model


def trained(
    processes: Any,
    encoded: Sequence[Encoded],
    weighting: Weighting,
    settings: TrainSettings,
    model: Any = None,
    **data: Any,
) -> tuple[LanguageModel, list[StepResult]]:
    lm = model or tiny()
    trainer = Trainer(lm, Data.of(Examples.of(encoded), **data), settings, weighting, processes)
    return lm, list(trainer.run())


def gradient_of(
    processes: Any, encoded: Sequence[Encoded], weighting: Weighting, settings: TrainSettings, **data: Any
) -> tuple[dict[str, torch.Tensor], StepResult]:
    """The gradient of one step over all samples, unclipped, in float64."""
    lm = tiny("float64")
    trainer = Trainer(lm, Data.of(Examples.of(encoded), **data), settings, weighting, processes)
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        kept.update({name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    (done,) = trainer.run()
    return kept, done


ONE_STEP = replace(PLAIN, batch_size=1000, clip=0.0)


def pairs(encoded: Sequence[Encoded]) -> list[tuple[list[int], list[bool]]]:
    return [(one.ids.tolist(), one.supervised.tolist()) for one in encoded]


def closest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """Llama's norms compute in float32, even of a model in float64; so this is as near as its gradients come."""
    assert a.keys() == b.keys()
    scale = max(float(t.abs().max()) for t in b.values())
    for name in a:
        assert float((a[name] - b[name]).abs().max()) <= tolerance * scale, name


# --- plain training --------------------------------------------------------------------------------------


def test_uniform_is_plain_training_bit_for_bit(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(PLAIN, schedule="cosine", warmup=0.2)
    lm, done = trained(processes, encoded, Uniform(), settings)
    examples, plain = Examples.of(encoded), tiny()
    rows = epoch_rows(examples, np.arange(len(encoded)), 0, 0, True, 0)
    batches = []
    for start in range(0, len(rows), 8):
        (group,) = micro_batches(examples, rows[start : start + 8], 0)
        batch = batch_of(examples, group, torch.device("cpu"))
        batches.append((batch.ids, batch.supervised))
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

    settings = replace(PLAIN, schedule="linear", warmup=0.2, weight_decay=0.1, order="rank")
    lm, done = trained(processes, encoded, Uniform(), settings)
    plain = tiny()

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


def test_weights_of_0_and_2_are_dropping_and_doubling(processes: Any, encoded: list[Encoded]) -> None:
    weights = np.array([2.0, 0.0] * 24)
    weighted, _ = gradient_of(processes, encoded, Uniform(), ONE_STEP, weights=weights)
    doubled = [one for one, weight in zip(encoded, weights, strict=True) for _ in range(int(weight))]
    n = sum(int(one.supervised.sum()) for one in encoded)
    want = slow.weighted_gradient(tiny("float64").model, pairs(doubled), [1.0] * len(doubled), n)
    closest(weighted, want)
    normalized, done = gradient_of(processes, encoded, Normalised(), ONE_STEP, weights=weights)
    plain, _ = gradient_of(processes, doubled, Uniform(), ONE_STEP)
    closest(normalized, plain)
    assert done.metrics["weight_mean"] == 1.0 and done.metrics["effective_samples"] == 24


class Normalised(Uniform):
    normalize = "mean1"


class Given(Weighting):
    """The weights that a column holds."""

    needs = ("column",)

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        assert step.column is not None
        return Weights(step.column), state


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_gradient_is_the_weighted_loss_s(
    processes: Any, encoded: list[Encoded], reduction: Any, packing: bool
) -> None:
    column = np.random.default_rng(0).uniform(0, 3, len(encoded))
    settings = replace(ONE_STEP, reduction=reduction, packing=packing, micro_batch_size=5)
    got, done = gradient_of(processes, encoded, Given(), settings, column=column)
    counts = np.array([one.supervised.sum() for one in encoded])
    weights = column if reduction == "token" else column / counts
    want = slow.weighted_gradient(
        tiny("float64").model, pairs(encoded), weights.tolist(), counts.sum() if reduction == "token" else len(encoded)
    )
    closest(got, want)
    assert done.metrics["samples"] == 48


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


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: f"{w.name}-{w.normalize}")
def test_accumulation_is_one_batch(processes: Any, encoded: list[Encoded], weighting: Weighting) -> None:
    """Four micro-batches of 12 against one of 48."""
    examples = Examples.of(encoded)
    base, _ = base_losses(Objective(tiny("float64")), examples)
    means = np.array([part.mean() for part in np.split(base, np.cumsum(examples.counts)[:-1])])
    data = {"anchors": Examples.of(encoded[:5]), "base_token_loss": base, "column": means}
    whole, one = gradient_of(processes, encoded, weighting, ONE_STEP, **data)
    parts, four = gradient_of(processes, encoded, weighting, replace(ONE_STEP, micro_batch_size=12), **data)
    closest(parts, whole)
    assert one.metrics["weighted_loss"] == pytest.approx(four.metrics["weighted_loss"], rel=1e-6)
    twice = weighting.scope == "batch"
    assert ("losses" in four.usage) == twice and "losses" not in one.usage
    order = np.argsort(four.documents), np.argsort(one.documents)
    assert four.weight[order[0]] == pytest.approx(one.weight[order[1]], rel=1e-6)


def test_accumulation_with_dropout_sees_the_same_losses_twice(processes: Any, encoded: list[Encoded]) -> None:
    """LinUpper's losses are those of the pass that learns, dropout and all."""
    settings = replace(ONE_STEP, micro_batch_size=12, lora_r=4, lora_dropout=0.3)
    model = trainable(ModelChoice("tiny", device="cpu"), settings).model
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


# --- adapt -----------------------------------------------------------------------------------------------


def test_adapt_is_the_paper_s_equations_whatever_else_is_in_the_batch(processes: Any, encoded: list[Encoded]) -> None:
    model, anchors = tiny("float64"), encoded[40:]
    want = [slow.adapt(model.model, one.ids.tolist(), [a.ids.tolist() for a in anchors], 0.5) for one in encoded]
    for settings in (ONE_STEP, replace(ONE_STEP, micro_batch_size=7), replace(ONE_STEP, packing=True)):
        _, done = gradient_of(processes, encoded, Adapt(tau=0.5), settings, anchors=Examples.of(anchors))
        assert done.weight[np.argsort(done.documents)] == pytest.approx(want, abs=1e-6)
    got, _ = gradient_of(processes, encoded, Adapt(tau=0.5), ONE_STEP, anchors=Examples.of(anchors))
    n = sum(int(one.supervised.sum()) for one in encoded)
    closest(got, slow.weighted_gradient(model.model, pairs(encoded), want, n))


def test_adapt_looks_at_the_target_again_every_so_many_steps(processes: Any, encoded: list[Encoded]) -> None:
    lm = tiny()
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
    w = Talr(floor=0.0).update(Step(1, loss=loss), {})[0].values
    entropic = minimize(
        lambda v: float(v @ loss + tau * (v * np.log(v)).sum()), np.full(4, 0.25), bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert w / w.sum() == pytest.approx(entropic.x, abs=1e-5)


def test_flow_and_stm_go_by_the_base_model(processes: Any, encoded: list[Encoded]) -> None:
    examples, model = Examples.of(encoded), tiny("float64")
    base, usage = base_losses(Objective(model), examples)
    with torch.no_grad():
        want = torch.cat([slow.token_losses(model.model, *pair) for pair in pairs(encoded)]).numpy()
    assert base == pytest.approx(want, abs=1e-6) and usage.tokens == examples.lengths.sum()
    column = np.array([part.mean() for part in np.split(base, np.cumsum(examples.counts)[:-1])])
    _, done = gradient_of(processes, encoded, Flow(), ONE_STEP, column=column)
    weights = done.weight[np.argsort(done.documents)]
    assert weights == pytest.approx(np.exp(-column / np.median(column)))
    got, _ = gradient_of(processes, encoded, Stm(), ONE_STEP, base_token_loss=base)
    kept, start = [], 0
    for one in encoded:
        supervised, n = one.supervised.copy(), int(one.supervised.sum())
        supervised[np.flatnonzero(supervised)[base[start : start + n] > np.log(2.5)]] = False
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
    column = np.arange(1.0, 49.0)
    _, plain = gradient_of(processes, encoded, Given(), ONE_STEP, column=column)
    null = replace(ONE_STEP, shuffle_weights=True, micro_batch_size=size)
    _, dealt = gradient_of(processes, encoded, Given(), null, column=column)
    assert sorted(plain.weight.round(9)) == sorted(dealt.weight.round(9))
    moved = dealt.weight[np.argsort(dealt.documents)]
    assert (moved == column).mean() < 0.2 and ("losses" in dealt.usage) == (size > 0)


def test_a_model_whose_head_is_not_plain_is_counted_and_weighted_too(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(ONE_STEP, count_flops=True, micro_batch_size=12)
    lm, plain = tiny(), tiny()
    lm.plain_head = False
    _, (done,) = trained(processes, encoded, Linupper(), settings, lm)
    _, (want,) = trained(processes, encoded, Linupper(), settings, plain)
    assert done.metrics["weighted_loss"] == pytest.approx(want.metrics["weighted_loss"], rel=1e-5)
    assert done.usage["train"].flops > 1.05 * want.usage["train"].flops
    for usage in (*done.usage.values(), *want.usage.values()):  # fused attention counts as none
        assert usage.flops_counted and 0.8 < usage.flops_counted / usage.flops <= 1.001


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
    objective, examples = Objective(tiny("float64")), Examples.of(encoded[:6])
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
    whole, done = trained(processes, encoded, Linupper(), PLAIN)
    forward, sizes = Objective.losses, []

    def losses(self: Any, batch: Any, *asked: bool) -> Any:
        sizes.append(len(batch.ids))
        if len(batch.ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, *asked)

    monkeypatch.setattr(Objective, "losses", losses)
    lm, again = trained(processes, encoded, Linupper(), PLAIN)
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2
    for a, b in zip(done, again, strict=True):
        assert a.metrics["weighted_loss"] == pytest.approx(b.metrics["weighted_loss"], rel=1e-4)


def test_a_snapshot_goes_on_as_if_nothing_had_been(processes: Any, encoded: list[Encoded]) -> None:
    settings = replace(PLAIN, epochs=2, schedule="cosine", warmup=0.1)
    data = Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4]))
    undisturbed = tiny()
    metrics = [d.metrics for d in Trainer(undisturbed, data, settings, Adapt(refresh=5), processes).run()]
    lm = tiny()
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
    lm = tiny()
    trainer = Trainer(lm, Data.of(Examples.of(encoded)), PLAIN, weighting, processes)
    steps = trainer.run()
    next(steps)
    with torch.no_grad():
        lm.model.lm_head.weight[5] = float("nan")
    before = [p.clone() for p in lm.model.parameters()]
    with pytest.raises(Diverged, match="at step 2"):
        next(steps)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(lm.model.parameters(), before, strict=True))


# --- FLOPs -----------------------------------------------------------------------------------------------


def small(width: int, layers: int, tied: bool) -> Any:
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(("width", "layers", "tied"), [(64, 2, True), (128, 6, False)])
@pytest.mark.parametrize("length", [24, 200])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_flops_of_training_are_what_is_counted(
    width: int, layers: int, tied: bool, length: int, kind: str, processes: Any
) -> None:
    model = small(width, layers, tied)
    model.requires_grad_(True)
    if kind == "lora":
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        ).get_base_model()
    lm = LanguageModel(ModelChoice("tiny"), (model, load(ModelChoice("tiny"))[1]))
    examples = Examples.of(
        [Encoded(np.arange(length, dtype=np.int32) % 512, np.arange(length) > length // 2) for _ in range(3)]
    )
    settings = TrainSettings(lr=1e-4, batch_size=3, count_flops=True)
    (done,) = Trainer(lm, Data.of(examples), settings, Uniform(), processes).run()
    usage = done.usage["train"]
    assert usage.flops_counted and abs(usage.flops / usage.flops_counted - 1) < 0.05
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(input_ids=torch.zeros(3, length, dtype=torch.int64))
    from curate.models.flops import forward_flops

    assert abs(forward_flops(model, 3, length, 3 * length) / counter.get_total_flops() - 1) < 0.05


def test_flops_of_the_papers() -> None:
    """RegMix's published overhead: 512 proxies of a million parameters, a billion tokens each."""
    assert 512 * paper_flops(TRAINING, 1e6, 1, 1e9) == 3.072e18
    assert paper_flops(TRAINING, 10, 3) == 6 * 10 * 3 * 2048


def test_frozen_parts_have_no_weight_gradients_among_the_flops() -> None:
    model = small(64, 2, True)
    model.requires_grad_(True)
    whole = TrainingFlops(model).step(4, 64, 256)
    model.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    assert TrainingFlops(model).step(4, 64, 256) < 0.7 * whole
