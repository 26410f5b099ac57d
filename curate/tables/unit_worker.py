"""What a worker does: map one unit of the pool by one pass of a score, and commit the result.

Everything here is plain data and pure functions of it, so the bytes written do not depend on which worker runs a task,
where, in what order, or how often. The score engine makes the tasks, executors distribute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.errors import CurateError, CurateFailure
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.store.commits import Parts
from curate.store.encoding import ROW_GROUP, read_table, size
from curate.store.files import remove_tree
from curate.store.object_store import Location
from curate.store.workspace import Shard
from curate.tables.score_table import score_table
from curate.tables.stored_arrays import StoredArrays
from curate.tables.units import MergeTask, Unit, partial_name, units_of_part
from curate.tables.vector_table import aim_stamp, target_vectors, vector_table, vectors_of, vectors_of_target

_GROUP_NUMBERS = 1 << 24  # elements of vectors per row group
_MOST_FAILURES = 16  # samples of one unit that may fail before the method itself is considered to fail


@dataclass(frozen=True)
class UnitWorker:
    """One pass of one score over the pool: what a worker needs besides its task. Sent to each worker once.

    index: of the pass. states: the files of the states of earlier passes. into: the folder of the partials, or of the
    table's parts. fingerprint: of the table. kind: what the last pass makes. vectors: the folder of the vectors that
    the score is computed from. shares: the weight of each part of the vectors. anchors: the held-out samples.
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

    def run_task(self, task: Unit | MergeTask) -> float:
        """Do a task and commit its result. Returns its FLOPs. Raises CurateFailure if the method fails."""
        if isinstance(task, MergeTask):
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
        """The partials of a counting pass."""
        return Parts(self.into, ".safetensors", lasting=False)

    def partial(self, unit: Unit) -> tuple[Arrays, dict[int, str]]:
        """The partial of a unit, and the rows that failed: row -> reason."""
        partial, _, failed = self._mapped(unit)
        return partial, failed

    def commit_partial(self, unit: Unit, partial: Arrays, failed: Mapping[int, str]) -> None:
        """Commit the partial of a unit, with the rows that failed in its record."""
        stored = {str(row): reason for row, reason in failed.items()}
        self.partials.commit(partial_name(unit), partial, rows=unit.samples, shard=unit.shard.sha256, failed=stored)

    def partial_again(self, unit: Unit) -> Arrays:
        """A committed partial; recomputed and committed again if its file is damaged."""
        stored = self.partials.read(partial_name(unit))
        if stored is None:
            self.run_task(unit)
            stored = self.partials.read(partial_name(unit))
        if stored is None:
            raise CurateFailure(f"{self.into}: what was just written does not read back the same; is the disk damaged?")
        return stored

    # The last pass

    def stamp(self, shard: Shard) -> dict[str, Any]:
        """The entries that a commit record of this pass must have for its part to be valid."""
        return {"fingerprint": self.fingerprint, "shard": shard.sha256}

    def commit(self, unit: Unit, table: pa.Table) -> None:
        """Commit the table of a unit: as the part itself, if the unit is a whole shard."""
        if unit.samples == unit.shard.rows:
            self._commit_part(unit.shard, table)
        else:
            units_of_part(self.into, unit.shard).commit(unit.name, table, **self.stamp(unit.shard))

    def has(self, shard: Shard) -> bool:
        """Whether the part of a shard is committed, and its file has the recorded size."""
        parts = Parts(self.into)
        record = parts.record(shard.name) or {}
        committed = self.stamp(shard).items() <= record.items()
        return committed and size(parts.path(shard.name)) == record["bytes"]

    def has_unit(self, unit: Unit) -> bool:
        """Whether a unit is committed."""
        record = units_of_part(self.into, unit.shard).record(unit.name) or {}
        return self.stamp(unit.shard).items() <= record.items()

    def reads(self, unit: Unit) -> bool:
        """Whether the file of a unit is intact."""
        return units_of_part(self.into, unit.shard).read(unit.name) is not None

    def table(self, ids: pa.Array, columns: Columns, failed: Mapping[int, str] | None = None) -> pa.Table:
        """The columns of the last pass as the stored table."""
        if self.kind == "vectors":
            return vector_table(ids, columns, shares=self.shares)
        return score_table(ids, columns, self.method, failed)

    def _table(self, unit: Unit) -> pa.Table:
        columns, rows, failed = self._mapped(unit)
        return self.table(rows["id"], columns, {row - unit.start: reason for row, reason in failed.items()})

    def _table_again(self, unit: Unit) -> pa.Table:
        stored = units_of_part(self.into, unit.shard).read(unit.name)
        return self._table(unit) if stored is None else stored

    def _commit_part(self, shard: Shard, table: pa.Table) -> None:
        cost = {} if self.step.requests else {"flops": 0.0}  # of models, in the ledger, as it may be shared
        nulls, row_group = len(table) - table["error"].null_count, min(ROW_GROUP, _row_group(table.schema))
        Parts(self.into).commit(shard.name, table, row_group, listed=False, nulls=nulls, **cost, **self.stamp(shard))

    # The target, where vectors are made

    def aims(self) -> bool:
        """Whether the target's vectors must be computed, and are not yet."""
        if self.kind != "vectors" or self.target is None:
            return False
        parts = target_vectors(self.into)
        record = parts.record(self.target.name) or {}
        is_current = aim_stamp(self.fingerprint, self.target).items() <= record.items()
        return not is_current or parts.read(self.target.name) is None

    def commit_aim(self, columns: Columns) -> None:
        """Commit the vectors of the target."""
        assert self.target is not None
        ids, subtasks = self.target.text.frame["id"].to_arrow(), pa.array(self.target.subtasks, pa.string())
        table = vector_table(ids, columns, subtasks, self.shares)
        stamp = aim_stamp(self.fingerprint, self.target)
        target_vectors(self.into).commit(self.target.name, table, **stamp)

    # Both

    @cached_property
    def target_step(self) -> Pass:
        """The pass that computes the vectors of the target's samples; for scores, the same as `step`."""
        vectors = self.method.target_vectors() if self.kind == "vectors" else None
        return vectors or self.step

    @cached_property
    def step(self) -> Pass:
        """The pass that this worker runs."""
        vectors = self.method.vectors() if self.kind == "vectors" else None
        return vectors or self.method.passes(self.target)[self.index]

    @property
    def before(self) -> Mapping[str, np.ndarray]:
        """The arrays of the states of earlier passes, each read when it is asked for."""
        return StoredArrays(self.states)

    @cached_property
    def given(self) -> Any:
        """The second argument of the pass's map: the state, or what `open` makes of it, once per worker."""
        state: Any = {name: self.before[name] for name in self.before if name.startswith(self.step.reads)}
        if self.vectors and self.target:
            state = vectors_of_target(self.vectors, self.target.name)
        return self.step.open(state) if self.step.open else state

    def _read(self, unit: Unit) -> pa.Table:
        """The rows of a unit: samples, or their vectors for a score on vectors."""
        if self.vectors:
            return read_table(Parts(self.vectors).path(unit.shard.name), None, (unit.start, unit.stop))
        return read_table(unit.shard.path, Text.schema.names, (unit.start, unit.stop))

    def _mapped(self, unit: Unit) -> tuple[Any, pa.Table, dict[int, str]]:
        """The result of map on the rows of a unit that do not fail; all rows; and the failing rows -> reason."""
        rows = self._read(unit)
        failed = {row: reason for row, reason in unit.failed.items() if unit.start <= row < unit.stop}
        valid = np.array([i for i in range(unit.start, unit.stop) if i not in failed]) if failed else None
        remaining = rows if valid is None else rows.take(pa.array(valid - unit.start))
        try:
            return self._map(remaining), rows, failed
        except CurateError:
            raise
        except Exception as first:  # noqa: BLE001  a method may raise anything; which sample it was is found below
            row_numbers = np.arange(unit.start, unit.stop) if valid is None else valid
            failed |= {int(row_numbers[i]): reason for i, reason in self._culprits(remaining, unit, first).items()}
        remaining = rows.take(
            pa.array([i - unit.start for i in range(unit.start, unit.stop) if i not in failed], pa.int64())
        )
        try:
            return self._map(remaining), rows, failed
        except Exception as error:
            raise self.failure(f"on {unit}", error) from error

    def _map(self, rows: pa.Table) -> Any:
        return self.step.map(vectors_of(rows) if self.vectors else Text(rows), self.given)

    def _culprits(self, rows: pa.Table, unit: Unit, first: Exception) -> dict[int, str]:
        """The rows on which map fails by themselves, found by bisection, and why."""
        reasons: dict[int, str] = {}

        def search(start: int, stop: int, error: Exception | None) -> None:
            if error is None:
                return
            if stop - start == 1:
                reasons[start] = f"{self.method.name} fails on it: {_words(error)}"
                if len(reasons) > _MOST_FAILURES:
                    raise self.failure(f"on more than {_MOST_FAILURES} samples of {unit}", error) from error
                return
            middle = (start + stop) // 2
            for a, b in ((start, middle), (middle, stop)):
                search(a, b, self._tried(rows.slice(a, b - a)))

        search(0, rows.num_rows, first if rows.num_rows else None)
        return reasons

    def _tried(self, rows: pa.Table) -> Exception | None:
        try:
            self._map(rows)
        except Exception as error:  # noqa: BLE001  as above
            return error
        return None

    def failure(self, where: str, error: Exception) -> CurateFailure:
        """The error that reports a failure of the method."""
        remedy = "use fewer --workers, or a machine with more memory" if isinstance(error, MemoryError) else "fix it"
        return CurateFailure(
            f"the method '{self.method.name}' fails in its pass '{self.step.name}' {where}: {_words(error)}; {remedy}, "
            "and the same command goes on from what is committed."
        )


def narrowed(value: np.ndarray) -> np.ndarray:
    """A sum over samples as stored: in float32 if it has more than one axis; else, such as counts, unchanged."""
    return value.astype(np.float32) if value.ndim > 1 else value


def _row_group(schema: pa.Schema) -> int:
    """Rows per row group, such that it holds some tens of megabytes of vectors."""
    widths = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
    return max(1, _GROUP_NUMBERS // max([1, *widths]))


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
