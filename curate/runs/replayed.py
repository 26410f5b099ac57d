"""The training that a score replays backwards: run before its table is made, and kept in prepared/."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from curate.errors import CurateError, DivergedError
from curate.hashing import ids_as_integers
from curate.kinds.score import Replay
from curate.models.choice import ModelChoice
from curate.progress import Progress
from curate.runs.config import TrainingSpec
from curate.runs.opened_training import OpenedTraining
from curate.runs.samples import pool_ids
from curate.runs.warmup import Uniform
from curate.store.ledger import Meters
from curate.store.locks import FOREVER, lock
from curate.store.run_record import Run
from curate.tables.spec import TableSpec
from curate.training.settings import TrainSettings

PHASES = ("train", "replay", "target", "undo")
_IN_MEMORY = 1 << 30  # bytes of snapshots; more go to files


def training_of(model: ModelChoice, replay: Replay) -> TrainingSpec:
    """The training that is replayed."""
    return TrainingSpec(model, Uniform(), TrainSettings(**replay.settings), seed=replay.seed)


def replayed(job: TableSpec) -> None:
    """Train and replay what the score of a table needs, unless it is there. Charged to the ledger by phase.

    Raises CurateError for a training that cannot be replayed, DivergedError if its loss diverges."""
    replay, step = job.method.replay(), job.passes[0]
    assert replay is not None and job.target is not None
    parts, name = job.prepared(0, "")
    with lock(job.ws, f"prepared {parts.folder.name}", wait=FOREVER):
        if parts.read(name) is not None:
            return
        with ExitStack() as stack:
            meters = Meters(
                job.ws.path,
                "score",
                dict(zip(PHASES, PHASES, strict=True)),
                stack,
                methods=[job.method.name],
                name=job.name,
                model=job.models["base"].name,
                prepared=f"{parts.folder.name}/{name}",
            )
            found = _arrays(job, training_of(job.models["base"], replay), meters)
        parts.commit(name, step.state([step.map(found, {})], {}), failed={})


def _arrays(job: TableSpec, training: TrainingSpec, meters: Meters) -> dict[str, np.ndarray]:
    from curate.training.distributed import Alone
    from curate.training.loop import Trainer
    from curate.training.replay import metagradients, steps_in_all
    from curate.training.replayable import require_replayable_settings
    from curate.training.step_weights import Diverged

    if not isinstance(job.ws.path, Path):
        raise CurateError(
            f"'{job.method.name}' trains, and {job.ws.path} is in an object store; score in a workspace on a disk."
        )
    run = Run(job.ws, job.name, place=job.ws.path / "prepared" / f"{job.name}_base")
    assert job.target is not None
    opened = OpenedTraining.of(run, training, np.arange(job.ws.n_rows()), None, job.target, meters)
    model = opened.model.model
    require_replayable_settings(training.settings, training.weighting, model.device.type)
    trainer = Trainer(model, opened.data, training.settings, training.weighting, Alone(), training.seed)
    with (
        Progress(f"{job.name}: training", steps_in_all(trainer.steps), noun="steps", listens=False) as bar,
        _folder(job, trainer) as folder,
    ):

        def told(phase: str) -> None:
            bar.finished(1, 0, phase)

        try:
            found = metagradients(trainer, opened.asked, folder=folder, told=told)
        except Diverged as error:
            raise DivergedError(f"the training of '{job.name}' was stopped: {error}; use a smaller lr.") from None
    for phase, usage in found.usage.items():
        meters.charge(phase, len(opened.asked) if phase == "target" else len(opened.rows), usage)
    ids = ids_as_integers(pool_ids(job.ws).to_pylist())[opened.rows]
    figures = {"loss": np.array([found.loss]), "steps": np.array([found.steps]), "drift": np.array([found.drift])}
    return {"ids": ids, "values": found.values, **figures}


@contextmanager
def _folder(job: TableSpec, trainer: Any) -> Iterator[Path | None]:
    """Where snapshots go: None for memory, if they are few."""
    numbers = sum(parameter.numel() for parameter in trainer.parameters.values())
    if 7 * 4 * numbers * math.isqrt(trainer.steps + 1) <= _IN_MEMORY:
        yield None
        return
    place = Path(str(job.ws.path)) / "prepared"
    place.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=place, prefix=".replay-") as folder:
        yield Path(folder)
