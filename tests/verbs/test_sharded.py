"""`curate train --set fsdp=true`: a model in parts, by real processes over gloo, against one that has it whole."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.methods.metrics.loss import Loss
from curate.methods.selectors.random import Random
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tensor_files import read_tensors
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.training.sharded_layers import refuse_sharded
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE
from tests.support import forks
from tests.support.narrow import NARROW

PARTS = TrainSettings(batch_size=16, lr=1e-3, steps=6, checkpoint_every=2, keep_checkpoints=0, fsdp=True, eps=1e-5)
PLAIN = TrainingSpec(ModelChoice(NARROW, device="cpu"), Uniform(), PARTS, manifest="picked")
TRAININGS: dict[str, TrainingSpec] = {
    "uniform": PLAIN,
    "adapt": replace(PLAIN, weighting=Adapt(refresh=4, normalize="mean1"), target="arithmetic"),
    "linupper": replace(PLAIN, weighting=Linupper(), settings=replace(PARTS, micro_batch_size=3)),
    "lora": replace(PLAIN, weighting=Linupper(), settings=replace(PARTS, lora_r=4, lr=1e-2)),
    "packed": replace(PLAIN, settings=replace(PARTS, packing=True, batch_size=3)),
    "recomputed": replace(PLAIN, settings=replace(PARTS, gradient_checkpointing=True)),
}
TRAIN = """
import os, signal, sys
from pathlib import Path
import curate
import curate.training.sharded_layers as layers
from curate.store.run_record import Run
from tests.verbs.test_sharded import TRAININGS

path, name, run, die_at = sys.argv[1:]
shard, commit = layers.shard, Run.commit

def noting(lm, processes):
    shard(lm, processes)
    own = sum(p.to_local().numel() if layers.is_sharded(p) else p.numel() for p in lm.model.parameters())
    (Path(path).parent / f"{run}{processes.process_index}").write_text(f"{own} {lm.n_params}")

def dying(self, step, *args, **kwargs):
    if step == int(die_at):
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, step, *args, **kwargs)

layers.shard, Run.commit = noting, dying
curate.train(curate.open_workspace(path), run, TRAININGS[name])
"""


@pytest.fixture
def ready(sums_ws: Workspace) -> Workspace:
    curate.target(sums_ws, "arithmetic", str(SAMPLE / "targets/arithmetic_test.jsonl"), split="test")
    curate.select(sums_ws, "picked", Random(), SelectionSpec(top=120))
    return sums_ws


def together(ws: Workspace, name: str, run: str, count: int, die_at: int = -1) -> list[Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(29500 + os.getpid() % 1000 + count), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(count)} for i in range(count)]
    given = (str(ws.path), name, run, str(die_at))
    return [forks.start(TRAIN, *given, environment={**environment, **rank}) for rank in ranks]


def parameters(run: Run) -> dict[str, torch.Tensor]:
    return read_tensors(next(Path(str(run.latest().folder)).glob("*model.safetensors")))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=0, atol=1e-5) for k in one)


@pytest.mark.parametrize(("name", "count"), [*((name, 2) for name in TRAININGS), ("linupper", 4)])
def test_a_model_in_parts_is_trained_like_a_whole_one(ready: Workspace, name: str, count: int) -> None:
    curate.train(ready, "one", TRAININGS[name])
    processes = together(ready, name, "two", count)
    assert [one.wait() for one in processes] == [0] * count, "".join(one.stderr[-2000:] for one in processes)
    for rank in range(count):
        own, everything = map(int, (Path(str(ready.path)).parent / f"two{rank}").read_text().split())
        assert own < 0.9 * everything  # the tiny model is mostly embeddings, which are whole in each
    one, two = Run(ready, "one"), Run(ready, "two")
    assert same(parameters(one), parameters(two))
    states = [read_tensors(Path(str(run.latest().folder)) / "optimizer.safetensors") for run in (one, two)]
    assert same(states[0], states[1])
    rows = [
        curate.sql(ready, f"SELECT row, weight, loss FROM trained WHERE run = '{run}' ORDER BY step, row")
        for run in ("one", "two")
    ]
    assert [r["row"] for r in rows[0]] == [r["row"] for r in rows[1]]
    assert np.allclose([r["weight"] for r in rows[0]], [r["weight"] for r in rows[1]], atol=1e-4)


def test_killed_it_is_gone_on_with_in_parts_or_whole(ready: Workspace) -> None:
    """Its checkpoints are those of a whole model."""
    curate.train(ready, "whole", TRAININGS["lora"])
    for run, later in (("in_parts", 2), ("by_one", 1)):
        first, second = together(ready, "lora", run, 2, die_at=4)
        assert first.wait() == -signal.SIGKILL
        second.kill()
        second.wait()
        assert Run(ready, run).latest().step == 2
        if later == 1:
            curate.train(ready, run, TRAININGS["lora"])
        else:
            processes = together(ready, "lora", run, 2)
            assert [one.wait() for one in processes] == [0, 0], "".join(one.stderr[-2000:] for one in processes)
        assert same(parameters(Run(ready, run)), parameters(Run(ready, "whole")))


def test_what_needs_whole_layers_is_refused(ready: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for weighting, settings, masked, said in (
        (FilterThenWeight(), PARTS, False, "the weighting 'filter_then_weight' compares gradients of whole layers"),
        (Uniform(), PARTS, True, "a mask has single elements of whole parameters"),
        (Uniform(), replace(PARTS, sum_gradients=True), False, "sum_gradients sums whole ones"),
    ):
        with pytest.raises(CurateError, match=f"with fsdp each process has a part of every layer, and {said}"):
            refuse_sharded(weighting, settings, masked)
    from curate.runs.driver import _shard

    with pytest.raises(CurateError, match="which none can evaluate; leave out --eval, and `curate evaluate` the run"):
        _shard(None, None, [EvalSpec("arithmetic", Loss())])  # type: ignore[arg-type]
    assert curate.train(ready, "alone", PLAIN).steps == 6  # one process has all parts
