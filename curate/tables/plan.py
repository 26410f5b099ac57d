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
        table_name = vectors_name(method, names, target is not None)
        ws.check_name(table_name, "vectors")
        vectors = TableSpec(
            ws, table_name, method, target, shards, dict(models), "vectors", checkpoint_set=checkpoint_set
        )
        jobs.append(vectors)
    if target or not on_vectors:
        source_name = vectors.name if vectors else method.name
        name = names.score or default_score_name(source_name, target.name if target else None)
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
        refuse_hidden_columns(ws, name, jobs[-1].recipe)
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
    by_role = {}
    for i, role in enumerate(method.models):
        bare = models.get("") if i == 0 and (role == "base" or not bare_is_base) else None
        usual_name = method.usual_models.get(role)
        shared = by_role.get(method.same_models.get(role, ""))
        choice = models.get(role) or bare or (ModelChoice(usual_name) if usual_name else shared)
        if choice is None:
            argument = "MODEL" if i == 0 else f"{role}=MODEL"
            raise CurateError(
                f"the score '{method.name}' needs a model: add --model {argument}; MODEL is a folder, a .gguf file, a "
                f"hub id or one of {', '.join(SHORT_NAMES)}."
            )
        by_role[role] = choice
    return by_role


def refuse_same_names(jobs: Sequence[TableSpec]) -> None:
    """Raises CurateError if two tables of one command would have the same name."""
    by_name: dict[str, TableSpec] = {}
    for job in jobs:
        if job.name in by_name:
            raise CurateError(
                f"'{job.name}' would be the name of {by_name[job.name].what} and of {job.what}; choose another by "
                "--name or --vectors."
            )
        by_name[job.name] = job


def refuse_unknown_roles(models: Models, methods: Sequence[Score]) -> None:
    """Raises CurateError if a model is given for a role that no method has."""
    known_roles = list(dict.fromkeys(role for method in methods for role in method.models))
    for role in models:
        if role and role not in known_roles:
            hint = nearest(role, known_roles) if known_roles else "they use no model."
            raise CurateError(f"--model {role}=…: none of the methods has the role '{role}': {hint}")


def refuse_hidden_columns(ws: Workspace, name: str, recipe: TableRecipe) -> None:
    """Raises CurateError if the score's columns in `samples` (NAME, NAME_COLUMN) clash with those of another score."""
    owner = dict.fromkeys(POOL_COLUMNS, "the pool")
    for score_name in set(ws.score_names()) - {name}:
        columns = sample_columns(score_name, score_recipe(ws, score_name))
        owner |= dict.fromkeys(columns.values(), f"the score '{score_name}'")
    for column in sample_columns(name, recipe).values():
        if column in owner:
            raise CurateError(
                f"the score '{name}' would have the column {column} in `samples`, which is one of {owner[column]}; "
                "choose another --name."
            )


def groups(jobs: Sequence[TableSpec]) -> list[list[TableSpec]]:
    """Groups of jobs that share passes: those that use models, and use the same model in each role."""
    grouped: list[list[TableSpec]] = []
    for job in jobs:
        matching = [g for g in grouped if job.through_models and g[0].through_models and _agree(job, g)]
        if matching:
            matching[0].append(job)
        else:
            grouped.append([job])
    return grouped


def _agree(job: TableSpec, group: Sequence[TableSpec]) -> bool:
    if job.both_ways != group[0].both_ways or job.checkpoints != group[0].checkpoints:
        return False
    if job.held_out.stamp != group[0].held_out.stamp:
        return False
    models = {role: choice for other_job in group for role, choice in other_job.models.items()}
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
    for difference in ("method", "target", "version"):
        old_value, new_value = getattr(old, difference), getattr(job.recipe, difference)
        if old_value != new_value:
            raise CurateError(f"{job} {verb} made with {difference} {old_value}, not {new_value}; {remedy}")
    for role, model in job.recipe.models.items():
        old_shape = old.models[role].shape() if role in old.models else {}
        for key in dict.fromkeys([*(shape := model.shape()), *old_shape]):
            if old_shape.get(key) != (value := shape.get(key)):
                difference = f"another {role} model or another {key} of it"
                raise CurateError(f"{job} {verb} made with {difference} ({old_shape.get(key)}, not {value}); {remedy}")
    for key, value in job.recipe.settings.items():
        if old.settings.get(key) != value:
            old_value = old.settings.get(key)
            raise CurateError(f"{job} {verb} made with {key}={old_value}, not {key}={value}; {remedy}")
    _refuse_other_checkpoints(old, job, verb, remedy)


def _refuse_other_checkpoints(old: TableRecipe, job: TableSpec, verb: str, remedy: str) -> None:
    if job.checkpoint_set.planned:
        return
    old_checkpoints, new_checkpoints = old.checkpoints, job.recipe.checkpoints
    if len(old_checkpoints) != len(new_checkpoints):
        raise CurateError(
            f"{job} {verb} made with {len(old_checkpoints)} checkpoints, not {len(new_checkpoints)}; {remedy}"
        )
    for old_checkpoint, new_checkpoint in zip(old_checkpoints, new_checkpoints, strict=True):
        if (old_checkpoint.weights, old_checkpoint.optimizer) != (new_checkpoint.weights, new_checkpoint.optimizer):
            raise CurateError(
                f"{job} {verb} made with another checkpoint ({old_checkpoint.name}, not {new_checkpoint.name}); "
                f"{remedy}"
            )
        if old_checkpoint.lr != new_checkpoint.lr:
            raise CurateError(
                f"{job} {verb} made with the learning rate {old_checkpoint.lr} of {new_checkpoint.name}, not "
                f"{new_checkpoint.lr}; {remedy}"
            )
