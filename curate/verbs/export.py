"""`curate export`: write the rows of a manifest as a trainer's input files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.export import Export, Row
from curate.results import Result
from curate.runs.export_rows import ExportRows, export_rows
from curate.store.ledger import charged
from curate.store.workspace import Workspace
from curate.tables.lookup import samples_at

_BATCH = 1024


@dataclass
class Exported(Result):
    """The result of an export."""

    manifest: str
    format: str
    folder: str
    rows: int = 0
    lowered: str = ""  # how weights that the rows cannot carry were realised
    skipped: list[str] = field(default_factory=list)  # why the format could not hold a sample
    files: list[str] = field(default_factory=list)


def export(
    ws: Workspace, manifest: str, exporter: Export, folder: str, *, skip_unfit: bool = False, seed: int = 0
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
    sent = export_rows(ws, manifest, exporter, seed)
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CurateError(f"{folder} is not empty; export into a new or empty folder (-o DIR).")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        with charged(ws.path, "export", methods=[exporter.name], name=manifest, phase="write") as meter:
            result = Exported(manifest, exporter.name, folder)
            written = Counter[str]()
            rows = _written(_rows(ws, sent.table), exporter, skip_unfit, result, written)
            files = exporter.write(rows, beside, manifest)
            sent = sent.with_rows(written)
            files += exporter.describe(beside, manifest, sent.parts, target)
            if sent.lowered:
                result.lowered = sent.said()
                files.append(_tell(beside, sent))
            meter.samples = sent.table.num_rows
        if target.exists():
            target.rmdir()
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    result.files = [str(Path(folder) / path.relative_to(beside)) for path in files]
    return result


def preview(
    ws: Workspace, manifest: str, exporter: Export, count: int, *, skip_unfit: bool = False
) -> list[dict[str, Any]]:
    """The first `count` rows as the trainer will see them, without writing anything."""
    sent, unwritten = export_rows(ws, manifest, exporter, 0), Exported(manifest, exporter.name, "")
    rows = _written(_rows(ws, sent.table), exporter, skip_unfit, unwritten, Counter())
    return [exporter.example(row) for row in islice(rows, count)]


def _tell(folder: Path, sent: ExportRows) -> Path:
    """Write weights.json, which records how the weights were realised; returns its path."""
    told = {**asdict(sent.lowered), "undrawn": sent.unsampled} if sent.lowered else {}
    if len(sent.parts) > 1:
        told["parts"] = [asdict(part) for part in sent.parts]
    path = folder / "weights.json"
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return path


def _rows(ws: Workspace, manifest: pa.Table) -> Iterator[Row]:
    """The chosen samples in the pool's order, one shard in memory at a time."""
    columns = ["source", "messages", "text", "meta"]
    for places, stored in samples_at(ws, manifest["row"].to_numpy(), manifest["id"], columns):
        chosen = manifest.take(pa.array(places))
        for start in range(0, len(places), _BATCH):
            pairs = zip(stored.slice(start, _BATCH).to_pylist(), chosen.slice(start, _BATCH).to_pylist(), strict=True)
            for sample, how in pairs:
                yield Row(
                    **sample,
                    loss_weight=how["weight"],
                    repeats=how["repeats"],
                    rank=how["rank"],
                    part=how.get("part", ""),
                )


def _written(
    rows: Iterator[Row], exporter: Export, skip_unfit: bool, result: Exported, written: Counter[str]
) -> Iterator[Row]:
    """The rows that the format can represent, repeated as required, counted in `result`, and by part in `written`."""
    for row in rows:
        try:
            exporter.example(row)
        except CurateError as unfit:
            if not skip_unfit:
                raise CurateError(
                    f"{unfit} Filter such samples with --where, or leave them out with --skip-unfit."
                ) from None
            result.skipped.append(str(unfit))
            continue
        for _ in range(row.repeats):
            result.rows += 1
            written[row.part] += 1
            yield row
