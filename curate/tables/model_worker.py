"""What a worker does with a unit where a model is at work: one pass through it for several scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.passes import Columns, Pass, Slope
from curate.kinds.text import Text
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.store.encoding import read_table
from curate.tables.unit_worker import Work, narrowed
from curate.tables.units import Aim, Merge, Unit

if TYPE_CHECKING:
    from curate.models.forward import Way
    from curate.models.usage import Usage


@dataclass(frozen=True)
class ModelWork:
    """Passes of scores whose samples go through models together. models: by role. checkpoints: of the base model, where
    they go through it both ways."""

    works: tuple[Work, ...]
    models: Mapping[str, ModelChoice]
    checkpoints: tuple[CheckpointChoice, ...] = ()

    def run_task(self, task: Unit | Merge | Aim) -> Usage | None:
        """Do a task for every table that lacks it. Returns what it cost, where the model was at work."""
        if self.works[0].step.reduce:
            return self._count(task)
        if isinstance(task, Aim):
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

    def _count(self, task: Unit | Merge | Aim) -> Usage:
        """What a counting pass adds up, of a unit of the pool or of the target."""
        (work,) = self.works
        assert not isinstance(task, Merge)
        samples = self._of_aim(work) if isinstance(task, Aim) else _samples(_rows(task)[1])
        (columns,), usage = self._columns(samples, [work.step], [work.given], task)
        partial = {name: narrowed(value) for name, value in columns.items() if name != "error"}
        if isinstance(task, Aim):
            work.partials.commit(str(task), partial)
        else:
            work.commit_partial(task, partial, {})
        return usage

    def _of_aim(self, work: Work) -> list[dict[str, Any]]:
        aim = work.anchors if work.step.over == "anchors" else work.target
        assert aim is not None
        return aim.text.frame.select("messages", "text").to_dicts()

    def _aim(self, task: Aim) -> Usage | None:
        works = [work for work in self.works if work.aims()]
        if not works:
            return None
        samples = self._of_aim(works[0])
        columns, usage = self._columns(samples, [w.target_step for w in works], [w.given for w in works], task)
        for work, its in zip(works, columns, strict=True):
            work.commit_aim(its)
        return usage

    def _through(self, unit: Unit, works: list[Work]) -> Usage:
        ids, rows, failed = _rows(unit)
        steps, states = [work.step for work in works], [work.given for work in works]
        columns, usage = self._columns(_samples(rows), steps, states, unit)
        for work, its in zip(works, columns, strict=True):
            work.commit(unit, work.table(ids, its, failed))
        return usage

    def _columns(
        self, samples: list[dict[str, Any]], steps: Sequence[Pass], states: Sequence[Any], task: Unit | Aim
    ) -> tuple[list[Columns], Usage]:
        """The columns of each pass for all samples, which go through the models once, and what they cost."""
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
    def _loaded(self) -> Mapping[str, Way]:
        """The models, loaded once in each worker."""
        from curate.gradients.roles import load_roles

        legs = [leg for work in self.works for step in (work.step, work.target_step) for leg in step.legs.values()]
        slopes = [leg for leg in legs if isinstance(leg, Slope)]
        wanted = {leg.model for leg in legs} | {leg.beside for leg in slopes}
        models = {role: choice for role, choice in self.models.items() if role in wanted}
        return load_roles(models, self.checkpoints, any(leg.moments for leg in slopes))


def _rows(unit: Unit) -> tuple[pa.Array, pa.Table, dict[int, str]]:
    """The ids of a unit; the rows of it that are not to be left out; and why others are, by position in it."""
    rows = read_table(unit.shard.path, Text.schema.names, (unit.start, unit.stop))
    failed = {row - unit.start: why for row, why in unit.failed.items() if unit.start <= row < unit.stop}
    left = rows.take(pa.array([i for i in range(rows.num_rows) if i not in failed], pa.int64())) if failed else rows
    return rows["id"], left, failed


def _samples(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.select(["messages", "text"]).to_pylist()
