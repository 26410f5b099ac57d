"""What a stored score was made of, and whether that still stands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from curate.errors import CurateError, nearest
from curate.hashing import fingerprint
from curate.kinds.registry import Target
from curate.kinds.text import Text
from curate.kinds.vectors import Vectors
from curate.models.load import SHORT_NAMES, ModelChoice, weights_fingerprint
from curate.store.commits import Parts, read_json, read_table
from curate.store.files import Location
from curate.store.run_record import Run
from curate.store.workspace import Shard, Workspace, pool_fingerprint, recipe_file
from curate.tables.vector_table import vectors_of


def load_target(ws: Workspace, name: str, splits: Sequence[str] = ("val",)) -> Target:
    """The val split of a target, or others. Raises CurateError where there is none of them."""
    if name not in ws.target_names():
        raise CurateError(
            f"{ws.path} has no target '{name}' (`curate target {name} PATH` makes one): "
            f"{nearest(name, ws.target_names())}"
        )
    table = read_table(ws.target_path(name))
    table = table.filter(pl.Series(table["split"]).is_in(list(splits)).to_arrow())
    if not table.num_rows:
        raise CurateError(f"the target '{name}' has no val split, and only val chooses; add it with `curate target`.")
    subtasks = tuple(table["subtask"].to_pylist())
    return Target(name, Text(table), subtasks, fingerprint(table["id"].to_pylist(), subtasks))


@dataclass(frozen=True)
class TableState:
    """One score, or vectors, as they stand.

    recipe: score.json, or vectors.json. done: the shards that are there. todo: those that are not. stale: why it does
    not stand any more, or null.
    """

    kind: str
    name: str
    recipe: dict[str, Any]
    done: tuple[Shard, ...]
    todo: tuple[Shard, ...]
    nulls: int
    stale: str | None

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.done)

    def problem(self) -> str | None:
        """Why it should not be selected by, as the middle of a sentence; null where it may."""
        if self.stale:
            return f"is stale ({self.stale})"
        if self.todo:
            missing = sum(shard.rows for shard in self.todo)
            verb = "lack" if self.kind == "vectors" else "lacks"
            return f"{verb} {missing} of {self.rows + missing} samples"
        return None

    def __str__(self) -> str:
        return f"the {self.kind} '{self.name}'"

    def command(self, target: str | None = None) -> str:
        """What brings it up to date; of vectors, also what puts a target through the same model."""
        words = ["curate", "score", self.recipe["method"]]
        target = self.recipe.get("target") or target
        words += ["--target", target] if target else []
        given = self.recipe.get("checkpoints_given", [])
        words += [word for name in given for word in ("--checkpoints", name)]
        for role, model in self.recipe.get("models", {}).items():
            words += [] if given and role == "base" else ["--model", f"{role}={model['name']}"]
            its = {key: value for key, value in model.items() if key not in ("name", "weights")}
            plain = ModelChoice(model["name"])
            words += settings_words({f"model.{k}": v for k, v in its.items() if v != getattr(plain, k)})
        words += settings_words(self.recipe["changed"])
        vectors = self.name if self.kind == "vectors" else self.recipe.get("vectors")
        words += ["--vectors", vectors] if vectors not in (None, self.recipe["method"]) else []
        default = default_score_name(vectors or self.recipe["method"], target)
        words += [] if self.kind == "vectors" or self.name == default else ["--name", self.name]
        return shlex.join(words)


def usable(states: Sequence[TableState], allow_stale: bool) -> list[str]:
    """Warnings of tables that are stale or incomplete. Raises CurateError for such, unless allowed."""
    warnings = []
    for state in states:
        if problem := state.problem():
            if not allow_stale:
                raise CurateError(f"{state} {problem}; run `{state.command()}`, or --allow-stale.")
            warnings.append(f"{state} {problem}")
    return warnings


def model_recipe(choice: ModelChoice) -> dict[str, Any]:
    """What a model is, for a recipe."""
    return {"name": choice.name, "weights": weights_fingerprint(choice), **choice.shaping(), **choice.loading()}


def model_choices(recipe: Mapping[str, Any]) -> dict[str, ModelChoice]:
    """The models that a table was made with, by role; the base has no name where its checkpoints were given."""
    found = {}
    for role, model in recipe.get("models", {}).items():
        its = {key: value for key, value in model.items() if key != "weights"}
        nameless = role == "base" and recipe.get("checkpoints_given")
        found[role] = ModelChoice(**{**its, "name": "" if nameless else its["name"]})
    return found


def model_of(ws: Workspace, choice: ModelChoice) -> ModelChoice:
    """The model of a choice: the name of a run of the workspace stands for what the run has learnt, unless a folder or
    a short name is called so.

    Raises CurateError for a run that is not finished or learnt nothing, and in an object store.
    """
    if choice.name in SHORT_NAMES or choice.name not in ws.run_names() or Path(choice.name).exists():
        return choice
    run = Run(ws, choice.name)
    recipe = run.recipe or {}
    if not recipe["weighting"]:
        raise CurateError(f"the run '{run.name}' is the model {recipe['model']['name']} as it was; name that model.")
    if not run.is_complete():
        raise CurateError(f"the run '{run.name}' is not finished; the same `curate train` goes on with it.")
    folder = run.latest().folder
    if not isinstance(folder, Path):
        raise CurateError(f"{folder} is in an object store; copy the checkpoint to a folder, and name that.")
    return replace(choice, name=str(folder.absolute()))


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    shown = {key: str(v).lower() if v is None or isinstance(v, bool) else v for key, v in settings.items()}
    return [word for key, value in shown.items() for word in ("--set", f"{key}={value}")]


def default_score_name(made_of: str, target: str | None) -> str:
    """A score's name where none is given; made_of: its method, or the vectors it is made of."""
    return f"{made_of}_{target}" if target else made_of


def sample_columns(name: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a score's table, but for the id, and what `samples` calls them: NAME, NAME_COLUMN."""
    columns = ["score", *recipe["columns"], *(["subtasks"] if recipe["keeps_subtasks"] else []), "error"]
    return {column: name if column == "score" else f"{name}_{column}" for column in columns}


def score_recipe(ws: Workspace, name: str) -> dict[str, Any]:
    """What a score is made of (score.json), without looking at its parts."""
    return table_recipe(ws, "score", name)


def table_recipe(ws: Workspace, kind: str, name: str) -> dict[str, Any]:
    return read_json(ws.table_folder(kind, name) / recipe_file(kind))


def score_state(ws: Workspace, name: str) -> TableState:
    """Raises CurateError where there is no such score."""
    return table_state(ws, "score", name)


def table_state(ws: Workspace, kind: str, name: str) -> TableState:
    """Raises CurateError where there is no such score, or no such vectors."""
    ws.require(kind, name)
    recipe, records = table_recipe(ws, kind, name), Parts(ws.table_folder(kind, name)).records()
    done, todo, nulls = [], [], 0
    for shard in ws.shards():
        record = records.get(shard.name)
        if record and record["fingerprint"] == recipe["fingerprint"] and record["shard"] == shard.sha256:
            done.append(shard)
            nulls += record["nulls"]
        elif shard.rows:
            todo.append(shard)
    return TableState(kind, name, recipe, tuple(done), tuple(todo), nulls, _stale(ws, recipe))


def _stale(ws: Workspace, recipe: dict[str, Any]) -> str | None:
    if recipe.get("target"):
        if recipe["target"] not in ws.target_names():
            return f"the target '{recipe['target']}' is gone"
        try:
            now = load_target(ws, recipe["target"], recipe.get("splits", ("val",))).fingerprint
        except CurateError:
            return f"the target '{recipe['target']}' has no val split any more"
        if now != recipe["target_fingerprint"]:
            return f"the target '{recipe['target']}' was edited"
    made_of = recipe.get("vectors") if "vectors_fingerprint" in recipe else None
    if (
        made_of in ws.vectors_names()
        and table_recipe(ws, "vectors", made_of)["fingerprint"] != (recipe["vectors_fingerprint"])
    ):
        return f"the vectors '{made_of}' were made otherwise since"
    if recipe["scope"] == "pool" and recipe["pool_fingerprint"] != pool_fingerprint(ws.shards()):
        return "the pool has grown"
    return None


# --- targets as vectors ----------------------------------------------------------------------------------


def target_vectors(folder: Location) -> Parts:
    """Where the vectors of targets lie, in the folder of vectors; a part for each target."""
    return Parts(folder / "targets")


def aim_stamp(fingerprint: str, target: Target) -> dict[str, Any]:
    """What the record of a target's vectors must have for them to stand; fingerprint: of the vectors."""
    return {"fingerprint": fingerprint, "target": target.fingerprint}


def load_vectors(ws: Workspace, name: str, target: str) -> Vectors:
    """A target's vectors. Raises CurateError where there are none, or the target was edited since."""
    state, now = table_state(ws, "vectors", name), load_target(ws, target)
    parts = target_vectors(ws.table_folder("vectors", name))
    record, stored = parts.record(target) or {}, parts.read(target)
    if stored is None or not aim_stamp(state.recipe["fingerprint"], now).items() <= record.items():
        why = "was edited since" if record.get("target") not in (None, now.fingerprint) else "is not among them yet"
        raise CurateError(f"the vectors '{name}': the target '{target}' {why}; run `{state.command(target)}`.")
    return vectors_of(stored)
