"""`curate report`: the figures of a report page: contents, distributions of scores and selections, and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, DamagedError
from curate.hashing import ids_as_integers, keyed_uniform
from curate.numerics.long_horizon.scorecard import Scorecard
from curate.numerics.rank_agreement import spearman
from curate.preferences import prompt_length
from curate.results import Result, Rows
from curate.store.manifests import read_any
from curate.store.recipes import MixtureRecipe, SamplesRecipe, WeightsRecipe
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.audit_cards import audit_names, card_of
from curate.tables.lookup import words
from curate.tables.state import score_state
from curate.verbs.compare import Compared, compare
from curate.verbs.status import Status, ledger, status

BINS = 40
_RANKED = 100_000  # at most so many samples are used for rank correlations
_TWINS = 1_000_000  # at most so many samples are searched for duplicates
_WORDS = "coalesce(text, array_to_string(list_transform(messages, lambda m: m.content), ' '))"


@dataclass(frozen=True)
class Spread:
    """The distribution of a score over the pool. edges: float64 [BINS + 1]; values beyond count in the outermost bins.
    counts: source -> int64 [BINS]. quantiles: 5, 25, 50, 75, 95 %, by source. state: 'complete', or the problem."""

    name: str
    method: str
    target: str | None
    edges: np.ndarray
    counts: dict[str, np.ndarray]
    quantiles: dict[str, list[float]]
    nulls: int
    state: str


@dataclass(frozen=True)
class Chosen:
    """A selection compared with the pool. sources: source -> its share of the selection, and of the pool. length:
    median characters, of both. twins: the share of samples with a duplicate (the same words, ignoring digits and
    punctuation), in both; None if the pool is too large to search. percentile: score -> the mean percentile, in the
    pool, of the chosen samples. effective: effective sample size, (sum w)^2 / sum w^2."""

    name: str
    made_by: str
    rows: int
    sources: dict[str, tuple[float, float]]
    length: tuple[float, float]
    twins: tuple[float, float] | None
    percentile: dict[str, float]
    effective: float


@dataclass(frozen=True)
class Shown:
    """Samples as shown on the page: id, source, text (truncated), scores by name (NaN if missing), and the selections
    that contain them (positions)."""

    id: list[str]
    source: list[str]
    text: list[str]
    scores: dict[str, np.ndarray]
    chosen: list[list[int]]


@dataclass
class Report(Result):
    """The figures of a workspace. correlation: Spearman's, float64 [S, S], over the samples that have both scores.
    overlap: Jaccard index of the selections, float64 [M, M]. best, worst: score -> samples, ten each. shown: the
    samples that can be searched on the page."""

    status: Status
    spent: list[dict[str, Any]]
    spreads: list[Spread]
    correlation: np.ndarray
    selections: list[Chosen]
    overlap: np.ndarray
    mixtures: dict[str, list[dict[str, Any]]]
    best: dict[str, Shown]
    worst: dict[str, Shown]
    shown: Shown
    runs: Compared | None = None
    audits: dict[str, Scorecard] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def _facts(self) -> dict[str, Any]:
        return {
            "of": self.status.path,
            "samples": self.status.rows,
            "scores": [spread.name for spread in self.spreads],
            "selections": [chosen.name for chosen in self.selections],
            "mixtures": list(self.mixtures),
            "runs": len(self.status.runs),
            "audits": list(self.audits),
        }

    def _tables(self) -> dict[str, Rows]:
        return {}  # its figures are for a page: curate.pages.report.page


def report(
    ws: AnyWorkspace,
    *,
    scores: Sequence[str] = (),
    manifests: Sequence[str] = (),
    samples: int = 50_000,
    cut: int = 300,
    most: int = 12,
) -> Report:
    """Compute the figures of a workspace's report.

    scores, manifests: only these; default: all, up to the first `most` of each by name. samples: how many can be
    searched; if the pool has more, the best and worst of every score, and others at random. cut: characters shown of a
    sample's text.

    Raises CurateError for an empty pool, or an unknown score or manifest.
    """
    ws = workspace_of(ws, pinned=True)
    ws.require_pool()
    if samples < 0 or cut < 1:
        raise CurateError(f"--samples is 0 or more and --cut 1 or more, not {samples} and {cut}.")
    warnings: list[str] = []
    names = _named(ws, "score", scores, most, warnings)
    pool = _Pool(ws, names)
    tables = {name: read_any(ws, name) for name in _named(ws, "manifest", manifests, most, warnings)}
    mixtures, of_samples = {}, {}
    for name, (table, recipe) in tables.items():
        if isinstance(recipe, MixtureRecipe):
            mixtures[name] = table.to_pylist()
        else:
            of_samples[name] = (table, recipe)
    chosen_rows = {name: table["row"].to_numpy() for name, (table, _) in of_samples.items()}
    for name, rows in chosen_rows.items():
        if len(rows) and rows.max() >= len(pool.source):
            raise CurateError(
                f"the manifest '{name}' has rows that the pool has not; the pool was remade, select again."
            )
    twins = pool.twins() if len(pool.source) <= _TWINS else None
    if twins is None:
        warnings.append(f"the pool has more than {_TWINS:,} samples, so duplicates were not searched for")
    state = status(ws)
    warnings += state.damaged
    result = Report(
        state,
        _spent(ws, warnings),
        [_spread(ws, name, pool) for name in names],
        _correlation(pool),
        [_chosen(ws, name, rows, of_samples[name], pool, twins) for name, rows in chosen_rows.items()],
        _overlap(list(chosen_rows.values())),
        mixtures,
        {},
        {},
        Shown([], [], [], {}, []),
        warnings=warnings,
    )
    ends = {name: pool.ends(name) for name in names}
    for name, (best, worst) in ends.items():
        result.best[name] = pool.shown(ws, best, 2 * cut, chosen_rows)
        result.worst[name] = pool.shown(ws, worst, 2 * cut, chosen_rows)
    searched = pool.some(samples, [row for pair in ends.values() for rows in pair for row in rows])
    result.shown = pool.shown(ws, searched, cut, chosen_rows)
    _runs(ws, result)
    for name in audit_names(ws):
        if card := card_of(ws, name):
            result.audits[name] = card
    return result


def _named(ws: Workspace, kind: str, names: Sequence[str], limit: int, warnings: list[str]) -> list[str]:
    for name in names:
        ws.require(kind, name)
    available = list(names) or ws.having(kind)
    if len(available) > limit and not names:
        warnings.append(f"of {len(available)} {kind}s the first {limit} are shown; name others by --{kind}")
        return available[:limit]
    return available


def _spent(ws: Workspace, warnings: list[str]) -> list[dict[str, Any]]:
    """The costs; none, with a warning, if some of the ledger is lost."""
    try:
        return ledger(ws)
    except DamagedError as error:
        warnings.append(str(error).rstrip("."))
        return []


def _runs(ws: Workspace, result: Report) -> None:
    if not ws.run_names():
        return
    try:
        result.runs = compare(ws, [])
    except CurateError as error:  # none is finished
        result.warnings.append(str(error))


# --- the pool --------------------------------------------------------------------------------------------


class _Pool:
    """The samples' sources, lengths and scores, by row."""

    def __init__(self, ws: Workspace, names: Sequence[str]):
        self.ws = ws
        columns = ", ".join(["id", "source", "n_chars", *(f'"{name}"' for name in names)])
        table = sql.fetch(ws, f"SELECT {columns} FROM samples ORDER BY row")
        self.id = table["id"].to_pylist()
        self.source = np.array(table["source"].to_pylist(), object)
        self.length = table["n_chars"].to_numpy().astype(np.float64)
        self.scores = {name: table[name].to_numpy().astype(np.float64) for name in names}

    @property
    def sources(self) -> list[str]:
        """The sources, most frequent first."""
        names, counts = np.unique(self.source, return_counts=True)
        return [str(name) for name in names[np.argsort(-counts, kind="stable")]]

    def twins(self) -> np.ndarray:
        """A group number for each sample, equal for duplicates (samples with the same words), int64 [N]."""
        key = f"hash(trim(regexp_replace(lower({_WORDS}), '[^\\p{{L}}]+', ' ', 'g')))"
        table = sql.fetch(self.ws, f"SELECT {key}::UBIGINT AS twin FROM pool ORDER BY row")
        return np.unique(table["twin"].to_numpy(), return_inverse=True)[1]

    def ends(self, name: str, count: int = 10) -> tuple[list[int], list[int]]:
        """The rows of the best and of the worst samples by a score; ties in order of id."""
        values = self.scores[name]
        valid = np.flatnonzero(np.isfinite(values))
        ids = np.array(self.id, object)[valid]
        order = valid[np.lexsort((ids.astype(str), -values[valid]))]
        return order[:count].tolist(), order[::-1][:count].tolist()

    def some(self, most: int, wanted: Sequence[int]) -> list[int]:
        """Rows that can be searched, in the pool's order: all, or the wanted ones and others at random."""
        if len(self.id) <= most:
            return list(range(len(self.id)))
        numbers = keyed_uniform(ids_as_integers(self.id), 0, "report")
        numbers[list(wanted)] = 2.0
        return np.sort(np.argsort(-numbers, kind="stable")[:most]).tolist()

    def shown(self, ws: Workspace, rows: Sequence[int], cut: int, picked: dict[str, np.ndarray]) -> Shown:
        """The samples at some rows, as shown on the page; texts are truncated to `cut` characters."""
        position_of = {row: i for i, row in enumerate(rows)}
        text = [""] * len(rows)
        chosen_by: list[list[int]] = [[] for _ in rows]
        for number, manifest_rows in enumerate(picked.values()):
            for row in manifest_rows.tolist():
                if row in position_of:
                    chosen_by[position_of[row]].append(number)
        if rows:
            condition = "" if len(rows) == len(self.id) else f"WHERE row IN ({', '.join(map(str, rows))})"
            cuts = ", ".join(
                f"list_transform({name}, lambda m: {{'role': m.role, 'content': left(m.content, {cut})}}) AS {name}"
                for name in ("messages", "rejected")
            )
            query_ = f"SELECT row, {cuts}, left(text, {cut}) AS text FROM pool {condition}"
            for row in sql.rows(ws, query_):
                text[position_of[row["row"]]] = _cut(_said(row), cut)
        indices = np.array(rows, np.int64)
        scores = {name: values[indices] for name, values in self.scores.items()}
        return Shown([self.id[r] for r in rows], [str(self.source[r]) for r in rows], text, scores, chosen_by)


def _said(sample: dict[str, Any]) -> str:
    if sample["messages"] is None:
        return words(sample)
    lines = [f"{m['role']}: {m['content'] or ''}" for m in sample["messages"]]
    if rejected := sample["rejected"]:
        lines += [f"rejected: {m['content'] or ''}" for m in rejected[prompt_length(sample["messages"], rejected) :]]
    return "\n".join(lines)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


# --- scores and selections -------------------------------------------------------------------------------


def _spread(ws: Workspace, name: str, pool: _Pool) -> Spread:
    state, values = score_state(ws, name), pool.scores[name]
    valid = np.isfinite(values)
    low, high = np.quantile(values[valid], [0.005, 0.995]) if valid.any() else (0.0, 1.0)
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, BINS + 1)
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
    counts, quantiles = {}, {}
    for source in pool.sources:
        in_source = valid & (pool.source == source)
        counts[source] = np.bincount(bins[in_source], minlength=BINS)
        if in_source.any():
            quantiles[source] = np.quantile(values[in_source], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    method, target = state.recipe.method, state.recipe.target or None
    return Spread(name, method, target, edges, counts, quantiles, int((~valid).sum()), state.problem() or "complete")


def _correlation(pool: _Pool) -> np.ndarray:
    columns = list(pool.scores.values())
    n = len(pool.id)
    sampled = np.arange(n) if n <= _RANKED else np.random.default_rng(0).choice(n, _RANKED, replace=False)
    correlations = np.full((len(columns), len(columns)), np.nan)
    for i, a in enumerate(columns):
        for j, b in enumerate(columns[: i + 1]):
            shared = sampled[np.isfinite(a[sampled]) & np.isfinite(b[sampled])]
            correlations[i, j] = correlations[j, i] = spearman(a[shared], b[shared]) if len(shared) > 1 else np.nan
    return correlations


def _chosen(
    ws: Workspace,
    name: str,
    rows: np.ndarray,
    manifest: tuple[Any, SamplesRecipe],
    pool: _Pool,
    twins: np.ndarray | None,
) -> Chosen:
    table, recipe = manifest
    weight = table["weight"].to_numpy().astype(np.float64) * table["repeats"].to_numpy()
    method = recipe.weighting if isinstance(recipe, WeightsRecipe) else recipe.selector
    share = {source: (_share(pool.source[rows] == source), _share(pool.source == source)) for source in pool.sources}
    percentile = {}
    for score, values in pool.scores.items():
        ranked = np.sort(values[np.isfinite(values)])
        own_values = values[rows][np.isfinite(values[rows])]
        if len(own_values):
            n_below = (np.searchsorted(ranked, own_values, "left") + np.searchsorted(ranked, own_values, "right")) / 2
            percentile[score] = float(100 * (n_below / len(ranked)).mean())
    return Chosen(
        name,
        method.name,
        len(rows),
        share,
        (float(np.median(pool.length[rows])) if len(rows) else float("nan"), float(np.median(pool.length))),
        None if twins is None else (_twin_share(twins[rows]), _twin_share(twins)),
        percentile,
        float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0,
    )


def _share(matches: np.ndarray) -> float:
    return float(matches.mean()) if len(matches) else 0.0


def _twin_share(twins: np.ndarray) -> float:
    """The share of samples that have a duplicate among these."""
    if not len(twins):
        return 0.0
    _, group, counts = np.unique(twins, return_inverse=True, return_counts=True)
    return float((counts[group] > 1).mean())


def _overlap(chosen_rows: Sequence[np.ndarray]) -> np.ndarray:
    overlap = np.ones((len(chosen_rows), len(chosen_rows)))
    for i, a in enumerate(chosen_rows):
        for j, b in enumerate(chosen_rows[:i]):
            n_shared = len(np.intersect1d(a, b))
            overlap[i, j] = overlap[j, i] = n_shared / max(1, len(np.union1d(a, b)))
    return overlap
