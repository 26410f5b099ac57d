"""The rows to export: those of a manifest, or those that a mixture draws; in parts for trainers that mix datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.export import Export, Part
from curate.numerics.apportion import largest_remainders
from curate.numerics.resampling import Resampled, differ, repeats_of, strata_of
from curate.runs.samples import TrainingRows, rows_of
from curate.store.manifests import read_any
from curate.store.recipes import MixtureRecipe
from curate.store.schema import MANIFEST
from curate.store.workspace import Workspace, suggest_name
from curate.tables.lookup import texts_of


@dataclass(frozen=True)
class ExportRows:
    """Rows to export.

    table: as in a manifest, with the label of each row's part if there are several. parts: with their shares of draws.
    lowered: how weights were approximated. unsampled: number of samples left out because they or their domain have
    weight 0.
    """

    table: pa.Table
    parts: Sequence[Part]
    lowered: Resampled | None = None
    unsampled: int = 0

    def with_rows(self, written: Mapping[str, int]) -> ExportRows:
        """With the number of rows written for each part. Raises CurateError if a part has none."""
        for part in self.parts:
            if not written.get(part.label):
                subject = f"the part '{part.label}', {part.share:.1%} of all draws" if part.label else "the manifest"
                raise CurateError(f"no sample of {subject} can be written in this format; choose or mix without it.")
        return replace(self, parts=[replace(part, rows=written[part.label]) for part in self.parts])

    def said(self) -> str:
        """How weights were approximated, in words."""
        left_out = f"; {self.unsampled:,} samples that weigh nothing are left out" if self.unsampled else ""
        return f"{self.lowered}{left_out}"


def export_rows(ws: Workspace, name: str, exporter: Export, seed: int) -> ExportRows:
    """The rows of a manifest to export. Raises CurateError for weights that the export format cannot carry."""
    exporter.check()
    table, recipe = read_any(ws, name)
    if isinstance(recipe, MixtureRecipe):
        rows = rows_of(ws, name, None, True, seed)
        return _domains(ws, rows) if exporter.blends else _epoch(ws, rows)
    weights = table["weight"].to_numpy().astype(np.float64)
    if exporter.weighted or not differ(weights):
        return _whole(table)
    if exporter.weights == "repeats":
        repeats, lowered = repeats_of(weights * table["repeats"].to_numpy(), len(weights), seed)
        return _whole(_repeating(table, repeats), lowered)
    if exporter.weights == "strata":
        return _strata(table, weights, exporter.strata)
    possible = "repeats or --set weights=strata" if exporter.blends else "repeats"
    raise CurateError(
        f"the manifest '{name}' has weights, and the rows of '{exporter.name}' cannot carry them; export it as jsonl "
        f"or parquet, or approximate them by --set weights={possible}."
    )


def _whole(table: pa.Table, lowered: Resampled | None = None) -> ExportRows:
    rows = int(table["repeats"].to_numpy().sum())
    return ExportRows(table, [Part("", rows, 1.0, rows)], lowered)


def _repeating(table: pa.Table, repeats: np.ndarray) -> pa.Table:
    """The rows with at least one repeat, with the given repeats."""
    index = table.column_names.index("repeats")
    table = table.set_column(index, "repeats", pa.array(repeats.astype(np.int32)))
    return table.take(pa.array(np.flatnonzero(repeats)))


# --- parts -----------------------------------------------------------------------------------------------


def _strata(table: pa.Table, weights: np.ndarray, count: int) -> ExportRows:
    """Parts of similar weight within each source, to be drawn in proportion to their mean weight."""
    names, source = np.unique(np.array(table["source"].to_pylist(), object), return_inverse=True)
    stratum, means, lowered = strata_of(weights, count, source)
    source_of = source[np.unique(stratum, return_index=True)[1]]  # each stratum's source
    number = np.arange(len(source_of)) - np.searchsorted(source_of, source_of)
    labels = [str(k) if len(names) == 1 else f"{names[i]}_{k}" for i, k in zip(source_of, number, strict=True)]
    repeats = table["repeats"].to_numpy()
    mass = np.bincount(stratum, weights * repeats, minlength=len(means))
    return _parted(table, stratum, labels, mass, int(repeats.sum()), lowered)


def _domains(ws: Workspace, rows: TrainingRows) -> ExportRows:
    """A mixture's domains, one part each."""
    draws = rows.draws
    assert draws is not None
    drawable = np.flatnonzero(draws.domain >= 0)
    lowered = Resampled("domains", draws.size, float(draws.size), 0.0)
    table = _table(ws, rows, np.ones(len(rows.row), np.int64)).take(pa.array(drawable))
    return _parted(table, draws.domain[drawable], rows.domains, draws.share, draws.size, lowered)


def _parted(
    table: pa.Table, part: np.ndarray, names: Sequence[str], mass: np.ndarray, size: int, lowered: Resampled
) -> ExportRows:
    """Rows with their parts; rows of parts without mass are left out.

    part: int64 [N], positions in `names`. mass: each part's total weight. size: draws per epoch.
    """
    labels = _labels(names)
    rows = np.bincount(part, table["repeats"].to_numpy(), minlength=len(names)).astype(np.int64)
    share, draws = mass / mass.sum(), largest_remainders(mass, size)
    parts = [
        Part(label, int(n), float(s), int(d))
        for label, n, s, d in zip(labels, rows, share, draws, strict=True)
        if s > 0
    ]
    kept = np.flatnonzero(share[part] > 0)
    table = table.append_column("part", pa.array([labels[k] for k in part])).take(pa.array(kept))
    return ExportRows(table, parts, lowered, len(part) - len(kept))


def _labels(names: Sequence[str]) -> list[str]:
    """Unique names that are valid in file names, and that no file of another shape (NAME_text) could have."""
    labels: list[str] = []
    for name in names:
        label = name if name.isdigit() else suggest_name(name)
        reserved = [*labels, label] if label.endswith("_text") else labels
        candidates = (f"{label}_{k}" if k else label for k in count())
        labels.append(next(candidate for candidate in candidates if candidate not in reserved))
    return labels


# --- an epoch of a mixture -------------------------------------------------------------------------------


def _epoch(ws: Workspace, rows: TrainingRows) -> ExportRows:
    """The draws of a mixture's first epoch, as rows that repeat."""
    draws = rows.draws
    assert draws is not None
    repeats = np.bincount(draws.samples(0), minlength=len(rows.row))
    expected, counts = draws.share * draws.size, draws.counts(0)
    error = float(np.abs(counts[expected > 0] / expected[expected > 0] - 1).max())
    n_drawable = int((draws.domain >= 0).sum())
    unsampled = n_drawable - int((repeats > 0).sum())
    lowered = Resampled("draws", draws.size, float(draws.size), error, unsampled)
    return _whole(_repeating(_table(ws, rows, repeats), repeats), lowered)


def _table(ws: Workspace, rows: TrainingRows, repeats: np.ndarray) -> pa.Table:
    """All samples that a mixture may draw, in a manifest's format."""
    columns = {
        "id": rows.id,
        "row": rows.row,
        "source": texts_of(ws, "source", rows.row),
        "weight": rows.weight,
        "repeats": repeats,
        "rank": np.arange(len(rows.row)),
    }
    return pa.table(columns).cast(MANIFEST)
