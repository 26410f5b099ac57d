"""What a worker does: one unit of the pool mapped by one pass of a score, and the result committed.

Everything here is plain data and pure functions of it, so the bytes written do not depend on who runs a task, where,
in what order, or how often. Drivers (the stage `score`) make tasks, executors hand them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, CurateFailure
from curate.kinds.passes import Arrays, Columns, Pass, Slope
from curate.kinds.registry import Score, Target
from curate.kinds.text import Text
from curate.models.load import CheckpointChoice, ModelChoice
from curate.store.commits import ROW_GROUP, Parts, read_arrays, read_table, row_groups, size
from curate.store.files import Location, remove_tree
from curate.store.workspace import Shard
from curate.tables.state import aim_stamp, target_vectors
from curate.tables.vector_table import score_table, vector_table, vectors_of

if TYPE_CHECKING:
    from curate.models.forward import Usage, Way

ROW_COST = 64  # what a row takes beside its text, as characters of text
_GROUP_NUMBERS = 1 << 24  # numbers of vectors in a row group
_MOST_FAILURES = 16  # samples of one unit that may fail before it is the method that fails


@dataclass(frozen=True)
class Unit:
    """Rows of a shard that are mapped and committed together.

    cost: characters of text, with ROW_COST for each row. failed: rows of the shard (by position) that an earlier
    pass could not take, with the reason.
    """

    shard: Shard
    start: int
    stop: int
    cost: float
    failed: Mapping[int, str]

    @property
    def name(self) -> str:
        return f"rows-{self.start:09d}-{self.stop:09d}"

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.shard.name}"


@dataclass(frozen=True)
class Merge:
    """All units of a shard, to become its part."""

    shard: Shard
    units: tuple[Unit, ...]

    samples = 0
    cost = float("inf")  # before any unit: it ends a shard

    def __str__(self) -> str:
        return f"the units of {self.shard.name}"


@dataclass(frozen=True)
class Aim:
    """The target's own samples, to become vectors: a task of every work that makes vectors."""

    samples: int
    cost = float("inf")

    def __str__(self) -> str:
        return "the target"


@dataclass(frozen=True)
class Work:
    """One pass of one score over the pool: what a worker has to know beside its task. Given to each worker once.

    index: of the pass. states: the files of the passes before. into: the folder of partials, or of the table's parts.
    fingerprint: of the table. kind: what the last pass makes. vectors: the folder of those the score is made of.
    shares: what each part of vectors counts for. anchors: the samples that were set aside.
    """

    method: Score
    target: Target | None
    index: int
    states: tuple[Location, ...]
    into: Location
    fingerprint: str
    kind: Literal["score", "vectors"] = "score"
    vectors: Location | None = None
    shares: tuple[float, ...] = ()
    anchors: Target | None = None

    def run_task(self, task: Unit | Merge) -> float:
        """Do a task and commit its result. Returns its FLOPs. Raises CurateFailure where the method fails."""
        if isinstance(task, Merge):
            self._commit_part(task.shard, pa.concat_tables(self._table_again(unit) for unit in task.units))
            remove_tree(units_of_part(self.into, task.shard).folder)
            return 0.0
        if self.step.reduce:
            self.commit_partial(task, *self.partial(task))
        else:
            self.commit(task, self._table(task))
        return self.step.flops(self.given) * task.samples if self.step.flops else 0.0

    # A counting pass

    @property
    def partials(self) -> Parts:
        return Parts(self.into, ".safetensors", lasting=False)

    def partial(self, unit: Unit) -> tuple[Arrays, dict[int, str]]:
        """What the pass leaves of a unit, and the rows that failed."""
        partial, _, failed = self._mapped(unit)
        return partial, failed

    def commit_partial(self, unit: Unit, partial: Arrays, failed: Mapping[int, str]) -> None:
        stored = {str(row): why for row, why in failed.items()}
        self.partials.commit(partial_name(unit), partial, rows=unit.samples, shard=unit.shard.sha256, failed=stored)

    def partial_again(self, unit: Unit) -> Arrays:
        """A partial as committed; computed and committed anew where its bytes are damaged."""
        stored = self.partials.read(partial_name(unit))
        if stored is None:
            self.run_task(unit)
            stored = self.partials.read(partial_name(unit))
        if stored is None:
            raise CurateFailure(f"{self.into}: what was just written there reads otherwise; is the disk sound?")
        return stored

    # The last pass

    def stamp(self, shard: Shard) -> dict[str, Any]:
        """What a record of this pass must have for its part to stand."""
        return {"fingerprint": self.fingerprint, "shard": shard.sha256}

    def commit(self, unit: Unit, table: pa.Table) -> None:
        """Store the table of a unit: as the part, where the unit is a whole shard."""
        if unit.samples == unit.shard.rows:
            self._commit_part(unit.shard, table)
        else:
            units_of_part(self.into, unit.shard).commit(unit.name, table, **self.stamp(unit.shard))

    def has(self, shard: Shard) -> bool:
        """Whether the part of a shard is committed, and whole by its size."""
        parts = Parts(self.into)
        record = parts.record(shard.name) or {}
        whole = self.stamp(shard).items() <= record.items()
        return whole and size(parts.path(shard.name)) == record["bytes"]

    def has_unit(self, unit: Unit) -> bool:
        record = units_of_part(self.into, unit.shard).record(unit.name) or {}
        return self.stamp(unit.shard).items() <= record.items()

    def reads(self, unit: Unit) -> bool:
        """Whether the bytes of a unit are those that were committed."""
        return units_of_part(self.into, unit.shard).read(unit.name) is not None

    def table(self, ids: pa.Array, columns: Columns, failed: Mapping[int, str] | None = None) -> pa.Table:
        """What the last pass returned, as it is stored."""
        if self.kind == "vectors":
            return vector_table(ids, columns, shares=self.shares)
        return score_table(ids, columns, self.method, failed)

    def _table(self, unit: Unit) -> pa.Table:
        columns, rows, failed = self._mapped(unit)
        return self.table(rows["id"], columns, {row - unit.start: why for row, why in failed.items()})

    def _table_again(self, unit: Unit) -> pa.Table:
        stored = units_of_part(self.into, unit.shard).read(unit.name)
        return self._table(unit) if stored is None else stored

    def _commit_part(self, shard: Shard, table: pa.Table) -> None:
        cost = {} if self.step.legs else {"flops": 0.0}  # of a model's pass, which may be shared: the ledger
        nulls, row_group = len(table) - table["error"].null_count, min(ROW_GROUP, _row_group(table.schema))
        Parts(self.into).commit(shard.name, table, row_group, nulls=nulls, **cost, **self.stamp(shard))

    # The target, where vectors are made

    def aims(self) -> bool:
        """Whether the target is to become vectors, and is none yet."""
        if self.kind != "vectors" or self.target is None:
            return False
        parts = target_vectors(self.into)
        record = parts.record(self.target.name) or {}
        stands = aim_stamp(self.fingerprint, self.target).items() <= record.items()
        return not stands or parts.read(self.target.name) is None

    def commit_aim(self, columns: Columns) -> None:
        assert self.target is not None
        ids, subtasks = self.target.text.frame["id"].to_arrow(), pa.array(self.target.subtasks, pa.string())
        table = vector_table(ids, columns, subtasks, self.shares)
        stamp = aim_stamp(self.fingerprint, self.target)
        target_vectors(self.into).commit(self.target.name, table, **stamp)

    # Both

    @cached_property
    def target_step(self) -> Pass:
        """The pass that makes vectors of the target's samples, or the one that this is."""
        vectors = self.method.target_vectors() if self.kind == "vectors" else None
        return vectors or self.step

    @cached_property
    def step(self) -> Pass:
        vectors = self.method.vectors() if self.kind == "vectors" else None
        return vectors or self.method.passes(self.target)[self.index]

    @cached_property
    def given(self) -> Any:
        """The state as the pass wants it; opened once in each worker."""
        state: Any = {name: array for path in self.states for name, array in read_arrays(path).items()}
        if self.vectors and self.target:
            state = vectors_of(read_table(target_vectors(self.vectors).path(self.target.name)))
        return self.step.open(state) if self.step.open else state

    def _read(self, unit: Unit) -> pa.Table:
        """The rows of a unit: samples, or their vectors."""
        if self.vectors:
            return read_table(Parts(self.vectors).path(unit.shard.name), None, (unit.start, unit.stop))
        return read_table(unit.shard.path, Text.schema.names, (unit.start, unit.stop))

    def _mapped(self, unit: Unit) -> tuple[Any, pa.Table, dict[int, str]]:
        """The pass's map over the rows of a unit that do not fail; all rows; and those that do, with the reason."""
        rows = self._read(unit)
        failed = {row: why for row, why in unit.failed.items() if unit.start <= row < unit.stop}
        good = np.array([i for i in range(unit.start, unit.stop) if i not in failed]) if failed else None
        left = rows if good is None else rows.take(pa.array(good - unit.start))
        try:
            return self._map(left), rows, failed
        except CurateError:
            raise
        except Exception as first:
            places = np.arange(unit.start, unit.stop) if good is None else good
            failed |= {int(places[i]): why for i, why in self._culprits(left, unit, first).items()}
        left = rows.take(
            pa.array([i - unit.start for i in range(unit.start, unit.stop) if i not in failed], pa.int64())
        )
        try:
            return self._map(left), rows, failed
        except Exception as error:
            raise self.failure(f"on {unit}", error) from error

    def _map(self, rows: pa.Table) -> Any:
        return self.step.map(vectors_of(rows) if self.vectors else Text(rows), self.given)

    def _culprits(self, rows: pa.Table, unit: Unit, first: Exception) -> dict[int, str]:
        """The rows on which the map fails when they are alone, found by halving, and why."""
        found: dict[int, str] = {}

        def search(start: int, stop: int, error: Exception | None) -> None:
            if error is None:
                return
            if stop - start == 1:
                found[start] = f"{self.method.name} fails on it: {_words(error)}"
                if len(found) > _MOST_FAILURES:
                    raise self.failure(f"on more than {_MOST_FAILURES} samples of {unit}", error) from error
                return
            middle = (start + stop) // 2
            for a, b in ((start, middle), (middle, stop)):
                search(a, b, self._tried(rows.slice(a, b - a)))

        search(0, rows.num_rows, first if rows.num_rows else None)
        return found

    def _tried(self, rows: pa.Table) -> Exception | None:
        try:
            self._map(rows)
        except Exception as error:
            return error
        return None

    def failure(self, where: str, error: Exception) -> CurateFailure:
        remedy = "use fewer --workers, or a machine with more memory" if isinstance(error, MemoryError) else "mend it"
        return CurateFailure(
            f"the method '{self.method.name}' fails in its pass '{self.step.name}' {where}: {_words(error)}; {remedy}, "
            "and the same command goes on from what is committed."
        )


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


def narrowed(value: np.ndarray) -> np.ndarray:
    """A sum over samples as it is stored: in float32, where it is more than a count."""
    return value.astype(np.float32) if value.ndim > 1 else value


def units_of_part(folder: Location, shard: Shard) -> Parts:
    """Where the units of a part lie until they are merged."""
    return Parts(folder / "_units" / shard.name, ".arrow", lasting=False)


def _row_group(schema: pa.Schema) -> int:
    """Rows of a group that holds some tens of megabytes of vectors."""
    widths = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
    return max(1, _GROUP_NUMBERS // max([1, *widths]))


def partial_name(unit: Unit) -> str:
    return f"{unit.shard.name}.{unit.name}"


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


# --- units -----------------------------------------------------------------------------------------------


def shard_units(shard: Shard, size: float, failed: Mapping[int, str]) -> list[Unit]:
    """A shard's rows cut into units of at most about `size` characters; the same for the same shard, always.

    Row groups, which are read whole, stay whole where they are no larger than a unit.
    """
    costs = read_table(shard.path, ["n_chars"])["n_chars"].to_numpy() + float(ROW_COST)
    cuts: list[tuple[int, int]] = []
    for a, b in pairwise(row_groups(shard.path)):
        if cuts and costs[cuts[-1][0] : b].sum() <= size:
            cuts[-1] = (cuts[-1][0], b)
        else:
            cuts += [(a + i, a + j) for i, j in unit_ranges(costs[a:b], size)]
    return [
        Unit(shard, a, b, float(costs[a:b].sum()), {r: w for r, w in failed.items() if a <= r < b}) for a, b in cuts
    ]


def unit_ranges(costs: np.ndarray, size: float) -> list[tuple[int, int]]:
    """Rows cut where `size` would be exceeded, so that a huge row stands alone; costs float64 [N], N > 0."""
    ends = np.cumsum(costs)
    size = float(ends[-1]) / max(1, round(float(ends[-1]) / size))  # evenly, where rows are even
    edges = [0]
    while edges[-1] < len(costs):
        before = float(ends[edges[-1] - 1]) if edges[-1] else 0.0
        edges.append(max(edges[-1] + 1, int(np.searchsorted(ends, before + size * (1 + 1e-9), "right"))))
    if len(edges) > 2 and costs[edges[-2] :].sum() < size / 2 and costs[edges[-3] : edges[-2]].sum() <= size:
        del edges[-2]  # a crumb joins the unit before it
    return list(zip(edges[:-1], edges[1:], strict=True))
