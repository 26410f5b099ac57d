"""`curate train` with a weighting that chooses, and from a stream: on real workspaces, killed, resumed, refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import Encoded
from curate.runs.config import ReplaySettings, StreamSource, TrainingSpec
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.training.stream import Stream
from tests.conftest import sums_in, tree_bytes
from tests.support import forks
from tests.support.narrow import NARROW
from tests.verbs.test_runs import weights_of

MODEL = ModelChoice(NARROW, device="cpu")
SHORT = TrainSettings(
    batch_size=4, lr=1e-3, steps=6, checkpoint_every=2, keep_checkpoints=0, projection=16, target_batch=8
)
ONLINE = TrainingSpec(MODEL, FilterThenWeight(), SHORT, target="arithmetic")


def records(start: int = 0) -> Iterator[dict[str, str]]:
    for n in itertools.count(start):
        yield {"question": f"What is {n % 83} plus {n % 37}?", "answer": f"It is {n % 83 + n % 37}."}


KEPT = ReplaySettings(memory=6, replay=0.25)


def fed(its: Iterator[Any] | None = None, past: ReplaySettings = KEPT) -> TrainingSpec:
    return replace(ONLINE, stream=StreamSource("sums", records() if its is None else its, past))


def test_a_run_that_chooses_says_what_it_looked_at_and_what_it_learnt(sums_ws: Workspace) -> None:
    result = curate.train(sums_ws, "online", ONLINE)
    metrics = curate.sql(sums_ws, "SELECT * FROM metrics ORDER BY step")
    assert [m["samples"] for m in metrics] == [16] * 6 and all(1 <= m["chosen"] <= 4 for m in metrics)
    (seen,) = curate.sql(sums_ws, "SELECT count(*) AS n, count(*) FILTER (weight > 0) AS learnt FROM trained")
    assert seen == {"n": 96, "learnt": sum(m["chosen"] for m in metrics)}
    ledger = {row["phase"]: row for row in curate.sql(sums_ws, "SELECT * FROM ledger WHERE run = 'online'")}
    assert set(ledger) == {"train", "candidates", "target", "selection"}
    assert {p: row["samples"] for p, row in ledger.items()} == {
        "train": seen["learnt"], "candidates": 96 - seen["learnt"], "target": 48, "selection": 96
    }  # fmt: skip
    assert ledger["train"]["tokens"] + ledger["candidates"]["tokens"] == pytest.approx(
        sum(m["tokens"] for m in metrics), abs=6
    )
    assert result.flops == pytest.approx(sum(row["flops"] for row in ledger.values()))
    online = sum(ledger[p]["flops"] for p in ("candidates", "target", "selection"))
    (arm,) = curate.compare(sums_ws, ["online"]).arms
    assert arm.cost.online == pytest.approx(online) and arm.cost.train == pytest.approx(ledger["train"]["flops"])


@pytest.mark.parametrize(
    ("lora", "size"),
    [
        (0, 0),
        (4, 8),
        pytest.param(0, 8, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "weighting",
    [FilterThenWeight(), FilterThenWeight(side="candidates"), FilterThenWeight(precondition="projected"), MaxLoss()],
    ids=["before", "candidates", "projected", "loss"],
)
def test_flops_are_those_that_are_counted(sums_ws: Workspace, weighting: Any, lora: int, size: int) -> None:
    settings = replace(SHORT, steps=2, count_flops=True, lora_r=lora, micro_batch_size=size, checkpoint_every=0)
    target = "arithmetic" if weighting.uses_target else None
    curate.train(sums_ws, "counted", TrainingSpec(replace(MODEL, count_flops=True), weighting, settings, target=target))
    for row in curate.sql(sums_ws, "SELECT phase, flops, flops_counted FROM ledger WHERE run = 'counted'"):
        assert row["flops"] == pytest.approx(row["flops_counted"], rel=0.05), row["phase"]


TRAINING = """
import sys
import curate
from dataclasses import replace
from curate.store.workspace import Workspace
from tests.training.test_online import ONLINE, fed
curate.train(curate.open_workspace(sys.argv[1]), "run", fed() if sys.argv[2] == "fed" else ONLINE)
"""


@pytest.mark.parametrize("how", ["pool", "fed"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(sums_ws: Workspace, tmp_path: Path, how: str) -> None:
    whole = sums_in(tmp_path / "whole")
    curate.train(whole, "run", fed() if how == "fed" else ONLINE)
    process = forks.start(TRAINING, str(sums_ws.path), how)
    while not Run(sums_ws, "run").checkpoints():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    taken = Run(sums_ws, "run").checkpoints()[-1].step
    assert taken in (2, 4)
    result = curate.train(sums_ws, "run", fed() if how == "fed" else ONLINE)
    assert (result.steps_now, result.steps) == (6 - taken, 6)
    a, b = weights_of(Run(whole, "run")), weights_of(Run(sums_ws, "run"))
    assert all((a[name] == b[name]).all() for name in a)
    for kind in ("metrics", "trained"):
        assert tree_bytes(Path(str(whole.run_folder("run"))) / kind) == tree_bytes(
            Path(str(sums_ws.run_folder("run"))) / kind
        )


def test_a_stream_is_learnt_from_as_it_comes(sums_ws: Workspace) -> None:
    result = curate.train(sums_ws, "fed", fed())
    rows = curate.sql(sums_ws, "SELECT step, row, weight FROM trained ORDER BY step, row")
    first = [row["row"] for row in rows if row["step"] == 1]
    assert first == list(range(16))  # nothing is past yet
    for step in range(2, 7):
        its = [row["row"] for row in rows if row["step"] == step]
        fresh = [n for n in its if n >= 16 + 12 * (step - 2)]
        assert fresh == list(range(16 + 12 * (step - 2), 16 + 12 * (step - 1))) and len(its) - len(fresh) == 4
    assert result.samples == 16 + 5 * 12 and not result.by_source and result.by_epoch
    (told,) = curate.sql(sums_ws, "SELECT samples, config FROM runs")
    assert told["samples"] == 76 and json.loads(told["config"])["stream"]["memory"] == 6
    again = curate.train(sums_ws, "fed", fed())
    assert again.steps_now == 0 and again.samples == 76


def test_a_stream_that_goes_on_is_not_passed_over_again(sums_ws: Workspace) -> None:
    curate.train(sums_ws, "whole", fed())
    endless = records()
    first = fed(itertools.islice(endless, 45))
    with pytest.raises(CurateFailure, match="the stream has ended after 45 samples, at step 4; ask for fewer steps"):
        curate.train(sums_ws, "cut", first)  # step 4 wants 52
    came = Run(sums_ws, "cut").checkpoints()[-1].step
    assert came == 2
    rest = fed(records(16 + 12), replace(KEPT, continues=True))
    curate.train(sums_ws, "cut", rest)
    a, b = weights_of(Run(sums_ws, "whole")), weights_of(Run(sums_ws, "cut"))
    assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("rows", [4, 20])
def test_the_memory_is_a_fair_sample_of_what_has_come(rows: int) -> None:
    seen, holes = np.zeros(80), np.arange(80) % 2 == 0  # half of what comes cannot be learnt from
    for seed in range(600):
        some = (Encoded(np.array([1, n + 2], np.int32), np.array([False, not holes[n]])) for n in range(80))
        stream = Stream(some, 8, 0.0, seed)
        for step in range(1, 40 // rows + 1):
            stream.candidates(step, rows)
        seen[stream.tensors()["number"]] += 1
    assert seen.sum() == 600 * 8 and not seen[holes].any()
    spread = ((seen[~holes] - 120) ** 2 / (120 * 0.8)).sum()  # chi-square of 39 degrees of freedom
    assert spread < 39 + 5 * np.sqrt(2 * 39)


def test_what_cannot_be_learnt_from_is_passed_over_and_counted(sums_ws: Workspace) -> None:
    def some() -> Iterator[Any]:
        for n, record in enumerate(records()):
            yield [{"nothing": "known"}, record, {"messages": [{"role": "user", "content": "no answer"}]}, record][
                n % 4
            ]

    result = curate.train(sums_ws, "fed", fed(some(), ReplaySettings()))
    assert result.samples == 96 and len(result.left_out) == 2 and sum(result.left_out.values()) in (95, 96)
    again = curate.train(sums_ws, "fed", fed(some(), ReplaySettings()))
    assert (again.steps_now, again.samples, again.left_out) == (0, 96, result.left_out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": "picked"}, "it does not go with a manifest"),
        ({"settings": replace(SHORT, steps=0)}, "a stream has no epochs: say how many steps"),
        ({"settings": replace(SHORT, packing=True)}, "it does not go with packing"),
        ({"weighting": Stm(), "target": None}, "needs the base model's losses"),
    ],
)
def test_what_a_stream_cannot_do_is_said(sums_ws: Workspace, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        curate.train(sums_ws, "fed", replace(fed(), **change))
    with pytest.raises(CurateError, match="memory=0 past samples .* replay=0.5"):
        ReplaySettings(replay=0.5)


def test_another_stream_is_another_run(sums_ws: Workspace) -> None:
    curate.train(sums_ws, "fed", replace(fed(), weighting=Uniform(), target=None))
    with pytest.raises(CurateError, match="the run 'fed' exists, with stream"):
        curate.train(sums_ws, "fed", replace(fed(past=ReplaySettings(memory=5)), weighting=Uniform(), target=None))


def test_the_command_line_chooses(sums_ws: Workspace, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    given = (
        "train",
        "online",
        "--model",
        NARROW,
        "--weighting",
        "greats",
        "--target",
        "arithmetic",
        "--set",
        "steps=2",
    )
    done = cli(*given, "--set", "batch_size=4", "--set", "oversample=2", ws=sums_ws)
    assert done.returncode == 0 and "2 of 2 steps taken now" in done.stdout, done.stderr
    planned = cli(*given, "--dry-run", ws=sums_ws)
    assert "2 steps" in planned.stdout
    refused = cli("train", "other", "--model", NARROW, "--weighting", "greats", ws=sums_ws)
    assert refused.returncode == 2 and "the weighting 'greats' needs a target: add --target NAME." in refused.stderr


@pytest.mark.slow
def test_the_command_line_learns_from_a_file_or_from_what_it_is_piped(
    sums_ws: Workspace, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    text = "".join(json.dumps(record) + "\n" for record in itertools.islice(records(), 200))
    (tmp_path / "sums.jsonl").write_text(text)
    given = ["--model", NARROW, "--weighting", "max_loss", "--set", "batch_size=4", "--set", "stream.memory=8"]
    given += ["--set", "stream.replay=0.5", "--set", "steps=3"]
    from_file = cli("train", "file", "--stream", tmp_path / "sums.jsonl", *given, ws=sums_ws)
    assert from_file.returncode == 0 and "3 of 3 steps taken now, on 32 samples" in from_file.stdout, from_file.stderr
    piped = cli("train", "piped", "--stream", "-", *given, ws=sums_ws, input=text)
    assert piped.returncode == 0, piped.stderr
    a, b = weights_of(Run(sums_ws, "file")), weights_of(Run(sums_ws, "piped"))
    assert all((a[name] == b[name]).all() for name in a)
    for wrong, said in (
        (("--stream", tmp_path / "none.jsonl"), "none.jsonl"),
        (("--set", "stream.memory=8"), "stream.memory is a setting of a stream; name one by --stream PATH."),
        (("--stream", "-", "--set", "stream.replay=2"), "replay=2 of a step's samples"),
        (("--stream", "-", "--set", "stream.recall=2"), "has no setting 'recall'"),
        (("--stream", "-", "--dry-run"), "there is no --dry-run of it"),
    ):
        done = cli("train", "wrong", "--model", NARROW, "--set", "steps=2", *wrong, ws=sums_ws)
        assert done.returncode == 2 and said in done.stderr, done.stderr
