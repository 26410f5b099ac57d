"""Recipes: how a table was made (method, settings, models, target), as stored beside the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from curate.errors import CurateError, nearest
from curate.hashing import fingerprint
from curate.kinds.score import Target
from curate.kinds.text import Text
from curate.models.choice import (
    SHORT_NAMES,
    CheckpointChoice,
    ModelChoice,
    resolve,
    tensors_of,
    weights_fingerprint,
)
from curate.store.encoding import read_recipe, read_table
from curate.store.run_record import Run
from curate.store.workspace import Workspace, recipe_file


def load_target(ws: Workspace, name: str, splits: Sequence[str] = ("val",)) -> Target:
    """The val split of a target, or other splits. Raises CurateError if the target or the splits do not exist."""
    if name not in ws.target_names():
        raise CurateError(
            f"{ws.path} has no target '{name}' (`curate target {name} PATH` makes one): "
            f"{nearest(name, ws.target_names())}"
        )
    table = read_table(ws.target_path(name))
    table = table.filter(pl.Series(table["split"]).is_in(list(splits)).to_arrow())
    if not table.num_rows:
        raise CurateError(f"the target '{name}' has no val split, which selection uses; add it with `curate target`.")
    subtasks = tuple(table["subtask"].to_pylist())
    return Target(name, Text(table), subtasks, fingerprint(table["id"].to_pylist(), subtasks))


def model_recipe(choice: ModelChoice) -> dict[str, Any]:
    """The entry of a model in a recipe."""
    return {"name": choice.name, "weights": weights_fingerprint(choice), **choice.shaping(), **choice.loading()}


def model_choices(recipe: Mapping[str, Any]) -> dict[str, ModelChoice]:
    """The models that a table was made with, by role; the base model has no name if its checkpoints were given."""
    found = {}
    for role, model in recipe.get("models", {}).items():
        its = {key: value for key, value in model.items() if key != "weights"}
        nameless = role == "base" and recipe.get("checkpoints_given")
        found[role] = ModelChoice(**{**its, "name": "" if nameless else its["name"]})
    return found


def model_of(ws: Workspace, choice: ModelChoice) -> ModelChoice:
    """Resolve a model choice: the name of a run in the workspace denotes its trained model, unless it is also a folder
    or a short name.

    Raises CurateError if the run is not finished, involved no training, or is in an object store.
    """
    if choice.name in SHORT_NAMES or choice.name not in ws.run_names() or Path(choice.name).exists():
        return choice
    run = Run(ws, choice.name)
    recipe = run.recipe or {}
    if not recipe["weighting"]:
        raise CurateError(f"the run '{run.name}' is {recipe['model']['name']} without training; name that model.")
    if not run.is_complete():
        raise CurateError(f"the run '{run.name}' is not finished; the same `curate train` goes on with it.")
    folder = run.latest().folder
    if not isinstance(folder, Path):
        raise CurateError(f"{folder} is in an object store; copy the checkpoint to a folder, and name that.")
    return replace(choice, name=str(folder.absolute()))


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line: --set KEY=VALUE, …"""
    shown = {key: str(v).lower() if v is None or isinstance(v, bool) else v for key, v in settings.items()}
    return [word for key, value in shown.items() for word in ("--set", f"{key}={value}")]


def default_score_name(made_of: str, target: str | None) -> str:
    """The default name of a score; made_of: its method, or the vectors it is computed from."""
    return f"{made_of}_{target}" if target else made_of


def sample_columns(name: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a score's table, except the id -> their names in `samples`: NAME, NAME_COLUMN."""
    columns = ["score", *recipe["columns"], *(["subtasks"] if recipe["keeps_subtasks"] else []), "error"]
    return {column: name if column == "score" else f"{name}_{column}" for column in columns}


def score_recipe(ws: Workspace, name: str) -> dict[str, Any]:
    """The recipe of a score (score.json), read without its parts."""
    return table_recipe(ws, "score", name)


def table_recipe(ws: Workspace, kind: str, name: str) -> dict[str, Any]:
    """The recipe of a table; kind: 'score' or 'vectors'."""
    return read_recipe(ws.table_folder(kind, name) / recipe_file(kind))


@dataclass(frozen=True)
class CheckpointSet:
    """The checkpoints that a method uses. given: the names given by the user; empty if they come from a warm-up, which
    `warmup` describes, or if the model is used without training. origin: the model that their training began with, if
    known."""

    checkpoints: tuple[CheckpointChoice, ...] = ()
    given: tuple[str, ...] = ()
    warmup: Mapping[str, Any] = field(default_factory=dict)
    origin: ModelChoice | None = None

    def recipe(self, moments: bool) -> dict[str, Any]:
        """The entries of the checkpoints in a recipe; moments: whether the optimizer state is used."""
        found: dict[str, Any] = {"checkpoints_given": list(self.given)} if self.given else {}
        if self.given or self.warmup:
            found["checkpoints"] = [checkpoint.recipe(moments) for checkpoint in self.checkpoints]
            if self.checkpoints and not self.warmup.get("planned"):
                found["parameters"] = tensors_of(resolve(self.checkpoints[-1].model.name))
        return {**found, **({"warmup": dict(self.warmup)} if self.warmup else {})}


@dataclass(frozen=True)
class HeldOut:
    """The samples of the pool that a score leaves out: shard -> row in it -> reason. anchors: those among them that it
    uses as anchors. stamp: a fingerprint of all this."""

    left_out: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    anchors: Target | None = None
    stamp: str = ""
