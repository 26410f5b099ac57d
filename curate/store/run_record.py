"""A training run as it lies in a workspace: metrics, checkpoints, evaluations; each there once its record is.

runs/NAME/run.json                          what it is made of
          metrics/part-000100.parquet       a row for every step up to the 100th from the checkpoint before
          trained/part-000100.parquet       a row for every sample at every step
          checkpoints/step-000100/          the model in its own layout, optimizer and weighting beside it
          checkpoints/_commit/step-000100.json   vouches for the checkpoint and the parts before
          evaluations/…                     what a metric found of each question of a target
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import CurateError, CurateFailure, nearest
from curate.hashing import fingerprint
from curate.store.commits import Parts
from curate.store.encoding import digest, read_json, write_json
from curate.store.files import remove_tree, replace_tree, write_atomic
from curate.store.object_store import Location
from curate.store.workspace import Workspace

_SHAPING = ("model", "manifest_sha256", "pool", "weighting", "target_fingerprint", "scores", "by", "settings", "seed")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: after which step, where, and what vouches for it."""

    step: int
    folder: Location
    record: dict[str, Any]

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Its files in a folder of this machine. Raises CurateFailure where one is not what the record vouches for."""
        with tempfile.TemporaryDirectory(prefix="curate-") as aside:
            folder = self.folder if isinstance(self.folder, Path) else Path(aside)
            for name, vouched in self.record["files"].items():
                path = self.folder / name
                if not path.exists() or digest(data := path.read_bytes()) != vouched:
                    raise CurateFailure(
                        f"{path} is damaged or gone; remove {self.folder} to go on from the one before."
                    )
                if folder != self.folder:
                    (folder / name).write_bytes(data)
            yield folder


@dataclass(frozen=True)
class Run:
    """One run of a workspace. beside: one that is to take the place of another of its name when it is complete. place:
    where it lies, when it is not the user's but a score's."""

    ws: Workspace
    name: str
    beside: bool = False
    place: Location | None = None

    @property
    def folder(self) -> Location:
        if self.place is not None:
            return self.place
        return self.ws.run_folder(f".{self.name}.fresh" if self.beside else self.name)

    @property
    def account(self) -> str:
        """What the ledger's column `run` calls it."""
        return f"{self.name}@fresh" if self.beside else self.name

    @property
    def recipe(self) -> dict[str, Any] | None:
        """run.json: what it is made of; null where there is no such run."""
        path = self.folder / "run.json"
        return read_json(path) if path.exists() else None

    @property
    def metrics(self) -> Parts:
        return Parts(self.folder / "metrics")

    @property
    def trained(self) -> Parts:
        return Parts(self.folder / "trained")

    @property
    def evaluations(self) -> Parts:
        return Parts(self.folder / "evaluations")

    def checkpoints(self) -> list[Checkpoint]:
        """The committed ones that are there, the latest last."""
        parts = Parts(self.folder / "checkpoints")
        found = [Checkpoint(record["step"], parts.folder / name, record) for name, record in parts.records().items()]
        there = [checkpoint for checkpoint in found if (checkpoint.folder / "trainer.json").exists()]
        return sorted(there, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint:
        """Raises CurateError where there is none yet."""
        found = self.checkpoints()
        if not found:
            raise CurateError(f"the run '{self.name}' has no checkpoint yet; the same `curate train` goes on with it.")
        return found[-1]

    def is_complete(self) -> bool:
        found = self.checkpoints()
        return bool(found) and bool(found[-1].record["last"])

    def stamp(self, step: int) -> str:
        """What vouches for the model after a step: equal ones are of equal recipes."""
        recipe = self.recipe or {}
        beside = [recipe["mask"]["sha256"]] if recipe.get("mask") else []
        beside += [recipe[key] for key in ("reference", "pruned") if recipe.get(key)]
        return fingerprint({key: recipe.get(key) for key in _SHAPING}, step, *beside)

    def swap(self) -> Run:
        """Put a run that was made beside another in its place."""
        final = Run(self.ws, self.name)
        replace_tree(self.folder, final.folder, marker="run.json")
        return final

    def begin(self, recipe: dict[str, Any]) -> None:
        """Say what the run is made of, and since when: the ledger's older rows of its name are another's."""
        write_json(self.folder / "run.json", {"begun": datetime.now(UTC).isoformat(), **recipe})

    def commit(
        self, step: int, last: bool, tables: dict[str, pa.Table | None], write: Callable[[Path], None], **record: Any
    ) -> None:
        """Commit what a checkpoint stands for: the rows since the one before, then its files, then its record.

        write: puts the files into a folder of this machine.
        """
        name, parts = f"step-{step:06d}", Parts(self.folder / "checkpoints")
        for kind, table in tables.items():
            if table is not None and table.num_rows:
                Parts(self.folder / kind).commit(f"part-{step:06d}", table)
        with tempfile.TemporaryDirectory(prefix="curate-") as aside:
            write(Path(aside))
            files = {}
            for path in sorted(Path(aside).iterdir()):
                data = path.read_bytes()
                write_atomic(parts.folder / name / path.name, data)
                files[path.name] = digest(data)
        write_json(parts.record_path(name), {"step": step, "last": last, "files": files, **record})

    def keep(self, count: int) -> None:
        """Remove all checkpoints but the latest `count`; 0 keeps all."""
        for old in self.checkpoints()[:-count] if count else []:
            Parts(self.folder / "checkpoints").record_path(old.folder.name).unlink(missing_ok=True)
            remove_tree(old.folder)

    def remove_leftovers(self) -> None:
        """Remove what a killed run wrote and no checkpoint vouches for. Only for the lock's holder."""
        done = self.checkpoints()
        last = done[-1].step if done else 0
        for parts in (self.metrics, self.trained):
            parts.remove_leftovers()
            for name in parts.names():
                if int(name.removeprefix("part-")) > last:
                    parts.remove(name)
        committed = {checkpoint.folder.name for checkpoint in done}
        checkpoints = Parts(self.folder / "checkpoints")
        for name in set(checkpoints.names()) - committed:
            checkpoints.record_path(name).unlink(missing_ok=True)
        for folder in (self.folder / "checkpoints").glob("step-*"):
            if folder.name not in committed:
                remove_tree(folder)


def require_run(ws: Workspace, name: str) -> Run:
    """Raises CurateError where there is no such run, naming the nearest."""
    if name not in ws.run_names():
        raise CurateError(f"{ws.path} has no run '{name}': {nearest(name, ws.run_names())}")
    return Run(ws, name)


def run_behind(ws: Workspace, model: str) -> str | None:
    """The run of the workspace that a model's folder is a checkpoint of; null for any other model."""
    if not isinstance(ws.path, Path) or not model or not (folder := Path(model).expanduser()).is_dir():
        return None
    for seen in (Path.absolute, Path.resolve):  # where there are links, either will do
        its, runs = seen(folder), seen(ws.path / "runs")
        if its.is_relative_to(runs) and its != runs:
            return its.relative_to(runs).parts[0]
    return None
