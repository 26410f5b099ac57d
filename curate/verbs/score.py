"""`curate score`: a column of scores, by each method named, for every sample of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from curate.errors import CurateError
from curate.kinds.executor import Executor
from curate.kinds.score import Score
from curate.methods.executors.local import Local
from curate.models.choice import ModelChoice
from curate.runs.held_out import held_out_of
from curate.runs.warmup import checkpoint_set_of
from curate.store.workspace import Workspace
from curate.tables.dry_run import estimate
from curate.tables.engine import Scored, run_group, stored_recipe
from curate.tables.plan import (
    Models,
    Names,
    groups,
    models_of,
    plan,
    refuse_other_recipe,
    refuse_same_names,
    refuse_unknown_roles,
    roles,
    vectors_name,
)
from curate.tables.recipes import CheckpointSet, model_of


def score(
    ws: Workspace,
    *methods: Score,
    target: str | None = None,
    names: Mapping[str, str] | None = None,
    vectors: Mapping[str, str] | None = None,
    fresh: bool = False,
    executor: Executor | None = None,
    models: Models | ModelChoice | str | None = None,
    checkpoints: Sequence[str] = (),
    dry_run: bool = False,
) -> list[Scored]:
    """Score every sample of the pool by each method.

    Methods of one pass through the same model share it: the samples go through once. A method with vectors (embed,
    embed_lm) stores them first, under a name of their own, for every target; without a target it stores only those.

    target: the target of the methods that use one. names: method -> score name, where not the default (METHOD, or
    METHOD_TARGET; VECTORS_TARGET of a score made of vectors). vectors: method -> name of its vectors (default: METHOD).
    fresh: compute again beside the old table and swap; vectors that are not otherwise serve a score as they are.
    executor: who does the work (default: Local()); the bytes do not depend on it. models: the model, or role -> model,
    for methods that need one. checkpoints: those that methods by gradients look at, by the name of a run or a folder,
    in place of a model (a model without a name has the settings of theirs). dry_run: say what would be computed.

    Raises CurateError for a missing target, a name that is taken, or a table of other settings under the name, and
    CurateFailure where a worker is lost again and again or the method fails; the same call then goes on from there.
    """
    if not methods:
        raise CurateError(
            "name at least one score method, as in `curate score length`; `curate methods score` lists them."
        )
    if target and not any(method.uses_target for method in methods):
        raise CurateError(
            f"no method of {', '.join(m.name for m in methods)} uses a target; leave out --target {target}."
        )
    for option, given in (("--name", names), ("--vectors", vectors)):
        if unknown := set(given or {}) - {method.name for method in methods}:
            raise CurateError(
                f"{option} speaks of {', '.join(sorted(unknown))}, which is not among the methods to score."
            )
    twice = [m.name for i, m in enumerate(methods) if m.name in {other.name for other in methods[:i]}]
    if twice:
        raise CurateError(f"the method {twice[0]} is named twice; run it twice, each time under a --name of its own.")
    chosen = {role: model_of(ws, choice) for role, choice in roles(models).items()}
    refuse_unknown_roles(chosen, methods)
    _refuse_checkpoints(checkpoints, chosen, methods)
    planned = []
    for method in methods if not dry_run else ():  # what is refused is refused before a warm-up is trained
        called = Names((names or {}).get(method.name), (vectors or {}).get(method.name))
        its, checkpoint_set = _models(ws, method, methods, chosen, checkpoints, called, target, fresh, True)
        for job in plan(
            ws, method, target, called, its, checkpoint_set, held_out_of(ws, method, checkpoint_set, target)
        ):
            if not fresh:
                refuse_other_recipe(stored_recipe(job), job)
    for method in methods:
        called = Names((names or {}).get(method.name), (vectors or {}).get(method.name))
        its, checkpoint_set = _models(ws, method, methods, chosen, checkpoints, called, target, fresh, dry_run)
        planned.append(
            plan(ws, method, target, called, its, checkpoint_set, held_out_of(ws, method, checkpoint_set, target))
        )
    jobs = [job for its in planned for job in its]
    refuse_same_names(jobs)
    if dry_run:
        found = {id(job): estimate(job, fresh) for job in jobs}
    else:
        with closing((executor or Local()).open()) as workers:
            found = {id(job): result for group in groups(jobs) for job, result in run_group(group, fresh, workers)}
    results = []
    for *before, last in planned:
        results.append(found[id(last)])
        results[-1].vectors = found[id(before[0])] if before else None
    return results


def _refuse_checkpoints(given: Sequence[str], models: Models, methods: Sequence[Score]) -> None:
    """Raises CurateError for checkpoints that no method looks at, or beside a model that no method would use."""
    if given and all(method.checkpoints == "none" for method in methods):
        raise CurateError(
            f"no method of {', '.join(m.name for m in methods)} looks at checkpoints; leave out --checkpoints "
            f"{given[0]}."
        )
    named = next((choice.name for role, choice in models.items() if role in ("", "base") and choice.name), None)
    if given and named and all(method.checkpoints != "none" for method in methods):
        raise CurateError(f"with --checkpoints the model is theirs; leave out --model {named}.")


def _models(
    ws: Workspace,
    method: Score,
    methods: Sequence[Score],
    chosen: Models,
    checkpoints: Sequence[str],
    called: Names,
    target: str | None,
    fresh: bool,
    dry_run: bool,
) -> tuple[dict[str, ModelChoice], CheckpointSet]:
    """A method's models by role, and the checkpoints of its base model."""
    if method.checkpoints == "none":
        return models_of(method, chosen, methods), CheckpointSet()
    vectors = vectors_name(method, called, target is not None)
    if not checkpoints:
        its = models_of(method, chosen, methods)
        return its, checkpoint_set_of(ws, method, its["base"], (), vectors, fresh=fresh, dry_run=dry_run)
    bare = chosen.get("base") or chosen.get("") or ModelChoice("")
    checkpoint_set = checkpoint_set_of(ws, method, bare, checkpoints, vectors)
    base = checkpoint_set.checkpoints[-1].model
    origin = chosen.get("origin") or checkpoint_set.origin
    if "origin" in method.models and origin is None:
        raise CurateError(
            f"the score '{method.name}' compares with the model that training began with, which nothing says of "
            f"{checkpoints[-1]}: add --model origin=MODEL."
        )
    return models_of(
        method, {**chosen, "": base, "base": base, **({"origin": origin} if origin else {})}, methods
    ), checkpoint_set
