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
    stage_ws = open_workspace(place, like=ws)
    select = f"SELECT {_COLUMNS} FROM samples WHERE ({stage.where}\n) ORDER BY row"
    table = sql.fetch(ws, select).cast(POOL)
    ends = np.searchsorted(np.cumsum(table["n_chars"].to_numpy(), dtype=np.int64) // _SHARD, np.arange(1, 1 << 16))
    start = 0
    for part, stop in enumerate([*np.unique(ends[ends < table.num_rows]).tolist(), table.num_rows]):
        if rows := table.slice(start, stop - start):
            n_chars = int(np.sum(rows["n_chars"].to_numpy()))
            stage_ws.pool.commit(f"part-{part:05d}", rows, n_chars=n_chars, files={}, beside={})
        start = stop
    for name in [*audit.targets, *([audit.proxy] if audit.proxy else [])]:
        stage_ws.targets.commit(name, ws.target_rows(name))
    stage_ws.targets.commit(OWN, _val(ws, [stage.target]))
    later_targets = [later_stage.target for later_stage in audit.stages[number:]] or [
        later_stage.target for later_stage in audit.stages
    ]
    stage_ws.targets.commit(FUTURE, _val(ws, [audit.proxy] if audit.proxy else list(dict.fromkeys(later_targets))))
    (place / "complete").touch()
    return place


def _val(ws: Workspace, targets: Sequence[str]) -> pa.Table:
    """The concatenated val samples of targets."""
    tables = [ws.target_rows(name) for name in targets]
    samples = pa.concat_tables(tables).cast(TARGET)
    return samples.filter(pa.array([split == "val" for split in samples["split"].to_pylist()]))


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
    tables = []
    for pool, ids in learnt:
        pool_rows = pa.concat_tables([read_table(shard.path) for shard in open_workspace(pool).shards()])
        row_of = {sample_id: i for i, sample_id in enumerate(pool_rows["id"].to_pylist())}
        tables.append(pool_rows.take(pa.array([row_of[sample_id] for sample_id in ids])))
    past = pa.concat_tables(tables)
    extra_columns = {"subtask": pa.array([""] * past.num_rows), "split": pa.array(["val"] * past.num_rows)}
    for name, column in extra_columns.items():
        past = past.append_column(name, column)
    ws.targets.commit(PAST, past.cast(TARGET))
