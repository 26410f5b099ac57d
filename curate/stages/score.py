"""`curate score`: run a method's passes over the pool, unit by unit, and lose nothing when killed.

    pool shard ─ unit ─ map ─┐                              prepared/FINGERPRINT/part-00000.rows-….safetensors
    pool shard ─ unit ─ map ─┴─ reduce ─ state ─┐           prepared/FINGERPRINT/state-POOL.safetensors
    pool shard ─ unit ─ map(state) ─────────────┴─ columns  scores/NAME/_units/…  ->  scores/NAME/part-00000.parquet

A unit is a range of a shard's rows. What is committed is never computed again while its inputs are the same:
partials are known by what shapes them (so a second target re-uses BM25's counts), parts by the score's
fingerprint. A score that cannot go on in place (stale, or `fresh`) is computed beside the old one and swapped in
when complete.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from curate.costs import charged
from curate.errors import CurateError
from curate.fingerprint import fingerprint
from curate.lineage import default_score_name, load_target, sample_columns, score_recipe
from curate.method import Arrays, Columns, Pass, Score, Target
from curate.schema import POOL_COLUMNS
from curate.shards import Parts, claim, read_arrays, read_json, read_table, remove_tree, write_json
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
    dry_run: bool = False,
) -> list[Scored]:
    """Score every sample of the pool by each method.

    target: the target of the methods that use one. names: method -> score name, where not the default (METHOD, or
    METHOD_TARGET). fresh: compute again beside the old table and swap. dry_run: say what would be computed.

    Raises CurateError for a missing target, a name that is taken, or a table of other settings under the name.
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
    return [_dry(job, fresh) if dry_run else _run(job, fresh) for job in jobs]


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


def _run(job: _Job, fresh: bool) -> Scored:
    with claim(job.ws.path, f"score {job.name}"):
        folder = _folder(job, fresh)
        result = Scored(job.name, job.method.name, job.recipe["target"])
        parts = Parts(folder)
        parts.sweep()
        todo = [shard for shard in job.shards if not _stands(parts, shard, job)]
        result.reused = sum(shard.rows for shard in job.shards) - sum(shard.rows for shard in todo)
        if todo:
            state, step = _counted(job), job.passes[-1]
            with charged(job.ws.path, "score", methods=[job.method.name], name=job.name, phase=step.name) as meter:
                given = step.open(state) if step.open else state
                for shard in _progress(todo, job, step):
                    meter.samples += _score_shard(job, step, given, parts, shard)
            result.computed = sum(shard.rows for shard in todo)
        shutil.rmtree(folder / "_units", ignore_errors=True)
        if folder != job.ws.score_folder(job.name):
            job.ws.swap_score(job.name)
        records = Parts(job.ws.score_folder(job.name)).records()
        result.rows = sum(record["rows"] for record in records.values())
        result.nulls = sum(record["nulls"] for record in records.values())
        return result


def _folder(job: _Job, fresh: bool) -> Path:
    """Where to write: in place where the table there is this one; beside it where it is stale or `fresh`."""
    final, beside = job.ws.score_folder(job.name), job.ws.fresh_folder(job.name)
    old = read_json(final / "score.json") if (final / "score.json").exists() else None
    if not fresh:
        _refuse_other_recipe(old, job)
    if old is None:
        folder = final
    elif old["fingerprint"] == job.recipe["fingerprint"] and not fresh:
        shutil.rmtree(beside, ignore_errors=True)
        return final
    else:
        folder = beside
    marker = folder / "score.json"
    if not marker.exists() or read_json(marker)["fingerprint"] != job.recipe["fingerprint"]:
        shutil.rmtree(folder, ignore_errors=True)
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


# --- counting passes -------------------------------------------------------------------------------------


def _counted(job: _Job) -> Arrays:
    """The state for the last pass, computing what is missing of the counting ones."""
    state, before = {}, ""
    for index, step in enumerate(job.passes[:-1]):
        parts, name = job.prepared(index, before)
        with claim(job.ws.path, f"prepared {parts.folder.name}", wait=True):
            if parts.record(name) is None:
                parts.sweep()
                state = _count(job, step, state, parts)
                for old in [n for n in parts.names() if n.startswith("state-")]:
                    parts.remove(old)
                parts.commit(name, state)
            state = read_arrays(parts.path(name))
        before = f"{parts.folder.name}/{name}"
    return state


def _count(job: _Job, step: Pass, state: Arrays, parts: Parts) -> Arrays:
    assert step.reduce is not None
    given = step.open(state) if step.open else state
    names = []
    with charged(job.ws.path, "score", methods=[job.method.name], name=job.name, phase=step.name) as meter:
        for shard in _progress(job.shards, job, step):
            units = {f"{shard.name}.{_range(a, b)}": (a, b) for a, b in unit_ranges(shard, job.method.unit_bytes)}
            names += list(units)
            missing = [n for n in units if (parts.record(n) or {}).get("shard") != shard.sha256]
            for name, batch in _batches(shard, step, missing, units):
                parts.commit(name, step.map(batch, given), rows=len(batch), shard=shard.sha256)
                meter.samples += len(batch)
        return step.reduce(read_arrays(parts.path(name)) for name in names)


# --- the last pass ---------------------------------------------------------------------------------------


def _score_shard(job: _Job, step: Pass, given: Any, parts: Parts, shard: Shard) -> int:
    """Score one shard unit by unit and merge the units into its part. Returns the rows computed now."""
    units = Parts(parts.folder / "_units" / shard.name)
    units.sweep()
    started = time.perf_counter()
    ranges = {_range(a, b): (a, b) for a, b in unit_ranges(shard, job.method.unit_bytes)}
    same = {"fingerprint": job.recipe["fingerprint"], "shard": shard.sha256}
    missing = [n for n in ranges if not same.items() <= (units.record(n) or {}).items()]
    done = 0
    for name, batch in _batches(shard, step, missing, ranges):
        table = score_table(batch.frame["id"].to_arrow(), step.map(batch, given), job.method)
        done += len(batch)
        if len(ranges) == 1:
            _commit_part(parts, shard, table, started, same)
            return done
        units.commit(name, table, **same)
    tables = [read_table(units.path(name)) for name in ranges]
    _commit_part(parts, shard, pa.concat_tables(tables), started, same)
    remove_tree(units.folder)
    return done


def _commit_part(parts: Parts, shard: Shard, table: pa.Table, started: float, same: Mapping[str, str]) -> None:
    spent = {"seconds": round(time.perf_counter() - started, 3), "flops": 0.0}  # text passes use no tensors
    parts.commit(shard.name, table, nulls=table["score"].null_count, **same, **spent)


def _stands(parts: Parts, shard: Shard, job: _Job) -> bool:
    record = parts.record(shard.name)
    return (
        record is not None
        and record["fingerprint"] == job.recipe["fingerprint"]
        and record["shard"] == shard.sha256
        and parts.path(shard.name).exists()
    )


def score_table(ids: pa.Array, columns: Columns, method: Score) -> pa.Table:
    """A method's columns as a score table: float32, null with a reason where there is no finite score."""
    score = np.asarray(columns["score"], dtype=np.float64)
    finite = np.isfinite(score)
    reasons = np.asarray(columns.get("error", np.full(len(score), "")), dtype=object)
    reasons = np.where(~finite & (reasons == ""), "its score is not a finite number", reasons)
    good = reasons == ""
    table = {"id": ids.cast(pa.string()), "score": pa.array(score.astype(np.float32), mask=~good)}
    for name, dtype in method.columns.items():
        values = np.asarray(columns[name], dtype=dtype)
        table[name] = pa.array(values, mask=~np.isfinite(values))
    if method.keeps_subtasks():
        table["subtasks"] = _map_column(columns["subtasks"], good)
    table["error"] = pa.array(reasons, pa.string(), mask=good)
    return pa.table(table)


def _map_column(subtasks: Mapping[str, np.ndarray], good: np.ndarray) -> pa.Array:
    """The scores of every sub-task by its name, null where the sample has no score."""
    keys = sorted(subtasks)
    values = np.stack([subtasks[key] for key in keys], axis=1).astype(np.float32)[good].ravel()
    ends = np.concatenate([[0], np.cumsum(good * len(keys))]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(~good, False)) if len(good) else pa.array([0], pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array(keys * int(good.sum()), pa.string()), pa.array(values))


# --- units -----------------------------------------------------------------------------------------------


def unit_ranges(shard: Shard, unit_bytes: int) -> list[tuple[int, int]]:
    """The shard's rows cut into ranges of about `unit_bytes` of text; the same for the same shard, always."""
    count = max(1, min(shard.rows, round(shard.n_chars / unit_bytes)))
    edges = [shard.rows * i // count for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _range(start: int, stop: int) -> str:
    return f"rows-{start:09d}-{stop:09d}"


def _batches(
    shard: Shard, step: Pass, names: Sequence[str], ranges: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Any]]:
    """The named units of a shard as batches of the pass's signal; the shard is read once, if at all."""
    if not names:
        return
    rows = read_table(shard.path, columns=step.signal.schema.names)
    for name in names:
        start, stop = ranges[name]
        yield name, step.signal(rows.slice(start, stop - start))


def _progress(shards: Sequence[Shard], job: _Job, step: Pass) -> Iterator[Shard]:
    with tqdm(
        total=sum(shard.rows for shard in shards),
        desc=f"{job.name}: {step.name}",
        unit=" samples",
        unit_scale=True,
        disable=None,  # quiet where stderr is no terminal
        leave=False,
    ) as bar:
        for shard in shards:
            yield shard
            bar.update(shard.rows)


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
            parts = Parts(job.ws.score_folder(job.name))
            todo = [shard for shard in job.shards if fresh or not _stands(parts, shard, job)]
        result.planned.append(
            {
                "pass": step.name,
                "shards": len(todo),
                "units": sum(len(unit_ranges(shard, job.method.unit_bytes)) for shard in todo),
                "rows": sum(shard.rows for shard in todo),
                "text_chars": sum(shard.n_chars for shard in todo),
                "flops": 0,
            }
        )
    return result
