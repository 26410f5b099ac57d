"""How a worker processes a unit with a model: one pass through it, shared by several scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import ids_as_integers, keyed_uniform
from curate.kinds.passes import Columns, ForwardRequest, GradientRequest, Pass
from curate.kinds.text import Text
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.store.encoding import read_table
from curate.tables.unit_worker import UnitWorker, narrowed
from curate.tables.units import MergeTask, TargetTask, Unit

if TYPE_CHECKING:
    from curate.models.forward import ScoringModel
    from curate.models.usage import Usage


@dataclass(frozen=True)
class ModelUnitWorker:
    """Passes of several scores that share their passes through the models. models: by role. checkpoints: of the base
    model, for passes that compute gradients."""

    works: tuple[UnitWorker, ...]
    models: Mapping[str, ModelChoice]
    checkpoints: tuple[CheckpointChoice, ...] = ()

    def run_task(self, task: Unit | MergeTask | TargetTask) -> Usage | None:
        """Do a task for every table that lacks its result. Returns the cost, or None if no model was used."""
        if self.works[0].step.reduce:
            return self._count(task)
        if isinstance(task, TargetTask):
            return self._aim(task)
        unit_workers = [unit_worker for unit_worker in self.works if not unit_worker.has(task.shard)]
        if isinstance(task, Unit):
            unit_workers = [unit_worker for unit_worker in unit_workers if not unit_worker.has_unit(task)]
            return self._through(task, unit_workers) if unit_workers else None
        for unit in task.units:
            if damaged := [unit_worker for unit_worker in unit_workers if not unit_worker.reads(unit)]:
                self._through(unit, damaged)
        for unit_worker in unit_workers:
            unit_worker.run_task(task)
        return None

    def _count(self, task: Unit | MergeTask | TargetTask) -> Usage:
        """Compute and commit the partial sums of a counting pass, for a unit of the pool or for the target."""
        (unit_worker,) = self.works
        assert not isinstance(task, MergeTask)
        if isinstance(task, TargetTask):
            samples = self._of_aim(unit_worker)
        else:
            samples = _samples(_drawn(_rows(task)[1], unit_worker.step))
        (columns,), usage = self._columns(samples, [unit_worker.step], [unit_worker.given], task)
        partial = {name: narrowed(value) for name, value in columns.items() if name != "error"}
        if isinstance(task, TargetTask):
            unit_worker.partials.commit(str(task), partial)
        else:
            unit_worker.commit_partial(task, partial, {})
        return usage

    def _of_aim(self, unit_worker: UnitWorker) -> list[dict[str, Any]]:
        examples = unit_worker.anchors if unit_worker.step.over == "anchors" else unit_worker.target
        assert examples is not None
        return examples.text.samples()

    def _aim(self, task: TargetTask) -> Usage | None:
        unit_workers = [unit_worker for unit_worker in self.works if unit_worker.aims()]
        if not unit_workers:
            return None
        samples = self._of_aim(unit_workers[0])
        columns, usage = self._columns(
            samples, [w.target_step for w in unit_workers], [w.given for w in unit_workers], task
        )
        for unit_worker, own_columns in zip(unit_workers, columns, strict=True):
            unit_worker.commit_aim(own_columns)
        return usage

    def _through(self, unit: Unit, unit_workers: list[UnitWorker]) -> Usage:
        ids, rows, failed = _rows(unit)
        steps, states = (
            [unit_worker.step for unit_worker in unit_workers],
            [unit_worker.given for unit_worker in unit_workers],
        )
        columns, usage = self._columns(_samples(rows), steps, states, unit)
        for unit_worker, own_columns in zip(unit_workers, columns, strict=True):
            unit_worker.commit(unit, unit_worker.table(ids, own_columns, failed))
        return usage

    def _columns(
        self, samples: list[dict[str, Any]], steps: Sequence[Pass], states: Sequence[Any], task: Unit | TargetTask
    ) -> tuple[list[Columns], Usage]:
        """The columns of each pass for all samples, computed in one pass through the models, and the cost."""
        from curate.models.forward import score_samples

        passes, given_states = ({str(i): item for i, item in enumerate(items)} for items in (steps, states))
        try:
            columns, usage = score_samples(self._loaded, samples, passes, given_states)
        except CurateError:
            raise
        except Exception as error:
            raise self.works[0].failure(f"on {task}", error) from error
        return [columns[str(i)] for i in range(len(steps))], usage

    @cached_property
    def _loaded(self) -> Mapping[str, ScoringModel]:
        """The models, loaded once per worker."""
        from curate.gradients.roles import load_roles

        requests = [
            request
            for unit_worker in self.works
            for step in (unit_worker.step, unit_worker.target_step)
            for request in step.requests.values()
        ]
        slopes = [request for request in requests if isinstance(request, GradientRequest)]
        counted = {request.model for request in requests if isinstance(request, ForwardRequest) and request.counts_only}
        computed = {r.model for r in requests if not (isinstance(r, ForwardRequest) and r.counts_only)}
        computed |= {request.beside for request in slopes}
        models = {role: choice for role, choice in self.models.items() if role in counted | computed}
        return load_roles(models, self.checkpoints, any(r.moments for r in slopes), counted - computed)


def _rows(unit: Unit) -> tuple[pa.Array, pa.Table, dict[int, str]]:
    """The ids of a unit; its rows without those that failed earlier; and why these failed, by position in the unit."""
    rows = read_table(unit.shard.path, Text.schema.names, (unit.start, unit.stop))
    failed = {row - unit.start: reason for row, reason in unit.failed.items() if unit.start <= row < unit.stop}
    remaining = (
        rows.take(pa.array([i for i in range(rows.num_rows) if i not in failed], pa.int64())) if failed else rows
    )
    return rows["id"], remaining, failed


def rows_of_pass(task: Unit | MergeTask | TargetTask, step: Pass) -> int:
    """How many samples of a task a pass runs on."""
    if step.share >= 1 or not isinstance(task, Unit):
        return task.samples
    return int(_is_drawn(read_table(task.shard.path, ["id"], (task.start, task.stop))["id"], step).sum())


def _is_drawn(ids: pa.ChunkedArray, step: Pass) -> np.ndarray:
    return keyed_uniform(ids_as_integers(ids.to_pylist()), step.seed, "share of a pass") < step.share


def _drawn(rows: pa.Table, step: Pass) -> pa.Table:
    """The rows that a pass over a share of the samples runs on."""
    return rows if step.share >= 1 else rows.take(pa.array(np.flatnonzero(_is_drawn(rows["id"], step))))


def _samples(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.drop_columns("id").to_pylist()
