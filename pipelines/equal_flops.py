"""Trainings that may all take the same FLOPs, side by side on the machine's cores, and their table.

What an arm needs before its first step (scores, warm-ups, selection) is paid out of the same budget. An arm whose
preparation alone takes more is trained as if that were free, under a name that ends in `_unpaid`, and says so.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import curate
from curate.errors import CurateError
from curate.numerics.statistics import Mean
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.compare import Arm, Compared

UNPAID = "_unpaid"
SEED = "_s"  # an arm's name, and this, and the seed, are a run's


@dataclass(frozen=True)
class Job:
    """A run to be trained: the workspace's folder, its name, what is trained, and on what it is evaluated."""

    ws: str
    name: str
    training: TrainingSpec
    evals: tuple[EvalSpec, ...]


def settings_within(settings: TrainSettings, flops: float, marks: int) -> TrainSettings:
    """The settings of a training that may take so many FLOPs in all, evaluated so many times on the way."""
    return replace(settings, flops=flops, flops_for="everything", eval_flops=flops / marks)


def train_all(jobs: Sequence[Job], workers: int) -> list[str]:
    """Train the jobs in so many processes, each on its part of the cores; the runs' names, in the order of the jobs."""
    began, done, names = time.monotonic(), 0, dict[str, str]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=with_threads, initargs=(workers,)) as pool:
        for future in as_completed([pool.submit(_train, job) for job in jobs]):
            asked, name, said = future.result()
            names[asked], done = name, done + 1
            print(f"  {done:3} of {len(jobs)}, {time.monotonic() - began:5.0f} s: {name:36} {said}", flush=True)
    return [names[job.name] for job in jobs]


def with_threads(workers: int) -> None:
    """In a process of so many: its part of the cores."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _train(job: Job) -> tuple[str, str, str]:
    """The job's name, the run's, and how it went."""
    name, training = job.name, job.training
    try:
        done = curate.train(job.ws, name, training, evals=job.evals)
    except CurateError as error:
        if "more than this budget" not in str(error):
            raise
        arm, _, seed = name.rpartition(SEED)
        name = f"{arm}{UNPAID}{SEED}{seed}"
        free = replace(training, settings=replace(training.settings, flops_for="training"))
        done = curate.train(job.ws, name, free, evals=job.evals)
    said = "  ".join(
        f"{e['target']} {e['metric']} {e['value']:.3f}" for e in done.evaluations if e["value"] is not None
    )
    return job.name, name, f"{done.steps:4} steps  {said}"


def jobs_of(ws: Workspace, arms: Mapping[str, Sequence[TrainingSpec]], evals: Sequence[EvalSpec]) -> list[Job]:
    """A job for every arm and seed: the first seeds of all arms before the second ones."""
    most = max(map(len, arms.values()), default=0)
    return [
        Job(str(ws.path), f"{arm}{SEED}{specs[i].seed}", specs[i], tuple(evals))
        for i in range(most)
        for arm, specs in arms.items()
        if i < len(specs)
    ]


# --- tables ----------------------------------------------------------------------------------------------


def markdown(found: Compared, loss: str, accuracy: str, others: Sequence[str]) -> str:
    """The arms as a table: the target's loss and accuracy, other measures, costs, area, gain, effective share, and the
    paired difference in the target's loss from the reference. Arms are in the order of that loss."""
    shown = list(dict.fromkeys((loss, accuracy, *others)))
    head = ["arm", *shown, "preparation", "training", f"{loss}: area", f"{accuracy}: gain per 1e12"]
    head += ["effective share", f"{loss} against {found.against}"]
    ordered = sorted(found.arms, key=lambda arm: arm.quality[loss].mean)
    rows = [[_named(arm), *(arm.shown(key) for key in shown), *_rest(arm, loss, accuracy)] for arm in ordered]
    return _table(head, rows)


def _named(arm: Arm) -> str:
    return arm.name + (f" (control of {arm.null_of})" if arm.null_of else "")


def _rest(arm: Arm, loss: str, accuracy: str) -> Iterable[str]:
    cost = arm.cost
    yield f"{cost.prep:.2g}"
    yield f"{cost.train + cost.online:.3g}"
    yield str(arm.area[loss]) if loss in arm.area else ""
    yield f"{1e12 * arm.gain[accuracy].mean:.3f}" if accuracy in arm.gain else ""
    yield "" if arm.effective is None else f"{arm.effective:.3f}"
    yield difference(arm.against.get(loss))


def difference(found: Mean | None) -> str:
    """A paired difference with its 95 % interval; '' if there is none."""
    if found is None:
        return ""
    interval = found.interval()
    return f"{found.mean:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid(found: Compared, key: str, rows: Mapping[str, Sequence[str]], head: Sequence[str]) -> str:
    """A table of chosen arms: a row's name -> the arms of its cells; each cell is the mean of a measure."""
    arms = {arm.name: arm for arm in found.arms}
    cells = [[row, *(arms[name].shown(key) if name in arms else "" for name in names)] for row, names in rows.items()]
    return _table([key, *head], cells)
