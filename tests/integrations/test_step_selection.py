"""Weightings that choose, in transformers' Trainer and TRL's: against curate's own loop on the same batches."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from trl.trainer.sft_config import SFTConfig

import curate
from curate.errors import CurateError
from curate.integrations.online_weights import STATE
from curate.kinds.weighting import Weighting
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.rho_online import RhoOnline
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uds_online import UdsOnline
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE
from tests.integrations.test_online_weights import (
    ANCHORS,
    BATCH,
    STEPS,
    Weighted,
    WeightedSFT,
    arguments,
    furthest,
    model,
    ours,
    parameters,
    rows,
    tokenizer,
    trained,
    trainer_of,
)
from tests.support import forks

KEPT = {"activation_checkpointing": False}
HERE: dict[str, Any] = {"oversample": 2, "projection": 8, "target_batch": 3}
MATCHING: list[Weighting] = [
    FilterThenWeight(), Greats(), TracinOnline(), LessOnline(), GradMatch(), GradNorm(),
    FilterThenWeight(precondition="projected", positions="same"),
]  # fmt: skip
OTHERS: list[Weighting] = [MaxLoss(), RhoOnline(), UdsOnline()]


def by_us(weighting: Weighting, micro: int, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """By curate's loop: as many candidates as the trainer's batch has samples."""
    settings = {**HERE, "batch_size": BATCH // HERE["oversample"], "micro_batch_size": micro % BATCH, **more}
    return ours(weighting, micro, False, dtype, **settings)


def given(weighting: Weighting, **more: Any) -> dict[str, Any]:
    return {"weighting": weighting, "settings": HERE, "anchors": ANCHORS if weighting.uses_target else None, **more}


@pytest.mark.parametrize("collate", ["padded", "free"])
@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("weighting", MATCHING + OTHERS, ids=lambda weighting: weighting.name)
def test_the_choice_is_that_of_our_own_trainer(tmp_path: Path, weighting: Weighting, micro: int, collate: str) -> None:
    expected, steps = by_us(weighting, micro)
    found = trained(WeightedSFT if micro == 2 else Weighted, tmp_path, micro, collate, changed=KEPT, **given(weighting))
    assert furthest(found.parameters, expected) < 1e-5
    lines = [line for line in found.log if "weight_mean" in line]
    assert [line["weight_mean"] for line in lines] == pytest.approx([s.weight.mean() for s in steps], rel=1e-4)
    assert [line["loss"] for line in lines] == pytest.approx([s.metrics["weighted_loss"] for s in steps], abs=1e-4)
    means = [line["candidate_loss"] for line in lines]
    assert means == pytest.approx([step.metrics["loss"] for step in steps], rel=1e-4)
    assert all(line["weight_min"] == 0 < line["weight_max"] for line in lines) and len(lines) == STEPS


@pytest.mark.parametrize("weighting", [FilterThenWeight(), MATCHING[-1]], ids=["before", "projected"])
def test_in_float64_nothing_but_rounding_is_left_of_the_difference(tmp_path: Path, weighting: Weighting) -> None:
    expected, _ = by_us(weighting, 8, torch.float64)
    found = trained(Weighted, tmp_path, 8, start=model(torch.float64), **given(weighting))
    assert furthest(found.parameters, expected) < 1e-10


def test_lora_is_compared_and_trained_alone(tmp_path: Path) -> None:
    """The same by one pass over the candidates and by two, and what is frozen stays."""
    peft = LoraConfig(r=4, target_modules="all-linear")
    runs = []
    for micro in (8, 2):
        torch.manual_seed(0)
        runs.append(
            trained(
                WeightedSFT,
                tmp_path / str(micro),
                micro,
                changed=KEPT,
                peft_config=peft,
                start=model(torch.float64),
                **given(FilterThenWeight()),
            )
        )
    one, two = (run.parameters for run in runs)
    assert furthest(one, two) < 1e-4
    before = parameters(model(torch.float64))
    frozen = {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in one.items()}
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name) > 1e-4


@pytest.mark.parametrize("weighting", [FilterThenWeight(), MATCHING[-1]], ids=["before", "projected"])
def test_it_resumes_from_a_checkpoint(tmp_path: Path, weighting: Weighting) -> None:
    more = given(weighting, settings={**HERE, "target_every": 4})  # so that the target's gradient is a stored one
    whole = trained(Weighted, tmp_path / "a", 4, **more)
    trained(Weighted, tmp_path / "b", 4, changed={"save_strategy": "steps", "save_steps": 2}, **more)
    folder = tmp_path / "b/checkpoint-2"
    again = trainer_of(Weighted, tmp_path / "b", 4, **more)
    again.train(resume_from_checkpoint=str(folder))
    assert furthest(parameters(again.model), whole.parameters) < 1e-6
    (folder / STATE).unlink()
    with pytest.raises(CurateError, match=f"has no {STATE}"):
        trainer_of(Weighted, tmp_path / "b", 4, **more).train(resume_from_checkpoint=str(folder))


def test_single_documents_of_packed_rows_are_candidates(tmp_path: Path) -> None:
    """All documents in one step, so that it is the same step however they are packed."""
    settings = {**KEPT, "per_device_train_batch_size": 99, "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    packing = {**settings, "packing": True, "max_length": 32, "padding_free": True}
    more = given(FilterThenWeight(), settings={**HERE, "oversample": 5})
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows()])
    alone = trained(WeightedSFT, tmp_path / "a", BATCH, changed=settings, **more)
    args = arguments(tmp_path / "b", BATCH, SFTConfig, **packing)
    trainer = WeightedSFT(model=model(), args=args, train_dataset=data, processing_class=tokenizer(), **more)
    trainer.train()
    moved, other = parameters(trainer.model), alone.parameters
    assert furthest(moved, parameters(model())) > 1e-4
    assert [line["weight_max"] > 0 for line in alone.log if "weight_max" in line] == [True, True]
    packed = [line["weight_mean"] for line in trainer.state.log_history if "weight_mean" in line]
    one_by_one = [line["weight_mean"] for line in alone.log if "weight_mean" in line]
    assert len(packed) == len(one_by_one) == 2 and furthest(moved, other) < 1e-2  # another number of rows a step


def test_the_trainer_s_own_randomness_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer = trainer_of(Weighted, tmp_path, 8, **given(TracinOnline()))
    state = torch.random.get_rng_state()
    collated = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.create_optimizer()
    trainer._selection.add(collated, None, None)
    trainer._selection.take(1, 1e-3)
    assert torch.equal(torch.random.get_rng_state(), state) and len(expected) == 3


TWO = """
import sys
from pathlib import Path
import torch
from tests.integrations.test_step_selection import MATCHING, OTHERS, given
from tests.integrations.test_online_weights import Weighted, model, trained
folder, micro, accumulated = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
found = {}
for i in (0, 1, len(MATCHING) - 1, len(MATCHING)):
    weighting = (MATCHING + OTHERS)[i]
    changed = {"gradient_accumulation_steps": accumulated}
    run = trained(Weighted, folder / str(i), micro, changed=changed, start=model(torch.float64), **given(weighting))
    found[str(i)] = (run.parameters, [line["weight_mean"] for line in run.log if "weight_mean" in line])
import os
torch.save(found, folder / f"rank{os.environ.get('RANK', '')}.pt")
"""


@pytest.mark.parametrize(("micro", "accumulated"), [(4, 1), (2, 2)])
def test_two_processes_choose_what_one_does(tmp_path: Path, micro: int, accumulated: int) -> None:
    """DDP over gloo; the steps have the samples of one process with micro-batches of twice as many."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    both = {**environment, "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    both |= {"MASTER_PORT": str(29500 + os.getpid() % 1000 + micro), "LOCAL_WORLD_SIZE": "2"}
    ranks, times = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)], str(accumulated)
    started = [
        forks.start(TWO, str(tmp_path / "two"), str(micro), times, environment={**both, **rank}) for rank in ranks
    ]
    started.append(forks.start(TWO, str(tmp_path / "one"), str(2 * micro), times, environment=environment))
    assert [each.wait() for each in started] == [0] * 3, "\n".join(each.stderr[-1500:] for each in started)
    one = torch.load(tmp_path / "one/rank.pt")
    for rank in range(2):
        two: dict[str, tuple[dict[str, Tensor], list[float]]] = torch.load(tmp_path / f"two/rank{rank}.pt")
        for key, (values, means) in one.items():
            found = {name.removeprefix("module."): value for name, value in two[key][0].items()}
            assert furthest(found, values) < 1e-5, key
            if rank == 0:  # the one that logs
                assert two[key][1] == pytest.approx(means, rel=1e-4), key


def test_it_is_recorded_as_curate_s_own(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, SAMPLE / "pool")
    curate.target(ws, "facts", SAMPLE / "targets/facts_val.jsonl", split="val")
    samples = list(curate.sql(ws, "SELECT id, messages FROM samples ORDER BY row LIMIT 24"))
    messages = [[{key: turn[key] for key in ("role", "content")} for turn in one["messages"]] for one in samples]
    data = Dataset.from_dict({"id": [one["id"] for one in samples], "messages": messages})
    args = arguments(tmp_path, 8, SFTConfig, max_length=128, max_steps=3, **KEPT)
    trainer = WeightedSFT(
        model=model(), args=args, train_dataset=data, processing_class=tokenizer(), weighting="filter_then_weight",
        anchors="facts", workspace=ws, run="chosen", settings=HERE,
    )  # fmt: skip
    trainer.train()
    steps = list(curate.sql(ws, "SELECT step, samples, chosen, flops FROM metrics WHERE run = 'chosen' ORDER BY step"))
    assert [step["step"] for step in steps] == [1, 2, 3] and all(1 <= step["chosen"] <= 4 for step in steps)
    kept = curate.sql(ws, "SELECT step, row, weight FROM trained WHERE run = 'chosen' ORDER BY step, row")
    assert sorted(one["row"] for one in kept) == list(range(24))
    assert sum(one["weight"] != 0 for one in kept) == sum(step["chosen"] for step in steps)
    spent = {row["phase"]: row for row in curate.sql(ws, "SELECT * FROM ledger WHERE run = 'chosen'")}
    assert spent["train"]["samples"] == sum(step["chosen"] for step in steps)
    assert spent["train"]["samples"] + spent["candidates"]["samples"] == 24 and spent["target"]["samples"] == 9
    of_steps = sum(step["flops"] for step in steps)
    assert sum(row["flops"] for row in spent.values()) == pytest.approx(of_steps, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "settings", "message"),
    [
        ({"settings": {"oversample": 9}}, {}, "a step of this trainer has 8 samples .* would train on 1 in 9"),
        ({"settings": {"lr": 1.0}}, {}, "the setting lr of a selection is the trainer's own; it has oversample"),
        ({"settings": {"overample": 2}}, {}, "the setting overample of a selection is unknown"),
        ({"anchors": None}, {}, "compares samples with a target; give anchors="),
        ({"weighting": "linupper"}, {}, "settings= are of a weighting that chooses"),
        ({}, {"optim": "sgd"}, "'filter_then_weight' follows Adam's step, and the optimizer is torch.optim.*SGD"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, more: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        trained(Weighted, tmp_path, 8, changed=settings, **{**given(FilterThenWeight()), **more})


def test_checkpoints_of_activations_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trained(WeightedSFT, tmp_path, 8, **given(GradNorm()))  # TRL's default
    assert sum("checkpointing is left out, as 'grad_norm' compares gradients" in str(one.message) for one in told) == 1
    without = trained(WeightedSFT, tmp_path, 8, changed=KEPT, **given(GradNorm()))
    assert furthest(found.parameters, without.parameters) == 0


def test_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    """A sample whose gradient is not finite cannot be chosen; the others are, until none is left."""
    start, first = model(), rows()[0]["input_ids"]
    unseen = next(token for token in first if not any(token in row["input_ids"] for row in rows()[1:8]))
    with torch.no_grad():
        start.get_input_embeddings().weight[unseen] = float("nan")
        start.lm_head.weight = torch.nn.Parameter(start.lm_head.weight.nan_to_num(0.0).clone())
    found = trained(Weighted, tmp_path, 8, start=start, changed={"max_steps": 1}, **given(GradNorm()))
    (line,) = (line for line in found.log if "weight_mean" in line)
    assert line["weight_mean"] == pytest.approx(0.5) and np.isfinite(line["loss"]) and np.isfinite(line["grad_norm"])
    with torch.no_grad():
        start.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(CurateError, match="the gradient of every candidate is not a finite number at step 1; use a"):
        trained(Weighted, tmp_path, 8, start=start, **given(GradNorm()))
