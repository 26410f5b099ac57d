"""`curate weigh`: compute weights for the samples of the pool, or of a manifest, from a column, for any trainer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.weighting import Weighting, weigh_once
from curate.numerics.resampling import repeats_of
from curate.numerics.statistics import effective_size
from curate.results import Result
from curate.runs.samples import rows_of
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.manifests import read_manifest
from curate.store.recipes import ManifestReference, WeightsRecipe
from curate.store.workspace import Workspace, __version__
from curate.tables.dependents import refuse_other, replace_manifest
from curate.tables.inputs import method_recipe, pool_recipe
from curate.tables.lookup import scores_of
from curate.tables.sql import fetch

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class Weighed(Result):
    """The resulting weights.

    quantiles: of the weights before normalisation (0, 5, 25, 50, 75, 95, 100 %); in the manifest they are divided by
    their mean. effective_rows: effective sample size, (sum w)^2 / sum w^2. by_source: rows, and their share of the
    total weight.
    """

    name: str
    rows: int = 0
    without_value: int = 0
    mean: float = 0.0
    quantiles: list[float] = field(default_factory=list)
    effective_rows: float = 0.0
    lowered: str = ""
    by_source: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def weigh(
    ws: AnyWorkspace,
    name: str,
    weighting: Weighting | str,
    by: str,
    *,
    manifest: str | None = None,
    repeats: int | None = None,
    seed: int = 0,
    allow_stale: bool = False,
    fresh: bool = False,
    wait: float | None = None,
) -> Weighed:
    """Weight samples by an SQL expression over `samples`, as if all were in one step, and write the manifest NAME.

    manifest: weight the samples of this manifest; else the whole pool. Samples without a value are left out, and
    counted. The weights have mean 1. repeats: instead of weights, repeat rows, to this total; 0: the number of samples.
    fresh: replace a manifest of that name, as for `select`.

    Raises CurateError for a weighting that needs the model, a stale score (unless allowed), a name that is taken, or
    weights that are all 0.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, weighting = workspace_of(ws, pinned=True, wait=wait), method_of(Weighting, weighting)
    ws.check_name(name, "manifest")
    shards = ws.require_pool()
    if unusable := set(weighting.needs) - {"loss", "column", "base_loss"}:
        by_samples = unusable == {"token_loss"} and "unit" in weighting.settings()
        remedy = "--set unit=sample" if by_samples else "adapt_static, flow, linupper and the like"
        raise CurateError(
            f"the weighting '{weighting.name}' uses the model during training ({', '.join(sorted(unusable))}), so it "
            f"works in `curate train` only; to weight by a column take {remedy}."
        )
    if weighting.chooses:
        raise CurateError(
            f"the weighting '{weighting.name}' chooses among a step's candidates, so it is for `curate train` only; "
            "from a column choose by `curate select`."
        )
    base = read_manifest(ws, manifest)[1] if manifest else None
    reference = ManifestReference(name=base.name, sha256=base.sha256) if base else None
    made = {
        "weighting": method_recipe(weighting).as_json(),
        **{"by": by, "seed": seed, "repeats": repeats},
        "manifest": reference.as_json() if reference else None,
    }
    refuse_other(ws, "manifest", name, made, fresh)
    result = Weighed(name)
    with charged(ws.path, "weigh", methods=[weighting.name], name=name, phase="weigh") as meter:
        rows = rows_of(ws, manifest, by, allow_stale)
        assert rows.column is not None
        result.warnings += rows.warnings
        meter.samples = len(rows.row)
        valid = np.flatnonzero(np.isfinite(rows.column))
        result.without_value = len(rows.row) - len(valid)
        if not len(valid):
            raise CurateError(f"no sample has a value of --by {by}.")
        weights = weigh_once(weighting, rows.column[valid])
        _refuse(weighting, weights)
        result.rows, result.mean = len(valid), float(weights.mean())
        result.quantiles = np.quantile(weights, _QUANTILES).tolist()
        combined = rows.weight[valid] * weights
        if not combined.any():
            raise CurateError("the weights are all 0; there would be nothing to train on.")
        result.effective_rows = effective_size(combined)
        table = _table(ws, rows.row[valid], combined / combined.mean(), rows.repeats[valid])
        result.by_source = _by_source(table)
        if repeats is not None:
            table, result.lowered = _repeated(table, repeats, seed)
    recipe = WeightsRecipe(
        name=name,
        curate=__version__,
        weighting=method_recipe(weighting),
        by=by,
        seed=seed,
        repeats=repeats,
        manifest=reference,
        selection=base.step(scores=False) if base else None,
        pool=pool_recipe(ws, shards),
        scores={**(base.scores if base else {}), **{state.name: state.recipe for state in scores_of(ws, by)}},
        result={key: value for key, value in asdict(result).items() if key != "name"},
    )
    with lock(ws, f"manifest {name}"):
        replace_manifest(ws, name, table, recipe, fresh)
    return result


def _refuse(weighting: Weighting, weights: np.ndarray) -> None:
    if not (np.isfinite(weights) & (weights >= 0)).all():
        bad = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise CurateError(f"the weighting '{weighting.name}' gave the weight {bad}; a weight is a number of 0 or more.")


def _table(ws: Workspace, row: np.ndarray, weight: np.ndarray, repeats: np.ndarray) -> pa.Table:
    samples = fetch(ws, "SELECT id, source FROM pool ORDER BY row").take(pa.array(row))
    return pa.table(
        {
            "id": samples["id"],
            "row": row,
            "source": samples["source"],
            "weight": weight.astype(np.float32),
            "repeats": repeats.astype(np.int32),
            "rank": np.arange(len(row)),
        }
    )


def _repeated(table: pa.Table, total: int, seed: int) -> tuple[pa.Table, str]:
    """The table with repeats instead of weights, without rows that repeat 0 times; and a description."""
    weights = table["weight"].to_numpy().astype(np.float64) * table["repeats"].to_numpy()
    repeats, lowered = repeats_of(weights, total or table.num_rows, seed)
    positions = np.flatnonzero(repeats)
    kept = table.take(pa.array(positions))
    columns = {**{name: kept[name] for name in kept.column_names}, "weight": np.ones(len(positions), np.float32)}
    columns |= {"repeats": repeats[positions].astype(np.int32), "rank": np.arange(len(positions))}
    return pa.table(columns), str(lowered)


def _by_source(table: pa.Table) -> list[dict[str, Any]]:
    sources, codes = np.unique(np.array(table["source"].to_pylist(), object), return_inverse=True)
    weight = table["weight"].to_numpy().astype(np.float64) * table["repeats"].to_numpy()
    rows, weight_sums = np.bincount(codes), np.bincount(codes, weight)
    entries = [
        {"source": s, "rows": int(n), "share": n / len(codes), "weighted_share": w / weight.sum()}
        for s, n, w in zip(sources, rows, weight_sums, strict=True)
    ]
    return sorted(entries, key=lambda row: -row["weighted_share"])
