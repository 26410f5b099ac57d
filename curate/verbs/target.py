"""`curate target`: define what "good" means by a small set of samples, with sub-tasks and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.results import Result
from curate.store.contents import bring_to_format
from curate.store.encoding import write_table
from curate.store.files import remove_leftovers
from curate.store.given_data import Data, find_given
from curate.store.input_files import Input, records
from curate.store.input_formats import Reader, Refused, refusal
from curate.store.input_limits import InputLimits
from curate.store.locks import lock
from curate.store.schema import POOL, REJECTS, TARGET
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.views import literal

SPLITS = ("val", "test")


@dataclass
class Targeted(Result):
    """The new contents of a target."""

    name: str
    rows: dict[str, int] = field(default_factory=dict)  # by split
    subtasks: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    warnings: list[str] = field(default_factory=list)


def target(
    ws: AnyWorkspace,
    name: str,
    path: Data,
    *,
    subtask: str | None = None,
    split: str = "val",
    fmt: str = "auto",
    mapping: Mapping[str, str] | None = None,
    turn_keys: Sequence[str] = (),
    choice_answer: Literal["letter", "text"] = "letter",
    limits: InputLimits | None = None,
    wait: float | None = None,
) -> Targeted:
    """Store the samples at `path` as the given split of target `name`; the other split stays as it is.

    path: a path, standard input ('-') or rows in memory, as for `ingest`; of what has no name the source is memory.
    turn_keys, choice_answer, limits: as for `ingest`. split: 'val' is for selection, 'test' for evaluation. subtask:
    the field with each row's sub-task. Rows that name their own split (`--map split=FIELD`) are stored there. Scores
    based on an edited val split become stale.

    Raises CurateError if no usable sample is found, or if an iterator raises an error; the stored target is then
    unchanged.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, create=True, wait=wait)
    ws.check_name(name, "target")
    _check_split(split)
    fields = {**(mapping or {}), **({"subtask": subtask} if subtask else {})}
    reader = Reader(fmt, fields, frozenset(turn_keys), choice_answer)
    found = find_given(path, limits=limits)
    rows, rejects = _read(found.inputs, reader, name, split)
    if not rows:
        reason = f"; line {rejects[0]['line']} {rejects[0]['reason']}" if rejects else ", it is empty"
        where = path if isinstance(path, str | os.PathLike) else ", ".join(i.path for i in found.inputs)
        raise CurateError(f"{where or 'an empty list'}: no sample for the target '{name}' was found{reason}.")
    table = _store(ws, name, pa.Table.from_pylist(rows, schema=TARGET), split, rejects)
    split_counts = Counter(table["split"].to_pylist())
    subtasks = Counter(s for s in table["subtask"].to_pylist() if s)
    return Targeted(
        name, dict(split_counts), dict(subtasks), dict(reader.seen), len(rejects), [*found.notes, *reader.notes()]
    )


def target_from_pool(ws: Workspace, name: str, ids: Sequence[str], *, split: str = "val") -> Targeted:
    """Store samples of the pool, by their ids, as the given split of target `name`, in the pool's order.

    Raises CurateError for a name that is taken, a split that is none, or if the pool has none of these samples.
    """
    ws.check_name(name, "target")
    _check_split(split)
    listed = ", ".join(literal(sample_id) for sample_id in ids) or "''"
    found = sql.fetch(ws, f"SELECT {', '.join(POOL.names)} FROM pool WHERE id IN ({listed}) ORDER BY row").cast(POOL)
    if not found.num_rows:
        raise CurateError(f"the pool has none of these {len(ids):,} samples, so there is nothing to store as '{name}'.")
    n = found.num_rows
    table = found.append_column("subtask", pa.array([""] * n, pa.string())).append_column(
        "split", pa.array([split] * n)
    )
    table = _store(ws, name, table.select(TARGET.names).cast(TARGET), split, [])
    absent = [f"{len(ids) - n:,} samples are not in the pool any more"] if n < len(ids) else []
    return Targeted(name, dict(Counter(table["split"].to_pylist())), warnings=absent)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise CurateError(f"the split '{split}' is neither val (for selection) nor test (for evaluation).")


def _store(ws: Workspace, name: str, table: pa.Table, split: str, rejects: list[dict[str, Any]]) -> pa.Table:
    """Commit samples in place of the splits that they are of; returns all samples of the target. rejects: what was
    refused of the file."""
    with lock(ws, "targets"):
        bring_to_format(ws)
        if ws.target_path(name).exists():
            replaced_splits = set(table["split"].to_pylist())
            existing = ws.target_rows(name)
            is_kept = ~pl.Series(existing["split"]).is_in(replaced_splits)
            table = pa.concat_tables([existing.filter(is_kept.to_arrow()), table])
        remove_leftovers(ws.path / "targets")
        remove_leftovers(ws.path / "rejects")
        reject_file = ws.path / "rejects" / f"target-{name}-{split}.parquet"
        if rejects:
            write_table(reject_file, pa.Table.from_pylist(rejects, schema=REJECTS))
        else:
            reject_file.unlink(missing_ok=True)
        ws.targets.commit(name, table)
    return table


def _read(
    inputs: Sequence[Input], reader: Reader, name: str, split: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, rejects = [], []  # duplicates are kept: a mean over the target is a mean over its rows
    for item in inputs:
        for line, record in records(item):
            try:
                sample = reader.sample(record)
                if sample.split not in (None, *SPLITS):
                    raise Refused(f"names the split '{sample.split}', which is neither val nor test")
            except Refused as refused:
                rejects.append(refusal(item.path, line, record, refused, into=f"target {name}"))
                continue
            rows.append(
                {
                    "id": sample.id,
                    "source": sample.source or item.source,
                    "messages": sample.messages,
                    "text": sample.text,
                    "copies": 1,
                    "n_chars": sample.n_chars,
                    "meta": sample.meta,
                    "template_kwargs": sample.template_kwargs,
                    "rejected": sample.rejected,
                    "wanted": sample.wanted,
                    "subtask": sample.subtask,
                    "split": sample.split or split,
                }
            )
        if item.rows:
            item.rows.refuse_if_stopped(f"the target '{name}' stays as it was")
    return rows, rejects
