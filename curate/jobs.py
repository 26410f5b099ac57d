"""The scores that a command is to compute: what each is made of, what it may not be named, which go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from curate.errors import CurateError
from curate.fingerprint import fingerprint
from curate.lineage import default_score_name, load_target, sample_columns, score_recipe
from curate.method import Pass, Score, Target
from curate.models.load import SHORT_NAMES, ModelChoice, unit_size, weights_fingerprint
from curate.schema import POOL_COLUMNS
from curate.shards import Parts
from curate.workspace import Shard, Workspace, pool_fingerprint

Models = Mapping[str, ModelChoice]  # by role; '' stands for the first role of each method


@dataclass(frozen=True)
class Job:
    """One score to compute, with what identifies it."""

    ws: Workspace
    name: str
    method: Score
    target: Target | None
    shards: list[Shard]
    models: dict[str, ModelChoice] = field(default_factory=dict)

    @cached_property
    def unit_size(self) -> float:
        """Characters of text in a unit: as many as the method says, or as models take some tens of seconds for."""
        return unit_size(self.models.values()) if self.models else self.method.unit_bytes

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """score.json: what the table is made of."""
        pool = pool_fingerprint(self.shards) if self.method.scope == "pool" else None
        target = self.target.fingerprint if self.target else None
        method, settings = self.method, self.method.settings()
        default = type(method)().settings()
        models = {
            role: {"name": choice.name, "weights": weights_fingerprint(choice), **choice.shaping()}
            for role, choice in self.models.items()
        }
        shaped_by = [{key: value for key, value in m.items() if key != "name"} for m in models.values()]
        return {
            "method": method.name,
            "version": method.version,
            "settings": settings,
            "changed": {key: value for key, value in settings.items() if value != default[key]},
            "scope": method.scope,
            "target": self.target.name if self.target else None,
            "target_fingerprint": target,
            "pool_fingerprint": pool,
            "columns": dict(method.columns),
            "keeps_subtasks": method.keeps_subtasks(),
            **({"models": models} if models else {}),
            "fingerprint": fingerprint(method.name, method.version, settings, target, pool, *shaped_by),
        }

    @cached_property
    def passes(self) -> Sequence[Pass]:
        return self.method.passes(self.target)

    def prepared(self, index: int, before: str) -> tuple[Parts, str]:
        """Where the partials of a counting pass lie, and the name of its state for the pool as it is."""
        step, settings = self.passes[index], self.method.settings()
        shaped_by = {
            s: self.target.fingerprint if s == "target" and self.target else settings[s] for s in step.shaped_by
        }
        shape = fingerprint(self.method.name, self.method.version, step.name, shaped_by, before)
        return Parts(self.ws.path / "prepared" / shape, ".safetensors"), f"state-{pool_fingerprint(self.shards)}"


def plan(ws: Workspace, method: Score, target_name: str | None, name: str | None, models: Models) -> Job:
    """A score to be computed. Raises CurateError where its target or model is missing, or its name will not do."""
    if method.uses_target and not target_name:
        raise CurateError(f"the score '{method.name}' needs a target: add --target NAME (`curate target` makes one).")
    target = load_target(ws, target_name) if method.uses_target and target_name else None
    name = name or default_score_name(method.name, target.name if target else None)
    ws.check_name(name, "score")
    job = Job(ws, name, method, target, ws.require_pool(), _models_of(method, models))
    _refuse_hidden_columns(job)
    return job


def _models_of(method: Score, models: Models) -> dict[str, ModelChoice]:
    """The models of a method by role."""
    found = {}
    for i, role in enumerate(method.models):
        choice = models.get(role) or (models.get("") if i == 0 else None)
        if choice is None:
            which = "MODEL" if i == 0 else f"{role}=MODEL"
            raise CurateError(
                f"the score '{method.name}' needs a model: add --model {which}; MODEL is a folder, a .gguf file, a hub "
                f"id or one of {', '.join(SHORT_NAMES)}."
            )
        found[role] = choice
    return found


def _refuse_hidden_columns(job: Job) -> None:
    """In `samples` a score has the columns NAME and NAME_COLUMN, which no other score's may hide."""
    taken = dict.fromkeys(POOL_COLUMNS, "the pool")
    for other in set(job.ws.score_names()) - {job.name}:
        columns = sample_columns(other, score_recipe(job.ws, other))
        taken |= dict.fromkeys(columns.values(), f"the score '{other}'")
    for column in sample_columns(job.name, job.recipe).values():
        if column in taken:
            raise CurateError(
                f"the score '{job.name}' would have the column {column} in `samples`, which is one of {taken[column]}; "
                "choose another --name."
            )


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that are done together: those that go through models, and agree in what model has a role."""
    found: list[list[Job]] = []
    for job in jobs:
        together = [group for group in found if job.models and _agree(job, group)]
        if together:
            together[0].append(job)
        else:
            found.append([job])
    return found


def _agree(job: Job, group: Sequence[Job]) -> bool:
    models = {role: choice for other in group for role, choice in other.models.items()}
    return bool(models) and all(models.get(role, choice) == choice for role, choice in job.models.items())


def roles(models: Models | ModelChoice | str | None) -> Models:
    """Role -> model; '' stands for the first role of each method."""
    if isinstance(models, Mapping):
        return models
    if models is None:
        return {}
    return {"": ModelChoice(models) if isinstance(models, str) else models}


def refuse_other_recipe(old: dict[str, Any] | None, job: Job) -> None:
    """Raises CurateError where the table of that name was made of something else than a stale pool or target."""
    if old is None:
        return
    for what in ("method", "target", "version"):
        if old[what] != job.recipe[what]:
            raise CurateError(
                f"the score '{job.name}' was made with {what} {old[what]}, not {job.recipe[what]}; "
                "choose another --name, or --fresh to replace it."
            )
    for role, model in job.recipe.get("models", {}).items():
        for key, value in model.items():
            before = old.get("models", {}).get(role, {}).get(key)
            if key != "name" and before != value:
                raise CurateError(
                    f"the score '{job.name}' was made with another {role} model or another {key} of it ({before}, not "
                    f"{value}); choose another --name, or --fresh to replace it."
                )
    for key, value in job.recipe["settings"].items():
        if old["settings"].get(key) != value:
            raise CurateError(
                f"the score '{job.name}' was made with {key}={old['settings'].get(key)}, not {key}={value}; "
                "choose another --name, or --fresh to replace it."
            )
