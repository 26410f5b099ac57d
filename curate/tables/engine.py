"""The score engine: runs a method's passes over the pool, unit by unit, and resumes after a kill without loss.

    pool shard ─ unit ─ map ─┐                              prepared/FINGERPRINT/part-00000.rows-….safetensors
    pool shard ─ unit ─ map ─┴─ reduce ─ state ─┐           prepared/FINGERPRINT/state-POOL.safetensors
    pool shard ─ unit ─ map(state) ─────────────┴─ columns  scores/NAME/_units/…  ->  scores/NAME/part-00000.parquet

A unit is a range of a shard's rows, sized by cost. Units are the tasks (curate.tables.unit_worker) of an executor's
workers. Committed results are never recomputed while their inputs are the same: partials are identified by the
settings that affect them (so a second target re-uses BM25's counts), parts by the score's fingerprint. A score that
cannot be continued in place (stale, or `fresh`) is computed beside the old one and swapped in when complete.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.executor import Tasks, Workers
from curate.kinds.score import Score
from curate.models.choice import MIXED
from curate.models.rates import measured
from curate.results import Result
from curate.store.commits import Parts
from curate.store.contents import enter, require_intact, take_out
from curate.store.encoding import read_table
from curate.store.files import remove_leftovers, remove_tree
from curate.store.locks import Lock, lock
from curate.store.object_store import Location
from curate.store.recipes import TableRecipe, read_recipe, write_recipe
from curate.store.workspace import Shard, recipe_file
from curate.tables.index import ensure_index
from curate.tables.meters import meters_of, progress
from curate.tables.model_worker import ModelUnitWorker
from curate.tables.plan import (
    refuse_other_recipe,
)
from curate.tables.reduce import Failed, reduced
from curate.tables.spec import TableSpec
from curate.tables.stored_arrays import StoredArrays
from curate.tables.unit_worker import UnitWorker
from curate.tables.units import MergeTask, TargetTask, Unit, units_of_part
from curate.tables.vector_table import target_vectors


@dataclass
class Scored(Result):
    """The result of scoring by one method: on its score, or on its vectors if it has no target.

    computed: rows of the last pass computed now; reused: rows that existed already; cut: samples computed now that
    were truncated to the model's context; cut_of_target: likewise of a target encoded now. vectors: the result for
    the vectors that the score is computed from. partial: samples computed now of which some of the assistant's
    turns do not count, since the chat template does not show them. index: for vectors, a description of their FAISS
    index. left_out: samples used in a warm-up or held out. note: the method's remark. products: how the models' matrix
    products are computed, if not in their weights' dtype.
    """

    name: str
    method: str
    target: str | None
    kind: str = "score"
    rows: int = 0
    computed: int = 0
    reused: int = 0
    nulls: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # why values are null -> how many; numbers as N
    cut: int = 0
    index: str = ""
    left_out: int = 0
    note: str = ""
    products: str = ""
    cut_of_target: int = 0
    partial: int = 0
    vectors: Scored | None = None
    planned: list[dict[str, Any]] = field(default_factory=list)  # dry run: the work of each pass


def run_group(jobs: Sequence[TableSpec], fresh: bool, workers: Workers) -> list[tuple[TableSpec, Scored]]:
    """Score a group of jobs: one job, or several that share a pass through a model."""
    with ExitStack() as stack:
        in_order = sorted(jobs, key=lambda job: job.name)  # so that of two who wait, neither waits for the other
        locks = [stack.enter_context(lock(job.ws, f"{job.kind} {job.name}")) for job in in_order]
        for job in jobs:
            if job.vectors:  # they must not be replaced while they are read
                locks.append(stack.enter_context(lock(job.ws, f"vectors {job.vectors.name}")))
                _refuse_replaced(job.vectors)
        folders = [_folder(job, fresh) for job in jobs]
        todo, unit_workers = [], []
        for job, folder in zip(jobs, folders, strict=True):
            Parts(folder).remove_leftovers(lost_ok=True)  # what was lost is computed again
            todo.append(missing_shards(job, Parts(folder)))
            unit_workers.append(_work(job, folder))
        try:
            cut = _compute(jobs, workers, locks, unit_workers, todo)
        except CurateError:
            _remove_begun(jobs, folders)
            raise
        return [
            (job, _finished(job, folder, job_shards, cut))
            for job, folder, job_shards in zip(jobs, folders, todo, strict=True)
        ]


def _remove_begun(jobs: Sequence[TableSpec], folders: Sequence[Location]) -> None:
    """Remove tables of which nothing was computed, so that a model that cannot be loaded leaves none."""
    for job, folder in zip(jobs, folders, strict=True):
        if not Parts(folder).names() and not (folder / "_units").exists():
            if folder == job.folder:
                take_out(job.ws, job.kind, job.name)
            remove_tree(folder)


@dataclass
class _Cut:
    """How many samples of the pool, and of the target, were truncated to the model's context; and of how many of the
    pool some turns could not be located."""

    pool: int = 0
    target: int = 0
    partial: int = 0


def _refuse_replaced(vectors: TableSpec) -> None:
    """Raises CurateError if the vectors, or those of the target, have been changed by another process."""
    recipe = stored_recipe(vectors)
    if recipe is None or recipe.fingerprint != vectors.recipe.fingerprint or _work(vectors, vectors.folder).aims():
        raise CurateError(f"{vectors}, or the target, were changed by another process; run the command again.")


def _work(job: TableSpec, folder: Location) -> UnitWorker:
    """The worker for the last pass of a job, writing to `folder`; the states of earlier passes are still missing."""
    vectors = job.vectors.folder if job.vectors else None
    last_pass, recipe_fingerprint = len(job.passes) - 1, job.recipe.fingerprint
    return UnitWorker(job.method, job.target, last_pass, (), folder, recipe_fingerprint, job.kind, vectors, job.shares)


def _compute(
    jobs: Sequence[TableSpec],
    workers: Workers,
    locks: Sequence[Lock],
    unit_workers: Sequence[UnitWorker],
    todo: Sequence[Sequence[Shard]],
) -> _Cut:
    """Compute the missing shards and target vectors of each job."""
    active, failed = [], {}
    for job, unit_worker, job_shards in zip(jobs, unit_workers, todo, strict=True):
        if job_shards or unit_worker.aims():
            states, failed = reduced(job, workers)
            active.append(replace(unit_worker, states=states))
    missing = {shard.name for job_shards in todo for shard in job_shards}
    shards = [shard for shard in jobs[0].shards if shard.name in missing]
    return _score_shards(jobs, workers, locks, active, failed, shards) if active else _Cut()


def _finished(job: TableSpec, folder: Location, todo: Sequence[Shard], cut: _Cut) -> Scored:
    """Move a complete table to its final place; returns a summary of the work."""
    remove_leftovers(folder, mine=True)  # of workers lost on the way, whose machine may be gone
    Parts(folder).certify()
    if job.kind == "vectors":
        target_vectors(folder).catch_up()  # of a command that was killed before it listed them
    remove_tree(folder / "_units")
    if folder != job.folder:
        take_out(job.ws, job.kind, job.name)
        job.ws.swap_table(job.kind, job.name)
    enter(job.ws, job.kind, job.name)
    index = ensure_index(job.ws, job.name) if job.kind == "vectors" else ""
    records = Parts(job.folder).records().values()
    computed = sum(shard.rows for shard in todo)
    return Scored(
        job.name,
        job.method.name,
        job.recipe.target or None,
        job.kind,
        index=index,
        rows=sum(record["rows"] for record in records),
        computed=computed,
        reused=sum(shard.rows for shard in job.shards) - computed,
        nulls=sum(record["nulls"] for record in records),
        cut=cut.pool if todo else 0,
        partial=cut.partial if todo else 0,
        cut_of_target=cut.target if job.kind == "vectors" else 0,
        left_out=sum(len(rows) for rows in job.held_out.left_out.values()),
        note=_note(job),
        products=_products(job) if todo else "",
        reasons=_reasons(job, [name for name, record in Parts(job.folder).records().items() if record["nulls"]]),
    )


def _reasons(job: TableSpec, parts: Sequence[str]) -> dict[str, int]:
    """Why samples of these parts have no value, the most frequent reason first."""
    found = Counter[str]()
    for part in parts:
        errors = read_table(Parts(job.folder).path(part), ["error"])["error"]
        found.update(re.sub(r"\d[\d,.]*", "N", error) for error in errors.to_pylist() if error)
    return dict(found.most_common())


def _products(job: TableSpec) -> str:
    """How the models' matrix products are computed, and why; '' if in the dtype of their weights."""
    if all(choice.dtype != MIXED for choice in job.models.values()):
        return ""
    rates = measured()
    return "products in bfloat16" + (f", {rates.gain:.1f} times as fast here as in float32" if rates else "")


def _note(job: TableSpec) -> str:
    """The method's remark on its score; '' for most methods."""
    if job.kind == "vectors":
        return ""
    if type(job.method).state_note is not Score.state_note:
        states = [job.ws.path / "prepared" / f"{at}.safetensors" for at in job.recipe.states]
        return job.method.state_note(StoredArrays(states)) if all(state.exists() for state in states) else ""
    if type(job.method).note is Score.note:
        return ""
    names = ["score", *(name for name, dtype in job.method.columns.items() if dtype != "id")]  # ids take much memory
    tables = [read_table(Parts(job.folder).path(shard.name), names) for shard in job.shards]
    columns = {n: np.concatenate([t[n].to_numpy(zero_copy_only=False) for t in tables]) for n in names}
    return job.method.note(columns, job.target)


def _folder(job: TableSpec, fresh: bool) -> Location:
    """The folder to write to: in place if the existing table is this one; beside it if that is stale or `fresh`."""
    final, staging = job.folder, job.ws.staging_folder(job.kind, job.name)
    existing = stored_recipe(job)
    if not fresh:
        refuse_other_recipe(existing, job)
    if existing is None:
        folder = final
    elif existing.fingerprint == job.recipe.fingerprint and not computed_anew(job, fresh):
        remove_tree(staging)
        return final
    else:
        folder = staging
    marker = folder / recipe_file(job.kind)
    if not marker.exists() or read_recipe(marker, TableRecipe).fingerprint != job.recipe.fingerprint:
        if folder == final:
            take_out(job.ws, job.kind, job.name)
        remove_tree(folder)
        write_recipe(marker, job.recipe)
    return folder


def stored_recipe(job: TableSpec) -> TableRecipe | None:
    """The recipe of the existing table of that name; None if there is none, or no part of it was computed."""
    marker = job.folder / recipe_file(job.kind)
    if not marker.exists():
        return None
    begun = bool(Parts(job.folder).names()) or any((job.folder / "_units").glob("*"))
    require_intact(job.ws, job.kind, job.name)
    recipe = read_recipe(marker, TableRecipe)
    return recipe if begun or recipe.fingerprint == job.recipe.fingerprint else None


def is_complete(job: TableSpec) -> bool:
    """Whether a table of this recipe is there, and lacks no shard."""
    recipe = stored_recipe(job)
    return recipe is not None and recipe.fingerprint == job.recipe.fingerprint and not missing_shards(job)


def computed_anew(job: TableSpec, fresh: bool) -> bool:
    """Whether a table is recomputed although it is valid; vectors are not if `fresh` is about a score on them."""
    return fresh and (job.kind == "score" or job.target is None)


def missing_shards(job: TableSpec, parts: Parts | None = None) -> list[Shard]:
    """The shards without a valid part of this table: one of the recorded size, and with matching fingerprints. parts:
    those of the folder that it is made in, if not in its place."""
    parts = parts or Parts(job.folder)
    records, sizes = parts.records(lost_ok=True), parts.sizes()

    def stands(shard: Shard) -> bool:
        record = records.get(shard.name)
        if record is None or shard.name not in sizes:
            return False
        unchanged = record["fingerprint"] == job.recipe.fingerprint and record["shard"] == shard.sha256
        return unchanged and sizes[shard.name] == record["bytes"]

    return [shard for shard in job.shards if not stands(shard)]


def units_left(job: TableSpec, shards: Sequence[Shard], size: float, anew: bool) -> list[Unit]:
    """The units of the last pass that are not committed yet. anew: the table is computed beside the existing one."""
    recipe, left = stored_recipe(job), []
    goes_on = not anew and recipe is not None and recipe.fingerprint == job.recipe.fingerprint
    unit_worker = _work(job, job.folder)
    for shard in shards:
        units = job.units_of(shard, job.held_out.left_out.get(shard.name), size)
        missing = _unscored(unit_worker, shard, units) if goes_on else {unit.name for unit in units}
        left += [unit for unit in units if unit.name in missing]
    return left


def aims(job: TableSpec, anew: bool) -> bool:
    """Whether the target's vectors are computed with a table of vectors."""
    return job.kind == "vectors" and job.target is not None and (anew or _work(job, job.folder).aims())


class _LastPass:
    """The last pass of a group of tables: tasks for its missing units, and for merging the units of each shard.

    cut: how many samples of the finished units were truncated to the model's context.
    """

    def __init__(self, jobs: Sequence[TableSpec], works: Sequence[UnitWorker], failed: Failed, shards: Sequence[Shard]):
        self.tasks, self.cut, self.works = Tasks(), _Cut(), works
        size = min(job.unit_size for job in jobs)
        self._units = {shard.name: jobs[0].units_of(shard, failed.get(shard.name), size) for shard in shards}
        self._missing: dict[str, set[str]] = {}
        if targets := [unit_worker.target for unit_worker in works if unit_worker.aims() and unit_worker.target]:
            self.tasks.add(TargetTask(len(targets[0].subtasks)))
        for shard in shards:
            self._add(shard)

    def _add(self, shard: Shard) -> None:
        units = self._units[shard.name]
        missing = {name for unit_worker in self.works for name in _unscored(unit_worker, shard, units)}
        self._missing[shard.name] = missing
        for unit in units:
            if unit.name in missing:
                self.tasks.add(unit)
        if not missing:
            self.tasks.add(MergeTask(shard, tuple(units)))

    @property
    def units(self) -> list[Unit]:
        """All units of the shards, done or not."""
        return [unit for units in self._units.values() for unit in units]

    def done(self, task: Any, result: Any) -> None:
        """Record a finished task; once all units of a shard are done, add the task that merges them."""
        if isinstance(task, TargetTask) and result:
            self.cut.target += result.cut
        elif result and not isinstance(result, float):
            self.cut.pool += result.cut
            self.cut.partial += result.partial
        if isinstance(task, Unit):
            missing, units = self._missing[task.shard.name], self._units[task.shard.name]
            missing.remove(task.name)
            if not missing and len(units) > 1:
                self.tasks.add(MergeTask(task.shard, tuple(units)))


def _score_shards(
    jobs: Sequence[TableSpec],
    workers: Workers,
    locks: Sequence[Lock],
    unit_workers: Sequence[UnitWorker],
    failed: Failed,
    shards: Sequence[Shard],
) -> _Cut:
    """Score the missing units of the shards, and merge the units of each shard once all are done."""
    last_pass = _LastPass(jobs, unit_workers, failed, shards)
    if jobs[0].through_models:
        models = {role: choice for job in jobs for role, choice in job.models.items()}
        run_task = ModelUnitWorker(tuple(unit_workers), models, jobs[0].checkpoints).run_task
    else:
        run_task = unit_workers[0].run_task
    with ExitStack() as stack:
        meters = meters_of(jobs, jobs[0].passes[-1], stack)
        bar = stack.enter_context(progress(jobs, jobs[0].passes[-1], last_pass.units, last_pass.tasks))
        for task, outcome in workers.run(run_task, last_pass.tasks, lambda task: meters.begin(task.samples)):
            for held_lock in locks:
                held_lock.check()
            meters.add(outcome.result, outcome.peak_bytes)
            last_pass.done(task, outcome.result)
            if isinstance(task, MergeTask) or isinstance(task, Unit) and task.samples == task.shard.rows:
                for unit_worker in unit_workers:
                    Parts(unit_worker.into).catch_up()
            bar.finished(task.samples, getattr(outcome.result, "tokens", 0))
    return last_pass.cut


def _unscored(unit_worker: UnitWorker, shard: Shard, units: Sequence[Unit]) -> set[str]:
    """The names of a shard's uncommitted units; empty if its part is committed."""
    if unit_worker.has(shard):
        return set()
    stored = units_of_part(unit_worker.into, shard).records() if len(units) > 1 else {}
    stamp = unit_worker.stamp(shard).items()
    return {unit.name for unit in units if not stamp <= stored.get(unit.name, {}).items()}
