"""One table that a command is to compute: its method, its recipe, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from curate.hashing import fingerprint
from curate.kinds.passes import GradientRequest, Pass
from curate.kinds.score import Score, Target
from curate.models.choice import SHAPING, CheckpointChoice, ModelChoice, unit_size
from curate.store.commits import Parts
from curate.store.object_store import Location
from curate.store.workspace import Shard, Workspace, pool_fingerprint
from curate.tables.recipes import (
    CheckpointSet,
    HeldOut,
    model_recipe,
)
from curate.tables.run_costs import charged_entries


@dataclass(frozen=True)
class TableSpec:
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
    vectors: TableSpec | None = None
    checkpoint_set: CheckpointSet = field(default_factory=lambda: CheckpointSet())
    held_out: HeldOut = field(default_factory=lambda: HeldOut())

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
        return bool(self.passes[-1].requests)

    @property
    def both_ways(self) -> bool:
        """Whether the samples go forward and backward."""
        return any(isinstance(request, GradientRequest) for request in self.passes[-1].requests.values())

    @property
    def checkpoints(self) -> tuple[CheckpointChoice, ...]:
        return self.checkpoint_set.checkpoints if self.both_ways else ()

    @property
    def shares(self) -> tuple[float, ...]:
        """What each checkpoint counts for: its learning rate, over all of theirs."""
        rates = [c.lr for c in self.checkpoint_set.checkpoints]
        known = [rate for rate in rates if rate is not None]
        if self.kind != "vectors" or len(known) < len(rates) or not sum(known):
            return tuple(1 / len(rates) for _ in rates) if self.kind == "vectors" else ()
        return tuple(rate / sum(known) for rate in known)

    @property
    def awaits_warm_up(self) -> bool:
        """Whether it looks at a warm-up that is not trained yet."""
        return bool(self.checkpoint_set.warmup.get("planned"))

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
        made |= self.checkpoint_set.recipe(self._moments())
        looked_at = [*self.models.values(), *(checkpoint.model for checkpoint in self.checkpoint_set.checkpoints)]
        if paid := charged_entries(self.ws, (model.name for model in looked_at)):
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
        found = self.checkpoint_set.recipe(self._moments()).get("checkpoints", [])
        return [*models, *([c["weights"], c["optimizer"], c["lr"]] for c in found)]

    def _aside(self) -> list[str]:
        """What is left out of the pool."""
        return [self.held_out.stamp] if self.held_out.stamp else []

    def _moments(self) -> bool:
        """Whether the method looks at an optimizer's state."""
        passes = [self.method.vectors(), *([] if self.vectors else self.passes)]
        requests = [request for step in passes if step for request in step.requests.values()]
        return any(isinstance(request, GradientRequest) and request.moments for request in requests)

    def _model_recipes(self) -> dict[str, dict[str, Any]]:
        return {role: model_recipe(choice) for role, choice in self.models.items()}

    def aim(self, step: Pass) -> Target:
        """The samples that a pass goes over which is not over the pool."""
        found = self.target if step.over == "target" else self.held_out.anchors
        assert found is not None
        return found

    def prepared(self, index: int, before: str) -> tuple[Parts, str]:
        """Where the partials of a counting pass lie, and the name of its state for the pool as it is."""
        step, settings = self.passes[index], self.method.settings()
        shaped_by = {
            s: self.target.fingerprint if s == "target" and self.target else settings[s] for s in step.shaped_by
        }
        weights = self._weights() if step.requests else []
        shape = fingerprint(
            self.method.name, self.method.version, step.name, shaped_by, before, *weights, *self._aside()
        )
        of = step.over if step.over != "pool" else pool_fingerprint(self.shards)
        return Parts(self.ws.path / "prepared" / shape, ".safetensors"), f"state-{of}"
