"""The workspaces of an audit's stages: each stage's pool, its working copies, and the samples of earlier stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import ids_as_integers, keyed_uniform
from curate.runs.audit_spec import FUTURE, OWN, PAST, PROBE, Audit, Stage
from curate.store.encoding import read_table
from curate.store.schema import POOL, TARGET
from curate.store.workspace import Workspace, open_workspace
from curate.tables import sql

_COLUMNS = ", ".join(POOL.names)
_SHARD = 32 << 20  # characters of text per part of a stage's pool


def stage_table(ws: Workspace, stage: Stage, columns: str) -> pa.Table:
    """Columns of the samples that a stage's condition names, with their `row`, in the order of the pool."""
    return sql.fetch(ws, f"SELECT {columns}, row FROM samples WHERE ({stage.where}\n) ORDER BY row")


def blurred(audit: Audit, number: int, tables: Mapping[int, pa.Table] | Sequence[pa.Table]) -> pa.Table:
    """The samples of stage `number` (from 1), with blurred borders: of its own those that stay, of its neighbours those
    that go to it, by the order of the pool. tables: of each stage's own samples, by its position; at least of these."""
    if not audit.blur:
        return tables[number - 1]
    parts = []
    for k in range(max(0, number - 2), min(len(audit.stages), number + 1)):
        goes = _destinations(tables[k]["id"].to_pylist(), k, audit)
        parts.append(tables[k].filter(pa.array(goes == number - 1)))
    return pa.concat_tables(parts).sort_by("row")


def _destinations(ids: Sequence[str], stage: int, audit: Audit) -> np.ndarray:
    """The position of the stage that each of a stage's own samples is in, int64 [n]: the share `blur` of them, at
    random, in the neighbouring stages, as many in each."""
    places = np.full(len(ids), stage)
    neighbours = [k for k in (stage - 1, stage + 1) if 0 <= k < len(audit.stages)]
    order = np.argsort(keyed_uniform(ids_as_integers(ids), 0, f"blur {audit.stages[stage].name}"), kind="stable")
    each = int(audit.blur * len(ids) / len(neighbours) + 1e-9)
    for i, neighbour in enumerate(neighbours):
        places[order[i * each : (i + 1) * each]] = neighbour
    return places


def stage_pool(ws: Workspace, audit: Audit, place: Path, number: int) -> Path:
    """Make a workspace in `place` with the samples of stage `number` (from 1), the targets, OWN, FUTURE and PROBE."""
    if (place / "complete").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    stage = audit.stages[number - 1]
    stage_ws = open_workspace(place, like=ws)
    near = range(number - 2, number + 1) if audit.blur else [number - 1]
    own = {k: stage_table(ws, audit.stages[k], _COLUMNS) for k in near if 0 <= k < len(audit.stages)}
    _fill(stage_ws, blurred(audit, number, own).drop_columns("row").cast(POOL))
    for name in [*audit.targets, *([audit.proxy] if audit.proxy else [])]:
        stage_ws.targets.commit(name, ws.target_rows(name))
    proxy, its = val_rows(ws, [audit.proxy]) if audit.proxy else None, val_rows(ws, [stage.target])
    if audit.divides and number > 1:
        shown, kept = divided(its, stage.target, proxy)
        stage_ws.targets.commit(PROBE, kept)
        its = shown if audit.probe.data == "own" else its  # a selector chooses for the branch here by its own target
    stage_ws.targets.commit(OWN, its)
    later = [*dict.fromkeys(s.target for s in audit.stages[number:] or audit.stages)]
    if proxy is None:
        halves = [
            divided(rows, name)[0] if audit.divides else rows for name in later for rows in [val_rows(ws, [name])]
        ]
        proxy = pa.concat_tables(halves)
    stage_ws.targets.commit(FUTURE, proxy)
    (place / "complete").touch()
    return place


def _fill(ws: Workspace, table: pa.Table) -> None:
    """Store samples as the pool of a workspace that has none."""
    ends = np.searchsorted(np.cumsum(table["n_chars"].to_numpy(), dtype=np.int64) // _SHARD, np.arange(1, 1 << 16))
    start = 0
    for part, stop in enumerate([*np.unique(ends[ends < table.num_rows]).tolist(), table.num_rows]):
        if rows := table.slice(start, stop - start):
            n_chars = int(np.sum(rows["n_chars"].to_numpy()))
            ws.pool.commit(f"part-{part:05d}", rows, n_chars=n_chars, files={}, beside={})
        start = stop


def val_rows(ws: Workspace, targets: Sequence[str]) -> pa.Table:
    """The concatenated val samples of targets."""
    samples = pa.concat_tables([ws.target_rows(name) for name in targets]).cast(TARGET)
    return samples.filter(pa.array([split == "val" for split in samples["split"].to_pylist()]))


def divided(rows: pa.Table, name: str, proxy: pa.Table | None = None) -> tuple[pa.Table, pa.Table]:
    """A target's val samples in two: for the future proxy, and for the branch's evaluations.

    Every second of each sub-task, in random order by id; with a proxy of its own, the second part is all that are not
    in it. Raises CurateError if a part is empty.
    """
    ids = rows["id"].to_pylist()
    if proxy is not None:
        shown = np.isin(ids, proxy["id"].to_pylist())
    else:
        drawn = keyed_uniform(ids_as_integers(ids), 0, "future proxy")
        order = np.lexsort((drawn, rows["subtask"].to_pylist()))
        shown = np.zeros(len(ids), bool)
        shown[order[::2]] = True
    if shown.all():
        raise CurateError(
            f"the val samples of the target '{name}' ({len(ids):,}) cannot be divided between the future proxy and the "
            "branch's evaluations; add some, or say probe.rows = 'same', or leave out the branch by probe.steps = 0."
        )
    return rows.filter(pa.array(shown)), rows.filter(pa.array(~shown))


def working_copy(pool: Path, place: Path) -> Path:
    """A copy of a workspace with the same samples and targets, using hard links where possible."""
    if not (place / "workspace.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        temporary = place.with_name(f".{place.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        for part in ("pool", "targets"):
            shutil.copytree(pool / part, temporary / part, copy_function=_linked)
        shutil.copy(pool / "workspace.json", temporary / "workspace.json")
        temporary.rename(place)
    return place


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy(source, target)


def remember(ws: Workspace, learnt: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Store the samples trained on in earlier stages as the target PAST: (that stage's pool, ids), the latest last."""
    if PAST in ws.target_names() or not learnt:
        return
    past = learnt_rows(learnt)
    extra_columns = {"subtask": pa.array([""] * past.num_rows), "split": pa.array(["val"] * past.num_rows)}
    for name, column in extra_columns.items():
        past = past.append_column(name, column)
    ws.targets.commit(PAST, past.cast(TARGET))


def learnt_rows(learnt: Sequence[tuple[Path, Sequence[str]]]) -> pa.Table:
    """The samples that were chosen in earlier stages, as stored there: (that stage's pool, ids), the latest last."""
    tables = []
    for pool, ids in learnt:
        pool_rows = pa.concat_tables([read_table(shard.path) for shard in open_workspace(pool).shards()])
        row_of = {sample_id: i for i, sample_id in enumerate(pool_rows["id"].to_pylist())}
        tables.append(pool_rows.take(pa.array([row_of[sample_id] for sample_id in ids])))
    return pa.concat_tables(tables)


def replayed(learnt: Sequence[tuple[Path, Sequence[str]]], budget: Mapping[str, float], seed: int) -> pa.Table:
    """Samples that were chosen in earlier stages, drawn at random up to a budget of rows (top) or tokens; others at
    every stage."""
    past = learnt_rows(learnt)
    lots = keyed_uniform(ids_as_integers(past["id"].to_pylist()), seed, f"replay after {len(learnt)}")
    drawn = past.take(pa.array(np.argsort(lots, kind="stable")))
    if "top" in budget:
        return drawn.slice(0, int(budget["top"]))
    tokens = np.cumsum(drawn["n_chars"].to_numpy(), dtype=np.float64) / 4
    return drawn.slice(0, int(np.searchsorted(tokens, budget["tokens"], side="right")))


def mixed_pool(bench: Workspace, place: Path, ids: Sequence[str], past: pa.Table) -> Workspace:
    """Make a workspace in `place` with some of a stage's samples and samples of earlier ones, and the same targets."""
    if not (place / "workspace.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        temporary = place.with_name(f".{place.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(Path(str(bench.path)) / "targets", temporary / "targets", copy_function=_linked)
        shutil.copy(Path(str(bench.path)) / "workspace.json", temporary / "workspace.json")
        own = learnt_rows([(Path(str(bench.path)), ids)])
        _fill(open_workspace(temporary), pa.concat_tables([own, past]).cast(POOL))
        temporary.rename(place)
    return open_workspace(place)
