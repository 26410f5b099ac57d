"""A training by transformers' or TRL's Trainer, recorded as a run: its steps, its weights, its cost, and its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import curate
from curate.errors import CurateError
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.linupper import Linupper
from curate.store.workspace import Workspace
from curate.verbs.show import Described
from tests.conftest import SAMPLE
from tests.integrations.test_online_weights import WeightedSFT, arguments, model, parameters, tokenizer

NEAR = Adapt(tau=0.1, refresh=2)


@pytest.fixture
def aimed(sums_ws: Workspace) -> Workspace:
    for split in ("val", "test"):
        curate.target(sums_ws, "sums", str(SAMPLE / f"targets/arithmetic_{split}.jsonl"), split=split)
    return sums_ws


def dataset(ws: Workspace, ids: bool = True) -> Dataset:
    rows = list(curate.sql(ws, "SELECT id, messages FROM samples ORDER BY row"))
    chats = [[{key: turn[key] for key in ("role", "content")} for turn in row["messages"]] for row in rows]
    columns = {"messages": chats, **({"id": [row["id"] for row in rows]} if ids else {})}
    return Dataset.from_dict(columns)


def recorded(ws: Workspace, folder: Path, weighting: Any, name: str | None, ids: bool = True, **more: Any) -> Any:
    settings = {"max_steps": 6, "num_train_epochs": 1, **more.pop("settings", {})}
    args = arguments(folder, 4, SFTConfig, **settings)
    target = {"anchors": "sums"} if weighting == NEAR else {}
    return WeightedSFT(model=model(), args=args, train_dataset=dataset(ws, ids), processing_class=tokenizer(),
                       weighting=weighting, workspace=ws, run=name, **target, **more)  # fmt: skip


def test_runs_are_compared_with_what_they_cost(aimed: Workspace, tmp_path: Path, cli: Any) -> None:
    for name, weighting in (("plain_s0", "uniform"), ("adapt_s0", NEAR), ("linupper_s0", Linupper())):
        recorded(aimed, tmp_path / name, weighting, name).train()
    runs = {row["name"]: row for row in curate.sql(aimed, "SELECT * FROM runs")}
    assert {row["state"] for row in runs.values()} == {"complete"} and runs["adapt_s0"]["steps"] == 6
    shown = curate.show(aimed, "adapt_s0")
    assert isinstance(shown, Described) and "SFTTrainer" in shown.about and shown.command is None
    steps = list(curate.sql(aimed, "SELECT * FROM metrics ORDER BY run, step"))
    assert len(steps) == 18 and all(row["samples"] == 8 and row["flops"] > 0 and 0 < row["loss"] < 9 for row in steps)
    apart = {row["run"]: row["weight_max"] - row["weight_min"] for row in steps}
    assert apart["plain_s0"] == 0 < min(apart["adapt_s0"], apart["linupper_s0"])
    figures = "count(*) AS n, count(DISTINCT row) AS r, min(weight) AS least, max(loss) AS most"
    (found,) = curate.sql(aimed, f"SELECT {figures} FROM trained WHERE run = 'adapt_s0'")
    assert found["n"] == 48 and found["r"] > 30 and 0 < found["least"] < 1 and found["most"] > 1
    costs = {(row["name"], row["phase"]): row for row in curate.ledger(aimed)}
    assert costs["adapt_s0", "train"]["flops"] == pytest.approx(costs["plain_s0", "train"]["flops"])
    assert costs["adapt_s0", "anchors"]["flops"] > 0 and ("plain_s0", "anchors") not in costs
    for name in runs:
        curate.evaluate(aimed, name, ["sums"])
    page = cli("compare", *runs, "--against", "plain_s0", "-o", tmp_path / "page", ws=aimed)
    assert page.returncode == 0, page.stderr
    assert "adapt" in (tmp_path / "page.html").read_text()


def test_what_is_recorded_changes_nothing(aimed: Workspace, tmp_path: Path) -> None:
    plain = SFTTrainer(model=model(), args=arguments(tmp_path / "a", 4, SFTConfig, max_steps=6),
                       train_dataset=dataset(aimed), processing_class=tokenizer())  # fmt: skip
    plain.train()
    found = recorded(aimed, tmp_path / "b", "uniform", "plain")
    found.train()
    ours, theirs = parameters(found.model), parameters(plain.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [line["loss"] for line in plain.state.log_history if "loss" in line]
    assert [row["loss"] for row in curate.sql(aimed, "SELECT loss FROM metrics ORDER BY step")] == pytest.approx(losses)


def test_a_resumed_training_is_one_run(aimed: Workspace, tmp_path: Path) -> None:
    whole = recorded(aimed, tmp_path / "a", NEAR, "whole", settings={"save_strategy": "steps", "save_steps": 4})
    whole.train()
    killed = recorded(aimed, tmp_path / "b", NEAR, "two", settings={"save_strategy": "steps", "save_steps": 4})

    class Stopped(Exception):
        pass

    log = killed.log

    def stop(logs: Any, *args: Any, **kwargs: Any) -> None:
        log(logs, *args, **kwargs)
        if killed.state.global_step == 5:
            raise Stopped

    killed.log = stop
    with pytest.raises(Stopped):
        killed.train()
    (row,) = curate.sql(aimed, "SELECT state FROM runs WHERE name = 'two'")
    assert row["state"] != "complete"
    resumed = recorded(aimed, tmp_path / "b", NEAR, "two")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b/checkpoint-4"))
    query = "SELECT * EXCLUDE (run) FROM metrics WHERE run = '{}' ORDER BY step"
    rows = [
        [[v or 0 for v in row.values()] for row in curate.sql(aimed, query.format(run))] for run in ("whole", "two")
    ]
    assert len(rows[0]) == len(rows[1]) == 6
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, rel=1e-5, nan_ok=True)
    with pytest.raises(CurateError, match="the run 'two' exists and is finished"):
        recorded(aimed, tmp_path / "c", NEAR, "two").train()


def test_an_adapter_is_recorded_and_evaluated(aimed: Workspace, tmp_path: Path) -> None:
    recorded(aimed, tmp_path / "a", NEAR, "lora", peft_config=LoraConfig(r=2, target_modules="all-linear")).train()
    assert curate.evaluate(aimed, "lora", ["sums"]).evaluations[0]["value"] > 0
    (row,) = curate.sql(aimed, "SELECT trainable FROM runs WHERE name = 'lora'")
    assert row["trainable"] < 20_000


def test_names_and_ids_that_do_not_fit_are_refused(aimed: Workspace, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="run='one' is recorded in a workspace; say in which"):
        WeightedSFT(model=model(), args=arguments(tmp_path, 4, SFTConfig), train_dataset=dataset(aimed),
                    processing_class=tokenizer(), weighting="uniform", run="one")  # fmt: skip
    with pytest.raises(CurateError, match="'Two words' must match"):
        recorded(aimed, tmp_path, "uniform", "Two words")
    strange = dataset(aimed, ids=False)
    strange = strange.add_column("id", [f"sample {i}" for i in range(len(strange))])
    with pytest.raises(CurateError, match=r"are not in the pool of .* \(the first has the id 'sample 0'\)"):
        WeightedSFT(model=model(), args=arguments(tmp_path, 4, SFTConfig), train_dataset=strange,
                    processing_class=tokenizer(), weighting="uniform", workspace=aimed, run="one")  # fmt: skip
    curate.train(aimed, "ours", curate.TrainingSpec(curate.ModelChoice(str(model().config.name_or_path), device="cpu"),
                 curate.method("weighting", "uniform"), curate.TrainSettings(steps=1)))  # fmt: skip
    with pytest.raises(CurateError, match="the run 'ours' was trained by curate"):
        recorded(aimed, tmp_path, "uniform", "ours").train()
