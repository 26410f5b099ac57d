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
    choices, last_steps = [], dict[Path, int]()  # folder of checkpoints -> the step of the last
    for name in given:
        choices += _of_run(ws, name, like) if name in ws.run_names() else _of_folder(ws, name, like, last_steps)
    return tuple(choices)


def origin_of(ws: Workspace, name: str) -> ModelChoice | None:
    """The model that a run of the workspace started from; None for folders, where it is unknown."""
    recipe = Run(ws, name).recipe if name in ws.run_names() else None
    return model_choice(recipe.model, ws.trusted) if recipe else None


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
    choices, previous_step = [], 0
    for checkpoint in run.checkpoints():
        if not isinstance(checkpoint.folder, Path):
            raise CurateError(f"{checkpoint.folder} is in an object store; copy the checkpoint to a folder, name that.")
        mean_rate = float(np.mean([rate for step, rate in rates.items() if previous_step < step <= checkpoint.step]))
        previous_step, folder = checkpoint.step, checkpoint.folder
        model = replace(like, name=str(folder))
        choices.append(
            CheckpointChoice(model, mean_rate, str(folder / OPTIMIZERS[0]), f"{label} step {checkpoint.step}")
        )
    return choices


def _of_folder(ws: Workspace, name: str, like: ModelChoice, last_steps: dict[Path, int]) -> list[CheckpointChoice]:
    path, at, rate = name.rpartition("@")
    lr = _number(rate) if at else None
    folder = Path(path if lr is not None else name).expanduser()
    folders = sorted((p for p in folder.glob("checkpoint-*") if _STEP.search(p.name)), key=_step_of)
    if not folders and ((folder / "config.json").exists() or (folder / ADAPTER).exists()):
        folders = [folder]
    if not folders:
        runs = f"; its runs are {', '.join(ws.run_names())}" if ws.run_names() else ""
        raise CurateError(
            f"--checkpoints {name}: there is no run of that name in {ws.path}{runs}; and no folder with config.json or "
            f"{ADAPTER}, or with checkpoint-100, … in it."
        )
    choices = []
    for checkpoint in folders:
        rate_here = lr if lr is not None else _logged(checkpoint, last_steps.get(checkpoint.parent, 0))
        if rate_here is None:
            raise CurateError(
                f"{checkpoint}: no trainer_state.json records the learning rate it was trained at, which weights a "
                f"checkpoint; give it: --checkpoints {checkpoint}@2e-5."
            )
        optimizer = next((str(checkpoint / o) for o in OPTIMIZERS if (checkpoint / o).exists()), "")
        choices.append(CheckpointChoice(replace(like, name=str(checkpoint)), rate_here, optimizer))
        last_steps[checkpoint.parent] = _step_of(checkpoint)
    return choices


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _step_of(folder: Path) -> int:
    match = _STEP.search(folder.name)
    return int(match[1]) if match else 0


def _logged(folder: Path, since: int) -> float | None:
    """The mean learning rate that Hugging Face's Trainer logged since step `since`; None if it logged none."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    rates = [e["learning_rate"] for e in state["log_history"] if "learning_rate" in e and e["step"] > since]
    return float(np.mean(rates)) if rates else None
