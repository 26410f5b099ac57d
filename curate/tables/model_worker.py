"""How a worker processes a unit with a model: one pass through it, shared by several scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.passes import Columns, GradientRequest, Pass
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
        works = [work for work in self.works if not work.has(task.shard)]
        if isinstance(task, Unit):
            works = [work for work in works if not work.has_unit(task)]
            return self._through(task, works) if works else None
        for unit in task.units:
            if damaged := [work for work in works if not work.reads(unit)]:
                self._through(unit, damaged)
        for work in works:
            work.run_task(task)
        return None

    def _count(self, task: Unit | MergeTask | TargetTask) -> Usage:
        """Compute and commit the partial sums of a counting pass, for a unit of the pool or for the target."""
        (work,) = self.works
        assert not isinstance(task, MergeTask)
        samples = self._of_aim(work) if isinstance(task, TargetTask) else _samples(_rows(task)[1])
        (columns,), usage = self._columns(samples, [work.step], [work.given], task)
        partial = {name: narrowed(value) for name, value in columns.items() if name != "error"}
        if isinstance(task, TargetTask):
            work.partials.commit(str(task), partial)
        else:
            work.commit_partial(task, partial, {})
        return usage

    def _of_aim(self, work: UnitWorker) -> list[dict[str, Any]]:
        aim = work.anchors if work.step.over == "anchors" else work.target
        assert aim is not None
        return aim.text.frame.select("messages", "text").to_dicts()

    def _aim(self, task: TargetTask) -> Usage | None:
        works = [work for work in self.works if work.aims()]
        if not works:
            return None
        samples = self._of_aim(works[0])
        columns, usage = self._columns(samples, [w.target_step for w in works], [w.given for w in works], task)
        for work, its in zip(works, columns, strict=True):
            work.commit_aim(its)
        return usage

    def _through(self, unit: Unit, works: list[UnitWorker]) -> Usage:
        ids, rows, failed = _rows(unit)
        steps, states = [work.step for work in works], [work.given for work in works]
        columns, usage = self._columns(_samples(rows), steps, states, unit)
        for work, its in zip(works, columns, strict=True):
            work.commit(unit, work.table(ids, its, failed))
        return usage

    def _columns(
        self, samples: list[dict[str, Any]], steps: Sequence[Pass], states: Sequence[Any], task: Unit | TargetTask
    ) -> tuple[list[Columns], Usage]:
        """The columns of each pass for all samples, computed in one pass through the models, and the cost."""
        from curate.models.forward import score_samples

        passes, given = ({str(i): one for i, one in enumerate(some)} for some in (steps, states))
        try:
            columns, usage = score_samples(self._loaded, samples, passes, given)
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
            for work in self.works
            for step in (work.step, work.target_step)
            for request in step.requests.values()
        ]
        slopes = [request for request in requests if isinstance(request, GradientRequest)]
        wanted = {request.model for request in requests} | {request.beside for request in slopes}
        models = {role: choice for role, choice in self.models.items() if role in wanted}
        return load_roles(models, self.checkpoints, any(request.moments for request in slopes))


def _rows(unit: Unit) -> tuple[pa.Array, pa.Table, dict[int, str]]:
    """The ids of a unit; its rows without those that failed earlier; and why these failed, by position in the unit."""
    rows = read_table(unit.shard.path, Text.schema.names, (unit.start, unit.stop))
    failed = {row - unit.start: why for row, why in unit.failed.items() if unit.start <= row < unit.stop}
    left = rows.take(pa.array([i for i in range(rows.num_rows) if i not in failed], pa.int64())) if failed else rows
    return rows["id"], left, failed


def _samples(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.select(["messages", "text"]).to_pylist()
