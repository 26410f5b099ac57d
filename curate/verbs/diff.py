"""`curate diff`: two manifests side by side: what they share, and what distinguishes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.numerics.statistics import effective_size
from curate.results import Result
from curate.store.manifests import read_manifest
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.lookup import TOKENS
from curate.tables.state import score_state


@dataclass
class Difference(Result):
    """Two manifests, a and b.

    both, only_a, only_b: numbers of distinct samples. jaccard: both / (both + only_a + only_b). manifests: of each its
    samples, tokens (of all repeats; characters / 4) and effective sample size (sum w)^2 / sum w^2, where the w of a
    sample is weight times repeats. by_source: a, b, both, only_a, only_b of each source. scores: the mean of each score
    in a and b, weighted by w, its difference b - a, and the means in the samples that only one has, unweighted.
    """

    a: str
    b: str
    both: int
    only_a: int
    only_b: int
    jaccard: float
    manifests: list[dict[str, Any]] = field(default_factory=list)
    by_source: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def diff(ws: AnyWorkspace, a: str, b: str) -> Difference:
    """Compare two manifests of samples. Samples without a value are left out of a score's means.

    Raises CurateError for a manifest that does not exist or is a mixture, or whose rows the pool does not have.
    """
    ws = workspace_of(ws, pinned=True)
    ws.require_pool()
    tables = {name: read_manifest(ws, name)[0] for name in dict.fromkeys((a, b))}
    rows = {name: _rows(ws, name, table) for name, table in tables.items()}
    in_a, in_b = np.unique(rows[a]), np.unique(rows[b])
    both = np.intersect1d(in_a, in_b)
    parts = {"a": in_a, "b": in_b, "both": both, "only_a": np.setdiff1d(in_a, both), "only_b": np.setdiff1d(in_b, both)}
    union = len(parts["only_a"]) + len(parts["only_b"]) + len(both)
    names = ws.score_names()
    states = [score_state(ws, name) for name in names]
    warnings = [f"{state} {problem}" for state in states if (problem := state.problem())]
    listed = "".join(f', "{name}"' for name in names)
    pool = sql.fetch(ws, f"SELECT source, ({TOKENS})::DOUBLE AS _tokens{listed} FROM samples ORDER BY row")
    weights = {name: _weights(table) for name, table in tables.items()}
    return Difference(
        a,
        b,
        len(both),
        len(parts["only_a"]),
        len(parts["only_b"]),
        len(both) / max(1, union),
        [_manifest(name, tables[name], rows[name], pool) for name in (a, b)],
        _by_source(pool, parts),
        [_means(name, pool, (rows[a], weights[a]), (rows[b], weights[b]), parts) for name in names],
        warnings,
    )


def _rows(ws: Workspace, name: str, table: pa.Table) -> np.ndarray:
    rows = table["row"].to_numpy()
    if len(rows) and rows.max() >= ws.n_rows():
        raise CurateError(f"the manifest '{name}' has rows that the pool has not; the pool was remade, select again.")
    return rows


def _weights(table: pa.Table) -> np.ndarray:
    return table["weight"].to_numpy().astype(np.float64) * table["repeats"].to_numpy()


def _manifest(name: str, table: pa.Table, rows: np.ndarray, pool: pa.Table) -> dict[str, Any]:
    tokens = pool["_tokens"].to_numpy()[rows] * table["repeats"].to_numpy()
    return {
        "manifest": name,
        "samples": len(rows),
        "tokens": float(tokens.sum()),
        "effective": effective_size(_weights(table)),
    }


def _by_source(pool: pa.Table, parts: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    encoded = pool["source"].combine_chunks().dictionary_encode()
    codes, sources = encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()
    counts = {name: np.bincount(codes[rows], minlength=len(sources)) for name, rows in parts.items()}
    rows = [{"source": s, **{name: int(n[i]) for name, n in counts.items()}} for i, s in enumerate(sources)]
    return sorted((row for row in rows if row["a"] or row["b"]), key=lambda row: (-row["a"] - row["b"], row["source"]))


def _means(name: str, pool: pa.Table, a: Any, b: Any, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    values = pool[name].to_numpy().astype(np.float64)

    def mean(rows: np.ndarray, weights: np.ndarray | None = None) -> float | None:
        there = np.isfinite(values[rows])
        w = np.ones(int(there.sum())) if weights is None else weights[there]
        return float(np.average(values[rows][there], weights=w)) if w.any() else None

    in_a, in_b = mean(*a), mean(*b)
    difference = None if in_a is None or in_b is None else in_b - in_a
    only = {key: mean(parts[key]) for key in ("only_a", "only_b")}
    return {"score": name, "a": in_a, "b": in_b, "difference": difference, **only}
