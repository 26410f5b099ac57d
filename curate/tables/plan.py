"""The tables that a command is to compute: what each is made of, what it may not be named, which go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from curate.errors import CurateError, nearest
from curate.hashing import fingerprint
from curate.kinds.passes import Pass, Slope
from curate.kinds.registry import Score, Target
from curate.models.load import (
    SHAPING,
    SHORT_NAMES,
    CheckpointChoice,
    ModelChoice,
    resolve,
    tensors_of,
    unit_size,
)
from curate.store.commits import Parts
from curate.store.files import Location
from curate.store.schema import POOL_COLUMNS
from curate.store.workspace import Shard, Workspace, pool_fingerprint
from curate.tables.run_costs import paid_for
from curate.tables.state import default_score_name, load_target, model_recipe, sample_columns, score_recipe

Models = Mapping[str, ModelChoice]  # by role; '' stands for the first role of each method


@dataclass(frozen=True)
class Looks:
    """The checkpoints that a method looks at. given: as the user named them; empty where a warm-up made them, which
    `warmup` tells of, or where it is the model as it is. origin: the model that their training began with, where
    that is known."""

    checkpoints: tuple[CheckpointChoice, ...] = ()
    given: tuple[str, ...] = ()
    warmup: Mapping[str, Any] = field(default_factory=dict)
    origin: ModelChoice | None = None

    def recipe(self, moments: bool) -> dict[str, Any]:
        """What there is of it, for a recipe; moments: whether the optimizer's state is looked at."""
        found: dict[str, Any] = {"checkpoints_given": list(self.given)} if self.given else {}
        if self.given or self.warmup:
            found["checkpoints"] = [checkpoint.recipe(moments) for checkpoint in self.checkpoints]
            if self.checkpoints and not self.warmup.get("planned"):
                found["parameters"] = tensors_of(resolve(self.checkpoints[-1].model.name))
        return {**found, **({"warmup": dict(self.warmup)} if self.warmup else {})}


@dataclass(frozen=True)
class Split:
    """The samples of the pool that a score leaves out: shard -> rows in it -> why. anchors: those among them that it
    looks at. stamp: of all this."""

    left_out: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    anchors: Target | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Job:
    """One table to compute, with what identifies it: a score, or the vectors that scores are made of.

    target: of vectors, the one that goes through the model beside the pool. vectors: what a score is made of.
    checkpoints: of the base model's training, where the samples go through it both ways.
    """

    ws: Workspace
    name: str
    method: Score
    target: Target | None
    shards: list[Shard]
    models: dict[str, ModelChoice] = field(default_factory=dict)
    kind: Literal["score", "vectors"] = "score"
    vectors: Job | None = None
    looks: Looks = field(default_factory=lambda: Looks())
    split: Split = field(default_factory=lambda: Split())

    def __str__(self) -> str:
        return f"the {self.kind} '{self.name}'"

    @property
    def what(self) -> str:
        return f"the {self.kind} that {self.method.name} makes"

    @property
    def folder(self) -> Location:
        return self.ws.table_folder(self.kind, self.name)

    @cached_property
    def passes(self) -> Sequence[Pass]:
        step = self.method.vectors() if self.kind == "vectors" else None
        return (step,) if step else self.method.passes(self.target)

    @property
    def through_models(self) -> bool:
        return bool(self.passes[-1].legs)

    @property
    def both_ways(self) -> bool:
        """Whether the samples go forward and backward."""
        return any(isinstance(leg, Slope) for leg in self.passes[-1].legs.values())

    @property
    def checkpoints(self) -> tuple[CheckpointChoice, ...]:
        return self.looks.checkpoints if self.both_ways else ()

    @property
    def shares(self) -> tuple[float, ...]:
        """What each checkpoint counts for: its learning rate, over all of theirs."""
        rates = [c.lr for c in self.looks.checkpoints]
        known = [rate for rate in rates if rate is not None]
        if self.kind != "vectors" or len(known) < len(rates) or not sum(known):
            return tuple(1 / len(rates) for _ in rates) if self.kind == "vectors" else ()
        return tuple(rate / sum(known) for rate in known)

    @cached_property
    def unit_size(self) -> float:
        """Characters of text in a unit: as many as the method says, or as models take some tens of seconds for."""
        if not self.through_models:
            return self.method.unit_bytes
        return unit_size(self.models.values()) / (2 * len(self.checkpoints) if self.both_ways else 1)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """score.json, or vectors.json: what the table is made of."""
        method, models = self.method, self._model_recipes()
        settings, default = method.settings(), type(method)().settings()
        if self.kind == "vectors":
            settings = {key: settings[key] for key in self.passes[0].shaped_by}
        made = {
            "method": method.name,
            "version": method.version,
            "settings": settings,
            "changed": {key: value for key, value in settings.items() if value != default[key]},
            "scope": method.scope,
            **({"models": models} if models else {}),
        }
        made |= self.looks.recipe(self._moments())
        looked_at = [*self.models.values(), *(checkpoint.model for checkpoint in self.looks.checkpoints)]
        if paid := paid_for(self.ws, (model.name for model in looked_at)):
            made["paid"] = paid
        weights = self._weights()
        if self.kind == "vectors":
            return {**made, "fingerprint": fingerprint("vectors", method.name, method.version, settings, *weights)}
        pool = pool_fingerprint(self.shards) if method.scope == "pool" else None
        target = self.target.fingerprint if self.target else None
        its = self.vectors.recipe["fingerprint"] if self.vectors else None
        return {
            **made,
            "target": self.target.name if self.target else None,
            "target_fingerprint": target,
            **({"splits": list(method.splits)} if target and method.splits != ("val",) else {}),
            "pool_fingerprint": pool,
            "columns": dict(method.columns),
            "keeps_subtasks": method.keeps_subtasks(),
            **({"states": states} if (states := self._states()) else {}),
            **({"vectors": self.vectors.name, "vectors_fingerprint": its} if self.vectors else {}),
            "fingerprint": fingerprint(method.name, method.version, settings, target, pool, *weights, *self._aside()),
        }

    def _states(self) -> list[str]:
        """Where in prepared/ the counting passes through models leave what they have added up."""
        found: list[str] = []
        for index in range(len(self.passes) - 1 if self.both_ways else 0):
            parts, name = self.prepared(index, found[-1] if found else "")
            found.append(f"{parts.folder.name}/{name}")
        return found

    def _weights(self) -> list[Any]:
        """What of the models, and of their checkpoints, shapes what is computed."""
        models = [{key: value for key, value in m.items() if key in SHAPING} for m in self._model_recipes().values()]
        found = self.looks.recipe(self._moments()).get("checkpoints", [])
        return [*models, *([c["weights"], c["optimizer"], c["lr"]] for c in found)]

    def _aside(self) -> list[str]:
        """What is left out of the pool."""
        return [self.split.stamp] if self.split.stamp else []

    def _moments(self) -> bool:
        """Whether the method looks at an optimizer's state."""
        passes = [self.method.vectors(), *([] if self.vectors else self.passes)]
        legs = [leg for step in passes if step for leg in step.legs.values()]
        return any(isinstance(leg, Slope) and leg.moments for leg in legs)

    def _model_recipes(self) -> dict[str, dict[str, Any]]:
        return {role: model_recipe(choice) for role, choice in self.models.items()}

    def aim(self, step: Pass) -> Target:
        """The samples that a pass goes over which is not over the pool."""
        found = self.target if step.over == "target" else self.split.anchors
        assert found is not None
        return found

    def prepared(self, index: int, before: str) -> tuple[Parts, str]:
        """Where the partials of a counting pass lie, and the name of its state for the pool as it is."""
        step, settings = self.passes[index], self.method.settings()
        shaped_by = {
            s: self.target.fingerprint if s == "target" and self.target else settings[s] for s in step.shaped_by
        }
        weights = self._weights() if step.legs else []
        shape = fingerprint(
            self.method.name, self.method.version, step.name, shaped_by, before, *weights, *self._aside()
        )
        of = step.over if step.over != "pool" else pool_fingerprint(self.shards)
        return Parts(self.ws.path / "prepared" / shape, ".safetensors"), f"state-{of}"


@dataclass(frozen=True)
class Names:
    """What the tables of a method are to be called, where not the default."""

    score: str | None = None
    vectors: str | None = None


def plan(
    ws: Workspace,
    method: Score,
    target_name: str | None,
    names: Names,
    models: Mapping[str, ModelChoice],
    looks: Looks | None = None,
    split: Split | None = None,
) -> list[Job]:
    """The tables of a score, in the order they are made: its vectors, where it has them, and then the score.

    models: of the method, by role. Raises CurateError where its target is missing or a name will not do.
    """
    on_vectors = method.vectors() is not None
    if method.uses_target and not target_name and not on_vectors:
        raise CurateError(f"the score '{method.name}' needs a target: add --target NAME (`curate target` makes one).")
    if names.vectors and not on_vectors:
        raise CurateError(f"the score '{method.name}' is not made of vectors; leave out --vectors {names.vectors}.")
    target = load_target(ws, target_name, method.splits) if method.uses_target and target_name else None
    if on_vectors and target is None and names.vectors and names.score:
        raise CurateError(f"without a target '{method.name}' stores its vectors only: leave out --name {names.score}.")
    looks = looks or Looks()
    shards, jobs, vectors = ws.require_pool(), [], None
    if on_vectors:
        its = vectors_name(method, names, target is not None)
        ws.check_name(its, "vectors")
        vectors = Job(ws, its, method, target, shards, dict(models), "vectors", looks=looks)
        jobs.append(vectors)
    if target or not on_vectors:
        made_of = vectors.name if vectors else method.name
        name = names.score or default_score_name(made_of, target.name if target else None)
        ws.check_name(name, "score")
        split = split or Split()
        jobs.append(Job(ws, name, method, target, shards, dict(models), vectors=vectors, looks=looks, split=split))
        _refuse_hidden_columns(jobs[-1])
    return jobs


def vectors_name(method: Score, names: Names, with_target: bool) -> str:
    """What the vectors of a method are called; without a target --name is theirs."""
    return names.vectors or (names.score if not with_target else None) or method.name


def models_of(method: Score, models: Models, others: Sequence[Score]) -> dict[str, ModelChoice]:
    """The models of a method by role.

    One given without a role is the first of each method; but the base model only, where any of `others`, the methods
    asked for together, has one. Raises CurateError where one is missing.
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


def refuse_same_names(jobs: Sequence[Job]) -> None:
    """Raises CurateError where two tables of one command would bear the same name."""
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.name in seen:
            raise CurateError(
                f"'{job.name}' would be the name of {seen[job.name].what} and of {job.what}; choose another by --name "
                "or --vectors."
            )
        seen[job.name] = job


def refuse_unknown_roles(models: Models, methods: Sequence[Score]) -> None:
    """Raises CurateError where a model is given for a role that no method has."""
    known = list(dict.fromkeys(role for method in methods for role in method.models))
    for role in models:
        if role and role not in known:
            has = nearest(role, known) if known else "they use no model."
            raise CurateError(f"--model {role}=…: none of the methods has the role '{role}': {has}")


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
        together = [g for g in found if job.through_models and g[0].through_models and _agree(job, g)]
        if together:
            together[0].append(job)
        else:
            found.append([job])
    return found


def _agree(job: Job, group: Sequence[Job]) -> bool:
    if job.both_ways != group[0].both_ways or job.checkpoints != group[0].checkpoints:
        return False
    if job.split.stamp != group[0].split.stamp:
        return False
    models = {role: choice for other in group for role, choice in other.models.items()}
    shared = set(models) & set(job.models)  # models that nothing shares need not be in memory together
    return bool(shared) and all(models[role] == job.models[role] for role in shared)


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
    verb = "were" if job.kind == "vectors" else "was"
    remedy = f"choose another --{'vectors' if job.kind == 'vectors' else 'name'}, or --fresh to replace "
    remedy += "them." if job.kind == "vectors" else "it."
    for what in ("method", "target", "version"):
        if old.get(what) != job.recipe.get(what):
            raise CurateError(f"{job} {verb} made with {what} {old[what]}, not {job.recipe[what]}; {remedy}")
    for role, model in job.recipe.get("models", {}).items():
        for key, value in model.items():
            before = old.get("models", {}).get(role, {}).get(key)
            if key in SHAPING and before != value:
                what = f"another {role} model or another {key} of it"
                raise CurateError(f"{job} {verb} made with {what} ({before}, not {value}); {remedy}")
    for key, value in job.recipe["settings"].items():
        if old["settings"].get(key) != value:
            before = old["settings"].get(key)
            raise CurateError(f"{job} {verb} made with {key}={before}, not {key}={value}; {remedy}")
    _refuse_other_checkpoints(old, job, verb, remedy)


def _refuse_other_checkpoints(old: Mapping[str, Any], job: Job, verb: str, remedy: str) -> None:
    if job.looks.warmup.get("planned"):
        return
    had, has = old.get("checkpoints", []), job.recipe.get("checkpoints", [])
    if len(had) != len(has):
        raise CurateError(f"{job} {verb} made with {len(had)} checkpoints, not {len(has)}; {remedy}")
    for before, now in zip(had, has, strict=True):
        if (before["weights"], before["optimizer"]) != (now["weights"], now["optimizer"]):
            raise CurateError(
                f"{job} {verb} made with another checkpoint ({before['name']}, not {now['name']}); {remedy}"
            )
        if before["lr"] != now["lr"]:
            raise CurateError(
                f"{job} {verb} made with the learning rate {before['lr']} of {now['name']}, not {now['lr']}; {remedy}"
            )
