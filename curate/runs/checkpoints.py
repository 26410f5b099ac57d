"""Checkpoints by name, of a run or of a folder written by another trainer, with their learning rates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from curate.errors import CurateError
from curate.models.choice import ADAPTER, OPTIMIZERS, CheckpointChoice, ModelChoice
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.tables.inputs import model_choice

_STEP = re.compile(r"checkpoint-(\d+)$")


def checkpoints_of(ws: Workspace, given: Sequence[str], like: ModelChoice) -> tuple[CheckpointChoice, ...]:
    """Checkpoints by name: a run of the workspace, a checkpoint's folder, or a folder with several (checkpoint-100, …);
    FOLDER@LR gives the learning rate it was trained at. like: the model settings to use for them.

    Raises CurateError if there is none of that name, or its learning rate is not recorded.
    """
    found, before = [], dict[Path, int]()  # folder of checkpoints -> the step of the last
    for name in given:
        found += _of_run(ws, name, like) if name in ws.run_names() else _of_folder(ws, name, like, before)
    return tuple(found)


def origin_of(ws: Workspace, name: str) -> ModelChoice | None:
    """The model that a run of the workspace started from; None for folders, where it is unknown."""
    recipe = Run(ws, name).recipe if name in ws.run_names() else None
    return model_choice(recipe.model) if recipe else None


def _of_run(ws: Workspace, name: str, like: ModelChoice) -> list[CheckpointChoice]:
    run = Run(ws, name)
    run.latest()
    if pruned := run.require_recipe().pruned:
        raise CurateError(
            f"--checkpoints {name}: that is what `curate prune` left of the run '{pruned.run}'; no training led to "
            "it, so name that run."
        )
    return checkpoints_of_run(run, name, like)


def checkpoints_of_run(run: Run, label: str, like: ModelChoice) -> list[CheckpointChoice]:
    """The checkpoints of a run, each with the mean learning rate of the steps since the one before."""
    rates: dict[int, float] = {}
    for name in run.metrics.names():
        table = run.metrics.read(name)
        rates |= dict(zip(table["step"].to_pylist(), table["lr"].to_pylist(), strict=True))
    found, before = [], 0
    for checkpoint in run.checkpoints():
        if not isinstance(checkpoint.folder, Path):
            raise CurateError(f"{checkpoint.folder} is in an object store; copy the checkpoint to a folder, name that.")
        mean = float(np.mean([rate for step, rate in rates.items() if before < step <= checkpoint.step]))
        before, folder = checkpoint.step, checkpoint.folder
        model = replace(like, name=str(folder))
        found.append(CheckpointChoice(model, mean, str(folder / OPTIMIZERS[0]), f"{label} step {checkpoint.step}"))
    return found


def _of_folder(ws: Workspace, name: str, like: ModelChoice, before: dict[Path, int]) -> list[CheckpointChoice]:
    path, at, rate = name.rpartition("@")
    lr = _number(rate) if at else None
    folder = Path(path if lr is not None else name).expanduser()
    several = sorted((p for p in folder.glob("checkpoint-*") if _STEP.search(p.name)), key=_step_of)
    if not several and ((folder / "config.json").exists() or (folder / ADAPTER).exists()):
        several = [folder]
    if not several:
        runs = f"; its runs are {', '.join(ws.run_names())}" if ws.run_names() else ""
        raise CurateError(
            f"--checkpoints {name}: there is no run of that name in {ws.path}{runs}; and no folder with config.json or "
            f"{ADAPTER}, or with checkpoint-100, … in it."
        )
    found = []
    for one in several:
        rate_here = lr if lr is not None else _logged(one, before.get(one.parent, 0))
        if rate_here is None:
            raise CurateError(
                f"{one}: no trainer_state.json records the learning rate it was trained at, which weights a "
                f"checkpoint; give it: --checkpoints {one}@2e-5."
            )
        optimizer = next((str(one / o) for o in OPTIMIZERS if (one / o).exists()), "")
        found.append(CheckpointChoice(replace(like, name=str(one)), rate_here, optimizer))
        before[one.parent] = _step_of(one)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _step_of(folder: Path) -> int:
    found = _STEP.search(folder.name)
    return int(found[1]) if found else 0


def _logged(folder: Path, before: int) -> float | None:
    """The mean learning rate that Hugging Face's Trainer logged since step `before`; None if it logged none."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    rates = [e["learning_rate"] for e in state["log_history"] if "learning_rate" in e and e["step"] > before]
    return float(np.mean(rates)) if rates else None
