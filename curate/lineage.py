"""What a stored score was made of, and whether that still stands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from curate.errors import CurateError, nearest
from curate.fingerprint import fingerprint
from curate.method import Target
from curate.models.load import ModelChoice
from curate.shards import Parts, read_json, read_table
from curate.text import Text
from curate.workspace import Shard, Workspace, pool_fingerprint


def load_target(ws: Workspace, name: str) -> Target:
    """The val split of a target. Raises CurateError where there is none."""
    if name not in ws.target_names():
        raise CurateError(
            f"{ws.path} has no target '{name}' (`curate target {name} PATH` makes one): "
            f"{nearest(name, ws.target_names())}"
        )
    table = read_table(ws.target_path(name))
    table = table.filter((pl.Series(table["split"]) == "val").to_arrow())
    if not table.num_rows:
        raise CurateError(f"the target '{name}' has no val split, and only val chooses; add it with `curate target`.")
    subtasks = tuple(table["subtask"].to_pylist())
    return Target(name, Text(table), subtasks, fingerprint(table["id"].to_pylist(), subtasks))


@dataclass(frozen=True)
class ScoreState:
    """One score table as it stands.

    recipe: score.json. done: the shards scored. todo: the shards that are not. stale: why it does not stand
    any more, or null.
    """

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
        """Why the score should not be selected by, as the middle of a sentence; null where it may."""
        if self.stale:
            return f"is stale ({self.stale})"
        if self.todo:
            missing = sum(shard.rows for shard in self.todo)
            return f"lacks {missing} of {self.rows + missing} samples"
        return None

    def command(self) -> str:
        """What brings it up to date."""
        words = ["curate", "score", self.recipe["method"]]
        words += ["--target", self.recipe["target"]] if self.recipe["target"] else []
        for role, model in self.recipe.get("models", {}).items():
            words += ["--model", f"{role}={model['name']}"]
            shaping = {key: value for key, value in model.items() if key not in ("name", "weights")}
            plain = ModelChoice(model["name"]).shaping()
            words += settings_words({f"model.{k}": v for k, v in shaping.items() if v != plain[k]})
        words += settings_words(self.recipe["changed"])
        default = default_score_name(self.recipe["method"], self.recipe["target"])
        words += [] if self.name == default else ["--name", self.name]
        return shlex.join(words)


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    shown = {key: str(v).lower() if v is None or isinstance(v, bool) else v for key, v in settings.items()}
    return [word for key, value in shown.items() for word in ("--set", f"{key}={value}")]


def default_score_name(method: str, target: str | None) -> str:
    return f"{method}_{target}" if target else method


def sample_columns(name: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a score's table, but for the id, and what `samples` calls them: NAME, NAME_COLUMN."""
    columns = ["score", *recipe["columns"], *(["subtasks"] if recipe["keeps_subtasks"] else []), "error"]
    return {column: name if column == "score" else f"{name}_{column}" for column in columns}


def score_recipe(ws: Workspace, name: str) -> dict[str, Any]:
    """What a score is made of (score.json), without looking at its parts."""
    return read_json(ws.score_folder(name) / "score.json")


def score_state(ws: Workspace, name: str) -> ScoreState:
    """Raises CurateError where there is no such score."""
    ws.require("score", name)
    recipe, records = score_recipe(ws, name), Parts(ws.score_folder(name)).records()
    done, todo, nulls = [], [], 0
    for shard in ws.shards():
        record = records.get(shard.name)
        if record and record["fingerprint"] == recipe["fingerprint"] and record["shard"] == shard.sha256:
            done.append(shard)
            nulls += record["nulls"]
        elif shard.rows:
            todo.append(shard)
    return ScoreState(name, recipe, tuple(done), tuple(todo), nulls, _stale(ws, recipe))


def _stale(ws: Workspace, recipe: dict[str, Any]) -> str | None:
    if recipe["target"]:
        if recipe["target"] not in ws.target_names():
            return f"the target '{recipe['target']}' is gone"
        try:
            now = load_target(ws, recipe["target"]).fingerprint
        except CurateError:
            return f"the target '{recipe['target']}' has no val split any more"
        if now != recipe["target_fingerprint"]:
            return f"the target '{recipe['target']}' was edited"
    if recipe["scope"] == "pool" and recipe["pool_fingerprint"] != pool_fingerprint(ws.shards()):
        return "the pool has grown"
    return None
