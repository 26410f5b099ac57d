"""The workspaces of an audit's stages: each stage's pool, its working copies, and the samples of earlier stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.runs.audit_spec import FUTURE, OWN, PAST, Audit
from curate.store.encoding import read_table
from curate.store.schema import POOL, TARGET
from curate.store.workspace import Workspace, open_workspace
from curate.tables import sql

_COLUMNS = ", ".join(POOL.names)
_SHARD = 32 << 20  # characters of text per part of a stage's pool


def stage_pool(ws: Workspace, audit: Audit, place: Path, number: int) -> Path:
    """Make a workspace in `place` with the samples of stage `number` (from 1), the targets, and OWN and FUTURE."""
    if (place / "complete").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    stage = audit.stages[number - 1]
    made = open_workspace(place)
    select = f"SELECT {_COLUMNS} FROM samples WHERE ({stage.where}\n) ORDER BY row"
    table = sql.fetch(ws, select).cast(POOL)
    ends = np.searchsorted(np.cumsum(table["n_chars"].to_numpy(), dtype=np.int64) // _SHARD, np.arange(1, 1 << 16))
    start = 0
    for part, stop in enumerate([*np.unique(ends[ends < table.num_rows]).tolist(), table.num_rows]):
        if some := table.slice(start, stop - start):
            n_chars = int(np.sum(some["n_chars"].to_numpy()))
            made.pool.commit(f"part-{part:05d}", some, n_chars=n_chars, files={}, beside={})
        start = stop
    for name in [*audit.targets, *([audit.proxy] if audit.proxy else [])]:
        made.targets.commit(name, read_table(ws.target_path(name)))
    made.targets.commit(OWN, _val(ws, [stage.target]))
    later = [one.target for one in audit.stages[number:]] or [one.target for one in audit.stages]
    made.targets.commit(FUTURE, _val(ws, [audit.proxy] if audit.proxy else list(dict.fromkeys(later))))
    (place / "complete").touch()
    return place


def _val(ws: Workspace, targets: Sequence[str]) -> pa.Table:
    """The concatenated val samples of targets."""
    tables = [read_table(ws.target_path(name)) for name in targets]
    every = pa.concat_tables(tables).cast(TARGET)
    return every.filter(pa.array([split == "val" for split in every["split"].to_pylist()]))


def working_copy(pool: Path, place: Path) -> Path:
    """A copy of a workspace with the same samples and targets, using hard links where possible."""
    if not (place / "workspace.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        aside = place.with_name(f".{place.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        for part in ("pool", "targets"):
            shutil.copytree(pool / part, aside / part, copy_function=_linked)
        shutil.copy(pool / "workspace.json", aside / "workspace.json")
        aside.rename(place)
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
    tables = []
    for pool, ids in learnt:
        found = pa.concat_tables([read_table(shard.path) for shard in open_workspace(pool).shards()])
        place = {one: i for i, one in enumerate(found["id"].to_pylist())}
        tables.append(found.take(pa.array([place[one] for one in ids])))
    past = pa.concat_tables(tables)
    beside = {"subtask": pa.array([""] * past.num_rows), "split": pa.array(["val"] * past.num_rows)}
    for name, column in beside.items():
        past = past.append_column(name, column)
    ws.targets.commit(PAST, past.cast(TARGET))
