"""`curate score`: a column of scores for every sample of the pool, by each of the named methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.executor import Executor
from curate.kinds.score import Score
from curate.methods.executors.local import Local
from curate.models.choice import ModelChoice
from curate.models.rates import with_fast_products
from curate.runs.compared import compared
from curate.runs.dry_run import DryRun
from curate.runs.held_out import held_out_of
from curate.runs.replayed import replayed
from curate.runs.score_reach import in_words, reach_of
from curate.runs.warmup import checkpoint_set_of
from curate.store.recipes import TableRecipe
from curate.store.workspace import Workspace
from curate.tables.engine import Scored, is_complete, run_group, stored_recipe
from curate.tables.inputs import CheckpointSet, by_rule, default_score_name, model_of, table_recipe
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
from curate.tables.spec import TableSpec

_BEFOREHAND = {"training": replayed, "pairs": compared}  # what runs before the tables are made, by what it is over


def score(
    ws: AnyWorkspace,
    *methods: Score | str,
    target: str | None = None,
    names: Mapping[str, str] | None = None,
    vectors: Mapping[str, str] | None = None,
    fresh: bool = False,
    executor: Executor | str | None = None,
    models: Models | ModelChoice | str | None = None,
    checkpoints: Sequence[str] = (),
    dry_run: bool = False,
    wait: float | None = None,
) -> list[Scored]:
    """Score every sample of the pool by each method, given by its name or as an object.

    Methods that use the same model share one pass through it. A method with vectors (embed, embed_lm) stores them
    first, under their own name, for use with any target; without a target it stores only the vectors.

    target: the target of the methods that use one. names: method -> score name, if not the default (METHOD, or
    METHOD_TARGET; VECTORS_TARGET for a score on vectors). vectors: method -> name of its vectors (default: METHOD).
    fresh: compute again beside the old table and swap; a score on vectors re-uses these if they are unchanged.
    executor: runs the tasks (default: local); the bytes written do not depend on it. models: the model, or role ->
    model, for methods that need one. checkpoints: the checkpoints of gradient-based methods, as the name of a run or a
    folder, in place of a model (a model without a name supplies their settings). dry_run: only estimate the work.

    Raises CurateError for a missing target, a name that is taken, or a table of other settings under that name, and
    CurateFailure if a worker is lost repeatedly or the method fails; the same call then resumes.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, wait=wait)
    given = [method_of(Score, method) for method in methods]
    request = _Asked(
        ws,
        given,
        {role: model_of(ws, choice) for role, choice in roles(models).items()},
        target,
        names or {},
        vectors or {},
        tuple(checkpoints),
        fresh,
    )
    request.refuse_contradictions()
    planned = [request.tables(method, train=False) for method in given]
    specs = [spec for tables in planned for spec in tables]
    refuse_same_names(specs)
    if not fresh:  # refuse before a warm-up is trained
        for spec in specs:
            refuse_other_recipe(stored_recipe(spec), spec)
    if dry_run:
        run = DryRun(ws, fresh)
        return _results(planned, [outcome for group in groups(specs) for outcome in run.group(group)])
    planned = [
        request.tables(method, train=True) if any(spec.awaits_warm_up for spec in tables) else tables
        for method, tables in zip(given, planned, strict=True)
    ]
    for spec in (spec for tables in planned for spec in tables):
        beforehand = _BEFOREHAND.get(spec.passes[0].over)
        if beforehand and (fresh or not is_complete(spec)):
            beforehand(spec)
    runs_on = method_of(Executor, executor) if executor is not None else Local()
    with closing(runs_on.open()) as workers:
        shared = groups([spec for tables in planned for spec in tables])
        results = _results(planned, [outcome for group in shared for outcome in run_group(group, fresh, workers)])
    for method, result in zip(given, results, strict=True):
        if method.predicts_a_step and result.computed and isinstance(runs_on, Local):
            result.note = "; ".join(part for part in (result.note, in_words(reach_of(ws, result.name))) if part)
    return results


def _results(planned: Sequence[Sequence[TableSpec]], outcomes: Sequence[tuple[TableSpec, Scored]]) -> list[Scored]:
    """The result for each method: of its score, with the result for the vectors that it is computed from."""
    of_spec = {id(spec): result for spec, result in outcomes}
    results = []
    for *earlier, last_spec in planned:
        results.append(of_spec[id(last_spec)])
        results[-1].vectors = of_spec[id(earlier[0])] if earlier else None
    return results


@dataclass(frozen=True)
class _Asked:
    """The arguments of one call. models: by role, '' if given without a role. names, vectors: by method."""

    ws: Workspace
    methods: Sequence[Score]
    models: Models
    target: str | None
    names: Mapping[str, str]
    vectors: Mapping[str, str]
    checkpoints: Sequence[str]
    fresh: bool

    def refuse_contradictions(self) -> None:
        """Raises CurateError for arguments that no method uses, or that contradict each other."""
        method_names = [method.name for method in self.methods]
        if not method_names:
            raise CurateError(
                "name at least one score method, as in `curate score length`; `curate methods score` lists them."
            )
        if self.target and not any(method.uses_target for method in self.methods):
            raise CurateError(
                f"no method of {', '.join(method_names)} uses a target; leave out --target {self.target}."
            )
        for option, by_method in (("--name", self.names), ("--vectors", self.vectors)):
            if unknown := set(by_method) - set(method_names):
                raise CurateError(
                    f"{option} names {', '.join(sorted(unknown))}, which is not among the methods to score."
                )
        if twice := [name for i, name in enumerate(method_names) if name in method_names[:i]]:
            raise CurateError(
                f"the method {twice[0]} is named twice; run it twice, each time under a --name of its own."
            )
        refuse_unknown_roles(self.models, self.methods)
        self._refuse_checkpoints(method_names)

    def _refuse_checkpoints(self, method_names: Sequence[str]) -> None:
        """Raises CurateError for checkpoints that no method uses, or if they make a given model unused."""
        checkpoints = self.checkpoints
        if checkpoints and all(method.checkpoints == "none" for method in self.methods):
            raise CurateError(
                f"no method of {', '.join(method_names)} uses checkpoints; leave out --checkpoints {checkpoints[0]}."
            )
        model_name = next((m.name for role, m in self.models.items() if role in ("", "base") and m.name), None)
        if checkpoints and model_name and all(method.checkpoints != "none" for method in self.methods):
            raise CurateError(f"with --checkpoints the model is theirs; leave out --model {model_name}.")

    def tables(self, method: Score, train: bool) -> list[TableSpec]:
        """The tables to compute for a method. train: whether to train its warm-up, if it has one and it is missing."""
        called = Names(self.names.get(method.name), self.vectors.get(method.name))
        models, checkpoint_set = self._models(method, called, train)
        held_out = held_out_of(self.ws, method, checkpoint_set, self.target)
        return plan(self.ws, method, self.target, called, models, checkpoint_set, held_out)

    def _models(self, method: Score, names: Names, train: bool) -> tuple[dict[str, ModelChoice], CheckpointSet]:
        """A method's models by role, and the checkpoints of its base model."""
        old = self._stored(method, names)
        if method.checkpoints == "none":
            return self._models_of(method, self.models, old), CheckpointSet()
        vectors = vectors_name(method, names, self.target is not None)
        if not self.checkpoints:
            models = self._models_of(method, self.models, old)
            base = models["base"]
            return models, checkpoint_set_of(self.ws, method, base, (), vectors, fresh=self.fresh, dry_run=not train)
        bare = self.models.get("base") or self.models.get("") or by_rule(self.ws, ModelChoice(""))
        bare = _with_dtype(method, "base", bare, old)
        checkpoints = checkpoint_set_of(self.ws, method, bare, self.checkpoints, vectors)
        base, origin = checkpoints.checkpoints[-1].model, self.models.get("origin") or checkpoints.origin
        if "origin" in method.used_models() and origin is None:
            raise CurateError(
                f"the score '{method.name}' compares with the model that training began with, which nothing "
                f"records for {self.checkpoints[-1]}: add --model origin=MODEL."
            )
        extra = {"origin": origin} if origin else {}
        return self._models_of(method, {**self.models, "": base, "base": base, **extra}, old), checkpoints

    def _models_of(self, method: Score, models: Models, old: TableRecipe | None) -> dict[str, ModelChoice]:
        """A method's models by role, also those that it has unless others are given. old: of the existing table."""
        choices = {role: by_rule(self.ws, choice) for role, choice in models_of(method, models, self.methods).items()}
        return {role: _with_dtype(method, role, choice, old) for role, choice in choices.items()}

    def _stored(self, method: Score, names: Names) -> TableRecipe | None:
        """The recipe of the table that the method's goes on with, if there is one: of its vectors, or of the score."""
        if method.vectors() is not None:
            kind, name = "vectors", vectors_name(method, names, self.target is not None)
            anew, existing = self.fresh and self.target is None, self.ws.vectors_names()
        else:
            kind, name = (
                "score",
                names.score or default_score_name(method.name, self.target if method.uses_target else None),
            )
            anew, existing = self.fresh, self.ws.score_names()
        return table_recipe(self.ws, kind, name) if name in existing and not anew else None


def _with_dtype(method: Score, role: str, choice: ModelChoice, old: TableRecipe | None) -> ModelChoice:
    """The choice with the dtype that `auto` is: the existing table's; else products in bfloat16, where these are faster
    and the score ranks in them as in float32."""
    if choice.dtype == "auto" and old is not None and role in old.models:
        return replace(choice, dtype=old.models[role].dtype)
    return with_fast_products(choice) if method.ranks_in_bfloat16 else choice
