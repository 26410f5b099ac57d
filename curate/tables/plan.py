"""The tables that a command computes: their inputs, the checks on their names, and which share passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curate.errors import CurateError, nearest
from curate.kinds.score import Score
from curate.models.choice import SHORT_NAMES, ModelChoice
from curate.store.recipes import TableRecipe
from curate.store.schema import POOL_COLUMNS
from curate.store.workspace import Workspace
from curate.tables.inputs import (
    CheckpointSet,
    HeldOut,
    default_score_name,
    load_target,
    sample_columns,
    score_recipe,
)
from curate.tables.spec import TableSpec

Models = Mapping[str, ModelChoice]  # by role; '' is the first role of each method


@dataclass(frozen=True)
class Names:
    """The names of a method's tables, if not the default."""

    score: str | None = None
    vectors: str | None = None


def plan(
    ws: Workspace,
    method: Score,
    target_name: str | None,
    names: Names,
    models: Mapping[str, ModelChoice],
    checkpoint_set: CheckpointSet | None = None,
    held_out: HeldOut | None = None,
) -> list[TableSpec]:
    """The tables of a score, in the order of computation: its vectors, if it has any, and then the score.

    models: of the method, by role. Raises CurateError if its target is missing or a name is invalid.
    """
    on_vectors = method.vectors() is not None
    if method.uses_target and not target_name and not on_vectors:
        raise CurateError(f"the score '{method.name}' needs a target: add --target NAME (`curate target` makes one).")
    if names.vectors and not on_vectors:
        raise CurateError(f"the score '{method.name}' is not made of vectors; leave out --vectors {names.vectors}.")
    target = load_target(ws, target_name, method.splits) if method.uses_target and target_name else None
    if on_vectors and target is None and names.vectors and names.score:
        raise CurateError(f"without a target '{method.name}' stores its vectors only: leave out --name {names.score}.")
    checkpoint_set = checkpoint_set or CheckpointSet()
    shards, jobs, vectors = ws.require_pool(), [], None
    if on_vectors:
        its = vectors_name(method, names, target is not None)
        ws.check_name(its, "vectors")
        vectors = TableSpec(ws, its, method, target, shards, dict(models), "vectors", checkpoint_set=checkpoint_set)
        jobs.append(vectors)
    if target or not on_vectors:
        made_of = vectors.name if vectors else method.name
        name = names.score or default_score_name(made_of, target.name if target else None)
        ws.check_name(name, "score")
        held_out = held_out or HeldOut()
        jobs.append(
            TableSpec(
                ws,
                name,
                method,
                target,
                shards,
                dict(models),
                vectors=vectors,
                checkpoint_set=checkpoint_set,
                held_out=held_out,
            )
        )
        _refuse_hidden_columns(jobs[-1])
    return jobs


def vectors_name(method: Score, names: Names, with_target: bool) -> str:
    """The name of a method's vectors; without a target, --name refers to them."""
    return names.vectors or (names.score if not with_target else None) or method.name


def models_of(method: Score, models: Models, others: Sequence[Score]) -> dict[str, ModelChoice]:
    """The models of a method by role.

    A model given without a role is used for the first role of each method; but if any of `others`, the methods of the
    same command, has a base model, it is used for the role `base` only. Raises CurateError if a model is missing.
    """
    bare_is_base = any("base" in other.models for other in others)
    found = {}
    for i, role in enumerate(method.models):
        bare = models.get("") if i == 0 and (role == "base" or not bare_is_base) else None
        usual = method.usual_models.get(role)
        same = found.get(method.same_models.get(role, ""))
        choice = models.get(role) or bare or (ModelChoice(usual) if usual else same)
        if choice is None:
            which = "MODEL" if i == 0 else f"{role}=MODEL"
            raise CurateError(
                f"the score '{method.name}' needs a model: add --model {which}; MODEL is a folder, a .gguf file, a hub "
                f"id or one of {', '.join(SHORT_NAMES)}."
            )
        found[role] = choice
    return found


def refuse_same_names(jobs: Sequence[TableSpec]) -> None:
    """Raises CurateError if two tables of one command would have the same name."""
    seen: dict[str, TableSpec] = {}
    for job in jobs:
        if job.name in seen:
            raise CurateError(
                f"'{job.name}' would be the name of {seen[job.name].what} and of {job.what}; choose another by --name "
                "or --vectors."
            )
        seen[job.name] = job


def refuse_unknown_roles(models: Models, methods: Sequence[Score]) -> None:
    """Raises CurateError if a model is given for a role that no method has."""
    known = list(dict.fromkeys(role for method in methods for role in method.models))
    for role in models:
        if role and role not in known:
            has = nearest(role, known) if known else "they use no model."
            raise CurateError(f"--model {role}=…: none of the methods has the role '{role}': {has}")


def _refuse_hidden_columns(job: TableSpec) -> None:
    """Raises CurateError if the score's columns in `samples` (NAME, NAME_COLUMN) clash with those of another score."""
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


def groups(jobs: Sequence[TableSpec]) -> list[list[TableSpec]]:
    """Groups of jobs that share passes: those that use models, and use the same model in each role."""
    found: list[list[TableSpec]] = []
    for job in jobs:
        together = [g for g in found if job.through_models and g[0].through_models and _agree(job, g)]
        if together:
            together[0].append(job)
        else:
            found.append([job])
    return found


def _agree(job: TableSpec, group: Sequence[TableSpec]) -> bool:
    if job.both_ways != group[0].both_ways or job.checkpoints != group[0].checkpoints:
        return False
    if job.held_out.stamp != group[0].held_out.stamp:
        return False
    models = {role: choice for other in group for role, choice in other.models.items()}
    shared = set(models) & set(job.models)  # without a shared model, keeping both in memory gains nothing
    return bool(shared) and all(models[role] == job.models[role] for role in shared)


def roles(models: Models | ModelChoice | str | None) -> Models:
    """Role -> model; '' is the first role of each method."""
    if isinstance(models, Mapping):
        return models
    if models is None:
        return {}
    return {"": ModelChoice(models) if isinstance(models, str) else models}


def refuse_other_recipe(old: TableRecipe | None, job: TableSpec) -> None:
    """Raises CurateError if the existing table differs in more than the contents of the pool and the target."""
    if old is None:
        return
    verb = "were" if job.kind == "vectors" else "was"
    remedy = f"choose another --{'vectors' if job.kind == 'vectors' else 'name'}, or --fresh to replace "
    remedy += "them." if job.kind == "vectors" else "it."
    for what in ("method", "target", "version"):
        before, now = getattr(old, what), getattr(job.recipe, what)
        if before != now:
            raise CurateError(f"{job} {verb} made with {what} {before}, not {now}; {remedy}")
    for role, model in job.recipe.models.items():
        had = old.models[role].shape() if role in old.models else {}
        for key, value in model.shape().items():
            if had.get(key) != value:
                what = f"another {role} model or another {key} of it"
                raise CurateError(f"{job} {verb} made with {what} ({had.get(key)}, not {value}); {remedy}")
    for key, value in job.recipe.settings.items():
        if old.settings.get(key) != value:
            before = old.settings.get(key)
            raise CurateError(f"{job} {verb} made with {key}={before}, not {key}={value}; {remedy}")
    _refuse_other_checkpoints(old, job, verb, remedy)


def _refuse_other_checkpoints(old: TableRecipe, job: TableSpec, verb: str, remedy: str) -> None:
    if job.checkpoint_set.planned:
        return
    had, has = old.checkpoints, job.recipe.checkpoints
    if len(had) != len(has):
        raise CurateError(f"{job} {verb} made with {len(had)} checkpoints, not {len(has)}; {remedy}")
    for before, now in zip(had, has, strict=True):
        if (before.weights, before.optimizer) != (now.weights, now.optimizer):
            raise CurateError(f"{job} {verb} made with another checkpoint ({before.name}, not {now.name}); {remedy}")
        if before.lr != now.lr:
            raise CurateError(
                f"{job} {verb} made with the learning rate {before.lr} of {now.name}, not {now.lr}; {remedy}"
            )
