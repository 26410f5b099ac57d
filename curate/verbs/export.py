"""`curate export`: write the rows of a manifest as a trainer's input files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.export import Export, Row, refuse_unread
from curate.results import Result
from curate.runs.export_rows import ExportRows, export_rows
from curate.store.files import remove_leftovers_of, temporary_beside
from curate.store.ledger import charged
from curate.store.schema import CONTENT
from curate.store.special_tokens import special_in, texts_of
from curate.store.workspace import Workspace
from curate.tables.lookup import samples_at

_BATCH = 1024
_COLUMNS = ("source", *CONTENT, "meta")  # of the pool


@dataclass
class Exported(Result):
    """The result of an export."""

    manifest: str
    format: str
    folder: str
    rows: int = 0
    lowered: str = ""  # how weights that the rows cannot carry were realised
    assumes: str = ""  # what the trainer must be told to train on the tokens that are scored
    special: int = 0  # rows in whose texts the trainer will read control tokens of models
    skipped: list[str] = field(default_factory=list)  # why the format could not hold a sample
    files: list[str] = field(default_factory=list)


def export(
    ws: AnyWorkspace,
    manifest: str,
    exporter: Export | str,
    folder: str | os.PathLike[str],
    *,
    skip_unfit: bool = False,
    seed: int = 0,
) -> Exported:
    """Write a manifest's samples into an empty or new folder, in the pool's order, repeats included.

    If the format's rows cannot carry unequal weights, these become repeats or strata, by the exporter's setting
    `weights`; the resulting effective sample size is reported, and recorded in `weights.json`. For a mixture,
    every domain becomes a part if the trainer can draw from parts at different rates; else one epoch of draws is
    written. skip_unfit: leave out, and report, samples that the format cannot represent. seed: of the rounding to
    repeats, and of a mixture's draws. The files appear together, after all are written.

    Raises CurateError for a folder that is not empty, weights that the format cannot carry, or a sample that it cannot
    represent; then nothing is written.
    """
    ws, exporter, folder = workspace_of(ws, pinned=True), method_of(Export, exporter), os.fspath(folder)
    export_set = export_rows(ws, manifest, exporter, seed)
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CurateError(f"{folder} is not empty; export into a new or empty folder (-o DIR).")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers_of(target)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        with charged(ws.path, "export", methods=[exporter.name], name=manifest, phase="write") as meter:
            result = Exported(manifest, exporter.name, folder)
            written = Counter[str]()
            rows = _written(_rows(ws, export_set.table, exporter), exporter, skip_unfit, result, written)
            files = exporter.write(rows, temporary, manifest)
            export_set = export_set.with_rows(written)
            files += exporter.describe(temporary, manifest, export_set.parts, target)
            result.assumes = exporter.assumes(temporary, manifest)
            if export_set.lowered:
                result.lowered = export_set.said()
                files.append(_tell(temporary, export_set))
            meter.samples = export_set.table.num_rows
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    result.files = [str(Path(folder) / path.relative_to(temporary)) for path in files]
    return result


def preview(
    ws: AnyWorkspace, manifest: str, exporter: Export | str, count: int = 3, *, skip_unfit: bool = False
) -> list[dict[str, Any]]:
    """The first `count` rows as the trainer will see them, without writing anything."""
    ws, exporter = workspace_of(ws, pinned=True), method_of(Export, exporter)
    export_set, unwritten = export_rows(ws, manifest, exporter, 0), Exported(manifest, exporter.name, "")
    rows = _written(_rows(ws, export_set.table, exporter), exporter, skip_unfit, unwritten, Counter())
    return [exporter.example(row) for row in islice(rows, count)]


def _tell(folder: Path, export_set: ExportRows) -> Path:
    """Write weights.json, which records how the weights were realised; returns its path."""
    record = {**asdict(export_set.lowered), "undrawn": export_set.unsampled} if export_set.lowered else {}
    if len(export_set.parts) > 1:
        record["parts"] = [asdict(part) for part in export_set.parts]
    path = folder / "weights.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _rows(ws: Workspace, manifest: pa.Table, exporter: Export) -> Iterator[Row]:
    """The chosen samples in the pool's order, one shard in memory at a time; where the format wants it so, of every
    part one with tools before the others."""
    some: frozenset[str] = frozenset()
    first = np.zeros(0, np.int64)
    if exporter.uniform:
        some, with_tools = _what_some_have(ws, manifest, exporter)
        first = with_tools if exporter.leads_with_tools else first
    yield from _rows_at(ws, manifest.take(pa.array(first)), some)
    yield from _rows_at(ws, manifest.take(pa.array(np.setdiff1d(np.arange(manifest.num_rows), first))), some)


def _rows_at(ws: Workspace, manifest: pa.Table, some: frozenset[str]) -> Iterator[Row]:
    for positions, stored in samples_at(ws, manifest["row"].to_numpy(), manifest["id"], _COLUMNS):
        entries = manifest.take(pa.array(positions))
        for start in range(0, len(positions), _BATCH):
            pairs = zip(stored.slice(start, _BATCH).to_pylist(), entries.slice(start, _BATCH).to_pylist(), strict=True)
            for sample, entry in pairs:
                yield _row(sample, entry, some)


def _row(sample: dict[str, Any], entry: dict[str, Any], some: frozenset[str]) -> Row:
    return Row(
        **sample,
        loss_weight=entry["weight"],
        repeats=entry["repeats"],
        rank=entry["rank"],
        part=entry.get("part", ""),
        some=some,
    )


def _what_some_have(ws: Workspace, manifest: pa.Table, exporter: Export) -> tuple[frozenset[str], np.ndarray]:
    """What some of the chosen samples have (export.SOME), and the position of each part's first one with tools that the
    format can represent."""
    found, first = set[str](), dict[str, int]()
    for positions, stored in samples_at(ws, manifest["row"].to_numpy(), manifest["id"], _COLUMNS):
        frame = pl.DataFrame(stored.select(["messages", "rejected", "template_kwargs", "meta"]))
        shown = [frame[name].explode().struct.field("extra").is_not_null().any() for name in ("messages", "rejected")]
        if any(shown):
            found.add("keys")
        if "turns" not in found and _have_turns(stored):
            found.add("turns")
        has_kwargs = frame["template_kwargs"].is_not_null() | frame["meta"].str.contains('"tools":', literal=True)
        for i in np.flatnonzero(has_kwargs.to_numpy()).tolist():
            entry = manifest.slice(positions[i], 1).to_pylist()[0]
            row = _row(stored.slice(i, 1).to_pylist()[0], entry, frozenset(["tools"]))
            found |= row.kwargs().keys() if row.messages else set()
            if row.part not in first and row.messages and "tools" in row.kwargs() and _fits(row, exporter):
                first[row.part] = int(positions[i])
    return frozenset(found), np.array(sorted(first.values()), np.int64)


def _check(row: Row, exporter: Export) -> None:
    """Raises CurateError if the format cannot represent the row, or its reader would not read it."""
    example = exporter.example(row)
    if exporter.uniform:
        refuse_unread(example, row.id)


def _fits(row: Row, exporter: Export) -> bool:
    """Whether the format can represent it at the head of a file."""
    try:
        _check(row, exporter)
    except CurateError:
        return False
    return True


def _have_turns(stored: pa.Table) -> bool:
    """Whether some chat has answers to learn beside its last turn, or does not end with one."""
    roles = pl.DataFrame(stored.select(["messages"]))["messages"].list.eval(pl.element().struct.field("role"))
    answers = roles.list.eval(pl.element() == "assistant").list.sum()
    plain = (answers == 1) & (roles.list.last() == "assistant") & (roles.list.len() > 1)
    unclear = np.flatnonzero((~plain).fill_null(False).to_numpy()).tolist()  # null: raw text
    columns = stored.select(["messages"])
    return any(
        not Row("", "", columns.slice(i, 1).to_pylist()[0]["messages"], None).ends_with_its_answer for i in unclear
    )


def _written(
    rows: Iterator[Row], exporter: Export, skip_unfit: bool, result: Exported, written: Counter[str]
) -> Iterator[Row]:
    """The rows that the format can represent, repeated as required, counted in `result`, and by part in `written`."""
    for row in rows:
        try:
            _check(replace(row, place=written[row.part]), exporter)
        except CurateError as unfit:
            if not skip_unfit:
                raise CurateError(
                    f"{unfit} Filter such samples with --where, or leave them out with --skip-unfit."
                ) from None
            result.skipped.append(str(unfit))
            continue
        content = {"messages": row.messages, "rejected": row.rejected, "text": row.text}
        marked = not exporter.holds_tokens() and bool(special_in(texts_of(content)))
        result.special += marked * row.repeats
        for _ in range(row.repeats):
            yield replace(row, place=written[row.part])
            result.rows += 1
            written[row.part] += 1
