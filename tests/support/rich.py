"""A small workspace with an object of most kinds, and harms to its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import curate
from curate.methods.masks.random import Random as RandomMask
from curate.methods.metrics.loss import Loss
from curate.methods.scores.length import Length
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(50)
]


PLAIN = TrainingSpec(ModelChoice("tiny"), Uniform(), TrainSettings(steps=2, batch_size=2), "best")


def made(folder: Path) -> Workspace:
    """Five shards of ten samples, a target, a score, a manifest, a mask and a run of two steps with an evaluation."""
    ws = curate.open_workspace(folder / "ws")
    for i in range(5):
        curate.ingest(ws, [write_jsonl(folder / f"{i}.jsonl", ROWS[10 * i : 10 * i + 10])])
    curate.target(ws, "sums", write_jsonl(folder / "t.jsonl", ROWS[:3]), split="test")
    curate.score(ws, Length())
    curate.select(ws, "best", Top(), SelectionSpec(by="length", top=20))
    curate.mask(ws, "sparse", RandomMask(), model=ModelChoice("tiny"), frac=0.01)
    curate.train(ws, "plain", PLAIN, evals=[EvalSpec("sums", Loss())])
    assert curate.verify(ws).damaged == []
    return ws


def copied(made_once: Workspace, folder: Path) -> Workspace:
    """A copy of it, to be harmed."""
    shutil.copytree(made_once.path, folder / "ws")  # type: ignore[arg-type]
    return curate.open_workspace(folder / "ws")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    path.write_bytes(b"{" * path.stat().st_size)


HARMS = [emptied, cut, garbled, Path.unlink]
