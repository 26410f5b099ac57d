"""Counting passes: their partials are computed, with progress and costs, and reduced to a state.

Partials of a text pass are reduced together at the end. Those of a pass through a model are sums as large as the model:
two neighbours are added as soon as both exist, always the same two, so that few are on disk at once and the sum does
not depend on the order of computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from curate.errors import CurateFailure
from curate.kinds.executor import Tasks, Workers
from curate.kinds.passes import Pass
from curate.store.commits import Parts
from curate.store.files import remove_leftovers
from curate.store.locks import FOREVER, Lock, lock
from curate.store.object_store import Location
from curate.tables.meters import meters_of, progress
from curate.tables.model_worker import ModelUnitWorker, rows_of_pass
from curate.tables.pairwise_sums import PairwiseSums
from curate.tables.spec import TableSpec
from curate.tables.unit_worker import UnitWorker
from curate.tables.units import TargetTask, Unit, partial_name

Failed = Mapping[str, Mapping[int, str]]  # shard -> row that a counting pass could not process -> reason


def reduced(job: TableSpec, workers: Workers) -> tuple[tuple[Location, ...], Failed]:
    """Compute missing states of the counting passes; returns their files, and the rows that failed or are left out."""
    states, previous_state, failed = tuple[Location, ...](), "", dict[str, Mapping[int, str]](job.held_out.left_out)
    for index, step in enumerate(job.passes[:-1]):
        parts, name = job.prepared(index, previous_state)
        with lock(job.ws, f"prepared {parts.folder.name}", wait=FOREVER) as held_lock:
            if parts.read(name) is None:
                unit_worker = UnitWorker(
                    job.method, job.target, index, states, parts.folder, "", anchors=job.held_out.anchors
                )
                parts.remove_leftovers()
                count = _count_pool if step.over == "pool" else _count_aim
                count(job, workers, held_lock, unit_worker, failed, name)
                remove_leftovers(parts.folder, mine=True)  # of workers lost on the way, whose machine may be gone
            for shard, rows in (parts.record(name) or {})["failed"].items():
                failed[shard] = {**failed.get(shard, {}), **{int(row): reason for row, reason in rows.items()}}
            states = (*states, parts.path(name))
        previous_state = f"{parts.folder.name}/{name}"
    return states, failed


def _count_aim(
    job: TableSpec, workers: Workers, held_lock: Lock, unit_worker: UnitWorker, failed: Failed, name: str
) -> None:
    """Compute and commit the state of a pass over the target's samples, or over the anchors."""
    parts, step = unit_worker.partials, job.passes[unit_worker.index]
    tasks = Tasks([TargetTask(len(job.aim(step).subtasks))])
    _run(job, workers, held_lock, unit_worker, step, [], tasks, name)
    partial = parts.read(str(TargetTask(0)))
    if partial is None:
        raise CurateFailure(f"{parts.folder}: what was just written does not read back the same; is the disk damaged?")
    Parts(parts.folder, parts.suffix).commit(name, step.state([partial], unit_worker.before), failed={})
    parts.remove(str(TargetTask(0)))


def _count_pool(
    job: TableSpec, workers: Workers, held_lock: Lock, unit_worker: UnitWorker, failed: Failed, name: str
) -> None:
    """Map every unit without a partial, and reduce all partials to the state `name`."""
    parts, step = unit_worker.partials, job.passes[unit_worker.index]
    units = [u for s in job.shards for u in job.units_of(s, failed.get(s.name))]
    sums = PairwiseSums(parts, units) if step.requests else None
    if sums:
        missing = sums.missing()
    else:
        records = parts.records()
        missing = [u for u in units if records.get(partial_name(u), {}).get("shard") != u.shard.sha256]
    _run(job, workers, held_lock, unit_worker, step, units, Tasks(missing), name, sums)
    partials = sums.left() if sums else (unit_worker.partial_again(unit) for unit in units)
    state = step.state(partials, unit_worker.before)
    records = parts.records()
    failures: dict[str, dict[str, str]] = {}
    for unit in units:
        if rows := records.get(partial_name(unit), {}).get("failed"):
            failures.setdefault(unit.shard.name, {}).update(rows)
    Parts(parts.folder, parts.suffix).commit(name, state, failed=failures)
    # Partials can be re-used when the pool grows, except if already summed, or if they depend on a state of this pool.
    spent = bool(sums) or unit_worker.index > 0
    for stale in [n for n in records if n != name and (n.startswith("state-") or spent)]:
        parts.remove(stale)


def _run(
    job: TableSpec,
    workers: Workers,
    held_lock: Lock,
    unit_worker: UnitWorker,
    step: Pass,
    units: Sequence[Unit],
    tasks: Tasks,
    name: str,
    sums: PairwiseSums | None = None,
) -> None:
    run_task = (
        ModelUnitWorker((unit_worker,), job.models, job.checkpoints).run_task if step.requests else unit_worker.run_task
    )
    with ExitStack() as stack:
        meters = meters_of([job], step, stack, f"{unit_worker.partials.folder.name}/{name}")
        bar = stack.enter_context(progress([job], step, units, tasks))
        for task, outcome in workers.run(run_task, tasks, lambda task: meters.begin(rows_of_pass(task, step))):
            held_lock.check()
            meters.add(outcome.result, outcome.peak_bytes)
            if sums and isinstance(task, Unit):
                sums.came(task)
            bar.finished(task.samples, getattr(outcome.result, "tokens", 0))
