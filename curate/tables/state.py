"""What a stored score was made from, and whether it is still valid."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError
from curate.models.choice import ModelChoice
from curate.store.commits import Parts
from curate.store.workspace import Shard, Workspace, pool_fingerprint
from curate.tables.recipes import default_score_name, load_target, settings_words, table_recipe


@dataclass(frozen=True)
class TableState:
    """The current state of a score, or of vectors.

    recipe: score.json, or vectors.json. done: the shards that are computed. todo: those that are not. stale: why it is
    no longer valid, or None.
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
        """The number of samples that are computed."""
        return sum(shard.rows for shard in self.done)

    def problem(self) -> str | None:
        """Why it should not be used for selection, as part of a sentence; None if it can be."""
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
        """The command that updates it; with vectors and `target`, the command that encodes the target likewise."""
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
    """Warnings for stale or incomplete tables. Raises CurateError for them unless `allow_stale`."""
    warnings = []
    for state in states:
        if problem := state.problem():
            if not allow_stale:
                raise CurateError(f"{state} {problem}; run `{state.command()}`, or --allow-stale.")
            warnings.append(f"{state} {problem}")
    return warnings


def score_state(ws: Workspace, name: str) -> TableState:
    """The state of a score. Raises CurateError if there is none of that name."""
    return table_state(ws, "score", name)


def table_state(ws: Workspace, kind: str, name: str) -> TableState:
    """The state of a score or of vectors. Raises CurateError if there is no such table."""
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
        return f"the vectors '{made_of}' were recomputed since"
    if recipe["scope"] == "pool" and recipe["pool_fingerprint"] != pool_fingerprint(ws.shards()):
        return "the pool has grown"
    return None
