"""One table that a command computes: its method, its recipe, and its location."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from curate.hashing import fingerprint
from curate.kinds.passes import GradientRequest, Pass
from curate.kinds.score import Score, Target
from curate.models.choice import CheckpointChoice, ModelChoice, smallest_unit, unit_size
from curate.store.commits import Parts
from curate.store.object_store import Location
from curate.store.recipes import ModelRecipe, TableRecipe
from curate.store.workspace import Shard, Workspace, pool_fingerprint
from curate.tables.inputs import (
    CheckpointSet,
    HeldOut,
    model_recipe,
)
from curate.tables.run_costs import charged_entries
from curate.tables.units import Unit, shard_units

_PARTS = 8  # units that a shard has at least, where it is divided at all: a kill then costs an eighth of it


@dataclass(frozen=True)
class TableSpec:
    """One table to compute, with what identifies it: a score, or the vectors that scores are computed from.

    target: for vectors, the target to encode in addition to the pool. vectors: those that a score is computed from.
    checkpoint_set: the checkpoints of the base model, for passes that compute gradients.
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
        """A description for error messages."""
        return f"the {self.kind} that {self.method.name} makes"

    @property
    def folder(self) -> Location:
        """The final folder of the table."""
        return self.ws.table_folder(self.kind, self.name)

    @cached_property
    def passes(self) -> Sequence[Pass]:
        """The passes of the table, in order."""
        step = self.method.vectors() if self.kind == "vectors" else None
        return (step,) if step else self.method.passes(self.target)

    @property
    def through_models(self) -> bool:
        """Whether the last pass goes through models."""
        return bool(self.passes[-1].requests)

    @property
    def both_ways(self) -> bool:
        """Whether the last pass computes gradients."""
        return any(isinstance(request, GradientRequest) for request in self.passes[-1].requests.values())

    @property
    def checkpoints(self) -> tuple[CheckpointChoice, ...]:
        """The checkpoints of a pass that computes gradients; () for other passes."""
        return self.checkpoint_set.checkpoints if self.both_ways else ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each checkpoint: its learning rate over the sum of all; equal if a rate is unknown."""
        rates = [c.lr for c in self.checkpoint_set.checkpoints]
        known_rates = [rate for rate in rates if rate is not None]
        if self.kind != "vectors" or len(known_rates) < len(rates) or not sum(known_rates):
            return tuple(1 / len(rates) for _ in rates) if self.kind == "vectors" else ()
        return tuple(rate / sum(known_rates) for rate in known_rates)

    @property
    def awaits_warm_up(self) -> bool:
        """Whether it uses a warm-up that is not trained yet."""
        return bool(self.checkpoint_set.planned)

    @cached_property
    def unit_size(self) -> float:
        """Characters of text per unit: set by the method, or such that a model needs some tens of seconds."""
        if not self.through_models:
            return self.method.unit_bytes
        return unit_size(self.models.values()) / (2 * len(self.checkpoints) if self.both_ways else 1)

    def units_of(self, shard: Shard, failed: Mapping[int, str] | None = None, size: float = 0.0) -> list[Unit]:
        """A shard's units; they depend on the shard, the models and the kind of device alone. failed: see Unit. size:
        characters of text per unit, if not this table's."""
        size = size or self.unit_size
        if self.through_models:
            size = min(size, max(shard.n_chars / _PARTS, smallest_unit()))
        return shard_units(shard, size, failed or {})

    @cached_property
    def recipe(self) -> TableRecipe:
        """The contents of score.json or vectors.json: how the table is made."""
        settings = self._settings()
        default = type(self.method)().settings()
        models = [*self.models.values(), *(checkpoint.model for checkpoint in self.checkpoint_set.checkpoints)]
        return TableRecipe(
            method=self.method.name,
            version=self.method.version,
            settings=settings,
            changed={key: value for key, value in settings.items() if value != default[key]},
            scope=self.method.scope,
            models=self._model_recipes(),
            checkpoints_given=list(self.checkpoint_set.given),
            checkpoints=self.checkpoint_set.recipes(self._moments()),
            parameters=self.checkpoint_set.parameters(),
            warmup=self.checkpoint_set.warmup,
            paid=charged_entries(self.ws, (model.name for model in models)),
            fingerprint=self._fingerprint(settings),
            **(self._of_score() if self.kind == "score" else {}),
        )

    def _settings(self) -> dict[str, Any]:
        """The settings that the table depends on."""
        settings = self.method.settings()
        return {key: settings[key] for key in self.passes[0].shaped_by} if self.kind == "vectors" else settings

    def _fingerprint(self, settings: dict[str, Any]) -> str:
        method, weights = [self.method.name, self.method.version, settings], self._weights()
        if self.kind == "vectors":
            return fingerprint("vectors", *method, *weights)
        return fingerprint(*method, self._target_fingerprint(), self._pool(), *weights, *self._aside())

    def _target_fingerprint(self) -> str | None:
        return self.target.fingerprint if self.target else None

    def _pool(self) -> str | None:
        """The fingerprint of the pool, for a score that depends on all of it."""
        return pool_fingerprint(self.shards) if self.method.scope == "pool" else None

    def _of_score(self) -> dict[str, Any]:
        """What the recipe of a score has and that of vectors has not."""
        method = self.method
        return {
            "target": self.target.name if self.target else None,
            "target_fingerprint": self._target_fingerprint(),
            "splits": list(method.splits) if self.target and method.splits != ("val",) else [],
            "pool_fingerprint": self._pool(),
            "columns": dict(method.columns),
            "keeps_subtasks": method.keeps_subtasks(),
            "states": self._states(),
            "vectors": self.vectors.name if self.vectors else "",
            "vectors_fingerprint": self.vectors.recipe.fingerprint if self.vectors else "",
        }

    def _states(self) -> list[str]:
        """The paths in prepared/ of the states of counting passes, where something is said of them or they are of a
        model's gradients."""
        paths: list[str] = []
        remarked = type(self.method).state_note is not Score.state_note
        for index in range(len(self.passes) - 1 if self.both_ways or remarked else 0):
            parts, name = self.prepared(index, paths[-1] if paths else "")
            paths.append(f"{parts.folder.name}/{name}")
        return paths

    def _weights(self) -> list[Any]:
        """Those properties of the models and their checkpoints that affect the results."""
        models = [model.shape() for model in self._model_recipes().values()]
        return [*models, *([c.weights, c.optimizer, c.lr] for c in self.checkpoint_set.recipes(self._moments()))]

    def _aside(self) -> list[str]:
        """The fingerprint of the samples left out of the pool, if any."""
        return [self.held_out.stamp] if self.held_out.stamp else []

    def _moments(self) -> bool:
        """Whether the method uses the optimizer state."""
        passes = [self.method.vectors(), *([] if self.vectors else self.passes)]
        requests = [request for step in passes if step for request in step.requests.values()]
        return any(isinstance(request, GradientRequest) and request.moments for request in requests)

    def _model_recipes(self) -> dict[str, ModelRecipe]:
        return {role: model_recipe(choice) for role, choice in self.models.items()}

    def aim(self, step: Pass) -> Target:
        """The samples of a pass that is not over the pool: those of the target, or the anchors."""
        examples = self.target if step.over == "target" else self.held_out.anchors
        assert examples is not None
        return examples

    def prepared(self, index: int, before: str) -> tuple[Parts, str]:
        """The folder of a counting pass's partials, and the name of its state for the current pool."""
        step, settings = self.passes[index], self.method.settings()
        shaped_by = {
            s: self.target.fingerprint if s == "target" and self.target else settings[s] for s in step.shaped_by
        }
        weights = self._weights() if step.requests or step.over == "training" else []
        shape = fingerprint(
            self.method.name, self.method.version, step.name, shaped_by, before, *weights, *self._aside()
        )
        scope = step.over if step.over in ("target", "anchors") else pool_fingerprint(self.shards)
        return Parts(self.ws.path / "prepared" / shape, ".safetensors"), f"state-{scope}"
