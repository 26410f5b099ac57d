"""`curate score`: run a method's passes over the pool, unit by unit, and lose nothing when killed.

    pool shard ─ unit ─ map ─┐                              prepared/FINGERPRINT/part-00000.rows-….safetensors
    pool shard ─ unit ─ map ─┴─ reduce ─ state ─┐           prepared/FINGERPRINT/state-POOL.safetensors
    pool shard ─ unit ─ map(state) ─────────────┴─ columns  scores/NAME/_units/…  ->  scores/NAME/part-00000.parquet

A unit is a range of a shard's rows, sized by cost. Units are the tasks (curate.tasks) that an executor's workers do.
What is committed is never computed again while its inputs are the same: partials are known by what shapes them (so a
second target re-uses BM25's counts), parts by the score's fingerprint. A score that cannot go on in place (stale, or
`fresh`) is computed beside the old one and swapped in when complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tqdm import tqdm

from curate.claims import Claim, claim
from curate.costs import Meter, charged
from curate.errors import CurateError
from curate.executors.local import Local
from curate.fingerprint import fingerprint
from curate.lineage import default_score_name, load_target, sample_columns, score_recipe
from curate.method import Executor, Pass, Score, Target
from curate.schema import POOL_COLUMNS
from curate.shards import Parts, read_json, write_json
from curate.storage import Location, remove_tree
from curate.tasks import Merge, Unit, Work, partial_name, shard_units, units_of_part
from curate.workers import Tasks, Workers
from curate.workspace import Shard, Workspace, pool_fingerprint


@dataclass
class Scored:
    """What scoring one method did. computed: rows of the last pass done now; reused: found done."""

    name: str
    method: str
    target: str | None
    rows: int = 0
    computed: int = 0
    reused: int = 0
    nulls: int = 0
    planned: list[dict[str, Any]] = field(default_factory=list)  # dry run: work by pass


def score(
    ws: Workspace,
    *methods: Score,
    target: str | None = None,
    names: Mapping[str, str] | None = None,
    fresh: bool = False,
    executor: Executor | None = None,
    dry_run: bool = False,
) -> list[Scored]:
    """Score every sample of the pool by each method.

    target: the target of the methods that use one. names: method -> score name, where not the default (METHOD, or
    METHOD_TARGET). fresh: compute again beside the old table and swap. executor: who does the work (default: Local());
    the bytes do not depend on it. dry_run: say what would be computed.

    Raises CurateError for a missing target, a name that is taken, or a table of other settings under the name, and
    CurateFailure where a worker is lost again and again or the method fails; the same call then goes on from there.
    """
    if not methods:
        raise CurateError(
            "name at least one score method, as in `curate score length`; `curate methods score` lists them."
        )
    if target and not any(method.uses_target for method in methods):
        raise CurateError(
            f"no method of {', '.join(m.name for m in methods)} uses a target; leave out --target {target}."
        )
    unknown = set(names or {}) - {method.name for method in methods}
    if unknown:
        raise CurateError(f"--name speaks of {', '.join(sorted(unknown))}, which is not among the methods to score.")
    jobs = [_plan(ws, method, target, (names or {}).get(method.name)) for method in methods]
    if dry_run:
        return [_dry(job, fresh) for job in jobs]
    with closing((executor or Local()).open()) as workers:
        return [_run(job, fresh, workers) for job in jobs]


def _plan(ws: Workspace, method: Score, target_name: str | None, name: str | None) -> _Job:
    if method.uses_target and not target_name:
        raise CurateError(f"the score '{method.name}' needs a target: add --target NAME (`curate target` makes one).")
    target = load_target(ws, target_name) if method.uses_target and target_name else None
    name = name or default_score_name(method.name, target.name if target else None)
    ws.check_name(name, "score")
    job = _Job(ws, name, method, target, ws.require_pool())
    _refuse_hidden_columns(job)
    return job


def _refuse_hidden_columns(job: _Job) -> None:
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


# --- one score -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One score to compute, with what identifies it."""

    ws: Workspace
    name: str
    method: Score
    target: Target | None
    shards: list[Shard]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """score.json: what the table is made of."""
        pool = pool_fingerprint(self.shards) if self.method.scope == "pool" else None
        target = self.target.fingerprint if self.target else None
        method, settings = self.method, self.method.settings()
        default = type(method)().settings()
        return {
            "method": method.name,
            "version": method.version,
            "settings": settings,
            "changed": {key: value for key, value in settings.items() if value != default[key]},
            "scope": method.scope,
            "target": self.target.name if self.target else None,
            "target_fingerprint": target,
            "pool_fingerprint": pool,
            "columns": dict(method.columns),
            "keeps_subtasks": method.keeps_subtasks(),
            "fingerprint": fingerprint(method.name, method.version, settings, target, pool),
        }

    @cached_property
    def passes(self) -> Sequence[Pass]:
        return self.method.passes(self.target)

    def prepared(self, index: int, before: str) -> tuple[Parts, str]:
        """Where the partials of a counting pass lie, and the name of its state for the pool as it is."""
        step, settings = self.passes[index], self.method.settings()
        shaped_by = {
            s: self.target.fingerprint if s == "target" and self.target else settings[s] for s in step.shaped_by
        }
        shape = fingerprint(self.method.name, self.method.version, step.name, shaped_by, before)
        return Parts(self.ws.path / "prepared" / shape, ".safetensors"), f"state-{pool_fingerprint(self.shards)}"


def _run(job: _Job, fresh: bool, workers: Workers) -> Scored:
    with claim(job.ws.path, f"score {job.name}") as held:
        folder = _folder(job, fresh)
        result = Scored(job.name, job.method.name, job.recipe["target"])
        parts = Parts(folder)
        parts.sweep()
        todo = _missing(parts, job)
        result.reused = sum(shard.rows for shard in job.shards) - sum(shard.rows for shard in todo)
        if todo:
            state, failed = _counted(job, workers)
            _score_shards(job, workers, held, state, failed, folder, todo)
            result.computed = sum(shard.rows for shard in todo)
        remove_tree(folder / "_units")
        if folder != job.ws.score_folder(job.name):
            job.ws.swap_score(job.name)
        records = Parts(job.ws.score_folder(job.name)).records()
        result.rows = sum(record["rows"] for record in records.values())
        result.nulls = sum(record["nulls"] for record in records.values())
        return result


def _folder(job: _Job, fresh: bool) -> Location:
    """Where to write: in place where the table there is this one; beside it where it is stale or `fresh`."""
    final, beside = job.ws.score_folder(job.name), job.ws.fresh_folder(job.name)
    old = read_json(final / "score.json") if (final / "score.json").exists() else None
    if not fresh:
        _refuse_other_recipe(old, job)
    if old is None:
        folder = final
    elif old["fingerprint"] == job.recipe["fingerprint"] and not fresh:
        remove_tree(beside)
        return final
    else:
        folder = beside
    marker = folder / "score.json"
    if not marker.exists() or read_json(marker)["fingerprint"] != job.recipe["fingerprint"]:
        remove_tree(folder)
        write_json(marker, job.recipe)
    return folder


def _refuse_other_recipe(old: dict[str, Any] | None, job: _Job) -> None:
    if old is None:
        return
    for what in ("method", "target", "version"):
        if old[what] != job.recipe[what]:
            raise CurateError(
                f"the score '{job.name}' was made with {what} {old[what]}, not {job.recipe[what]}; "
                "choose another --name, or --fresh to replace it."
            )
    for key, value in job.recipe["settings"].items():
        if old["settings"].get(key) != value:
            raise CurateError(
                f"the score '{job.name}' was made with {key}={old['settings'].get(key)}, not {key}={value}; "
                "choose another --name, or --fresh to replace it."
            )


def _missing(parts: Parts, job: _Job) -> list[Shard]:
    """The shards whose part is not there, whole (by its size) and of this score."""
    records, sizes = parts.records(), parts.sizes()

    def stands(shard: Shard) -> bool:
        record = records.get(shard.name)
        if record is None or shard.name not in sizes:
            return False
        same = record["fingerprint"] == job.recipe["fingerprint"] and record["shard"] == shard.sha256
        return same and sizes[shard.name] == record["bytes"]

    return [shard for shard in job.shards if not stands(shard)]


# --- counting passes -------------------------------------------------------------------------------------

Failed = Mapping[str, Mapping[int, str]]  # shard -> rows a counting pass could not take -> why


def _counted(job: _Job, workers: Workers) -> tuple[Location | None, Failed]:
    """The file of the last pass's state, computing what is missing of the counting ones."""
    state, before, failed = None, "", {}
    for index in range(len(job.passes) - 1):
        parts, name = job.prepared(index, before)
        with claim(job.ws.path, f"prepared {parts.folder.name}", wait=True) as held:
            if parts.read(name) is None:
                work = Work(job.method, job.target, index, state, parts.folder, "")
                parts.sweep()
                _count(job, workers, held, work, failed, name)
            record = parts.record(name) or {}
            failed = {shard: {int(row): why for row, why in rows.items()} for shard, rows in record["failed"].items()}
            state = parts.path(name)
        before = f"{parts.folder.name}/{name}"
    return state, failed


def _count(job: _Job, workers: Workers, held: Claim, work: Work, failed: Failed, name: str) -> None:
    """Map every unit that has no partial yet, and reduce all partials to the state `name`."""
    parts, step = work.partials, job.passes[work.index]
    assert step.reduce is not None
    units = [u for s in job.shards for u in shard_units(s, job.method.unit_bytes, failed.get(s.name, {}))]
    records = parts.records()
    missing = [u for u in units if records.get(partial_name(u), {}).get("shard") != u.shard.sha256]
    tasks = Tasks(missing)
    with _charged(job, step) as meter:
        with _progress(job, step, units, tasks) as bar:
            for unit, done in workers.run(work.run_task, tasks, lambda unit: meter.begin(unit.samples)):
                held.check()
                meter.peak_bytes = max(meter.peak_bytes, done.peak_bytes)
                bar.update(unit.samples)
        state = step.reduce(work.partial_again(unit) for unit in units)
    records = parts.records()
    failures: dict[str, dict[str, str]] = {}
    for unit in units:
        if rows := records[partial_name(unit)]["failed"]:
            failures.setdefault(unit.shard.name, {}).update(rows)
    for old in [n for n in records if n.startswith("state-")]:
        parts.remove(old)
    Parts(parts.folder, parts.suffix).commit(name, state, failed=failures)


# --- the last pass ---------------------------------------------------------------------------------------


def _score_shards(
    job: _Job,
    workers: Workers,
    held: Claim,
    state: Location | None,
    failed: Failed,
    folder: Location,
    todo: Sequence[Shard],
) -> None:
    """Score the units of shards that have none yet, and merge the units of each shard once it has all."""
    work = Work(job.method, job.target, len(job.passes) - 1, state, folder, job.recipe["fingerprint"])
    step, tasks = job.passes[-1], Tasks()
    units = {shard.name: shard_units(shard, job.method.unit_bytes, failed.get(shard.name, {})) for shard in todo}
    missing: dict[str, set[str]] = {}
    for shard in todo:
        missing[shard.name] = _unscored(work, shard, units[shard.name])
        for unit in units[shard.name]:
            if unit.name in missing[shard.name]:
                tasks.add(unit)
        if not missing[shard.name]:
            tasks.add(Merge(shard, tuple(units[shard.name])))
    every = [unit for shard in todo for unit in units[shard.name]]
    with _charged(job, step) as meter, _progress(job, step, every, tasks) as bar:
        for task, done in workers.run(work.run_task, tasks, lambda task: meter.begin(task.samples)):
            held.check()
            meter.peak_bytes = max(meter.peak_bytes, done.peak_bytes)
            bar.update(task.samples)
            if isinstance(task, Unit):
                name = task.shard.name
                missing[name].remove(task.name)
                if not missing[name] and len(units[name]) > 1:
                    tasks.add(Merge(task.shard, tuple(units[name])))


def _unscored(work: Work, shard: Shard, units: Sequence[Unit]) -> set[str]:
    """The names of the units that are not committed."""
    stored = units_of_part(work.into, shard).records() if len(units) > 1 else {}
    same = work.stamp(shard).items()
    return {unit.name for unit in units if not same <= stored.get(unit.name, {}).items()}


def _charged(job: _Job, step: Pass) -> AbstractContextManager[Meter]:
    return charged(job.ws.path, "score", methods=[job.method.name], name=job.name, phase=step.name)


@contextmanager
def _progress(job: _Job, step: Pass, every: Sequence[Unit], todo: Tasks) -> Iterator[Any]:
    rows = sum(unit.samples for unit in every)
    with tqdm(
        total=rows,
        initial=rows - todo.samples(),
        desc=f"{job.name}: {step.name}",
        unit=" samples",
        unit_scale=True,
        disable=None,  # quiet where stderr is no terminal
        leave=False,
    ) as bar:
        yield bar


def _dry(job: _Job, fresh: bool) -> Scored:
    result = Scored(job.name, job.method.name, job.recipe["target"])
    marker, before = job.ws.score_folder(job.name) / "score.json", ""
    if marker.exists() and not fresh:
        _refuse_other_recipe(read_json(marker), job)
    for index, step in enumerate(job.passes):
        if step.reduce:
            parts, state = job.prepared(index, before)
            before = f"{parts.folder.name}/{state}"
            todo = [] if parts.record(state) else job.shards
        else:
            todo = job.shards if fresh else _missing(Parts(job.ws.score_folder(job.name)), job)
        result.planned.append(
            {
                "pass": step.name,
                "shards": len(todo),
                "units": sum(len(shard_units(shard, job.method.unit_bytes, {})) for shard in todo),
                "rows": sum(shard.rows for shard in todo),
                "text_chars": sum(shard.n_chars for shard in todo),
                "flops": 0,
            }
        )
    return result
