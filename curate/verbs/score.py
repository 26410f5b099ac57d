"""`curate score`: a column of scores, by each method named, for every sample of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

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
from curate.tables.spec import TableSpec


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
    asked = _Asked(
        ws,
        methods,
        {role: model_of(ws, choice) for role, choice in roles(models).items()},
        target,
        names or {},
        vectors or {},
        tuple(checkpoints),
        fresh,
    )
    asked.refuse_contradictions()
    planned = [asked.tables(method, train=False) for method in methods]
    specs = [spec for tables in planned for spec in tables]
    refuse_same_names(specs)
    if not fresh:  # what is refused is refused before a warm-up is trained
        for spec in specs:
            refuse_other_recipe(stored_recipe(spec), spec)
    if dry_run:
        return _results(planned, [(spec, estimate(spec, fresh)) for spec in specs])
    planned = [
        asked.tables(method, train=True) if any(spec.awaits_warm_up for spec in tables) else tables
        for method, tables in zip(methods, planned, strict=True)
    ]
    with closing((executor or Local()).open()) as workers:
        shared = groups([spec for tables in planned for spec in tables])
        return _results(planned, [done for group in shared for done in run_group(group, fresh, workers)])


def _results(planned: Sequence[Sequence[TableSpec]], done: Sequence[tuple[TableSpec, Scored]]) -> list[Scored]:
    """What was done for each method: to its score, with what was done to the vectors it is made of."""
    of_spec = {id(spec): result for spec, result in done}
    results = []
    for *before, last in planned:
        results.append(of_spec[id(last)])
        results[-1].vectors = of_spec[id(before[0])] if before else None
    return results


@dataclass(frozen=True)
class _Asked:
    """What one call asks for. models: by role, '' for one that was given without. names, vectors: by method."""

    ws: Workspace
    methods: Sequence[Score]
    models: Models
    target: str | None
    names: Mapping[str, str]
    vectors: Mapping[str, str]
    checkpoints: Sequence[str]
    fresh: bool

    def refuse_contradictions(self) -> None:
        """Raises CurateError for what no method can make use of, or that says one thing twice."""
        listed = [method.name for method in self.methods]
        if not listed:
            raise CurateError(
                "name at least one score method, as in `curate score length`; `curate methods score` lists them."
            )
        if self.target and not any(method.uses_target for method in self.methods):
            raise CurateError(f"no method of {', '.join(listed)} uses a target; leave out --target {self.target}.")
        for option, given in (("--name", self.names), ("--vectors", self.vectors)):
            if unknown := set(given) - set(listed):
                raise CurateError(
                    f"{option} speaks of {', '.join(sorted(unknown))}, which is not among the methods to score."
                )
        if twice := [name for i, name in enumerate(listed) if name in listed[:i]]:
            raise CurateError(
                f"the method {twice[0]} is named twice; run it twice, each time under a --name of its own."
            )
        refuse_unknown_roles(self.models, self.methods)
        self._refuse_checkpoints(listed)

    def _refuse_checkpoints(self, listed: Sequence[str]) -> None:
        """Raises CurateError for checkpoints that no method looks at, or beside a model that no method would use."""
        given = self.checkpoints
        if given and all(method.checkpoints == "none" for method in self.methods):
            raise CurateError(
                f"no method of {', '.join(listed)} looks at checkpoints; leave out --checkpoints {given[0]}."
            )
        named = next((m.name for role, m in self.models.items() if role in ("", "base") and m.name), None)
        if given and named and all(method.checkpoints != "none" for method in self.methods):
            raise CurateError(f"with --checkpoints the model is theirs; leave out --model {named}.")

    def tables(self, method: Score, train: bool) -> list[TableSpec]:
        """The tables to compute for a method. train: its warm-up, where it has one that is not there yet."""
        called = Names(self.names.get(method.name), self.vectors.get(method.name))
        models, checkpoint_set = self._models(method, called, train)
        held_out = held_out_of(self.ws, method, checkpoint_set, self.target)
        return plan(self.ws, method, self.target, called, models, checkpoint_set, held_out)

    def _models(self, method: Score, called: Names, train: bool) -> tuple[dict[str, ModelChoice], CheckpointSet]:
        """A method's models by role, and the checkpoints of its base model."""
        if method.checkpoints == "none":
            return models_of(method, self.models, self.methods), CheckpointSet()
        vectors = vectors_name(method, called, self.target is not None)
        if not self.checkpoints:
            models = models_of(method, self.models, self.methods)
            base = models["base"]
            return models, checkpoint_set_of(self.ws, method, base, (), vectors, fresh=self.fresh, dry_run=not train)
        bare = self.models.get("base") or self.models.get("") or ModelChoice("")
        found = checkpoint_set_of(self.ws, method, bare, self.checkpoints, vectors)
        base, origin = found.checkpoints[-1].model, self.models.get("origin") or found.origin
        if "origin" in method.models and origin is None:
            raise CurateError(
                f"the score '{method.name}' compares with the model that training began with, which nothing says of "
                f"{self.checkpoints[-1]}: add --model origin=MODEL."
            )
        beside = {"origin": origin} if origin else {}
        return models_of(method, {**self.models, "": base, "base": base, **beside}, self.methods), found
