"""`curate train`: runs on a real workspace, by real processes; killed, gone on with, refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.methods.metrics.loss import Loss
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.uniform import Uniform
from curate.models import choice
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.manifests import read_manifest, write_manifest
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import ROOT, SAMPLE, qa, tree_bytes, write_jsonl
from tests.support import forks
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")
SHORT = TrainSettings(batch_size=16, lr=1e-3, steps=6, checkpoint_every=2, keep_checkpoints=0)
PLAIN = TrainingSpec(MODEL, Uniform(), SHORT, manifest="picked")
JUDGE = EvalSpec("arithmetic", Loss(), limit=10)


@pytest.fixture
def ready(sums_ws: Workspace) -> Workspace:
    curate.target(sums_ws, "arithmetic", str(SAMPLE / "targets/arithmetic_test.jsonl"), split="test")
    curate.select(sums_ws, "picked", Random(), SelectionSpec(top=120))
    return sums_ws


def weights_of(run: Run) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    folder = Path(str(run.latest().folder))
    return load_file(next(folder.glob("*model.safetensors")))


def test_a_run_leaves_metrics_weights_checkpoints_and_evaluations(ready: Workspace) -> None:
    result = curate.train(ready, "first", replace(PLAIN, weighting=Adapt(), target="arithmetic"), evals=[JUDGE])
    assert (result.steps, result.steps_now, result.samples) == (6, 6, 120) and result.flops > 0
    metrics = curate.sql(ready, "SELECT * FROM metrics ORDER BY step")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6] and {m["run"] for m in metrics} == {"first"}
    shown = (
        "SELECT count(*) AS n, count(DISTINCT row) AS rows, avg(t.weight) AS w FROM trained t JOIN picked USING (row)"
    )
    (seen,) = curate.sql(ready, shown)
    assert seen["n"] == 96 and seen["rows"] == 96 and 0.27 < seen["w"] < 0.73
    (judged,) = curate.sql(ready, "SELECT * FROM evaluations")
    assert judged["value"] == result.evaluations[0]["value"] and judged["step"] == 6 and judged["judged"] == 10
    (told,) = curate.sql(ready, "SELECT name, state, weighting, steps, samples FROM runs")
    assert told == {"name": "first", "state": "complete", "weighting": "adapt", "steps": 6, "samples": 120}
    ledger = {row["phase"]: row for row in curate.sql(ready, "SELECT * FROM ledger WHERE run = 'first'")}
    assert set(ledger) == {"train", "anchors", "evaluate"}
    assert ledger["train"]["samples"] == 96 and ledger["train"]["tokens"] == sum(m["tokens"] for m in metrics)
    assert ledger["train"]["flops_paper"] == 6.0 * ledger["train"]["n_params"] * 96 * 2048
    assert ledger["anchors"]["samples"] == 24 and ledger["anchors"]["flops"] < ledger["train"]["flops"]
    assert LanguageModel(ModelChoice(result.folder, device="cpu")).n_params == ledger["train"]["n_params"]
    (epoch,) = result.by_epoch
    assert epoch["samples"] == 96 and epoch["mean_weight"] == pytest.approx(seen["w"])
    assert -1 <= epoch["measure_5"] < epoch["measure_50"] < epoch["measure_95"] <= 1
    assert sum(row["weighted_share"] for row in result.by_source) == pytest.approx(1)
    assert curate.status(ready).runs[0]["name"] == "first"
    assert curate.drop(ready, "first").kind == "run" and not ready.run_names()


KILLED = """
import os, signal, sys
import curate
from curate.store.run_record import Run
from tests.verbs.test_runs import TRAININGS, JUDGE

path, name, die_at = sys.argv[1:]
commit = Run.commit

def dying(self, step, *args, **kwargs):
    if step == int(die_at):
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, step, *args, **kwargs)

Run.commit = dying
curate.train(curate.open_workspace(path), name, TRAININGS[name], evals=[JUDGE])
"""

TRAININGS: dict[str, TrainingSpec] = {
    "uniform": PLAIN,
    "adapt": replace(PLAIN, weighting=Adapt(refresh=4), target="arithmetic"),
    "linupper": replace(PLAIN, weighting=Linupper(), settings=replace(SHORT, micro_batch_size=8)),
    "stm": replace(PLAIN, weighting=Stm()),
    "filter_then_weight": replace(
        PLAIN, weighting=FilterThenWeight(), target="arithmetic", settings=replace(SHORT, oversample=2, eps=1e-5)
    ),
    "lora": replace(PLAIN, settings=replace(SHORT, lora_r=4, lora_dropout=0.2, lr=1e-2)),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_and_gone_on_with_is_as_if_nothing_had_been(ready: Workspace, name: str) -> None:
    undisturbed = name + "_undisturbed"
    curate.train(ready, undisturbed, TRAININGS[name], evals=[JUDGE])
    done = forks.run(KILLED, str(ready.path), name, "4")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Run(ready, name).latest().step == 2
    result = curate.train(ready, name, TRAININGS[name], evals=[JUDGE])
    assert result.steps_now == 4
    a, b = Run(ready, name), Run(ready, undisturbed)
    for kind in ("metrics", "trained", "evaluations"):
        assert tree_bytes(Path(str(a.folder / kind))) == tree_bytes(Path(str(b.folder / kind)))
    every = tree_bytes(Path(str(a.folder / "checkpoints")), "*.safetensors")
    assert every and every == tree_bytes(Path(str(b.folder / "checkpoints")), "*.safetensors")
    ready = curate.open_workspace(str(ready.path))  # which settles the account of the process that was killed
    phases = "('train', 'candidates')"
    spent = curate.sql(ready, f"SELECT sum(samples) AS n FROM ledger WHERE run = '{name}' AND phase IN {phases}")
    assert spent[0]["n"] >= 7 * 16


def test_a_run_that_is_complete_is_left_as_it_is_and_fresh_begins_anew(ready: Workspace) -> None:
    curate.train(ready, "r", PLAIN)
    before = tree_bytes(Path(str(Run(ready, "r").folder)), "*")
    assert curate.train(ready, "r", PLAIN).steps_now == 0
    assert tree_bytes(Path(str(Run(ready, "r").folder)), "*") == before
    other = replace(PLAIN, settings=replace(SHORT, lr=5e-4))
    assert curate.train(ready, "r", other, fresh=True).steps_now == 6
    assert Run(ready, "r").require_recipe().settings["lr"] == 5e-4
    assert not [p for p in (ready.path / "runs").glob(".*")]  # type: ignore[union-attr]


def test_more_checkpoints_than_wanted_are_removed_and_where_it_stands_is_known(ready: Workspace) -> None:
    curate.train(ready, "r", replace(PLAIN, settings=replace(SHORT, keep_checkpoints=1)))
    assert [c.step for c in Run(ready, "r").checkpoints()] == [6]
    longer = replace(PLAIN, settings=replace(SHORT, steps=8))
    with pytest.raises(CurateError, match="'r' exists, with steps=6, not 8; choose another name, or --fresh"):
        curate.train(ready, "r", longer)


TOGETHER = """
import sys, curate
from tests.verbs.test_runs import TRAININGS
curate.train(curate.open_workspace(sys.argv[1]), sys.argv[2] + "_two", TRAININGS[sys.argv[2]])
"""


def by_torch_s_launcher(path: str, name: str, environment: dict[str, str]) -> None:
    script = Path(path).parent / "two.py"
    script.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={environment['MASTER_PORT']}", str(script), path, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def by_what_it_tells_them(path: str, name: str, environment: dict[str, str]) -> None:
    """As that launcher does, which says by the environment which of how many a process is."""
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for i in range(2)]
    both = [forks.start(TOGETHER, path, name, environment={**environment, **rank}) for rank in ranks]
    assert [one.wait() for one in both] == [0, 0], both[0].stderr[-2000:] + both[1].stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "launch"),
    [
        ("linupper", by_what_it_tells_them),
        ("adapt", by_what_it_tells_them),
        ("filter_then_weight", by_what_it_tells_them),
        pytest.param("linupper", by_torch_s_launcher, marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(ready: Workspace, name: str, launch: Any) -> None:
    """Real processes over gloo, on this machine alone; LinUpper's losses, and the candidates, are of all of them."""
    curate.train(ready, f"{name}_one", TRAININGS[name])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000)}
    launch(str(ready.path), name, environment)
    one, two = (weights_of(Run(ready, f"{name}_{n}")) for n in ("one", "two"))
    assert max(float(np.abs(one[key] - two[key]).max()) for key in one) < 1e-5
    shown = "SELECT row, weight, loss FROM trained WHERE run = '{}' ORDER BY step, row"
    a, b = (curate.sql(ready, shown.format(f"{name}_{n}")) for n in ("one", "two"))
    shown_in_all = 2 * 92 if TRAININGS[name].weighting.chooses else 96
    assert [r["row"] for r in a] == [r["row"] for r in b] and len(a) == shown_in_all
    assert np.allclose([r["weight"] for r in a], [r["weight"] for r in b], atol=1e-4)
    flops = "SELECT sum(flops) AS f FROM ledger WHERE run = '{}' AND phase = 'train'"
    a, b = (curate.sql(ready, flops.format(f"{name}_{n}"))[0]["f"] for n in ("one", "two"))
    assert b == pytest.approx(a, rel=0.3)  # adapt's rows are padded to less in two halves


# --- what is learnt --------------------------------------------------------------------------------------


def test_raw_texts_are_packed_and_long_ones_split_or_cut(ws: Workspace, tmp_path: Path) -> None:
    texts = [{"text": f"number {i} " * (3 + 40 * (i % 3))} for i in range(30)]
    curate.ingest(ws, [write_jsonl(tmp_path / "texts.jsonl", texts)])
    choice = replace(MODEL, context=128)
    packed = TrainSettings(batch_size=2, lr=1e-3, packing=True, split=True)
    whole = curate.train(ws, "whole", TrainingSpec(choice, Uniform(), packed))
    tokens = curate.sql(ws, "SELECT sum(tokens) AS t, sum(samples) AS n FROM metrics WHERE run = 'whole'")[0]
    cut = curate.train(ws, "cut", TrainingSpec(choice, Uniform(), replace(packed, split=False)))
    less = curate.sql(ws, "SELECT sum(tokens) AS t, sum(samples) AS n FROM metrics WHERE run = 'cut'")[0]
    assert whole.cut == 0 and cut.cut == 20 and tokens["t"] > less["t"] and less["n"] == 30 < tokens["n"]
    refused = curate.train(
        ws, "refused", TrainingSpec(replace(choice, too_long="refuse"), Uniform(), replace(packed, split=False))
    )
    assert refused.samples == 10 and list(refused.left_out.values()) == [20]
    padding = curate.sql(ws, "SELECT 1 - sum(tokens) / sum(padded_tokens) AS p FROM ledger WHERE run = 'whole'")
    assert padding[0]["p"] < 0.25


def test_repeats_order_and_weights_of_a_manifest_are_followed(ready: Workspace) -> None:
    table, lineage = read_manifest(ready, "picked")
    frame = pl.DataFrame(table).head(4).with_columns(
        pl.Series("repeats", [2, 1, 0, 1], pl.Int32), pl.Series("weight", [1.0, 0.5, 1.0, 3.0], pl.Float32)
    )  # fmt: skip
    write_manifest(ready, "mine", frame.to_arrow().cast(table.schema), lineage)
    settings = TrainSettings(batch_size=1, lr=1e-4, order="rank")
    result = curate.train(ready, "r", replace(PLAIN, manifest="mine", settings=settings))
    assert result.left_out == {"it repeats 0 times": 1}
    seen = curate.sql(ready, "SELECT row, weight FROM trained ORDER BY step")
    assert [r["row"] for r in seen] == [frame["row"][i] for i in (0, 0, 1, 3)]
    mean = (2 * 1.0 + 0.5 + 3.0) / 4
    assert [r["weight"] for r in seen] == pytest.approx([1 / mean, 1 / mean, 0.5 / mean, 3 / mean])


def test_a_column_weighs_and_what_has_none_is_left_out(ready: Workspace) -> None:
    curate.score(ready, Length())
    by = replace(PLAIN, weighting=AdaptStatic(), by="CASE WHEN length > 3 THEN length END")
    result = curate.train(ready, "r", by)
    assert result.samples < 120 and "its column (--by) has no value" in result.left_out
    rows = curate.sql(ready, "SELECT t.weight, t.measure, s.length FROM trained t JOIN samples s USING (row)")
    assert all(r["measure"] == pytest.approx(r["length"]) for r in rows)
    assert max(r["weight"] for r in rows) <= 0.7311 and min(r["weight"] for r in rows) >= 0.5
    flow = curate.train(ready, "f", replace(PLAIN, weighting=Flow()))
    (spent,) = curate.sql(ready, "SELECT samples FROM ledger WHERE run = 'f' AND phase = 'base losses'")
    assert spent["samples"] == flow.samples == 120


def test_lora_is_saved_as_peft_reads_it_and_scores_like_any_model(ready: Workspace) -> None:
    result = curate.train(ready, "lora", TRAININGS["lora"])
    files = {p.name for p in Path(result.folder).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"} <= files
    assert "model.safetensors" not in files
    from curate.methods.scores.nll import Nll

    (tuned,) = curate.score(ready, Nll(), models=ModelChoice(result.folder, device="cpu"), names={"nll": "tuned"})
    (plain,) = curate.score(ready, Nll(), models=MODEL)
    (row,) = curate.sql(ready, "SELECT avg(tuned) AS t, avg(nll) AS p FROM samples JOIN picked USING (row)")
    assert tuned.rows == plain.rows and row["t"] > row["p"]


# --- what is refused -------------------------------------------------------------------------------------


def test_a_manifest_of_another_pool_is_refused(ready: Workspace, tmp_path: Path) -> None:
    table, lineage = read_manifest(ready, "picked")
    other = curate.open_workspace(tmp_path / "other")
    curate.ingest(other, [write_jsonl(tmp_path / "a.jsonl", qa(120))])
    write_manifest(other, "picked", table, lineage)
    with pytest.raises(CurateError, match="is not in the pool, which has 120; the pool was remade, so select again"):
        curate.train(other, "r", PLAIN)
    near = pl.DataFrame(table).with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64)).to_arrow().cast(table.schema)
    write_manifest(other, "picked", near, lineage)
    with pytest.raises(CurateError, match="is not at row 0 of the pool"):
        curate.train(other, "r2", PLAIN)


@pytest.mark.parametrize(
    ("weight", "said"),
    [(0.0, "all 0, so there is nothing to train on"), (-1.0, "weighs the sample .* -1.0"), (float("nan"), "nan")],
)
def test_weights_that_are_none_are_refused(ready: Workspace, weight: float, said: str) -> None:
    table, lineage = read_manifest(ready, "picked")
    frame = pl.DataFrame(table).with_columns(weight=pl.lit(weight, pl.Float32))
    write_manifest(ready, "picked", frame.to_arrow().cast(table.schema), lineage)
    with pytest.raises(CurateError, match=said):
        curate.train(ready, "r", PLAIN)
    assert not ready.run_names()


def test_a_loss_that_diverges_stops_with_the_step_and_the_last_good_checkpoint(ready: Workspace) -> None:
    wild = replace(PLAIN, settings=replace(SHORT, lr=1e18, clip=0.0, warmup=0.5, steps=12))
    with pytest.raises(
        CurateFailure,
        match=r"not a finite number at step \d+, and (the checkpoint of step \d+ is good|there is no checkpoint)",
    ):
        curate.train(ready, "wild", wild)
    for checkpoint in Run(ready, "wild").checkpoints():
        assert checkpoint.record["last"] is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weighting": Adapt()}, "'adapt' needs a target: add --target"),
        ({"target": "arithmetic"}, "'uniform' uses no --target; leave out"),
        ({"by": "n_chars"}, "'uniform' uses no --by"),
        ({"weighting": AdaptStatic()}, "needs a column: add --by"),
        ({"manifest": "piked"}, "did you mean 'picked'"),
        ({"weighting": Adapt(), "target": "arithmatic"}, "did you mean 'arithmetic'"),
    ],
)
def test_what_does_not_fit_is_said(ready: Workspace, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        curate.train(ready, "r", replace(PLAIN, **change))


def test_a_judge_without_its_split_and_a_checkpoint_of_another_model_are_refused(ready: Workspace) -> None:
    curate.target(ready, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    with pytest.raises(CurateError, match="'facts' has no split 'test', on which to evaluate; add it with `curate"):
        curate.train(ready, "r", PLAIN, evals=[EvalSpec("facts", Loss())])
    assert not ready.run_names()
    curate.train(ready, "r", PLAIN)
    with pytest.raises(CurateError, match="exists, with another model"):
        curate.train(ready, "r", replace(PLAIN, model=replace(MODEL, context=64)))
    damaged = Run(ready, "r").latest().folder / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CurateFailure, match=r"optimizer.safetensors is damaged or gone; remove"):
        curate.train(ready, "r", PLAIN)


@pytest.mark.parametrize(
    ("setting", "value"), [("lr", 0.0), ("batch_size", 0), ("warmup", 1.0), ("clip", -1.0), ("epochs", float("nan"))]
)
def test_settings_that_are_none_are_said(setting: str, value: Any) -> None:
    with pytest.raises(CurateError, match=f"the setting {setting} of the training is"):
        TrainSettings(**{setting: value})


def test_the_command_line_trains_and_says_what_it_did(ready: Workspace, cli: Any) -> None:
    settings = ["--set", "lr=1e-3", "--set", "steps=2", "--set", "adapt.tau=0.5", "--set", "model.context=256"]
    done = cli(
        "train",
        "r",
        "--model",
        NARROW,
        "--weighting",
        "adapt",
        "--target",
        "arithmetic",
        "--eval",
        "arithmetic",
        "--limit",
        "5",
        *settings,
        ws=ready,
    )
    assert done.returncode == 0, done.stderr
    assert "Run r: 2 of 2 steps taken now, on 160 samples" in done.stdout and "arithmetic" in done.stdout
    assert "mean weight" in done.stdout and "share of samples" in done.stdout
    assert "warn" not in done.stderr.lower()
    wrong = cli("train", "r", "--model", NARROW, "--weighting", "adapt", "--set", "adept.tau=1", ws=ready)
    assert wrong.returncode == 2 and "did you mean 'adapt'" in wrong.stderr
    assert "did you mean 'batch_size'" in cli("train", "r", "--model", NARROW, "--set", "batchsize=1", ws=ready).stderr
    planned = cli("train", "new", "--model", NARROW, "--dry-run", ws=ready)
    assert "Would train new on 160 samples: 5 steps" in planned.stdout
    assert "batch_size=32" in cli("train", "--settings").stdout


def test_a_checkpoint_keeps_the_folders_that_a_tokenizer_writes(handful_ws: Workspace, tmp_path: Path) -> None:
    """Several chat templates by name are files in a folder of their own."""
    model = tmp_path / "model"
    shutil.copytree(choice.TINY, model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool_use.jinja").write_text("{{ messages[0]['content'] }}")
    spec = TrainingSpec(ModelChoice(str(model)), Uniform(), TrainSettings(steps=2, batch_size=2, checkpoint_every=1))
    curate.train(handful_ws, "named", spec)
    kept = Run(handful_ws, "named").latest().folder / "additional_chat_templates/tool_use.jinja"
    assert kept.read_text() == "{{ messages[0]['content'] }}"
