"""A training run as stored in a workspace: metrics, checkpoints, evaluations; each exists once its record does.

runs/NAME/run.json                          the recipe of the run
          metrics/part-000100.parquet       a row for every step after the previous checkpoint, up to the 100th
          trained/part-000100.parquet       a row for every sample at every step
          checkpoints/step-000100/          the model in its own layout, with the optimizer and weighting states
          checkpoints/_commit/step-000100.json   certifies the checkpoint and the parts before it
          evaluations/…                     the value of a metric on each question of a target
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
from msgspec import UNSET
from msgspec.structs import replace

from curate.errors import CurateError, CurateFailure, DamagedError, nearest
from curate.hashing import fingerprint
from curate.store.commits import Parts
from curate.store.contents import enter, require_intact, take_out
from curate.store.encoding import digest
from curate.store.files import remove_leftovers, remove_tree, replace_tree, write_atomic
from curate.store.ledger_files import next_sequence
from curate.store.locks import Lock
from curate.store.object_store import Location
from curate.store.recipes import RunRecipe, read_recipe, write_recipe
from curate.store.workspace import Workspace

_SHAPING = ("model", "manifest_sha256", "pool", "weighting", "target_fingerprint", "scores", "by", "settings", "seed")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its step, its folder, and its commit record."""

    step: int
    folder: Location
    record: dict[str, Any]

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Its files in a local folder. Raises CurateFailure if a file does not match its SHA-256 in the record."""
        with tempfile.TemporaryDirectory(prefix="curate-") as temporary:
            folder = self.folder if isinstance(self.folder, Path) else Path(temporary)
            for name, sha256 in self.record["files"].items():
                path = self.folder / name
                if not path.exists() or digest(data := path.read_bytes()) != sha256:
                    raise CurateFailure(
                        f"{path} is damaged or gone; remove {self.folder} to go on from the one before."
                    )
                if folder != self.folder:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
            yield folder


@dataclass(frozen=True)
class Run:
    """One run of a workspace. beside: whether it is built next to a run of the same name, to replace it when complete.
    place: its folder, if it belongs to a score and not to the user. held: the lock under which it is written."""

    ws: Workspace
    name: str
    beside: bool = False
    place: Location | None = None
    held: Lock | None = None

    @property
    def folder(self) -> Location:
        """The folder of the run."""
        if self.place is not None:
            return self.place
        return self.ws.run_folder(f".{self.name}.fresh" if self.beside else self.name)

    @property
    def account(self) -> str:
        """Its name in the column `run` of the ledger."""
        return f"{self.name}@fresh" if self.beside else self.name

    @property
    def recipe(self) -> RunRecipe | None:
        """run.json: what the run is made of; None if there is no such run."""
        path = self.folder / "run.json"
        if not path.exists():
            return None
        if self.folder == self.ws.run_folder(self.name):
            require_intact(self.ws, "run", self.name)
        return read_recipe(path, RunRecipe)

    def require_recipe(self) -> RunRecipe:
        """run.json. Raises CurateError if there is no such run."""
        recipe = self.recipe
        if recipe is None:
            raise CurateError(f"{self.folder} has no run.json: there is no run '{self.name}', or it was removed.")
        return recipe

    @property
    def metrics(self) -> Parts:
        """Parts with one row per step."""
        return Parts(self.folder / "metrics")

    @property
    def trained(self) -> Parts:
        """Parts with one row per sample and step."""
        return Parts(self.folder / "trained")

    @property
    def evaluations(self) -> Parts:
        """Parts with one row per question, one part per checkpoint and metric."""
        return Parts(self.folder / "evaluations")

    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints whose folders exist, the latest last; one whose folder a user removed is none.

        Raises DamagedError for a folder that is there without the file that is written last.
        """
        parts = Parts(self.folder / "checkpoints")
        committed = [
            Checkpoint(record["step"], parts.folder / name, record) for name, record in parts.records().items()
        ]
        complete = [checkpoint for checkpoint in committed if (checkpoint.folder / "trainer.json").exists()]
        for checkpoint in committed:
            if checkpoint not in complete and any(checkpoint.folder.glob("*")):
                raise DamagedError(
                    f"{checkpoint.folder} has lost its trainer.json; put a copy of it back, or remove the folder to go "
                    "on from the checkpoint before."
                )
        return sorted(complete, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint:
        """The latest checkpoint. Raises CurateError if there is none yet."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise CurateError(f"the run '{self.name}' has no checkpoint yet; the same `curate train` goes on with it.")
        return checkpoints[-1]

    def is_complete(self) -> bool:
        """Whether training has reached its last step."""
        checkpoints = self.checkpoints()
        return bool(checkpoints) and bool(checkpoints[-1].record["last"])

    def is_settled(self) -> bool:
        """Whether training is complete and its checkpoints are on their list; a kill may come between the two."""
        return self.is_complete() and not Parts(self.folder / "checkpoints").is_behind()

    def stamp(self, step: int) -> str:
        """A fingerprint of the model after a step: equal if the recipes are equal."""
        recipe = self.recipe.as_json() if self.recipe else {}
        extra = [recipe["mask"]["sha256"]] if recipe.get("mask") else []
        extra += [recipe[key] for key in ("reference", "pruned", "carried") if recipe.get(key)]
        return fingerprint({key: recipe.get(key) for key in _SHAPING}, step, *extra)

    def swap(self) -> Run:
        """Replace the run of the same name by this one, built beside it; returns the run in its final place."""
        final = Run(self.ws, self.name)
        take_out(self.ws, "run", self.name)
        replace_tree(self.folder, final.folder, marker="run.json")
        enter(self.ws, "run", self.name)
        return final

    def begin(self, recipe: RunRecipe) -> None:
        """Write run.json with the start time and place in the ledger, unless it has them: older rows of the ledger
        under this name belong to an earlier run."""
        if not recipe.begun:
            first = next_sequence(self.ws.path)
            recipe = replace(
                recipe, begun=datetime.now(UTC).isoformat(), ledger_begun=UNSET if first is None else first
            )
        of_user = self.place is None and not self.beside
        if of_user:
            take_out(self.ws, "run", self.name)
        write_recipe(self.folder / "run.json", recipe)
        if of_user:
            enter(self.ws, "run", self.name)

    def forget(self) -> None:
        """Remove the run. Requires holding the lock."""
        if self.place is None and not self.beside:
            take_out(self.ws, "run", self.name)
        remove_tree(self.folder, marker="run.json")

    def commit(
        self, step: int, last: bool, tables: dict[str, pa.Table | None], write: Callable[[Path], None], **record: Any
    ) -> None:
        """Commit a checkpoint: the rows since the previous one, then its files, then its record.

        write: writes the files into a local folder.
        """
        name, parts = f"step-{step:06d}", Parts(self.folder / "checkpoints")
        for kind, table in tables.items():
            if table is not None and table.num_rows:
                Parts(self.folder / kind).commit(f"part-{step:06d}", table)
        with tempfile.TemporaryDirectory(prefix="curate-") as temporary:
            write(Path(temporary))
            files = {}
            for path in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):  # a tokenizer may write folders
                data, file = path.read_bytes(), path.relative_to(temporary).as_posix()
                write_atomic(parts.folder / name / file, data)
                files[file] = digest(data)
        parts.put(name, {"step": step, "last": last, "files": files, **record})

    def refuse_gone(self) -> None:
        """Raises CurateFailure if the run was dropped since it began, or its lock is another's."""
        if not (self.folder / "run.json").exists():
            by = f" ({self.held.lost_to})" if self.held and self.held.lost_to else ""
            raise CurateFailure(
                f"the run '{self.name}' was dropped while it was trained: {self.folder / 'run.json'} is gone{by}; "
                "what it wrote since is not kept, and the same command trains it from the beginning."
            )
        if self.held:
            self.held.check()

    def keep(self, count: int) -> None:
        """Remove all but the latest `count` checkpoints; 0 keeps all."""
        for checkpoint in self.checkpoints()[:-count] if count else []:
            Parts(self.folder / "checkpoints").remove(checkpoint.folder.name)
            remove_tree(checkpoint.folder)

    def remove_leftovers(self) -> None:
        """Remove what a killed run wrote after its last checkpoint. Requires holding the lock."""
        remove_leftovers(self.folder, mine=True)
        complete = self.checkpoints()
        last_step = complete[-1].step if complete else 0
        for parts in (self.metrics, self.trained):
            parts.remove_leftovers()
            for name in parts.names():
                if int(name.removeprefix("part-")) > last_step:
                    parts.remove(name)
        committed = {checkpoint.folder.name for checkpoint in complete}
        checkpoints = Parts(self.folder / "checkpoints")
        for name in set(checkpoints.names()) - committed:
            checkpoints.remove(name)
        for folder in (self.folder / "checkpoints").glob("step-*"):
            if folder.name not in committed:
                remove_tree(folder)
        checkpoints.catch_up()


def require_run(ws: Workspace, name: str) -> Run:
    """The run of a name. Raises CurateError, suggesting the most similar name, if there is none."""
    if name not in ws.run_names():
        raise CurateError(f"{ws.path} has no run '{name}': {nearest(name, ws.run_names())}")
    return Run(ws, name)


def run_behind(ws: Workspace, model: str) -> str | None:
    """The run of the workspace of which the model is a checkpoint, by the model's path; None for any other model."""
    if not isinstance(ws.path, Path) or not model or not (folder := Path(model).expanduser()).is_dir():
        return None
    for absolute in (Path.absolute, Path.resolve):  # with symbolic links, a match of either form counts
        model_folder, runs = absolute(folder), absolute(ws.path / "runs")
        if model_folder.is_relative_to(runs) and model_folder != runs:
            return model_folder.relative_to(runs).parts[0]
    return None
