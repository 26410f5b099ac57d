"""`curate score`: run a method's passes over the pool, unit by unit, and lose nothing when killed.

    pool shard ─ unit ─ map ─┐                              prepared/FINGERPRINT/part-00000.rows-….safetensors
    pool shard ─ unit ─ map ─┴─ reduce ─ state ─┐           prepared/FINGERPRINT/state-POOL.safetensors
    pool shard ─ unit ─ map(state) ─────────────┴─ columns  scores/NAME/_units/…  ->  scores/NAME/part-00000.parquet

A unit is a range of a shard's rows, sized by cost. Units are the tasks (curate.tables.unit_worker) that an executor's
workers do. What is committed is never computed again while its inputs are the same: partials are known by what shapes
them (so a second target re-uses BM25's counts), parts by the score's fingerprint. A score that cannot go on in place
(stale, or `fresh`) is computed beside the old one and swapped in when complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.kinds.executor import Tasks, Workers
from curate.kinds.passes import Pass
from curate.kinds.registry import Executor, Score
from curate.methods.executors.local import Local
from curate.models.load import CHARS_PER_TOKEN, ModelChoice, parameters
from curate.runs.held_out import split_of
from curate.runs.warmup import looks_of
from curate.store.commits import Parts, read_json, read_table, write_json
from curate.store.files import Location, remove_tree
from curate.store.locks import Claim, claim
from curate.store.workspace import Shard, Workspace, recipe_file
from curate.tables.index import ensure_index
from curate.tables.plan import (
    Job,
    Looks,
    Models,
    Names,
    groups,
    models_of,
    plan,
    refuse_other_recipe,
    refuse_same_names,
    refuse_unknown_roles,
    roles,
    vectors_name,
)
from curate.tables.reduce import Failed, Meters, counted, progress
from curate.tables.state import model_of
from curate.tables.unit_worker import Aim, Merge, ModelWork, Unit, Work, shard_units, units_of_part


@dataclass
class Scored:
    """What scoring one method did: to its score, or to its vectors where it has no target.

    computed: rows of the last pass done now; reused: found done; cut: of those computed now, samples that were cut to
    the model's context; cut_of_target: the same of a target that was encoded now. vectors: what was done to the vectors
    that the score is made of. index: of vectors, their FAISS index in words. left_out: samples that were in a warm-up
    or set aside. note: what the method has to say.
    """

    name: str
    method: str
    target: str | None
    kind: str = "score"
    rows: int = 0
    computed: int = 0
    reused: int = 0
    nulls: int = 0
    cut: int = 0
    index: str = ""
    left_out: int = 0
    note: str = ""
    cut_of_target: int = 0
    vectors: Scored | None = None
    planned: list[dict[str, Any]] = field(default_factory=list)  # dry run: work by pass


def score(
    ws: Workspace,
    *methods: Score,
    target: str | None = None,
    names: Mapping[str, str] | None = None,
    vectors: Mapping[str, str] | None = None,
    fresh: bool = False,
    executor: Executor | None = None,
    models: Models | ModelChoice | str | None = None,
    checkpoints: Sequence[str] = (),
    dry_run: bool = False,
) -> list[Scored]:
    """Score every sample of the pool by each method.

    Methods of one pass through the same model share it: the samples go through once. A method with vectors (embed,
    embed_lm) stores them first, under a name of their own, for every target; without a target it stores only those.

    target: the target of the methods that use one. names: method -> score name, where not the default (METHOD, or
    METHOD_TARGET; VECTORS_TARGET of a score made of vectors). vectors: method -> name of its vectors (default: METHOD).
    fresh: compute again beside the old table and swap; vectors that are not otherwise serve a score as they are.
    executor: who does the work (default: Local()); the bytes do not depend on it. models: the model, or role -> model,
    for methods that need one. checkpoints: those that methods by gradients look at, by the name of a run or a folder,
    in place of a model (a model without a name has the settings of theirs). dry_run: say what would be computed.

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
    for option, given in (("--name", names), ("--vectors", vectors)):
        if unknown := set(given or {}) - {method.name for method in methods}:
            raise CurateError(
                f"{option} speaks of {', '.join(sorted(unknown))}, which is not among the methods to score."
            )
    twice = [m.name for i, m in enumerate(methods) if m.name in {other.name for other in methods[:i]}]
    if twice:
        raise CurateError(f"the method {twice[0]} is named twice; run it twice, each time under a --name of its own.")
    chosen = {role: model_of(ws, choice) for role, choice in roles(models).items()}
    refuse_unknown_roles(chosen, methods)
    _refuse_checkpoints(checkpoints, chosen, methods)
    planned = []
    for method in methods if not dry_run else ():  # what is refused is refused before a warm-up is trained
        called = Names((names or {}).get(method.name), (vectors or {}).get(method.name))
        its, looks = _models(ws, method, methods, chosen, checkpoints, called, target, fresh, True)
        for job in plan(ws, method, target, called, its, looks, split_of(ws, method, looks, target)):
            if not fresh:
                refuse_other_recipe(_stored(job), job)
    for method in methods:
        called = Names((names or {}).get(method.name), (vectors or {}).get(method.name))
        its, looks = _models(ws, method, methods, chosen, checkpoints, called, target, fresh, dry_run)
        planned.append(plan(ws, method, target, called, its, looks, split_of(ws, method, looks, target)))
    jobs = [job for its in planned for job in its]
    refuse_same_names(jobs)
    if dry_run:
        found = {id(job): _dry(job, fresh) for job in jobs}
    else:
        with closing((executor or Local()).open()) as workers:
            found = {id(job): result for group in groups(jobs) for job, result in _run(group, fresh, workers)}
    results = []
    for *before, last in planned:
        results.append(found[id(last)])
        results[-1].vectors = found[id(before[0])] if before else None
    return results


def _refuse_checkpoints(given: Sequence[str], models: Models, methods: Sequence[Score]) -> None:
    """Raises CurateError for checkpoints that no method looks at, or beside a model that no method would use."""
    if given and all(method.checkpoints == "none" for method in methods):
        raise CurateError(
            f"no method of {', '.join(m.name for m in methods)} looks at checkpoints; leave out --checkpoints "
            f"{given[0]}."
        )
    named = next((choice.name for role, choice in models.items() if role in ("", "base") and choice.name), None)
    if given and named and all(method.checkpoints != "none" for method in methods):
        raise CurateError(f"with --checkpoints the model is theirs; leave out --model {named}.")


def _models(
    ws: Workspace,
    method: Score,
    methods: Sequence[Score],
    chosen: Models,
    checkpoints: Sequence[str],
    called: Names,
    target: str | None,
    fresh: bool,
    dry_run: bool,
) -> tuple[dict[str, ModelChoice], Looks]:
    """A method's models by role, and the checkpoints of its base model."""
    if method.checkpoints == "none":
        return models_of(method, chosen, methods), Looks()
    vectors = vectors_name(method, called, target is not None)
    if not checkpoints:
        its = models_of(method, chosen, methods)
        return its, looks_of(ws, method, its["base"], (), vectors, fresh=fresh, dry_run=dry_run)
    bare = chosen.get("base") or chosen.get("") or ModelChoice("")
    looks = looks_of(ws, method, bare, checkpoints, vectors)
    base = looks.checkpoints[-1].model
    origin = chosen.get("origin") or looks.origin
    if "origin" in method.models and origin is None:
        raise CurateError(
            f"the score '{method.name}' compares with the model that training began with, which nothing says of "
            f"{checkpoints[-1]}: add --model origin=MODEL."
        )
    return models_of(
        method, {**chosen, "": base, "base": base, **({"origin": origin} if origin else {})}, methods
    ), looks


# --- a group of scores -----------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], fresh: bool, workers: Workers) -> list[tuple[Job, Scored]]:
    """Score a group of jobs: one job, or several that share a pass through a model."""
    with ExitStack() as stack:
        held = [stack.enter_context(claim(job.ws.path, f"{job.kind} {job.name}")) for job in jobs]
        for job in jobs:
            if job.vectors:  # nobody may replace them while they are read
                held.append(stack.enter_context(claim(job.ws.path, f"vectors {job.vectors.name}")))
                _refuse_replaced(job.vectors)
        folders = [_folder(job, fresh) for job in jobs]
        todo, works = [], []
        for job, folder in zip(jobs, folders, strict=True):
            Parts(folder).sweep()
            todo.append(_missing(Parts(folder), job))
            works.append(_work(job, folder))
        cut = _compute(jobs, workers, held, works, todo)
        return [(job, _finished(job, folder, its, cut)) for job, folder, its in zip(jobs, folders, todo, strict=True)]


@dataclass
class _Cut:
    """How many samples of the pool, and of the target, were cut to the model's context."""

    pool: int = 0
    target: int = 0


def _refuse_replaced(vectors: Job) -> None:
    """Raises CurateError where vectors, or the target's, are not those that were made just now."""
    now = (_stored(vectors) or {}).get("fingerprint")
    if now != vectors.recipe["fingerprint"] or _work(vectors, vectors.folder).aims():
        raise CurateError(f"{vectors}, or the target, were changed by another process; run the command again.")


def _work(job: Job, folder: Location) -> Work:
    """The last pass of a job, into a folder; the state of the passes before is not known yet."""
    vectors = job.vectors.folder if job.vectors else None
    last, made = len(job.passes) - 1, job.recipe["fingerprint"]
    return Work(job.method, job.target, last, (), folder, made, job.kind, vectors, job.shares)


def _compute(
    jobs: Sequence[Job],
    workers: Workers,
    held: Sequence[Claim],
    works: Sequence[Work],
    todo: Sequence[Sequence[Shard]],
) -> _Cut:
    """Compute what is missing of each job."""
    some, failed = [], {}
    for job, work, its in zip(jobs, works, todo, strict=True):
        if its or work.aims():
            states, failed = counted(job, workers)
            some.append(replace(work, states=states))
    missing = {shard.name for its in todo for shard in its}
    shards = [shard for shard in jobs[0].shards if shard.name in missing]
    return _score_shards(jobs, workers, held, some, failed, shards) if some else _Cut()


def _finished(job: Job, folder: Location, todo: Sequence[Shard], cut: _Cut) -> Scored:
    """Put a complete table in its place, and say what was done."""
    remove_tree(folder / "_units")
    if folder != job.folder:
        job.ws.swap_table(job.kind, job.name)
    index = ensure_index(job.ws, job.name) if job.kind == "vectors" else ""
    records = Parts(job.folder).records().values()
    computed = sum(shard.rows for shard in todo)
    return Scored(
        job.name,
        job.method.name,
        job.recipe.get("target"),
        job.kind,
        index=index,
        rows=sum(record["rows"] for record in records),
        computed=computed,
        reused=sum(shard.rows for shard in job.shards) - computed,
        nulls=sum(record["nulls"] for record in records),
        cut=cut.pool if todo else 0,
        cut_of_target=cut.target if job.kind == "vectors" else 0,
        left_out=sum(len(rows) for rows in job.split.left_out.values()),
        note=_note(job),
    )


def _note(job: Job) -> str:
    """What the method has to say of its score; '' for most."""
    if job.kind == "vectors" or type(job.method).note is Score.note:
        return ""
    names = list(job.method.columns)
    tables = [read_table(Parts(job.folder).path(shard.name), names) for shard in job.shards]
    return job.method.note({n: np.concatenate([t[n].to_numpy(zero_copy_only=False) for t in tables]) for n in names})


def _folder(job: Job, fresh: bool) -> Location:
    """Where to write: in place where the table there is this one; beside it where it is stale or `fresh`."""
    final, beside = job.folder, job.ws.fresh_folder(job.kind, job.name)
    old = _stored(job)
    if not fresh:
        refuse_other_recipe(old, job)
    if old is None:
        folder = final
    elif old["fingerprint"] == job.recipe["fingerprint"] and not _anew(job, fresh):
        remove_tree(beside)
        return final
    else:
        folder = beside
    marker = folder / recipe_file(job.kind)
    if not marker.exists() or read_json(marker)["fingerprint"] != job.recipe["fingerprint"]:
        remove_tree(folder)
        write_json(marker, job.recipe)
    return folder


def _stored(job: Job) -> dict[str, Any] | None:
    """The recipe of the table of that name; null where there is none, or nothing was made by it."""
    marker = job.folder / recipe_file(job.kind)
    if not marker.exists():
        return None
    begun = bool(Parts(job.folder).names()) or any((job.folder / "_units").glob("*"))
    recipe = read_json(marker)
    return recipe if begun or recipe["fingerprint"] == job.recipe["fingerprint"] else None


def _anew(job: Job, fresh: bool) -> bool:
    """Whether a table is computed again though it stands; vectors are not where it is the score that was asked for."""
    return fresh and (job.kind == "score" or job.target is None)


def _missing(parts: Parts, job: Job) -> list[Shard]:
    """The shards whose part is not there, whole (by its size) and of this score."""
    records, sizes = parts.records(), parts.sizes()

    def stands(shard: Shard) -> bool:
        record = records.get(shard.name)
        if record is None or shard.name not in sizes:
            return False
        same = record["fingerprint"] == job.recipe["fingerprint"] and record["shard"] == shard.sha256
        return same and sizes[shard.name] == record["bytes"]

    return [shard for shard in job.shards if not stands(shard)]


# --- the last pass ---------------------------------------------------------------------------------------


def _score_shards(
    jobs: Sequence[Job],
    workers: Workers,
    held: Sequence[Claim],
    works: Sequence[Work],
    failed: Failed,
    todo: Sequence[Shard],
) -> _Cut:
    """Score the units of shards that have none yet, and merge the units of each shard once it has all."""
    cut = _Cut()
    step, tasks = jobs[0].passes[-1], Tasks()
    if jobs[0].through_models:
        models = {role: choice for job in jobs for role, choice in job.models.items()}
        run_task = ModelWork(tuple(works), models, jobs[0].checkpoints).run_task
    else:
        run_task = works[0].run_task
    aimed = [work.target for work in works if work.aims() and work.target]
    if aimed:
        tasks.add(Aim(len(aimed[0].subtasks)))
    size = min(job.unit_size for job in jobs)
    units = {shard.name: shard_units(shard, size, failed.get(shard.name, {})) for shard in todo}
    missing: dict[str, set[str]] = {}
    for shard in todo:
        missing[shard.name] = {n for work in works for n in _unscored(work, shard, units[shard.name])}
        for unit in units[shard.name]:
            if unit.name in missing[shard.name]:
                tasks.add(unit)
        if not missing[shard.name]:
            tasks.add(Merge(shard, tuple(units[shard.name])))
    every = [unit for shard in todo for unit in units[shard.name]]
    with ExitStack() as stack:
        meters = Meters(jobs, step, stack)
        bar = stack.enter_context(progress(jobs, step, every, tasks))
        for task, done in workers.run(run_task, tasks, lambda task: meters.begin(task.samples)):
            for claimed in held:
                claimed.check()
            meters.add(done)
            if isinstance(task, Aim) and done.result:
                cut.target += done.result.cut
            elif done.result and not isinstance(done.result, float):
                cut.pool += done.result.cut
            bar.update(task.samples)
            if isinstance(task, Unit):
                name = task.shard.name
                missing[name].remove(task.name)
                if not missing[name] and len(units[name]) > 1:
                    tasks.add(Merge(task.shard, tuple(units[name])))
    return cut


def _unscored(work: Work, shard: Shard, units: Sequence[Unit]) -> set[str]:
    """The names of the units that are not committed, of a shard whose part is not."""
    if work.has(shard):
        return set()
    stored = units_of_part(work.into, shard).records() if len(units) > 1 else {}
    same = work.stamp(shard).items()
    return {unit.name for unit in units if not same <= stored.get(unit.name, {}).items()}


def _dry(job: Job, fresh: bool) -> Scored:
    result = Scored(job.name, job.method.name, job.recipe.get("target"), job.kind)
    before = ""
    if not fresh:
        refuse_other_recipe(_stored(job), job)
    planned = job.looks.warmup.get("planned")
    if planned and (job.kind == "vectors" or job.vectors is None):
        result.planned.append(_dry_warm_up(job))
    for index, step in enumerate(job.passes):
        if step.reduce:
            parts, state = job.prepared(index, before)
            before = f"{parts.folder.name}/{state}"
            todo = [] if parts.record(state) else job.shards
            if step.over != "pool":
                result.planned += [_dry_aim(job, step)] if todo else []
                continue
        else:
            todo = job.shards if _anew(job, fresh) else _missing(Parts(job.folder), job)
        chars = sum(shard.n_chars for shard in todo)
        ways = {(job.models[leg.model], leg.view) for leg in step.legs.values()}
        passes = 4 * (planned or len(job.looks.checkpoints)) if job.both_ways else 2
        flops = sum(passes * parameters(choice) * chars / CHARS_PER_TOKEN for choice, _ in ways)
        result.planned.append(
            {
                "pass": step.name,
                "shards": len(todo),
                "units": sum(len(shard_units(shard, job.unit_size, {})) for shard in todo),
                "rows": sum(shard.rows for shard in todo),
                "text_chars": chars,
                "flops": flops,
            }
        )
    return result


def _dry_warm_up(job: Job) -> dict[str, Any]:
    """The training that comes first: four FLOPs for each token and parameter of LoRA's kind, six of all parameters."""
    warmup = job.method.warm_up()
    assert warmup is not None
    epochs, factor = warmup.settings.get("epochs", 1.0), 4 if warmup.settings.get("lora_r") else 6
    chars = warmup.share * sum(shard.n_chars for shard in job.shards)
    flops = factor * parameters(job.models["base"]) * epochs * chars / CHARS_PER_TOKEN
    rows = int(warmup.share * sum(shard.rows for shard in job.shards))
    return {"pass": "warm-up", "shards": 0, "units": 1, "rows": rows, "text_chars": int(chars), "flops": flops}


def _dry_aim(job: Job, step: Pass) -> dict[str, Any]:
    """A pass over the target's examples, or over anchors."""
    aim = job.aim(step)
    chars = int(aim.text.whole.str.len_chars().sum())
    flops = 6 * len(job.checkpoints) * parameters(job.models["base"]) * chars / CHARS_PER_TOKEN
    rows = len(aim.subtasks)
    return {"pass": step.name, "shards": 0, "units": 1, "rows": rows, "text_chars": chars, "flops": flops}
