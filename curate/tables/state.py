"""What a stored score was made from, and whether it is still valid."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from curate.errors import CurateError
from curate.store.commits import Parts
from curate.store.recipes import TableRecipe
from curate.store.workspace import Shard, Workspace, pool_fingerprint
from curate.tables.inputs import changed_settings, default_score_name, settings_words, table_recipe, target_fingerprint


@dataclass(frozen=True)
class TableState:
    """The current state of a score, or of vectors.

    recipe: score.json, or vectors.json. done: the shards that are computed. todo: those that are not. stale: why it is
    no longer valid, or None.
    """

    kind: str
    name: str
    recipe: TableRecipe
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
        recipe = self.recipe
        if recipe.attached:
            return shlex.join(_attach_words(self.kind, self.name, recipe))
        words = ["curate", "score", recipe.method]
        target = recipe.target or target
        words += ["--target", target] if target else []
        words += [word for name in recipe.checkpoints_given for word in ("--checkpoints", name)]
        for role, model in recipe.models.items():
            words += [] if recipe.checkpoints_given and role == "base" else ["--model", f"{role}={model.name}"]
            words += settings_words({f"model.{key}": value for key, value in changed_settings(model).items()})
        words += settings_words(recipe.changed)
        vectors = self.name if self.kind == "vectors" else recipe.vectors
        words += ["--vectors", vectors] if vectors not in ("", recipe.method) else []
        default = default_score_name(vectors or recipe.method, target)
        words += [] if self.kind == "vectors" or self.name == default else ["--name", self.name]
        return shlex.join(words)


def _attach_words(kind: str, name: str, recipe: TableRecipe) -> list[str]:
    """The words of the command that attaches it again."""
    attached = recipe.attached
    assert attached is not None
    columns = recipe.settings.get("columns", {}).items()
    words = ["curate", "attach", name, *attached.files, "--by", attached.by]
    words += ["--vector" if kind == "vectors" else "--score", attached.column]
    words += [word for own, column in columns for word in ("--column", f"{own}={column}")]
    return words + ["--ignore-unknown"] * bool(recipe.settings.get("ignore_unknown"))


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


def table_state(ws: Workspace, kind: str, name: str, lost_ok: bool = False) -> TableState:
    """The state of a score or of vectors. lost_ok: parts that were lost count as not computed.

    Raises CurateError if there is no such table, DamagedError if it has lost parts, or the pool has.
    """
    ws.require(kind, name)
    recipe, records = table_recipe(ws, kind, name), Parts(ws.table_folder(kind, name)).records(lost_ok)
    done, todo, nulls = [], [], 0
    for shard in ws.shards():
        record = records.get(shard.name)
        if record and record["fingerprint"] == recipe.fingerprint and record["shard"] == shard.sha256:
            done.append(shard)
            nulls += record["nulls"]
        elif shard.rows:
            todo.append(shard)
    return TableState(kind, name, recipe, tuple(done), tuple(todo), nulls, _stale(ws, recipe))


def _stale(ws: Workspace, recipe: TableRecipe) -> str | None:
    if recipe.target:
        if recipe.target not in ws.target_names():
            return f"the target '{recipe.target}' is gone"
        try:
            current = target_fingerprint(ws, recipe.target, recipe.splits or ("val",))
        except CurateError:
            return f"the target '{recipe.target}' has no val split any more"
        if current != recipe.target_fingerprint:
            return f"the target '{recipe.target}' was edited"
    if (
        recipe.vectors in ws.vectors_names()
        and table_recipe(ws, "vectors", recipe.vectors).fingerprint != recipe.vectors_fingerprint
    ):
        return f"the vectors '{recipe.vectors}' were recomputed since"
    if recipe.scope == "pool" and recipe.pool_fingerprint != pool_fingerprint(ws.shards()):
        return "the pool has grown"
    return None
