"""Passes under way: what they cost and how far they are; and the counting ones, whose partials become a state.

Partials of a text pass are reduced together at the end. Those of a pass through a model are sums as large as the model:
each two neighbours are added up as soon as both are there, always the same two, so that few stand on the disk at once
and the sum does not depend on who computed what when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm

from curate.errors import CurateFailure
from curate.hashing import fingerprint
from curate.kinds.executor import Done, Tasks, Workers
from curate.kinds.passes import Arrays, Pass, Slope
from curate.store.commits import Parts
from curate.store.files import Location
from curate.store.ledger import Meter, charged
from curate.store.locks import Claim, claim
from curate.tables.plan import Job
from curate.tables.unit_worker import Aim, ModelWork, Unit, Work, narrowed, partial_name, shard_units

Failed = Mapping[str, Mapping[int, str]]  # shard -> rows a counting pass could not take -> why
_BOTH_WAYS = ("forward", "backward", "projection")  # phases of a pass that takes gradients


class Meters:
    """The accounts of a pass, each a row of the ledger: one, or one for each phase of a pass that takes gradients."""

    def __init__(self, jobs: Sequence[Job], step: Pass, stack: ExitStack, prepared: str | None = None):
        """prepared: of a counting pass, what it makes."""
        methods, names = [job.method.name for job in jobs], ", ".join(job.name for job in jobs)
        used = dict.fromkeys(choice.name for job in jobs for choice in job.models.values())
        columns = {
            "methods": methods,
            "name": names,
            "prepared": prepared,
            **({"model": ", ".join(used)} if used else {}),
        }
        both_ways = any(isinstance(leg, Slope) for leg in step.legs.values())
        self._phases = _BOTH_WAYS if both_ways else (step.name,)
        self._meters: dict[str, Meter] = {}
        for phase in reversed(self._phases):  # what is opened last is entered first
            self._meters[phase] = stack.enter_context(charged(jobs[0].ws.path, "score", phase=phase, **columns))

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin."""
        for meter in self._meters.values():
            meter.begin(samples)

    def add(self, done: Done) -> None:
        """What a task has cost."""
        for phase, meter in self._meters.items():
            meter.peak_bytes = max(meter.peak_bytes, done.peak_bytes)
            self._charge(phase, meter, done.result)

    def _charge(self, phase: str, meter: Meter, cost: Any) -> None:
        if isinstance(cost, float):
            meter.flops += cost
        elif cost is not None:
            meter.add(cost.phases[phase] if cost.phases else cost)


@contextmanager
def progress(jobs: Sequence[Job], step: Pass, every: Sequence[Unit], todo: Tasks) -> Iterator[Any]:
    """A bar over the samples of a pass, quiet where stderr is no terminal."""
    rows, left = sum(unit.samples for unit in every), todo.samples()
    with tqdm(
        total=max(rows, left),
        initial=max(rows - left, 0),
        desc=f"{', '.join(job.name for job in jobs)}: {step.name}",
        unit=" samples",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        yield bar


def counted(job: Job, workers: Workers) -> tuple[tuple[Location, ...], Failed]:
    """The files of the counting passes' states, computing what is missing; and the rows that failed or are left out."""
    states, before, failed = tuple[Location, ...](), "", dict[str, Mapping[int, str]](job.split.left_out)
    for index, step in enumerate(job.passes[:-1]):
        parts, name = job.prepared(index, before)
        with claim(job.ws.path, f"prepared {parts.folder.name}", wait=True) as held:
            if parts.read(name) is None:
                work = Work(job.method, job.target, index, states, parts.folder, "", anchors=job.split.anchors)
                parts.sweep()
                count = _count_pool if step.over == "pool" else _count_aim
                count(job, workers, held, work, failed, name)
            for shard, rows in (parts.record(name) or {})["failed"].items():
                failed[shard] = {**failed.get(shard, {}), **{int(row): why for row, why in rows.items()}}
            states = (*states, parts.path(name))
        before = f"{parts.folder.name}/{name}"
    return states, failed


def _count_aim(job: Job, workers: Workers, held: Claim, work: Work, failed: Failed, name: str) -> None:
    """The state of a pass over the target's samples, or over anchors."""
    parts, step = work.partials, job.passes[work.index]
    assert step.reduce is not None
    tasks = Tasks([Aim(len(job.aim(step).subtasks))])
    _run(job, workers, held, work, step, [], tasks, name)
    partial = parts.read(str(Aim(0)))
    if partial is None:
        raise CurateFailure(f"{parts.folder}: what was just written there reads otherwise; is the disk sound?")
    Parts(parts.folder, parts.suffix).commit(name, step.reduce([partial]), failed={})
    parts.remove(str(Aim(0)))


def _count_pool(job: Job, workers: Workers, held: Claim, work: Work, failed: Failed, name: str) -> None:
    """Map every unit that has no partial yet, and reduce all partials to the state `name`."""
    parts, step = work.partials, job.passes[work.index]
    assert step.reduce is not None
    units = [u for s in job.shards for u in shard_units(s, job.unit_size, failed.get(s.name, {}))]
    sums = _Sums(parts, units) if step.legs else None
    if sums:
        missing = sums.missing()
    else:
        records = parts.records()
        missing = [u for u in units if records.get(partial_name(u), {}).get("shard") != u.shard.sha256]
    _run(job, workers, held, work, step, units, Tasks(missing), name, sums)
    state = step.reduce(sums.left() if sums else (work.partial_again(unit) for unit in units))
    records = parts.records()
    failures: dict[str, dict[str, str]] = {}
    for unit in units:
        if rows := records.get(partial_name(unit), {}).get("failed"):
            failures.setdefault(unit.shard.name, {}).update(rows)
    Parts(parts.folder, parts.suffix).commit(name, state, failed=failures)
    # Partials are of use to a grown pool, but for those that are added up, and those that a state of this pool shaped.
    spent = bool(sums) or work.index > 0
    for old in [n for n in records if n != name and (n.startswith("state-") or spent)]:
        parts.remove(old)


def _run(
    job: Job,
    workers: Workers,
    held: Claim,
    work: Work,
    step: Pass,
    units: Sequence[Unit],
    tasks: Tasks,
    name: str,
    sums: _Sums | None = None,
) -> None:
    run_task = ModelWork((work,), job.models, job.checkpoints).run_task if step.legs else work.run_task
    with ExitStack() as stack:
        meters = Meters([job], step, stack, f"{work.partials.folder.name}/{name}")
        bar = stack.enter_context(progress([job], step, units, tasks))
        for task, done in workers.run(run_task, tasks, lambda task: meters.begin(task.samples)):
            held.check()
            meters.add(done)
            if sums and isinstance(task, Unit):
                sums.came(task)
            bar.update(task.samples)


class _Sums:
    """Partials that are sums, added up two by two: the node (level, i) covers 2^level units from the (i 2^level)-th."""

    def __init__(self, parts: Parts, units: Sequence[Unit]):
        self._parts, self._units = parts, units
        self._place = {unit.shard.name + unit.name: i for i, unit in enumerate(units)}
        records = parts.records()
        self._there = {node for node in self._nodes() if self._stands(node, records)}
        for node in {node for node in self._there if self._is_covered(node)}:  # a kill came before it was removed
            self._parts.remove(self._name(node))
            self._there.remove(node)
        for node in sorted(self._there):
            self._fold(node)

    def _nodes(self) -> Iterator[tuple[int, int]]:
        level = 0
        while len(self._units) >> level:
            yield from ((level, i) for i in range(len(self._units) >> level))
            level += 1

    def _covered(self, node: tuple[int, int]) -> Sequence[Unit]:
        level, i = node
        return self._units[i << level : (i + 1) << level]

    def _name(self, node: tuple[int, int]) -> str:
        return partial_name(self._covered(node)[0]) if node[0] == 0 else f"sum-{node[0]:02d}-{node[1]:06d}"

    def _stamp(self, node: tuple[int, int]) -> str:
        return fingerprint([[u.shard.sha256, u.start, u.stop] for u in self._covered(node)])

    def _stands(self, node: tuple[int, int], records: Mapping[str, Mapping[str, Any]]) -> bool:
        record = records.get(self._name(node), {})
        if node[0] == 0:
            return record.get("shard") == self._covered(node)[0].shard.sha256
        return record.get("units") == self._stamp(node)

    def _is_covered(self, node: tuple[int, int]) -> bool:
        """Whether a node above it stands, which has it in its sum."""
        level, i = node
        return any((level + up, i >> up) in self._there for up in range(1, len(self._units).bit_length() + 1))

    def missing(self) -> list[Unit]:
        """The units that no node covers."""
        done = {id(unit) for node in self._there for unit in self._covered(node)}
        return [unit for unit in self._units if id(unit) not in done]

    def came(self, unit: Unit) -> None:
        """A unit's partial was committed."""
        node = (0, self._place[unit.shard.name + unit.name])
        self._there.add(node)
        self._fold(node)

    def _fold(self, node: tuple[int, int]) -> None:
        """Add up a node and its neighbour where both are there, and so on upwards."""
        level, i = node
        pair = [(level, i & ~1), (level, i | 1)]
        if not set(pair) <= self._there:
            return
        above = (level + 1, i >> 1)
        both = [self._read(one) for one in pair]
        names = dict.fromkeys([*both[0], *both[1]])  # one may lack what no sample of it has
        wide = {name: [one[name].astype(np.float64) for one in both if name in one] for name in names}
        summed = {name: narrowed(np.sum(values, axis=0)) for name, values in wide.items()}
        self._parts.commit(self._name(above), summed, units=self._stamp(above))
        for one in pair:
            self._parts.remove(self._name(one))
            self._there.remove(one)
        self._there.add(above)
        self._fold(above)

    def _read(self, node: tuple[int, int]) -> Arrays:
        found = self._parts.read(self._name(node))
        if found is None:
            self._parts.remove(self._name(node))
            raise CurateFailure(f"{self._parts.path(self._name(node))} is damaged; it was removed: run it again.")
        return found

    def left(self) -> Iterator[Arrays]:
        """What is not added up yet, in order."""
        for node in sorted(self._there, key=lambda node: node[1] << node[0]):
            yield self._read(node)
