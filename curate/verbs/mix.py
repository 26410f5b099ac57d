"""`curate mix`: how often to draw from which domain, as a mixture that a training draws from and exports realise.

pool ── domains, their sizes and scores ── mixer ─┬─ weights ── quotas, or probabilities ── manifest
                                                  └─ proxies, trained on mixtures, where it asks for them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.mixer import Domains, Mixer
from curate.numerics.apportion import largest_remainders
from curate.numerics.resampling import differ
from curate.runs.config import LINEAGE
from curate.runs.evaluation import questions
from curate.runs.proxies import Pool, Proxy, Trainings
from curate.runs.samples import TrainingRows, places_of, rows_of
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.manifests import write_manifest
from curate.store.workspace import Workspace, __version__, pool_fingerprint
from curate.tables.lookup import TOKENS, column_of, scores_of, texts_of
from curate.tables.recipes import model_of, model_recipe
from curate.tables.run_costs import charged_entries
from curate.tables.state import usable


@dataclass(frozen=True)
class MixtureSpec:
    """What is mixed, and how the weights are realised.

    rows, tokens: draws of an epoch of the mixture; neither: as many samples as there are. Weights are shares of tokens
    where `tokens` is given, else of samples. exact: every epoch has each domain's quota; else the domain of each draw
    is by lot. most_epochs: how often an epoch of the mixture may go through a domain's samples; null: however often.
    lower: what a domain would have beyond that goes to the others; else it is an error. by: SQL expression over
    `samples`, whose mean over a domain is its value. domain: SQL text over `samples`, which domain a sample is of.
    manifest: mix the samples of this one; else the whole pool.
    """

    rows: int | None = None
    tokens: float | None = None
    exact: bool = True
    most_epochs: float | None = 4.0
    lower: bool = False
    by: str | None = None
    domain: str = "source"
    manifest: str | None = None
    token_count: str = TOKENS
    seed: int = 0
    allow_stale: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None and self.tokens is not None:
            raise CurateError("give one size of the mixture: --rows N, or --tokens N.")
        for name, value in (("rows", self.rows), ("tokens", self.tokens), ("max-epochs", self.most_epochs)):
            if value is not None and not 0 < value < float("inf"):
                raise CurateError(f"--{name} is a number above 0, not {value}.")

    @property
    def unit(self) -> Literal["rows", "tokens"]:
        return "rows" if self.tokens is None else "tokens"


@dataclass
class MixtureResult:
    """A mixture: by domain its weight, draws of an epoch, their tokens, samples there are, and epochs over them.

    told: what the mixer says of how it found the weights. lowered: domains whose weight the cap has lowered.
    """

    name: str
    unit: str = "rows"
    rows: int = 0
    tokens: int = 0
    by_domain: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, float] = field(default_factory=dict)
    lowered: list[str] = field(default_factory=list)
    without_domain: int = 0
    warnings: list[str] = field(default_factory=list)


def mix(
    ws: Workspace, name: str, mixer: Mixer, blend: MixtureSpec | None = None, *, proxy: Proxy | None = None
) -> MixtureResult:
    """Weigh domains, and write the mixture as the manifest `name`.

    proxy: how the models are trained that some mixers ask for; these are kept, so that the same call, after a kill or
    with another size, goes on from there.

    Raises CurateError for a domain that would be gone through more often than allowed, or has no sample; a column that
    a mixer lacks or does not use; a stale score (unless allowed); a taken name.
    """
    blend = blend or MixtureSpec()
    ws.check_name(name, "manifest")
    ws.require_pool()
    proxy = replace(proxy, model=model_of(ws, proxy.model)) if proxy else None
    _refuse_unused(mixer, blend, proxy)
    if name == blend.manifest:
        raise CurateError(f"the mixture '{name}' would take the place of what it draws from; choose another name.")
    if proxy and not isinstance(ws.path, Path):
        raise CurateError("proxies are trained in folders of this machine; take a workspace on its disk.")
    for eval_spec in proxy.evals if proxy else ():
        questions(ws, eval_spec)
    result = MixtureResult(name, blend.unit)
    what = {"methods": [mixer.name], "name": name, "phase": "mix"}
    with lock(ws.path, f"manifest {name}"):
        with charged(ws.path, "mix", **what) as meter:
            its = _ground(ws, blend, result)
            meter.samples = len(its.rows.row)
        proxies = None
        if proxy:
            pool = Pool(str(ws.path), name, mixer.name, blend.manifest, its.domain, its.names, its.draws, blend.seed)
            proxies = Trainings(pool, proxy)
        found = mixer.mix(Domains(its.names, its.there / its.draws, its.values), proxies)
        result.told = dict(found.info)
        table = _realised(_refuse(mixer, found.weights), its, blend, result)
        result.rows, result.tokens = sum(table["rows"].to_pylist()), sum(table["tokens"].to_pylist())
        result.by_domain = sorted(table.to_pylist(), key=lambda row: (-row["weight"], row["source"]))
        lineage = _lineage(ws, mixer, blend, proxy, its, table, result)
        write_manifest(ws, name, table, {**lineage, "proxies": proxies.made if proxies else []})
    return result


@dataclass(frozen=True)
class _Ground:
    """What there is to mix: samples, domains' names, each sample's (-1: none); of each domain its samples, its tokens,
    its value; and draws, by which one unit of its weight becomes draws."""

    rows: TrainingRows
    names: list[str]
    domain: np.ndarray
    there: np.ndarray
    tokens: np.ndarray
    values: np.ndarray | None
    draws: np.ndarray


def _ground(ws: Workspace, blend: MixtureSpec, result: MixtureResult) -> _Ground:
    rows = rows_of(ws, blend.manifest, None, blend.allow_stale)
    if rows.draws:
        raise CurateError(f"the manifest '{blend.manifest}' is a mixture itself; name one of samples to mix.")
    if (rows.repeats != 1).any() or differ(rows.weight):
        raise CurateError(
            f"the manifest '{blend.manifest}' repeats or weighs samples, and a mixture says itself how often each "
            "comes; name one that does neither."
        )
    result.warnings += usable(scores_of(ws, blend.domain, blend.token_count), blend.allow_stale)
    names, domain = _domains(ws, rows, blend, result)
    there, tokens = _sizes(ws, rows, domain, len(names), blend)
    values, warnings = _values(ws, rows, names, domain, blend)
    result.warnings += warnings
    per_unit = np.ones(len(names)) if blend.unit == "rows" else there / tokens
    return _Ground(rows, names, domain, there, tokens, values, per_unit)


def _lineage(
    ws: Workspace,
    mixer: Mixer,
    blend: MixtureSpec,
    proxy: Proxy | None,
    its: _Ground,
    table: pa.Table,
    result: MixtureResult,
) -> dict[str, Any]:
    share, base = table["weight"].to_numpy() * its.draws, its.rows.lineage
    return {
        "name": result.name,
        "curate": __version__,
        "mixer": {"name": mixer.name, "version": mixer.version, "settings": mixer.settings()},
        "choice": {key: value for key, value in asdict(blend).items() if key != "manifest"},
        "exact": blend.exact,
        "share": (share / share.sum()).tolist(),  # of each domain among the draws
        "domain": blend.domain,
        "manifest": {"name": blend.manifest, "sha256": base["sha256"]} if base else None,
        "selection": {key: base[key] for key in LINEAGE if key in base} if base else None,
        "proxy": _proxy_recipe(proxy),
        "paid": charged_entries(ws, [proxy.model.name] if proxy else []),
        "pool": {"fingerprint": pool_fingerprint(ws.shards()), "rows": ws.n_rows(), "shards": len(ws.shards())},
        "scores": {s.name: s.recipe for s in scores_of(ws, blend.by, blend.domain, blend.token_count)},
        "result": {key: value for key, value in asdict(result).items() if key != "name"},
    }


def _refuse_unused(mixer: Mixer, blend: MixtureSpec, proxy: Proxy | None) -> None:
    for option, given, used in (
        ("a column: --by SQL", bool(blend.by), mixer.uses_values),
        ("a model to train proxies of: --model MODEL", proxy is not None, mixer.trains),
        ("targets to judge proxies on: --target NAME", bool(proxy and proxy.evals), mixer.evaluates),
    ):
        if given != used:
            verb = "needs" if used else "has no use for"
            raise CurateError(f"the mixer '{mixer.name}' {verb} {option}{'' if used else '; leave that out'}.")


def _domains(
    ws: Workspace, rows: TrainingRows, blend: MixtureSpec, result: MixtureResult
) -> tuple[list[str], np.ndarray]:
    """The domains' names, sorted, and each sample's, positions among them; -1 for one that is of none."""
    of_each = texts_of(ws, blend.domain, rows.row)
    names = sorted({name for name in of_each if name})
    if not names:
        raise CurateError(f"no sample has a domain: --domain {blend.domain} says nothing of any.")
    domain = places_of(of_each, names)
    result.without_domain = int((domain < 0).sum())
    return names, domain


def _sizes(
    ws: Workspace, rows: TrainingRows, domain: np.ndarray, n: int, blend: MixtureSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Of each domain: its samples, int64 [D], and its tokens, float64 [D]."""
    tokens, some = column_of(ws, blend.token_count, rows.row), domain >= 0
    if not (np.isfinite(tokens) & (tokens >= 0)).all():
        raise CurateError(f"--token-count {blend.token_count} gives no number of 0 or more for some sample.")
    sums = np.bincount(domain[some], tokens[some], minlength=n)
    if blend.unit == "tokens" and (sums <= 0).any():
        raise CurateError(f"--token-count {blend.token_count} gives some domain no tokens at all; mix by --rows.")
    return np.bincount(domain[some], minlength=n), sums


def _values(
    ws: Workspace, rows: TrainingRows, names: Sequence[str], domain: np.ndarray, blend: MixtureSpec
) -> tuple[np.ndarray | None, list[str]]:
    """The mean of the column over each domain, of the samples that have a value."""
    if not blend.by:
        return None, []
    warnings = usable(scores_of(ws, blend.by), blend.allow_stale)
    column = column_of(ws, blend.by, rows.row)
    good = np.isfinite(column) & (domain >= 0)
    counts = np.bincount(domain[good], minlength=len(names))
    if not counts.all():
        raise CurateError(f"no sample of the domain '{names[int(np.argmin(counts))]}' has a value of --by {blend.by}.")
    return np.bincount(domain[good], column[good], minlength=len(names)) / counts, warnings


def _refuse(mixer: Mixer, weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise CurateError(
            f"the mixer '{mixer.name}' gave the weights {weights.tolist()}; they are numbers of 0 or more, not all 0."
        )
    return weights / weights.sum()


# --- weights become draws --------------------------------------------------------------------------------


def _realised(weights: np.ndarray, its: _Ground, blend: MixtureSpec, result: MixtureResult) -> pa.Table:
    """The mixture as it is stored. Its weights are what the draws amount to where a cap has lowered some."""
    counts = _counts(weights, its, blend, result)
    drawn = counts * its.tokens / its.there
    if result.lowered:
        shares = counts / its.draws
        weights = shares / shares.sum()
    return pa.table(
        {
            "source": its.names,
            "weight": weights,
            "rows": counts,
            "tokens": np.round(drawn).astype(np.int64),
            "available": its.there,
            "epochs": counts / its.there,
        }
    )


def _counts(weights: np.ndarray, its: _Ground, blend: MixtureSpec, result: MixtureResult) -> np.ndarray:
    """The draws of an epoch from each domain, int64 [D], within the cap."""
    wanted = weights * its.draws * (blend.tokens if blend.tokens is not None else blend.rows or its.there.sum())
    size = max(1, round(float(wanted.sum())))
    counts = largest_remainders(wanted, size)
    if blend.most_epochs is None:
        return counts
    most = np.floor(its.there * blend.most_epochs).astype(np.int64)
    over = np.flatnonzero(counts > most).tolist()
    if not over:
        return counts
    if not blend.lower or most.sum() < size:
        raise CurateError(_too_small(counts, its, over, size, int(most.sum()), blend))
    result.lowered = [its.names[i] for i in over]
    return _lowered(counts, most, wanted, size)


def _lowered(counts: np.ndarray, most: np.ndarray, wanted: np.ndarray, size: int) -> np.ndarray:
    """What the capped domains have too much goes to the others in proportion, or, where these weigh nothing, by what
    room they have."""
    counts = np.minimum(counts, most)
    while (left := size - int(counts.sum())) > 0:
        room = most - counts
        share = np.where(room > 0, wanted, 0.0)
        counts = counts + np.minimum(largest_remainders(share if share.any() else room.astype(np.float64), left), room)
    return counts


def _too_small(counts: np.ndarray, its: _Ground, over: list[int], size: int, most: int, blend: MixtureSpec) -> str:
    if blend.lower:
        return (
            f"a mixture of {size:,} draws is more than {blend.most_epochs:g} epochs of all domains together have "
            f"({most:,}); take fewer --rows or --tokens, or a larger --max-epochs."
        )
    said = ", ".join(f"{its.names[i]} ({counts[i]:,} draws from {its.there[i]:,} samples)" for i in over[:3])
    more = f" and {len(over) - 3} more" if len(over) > 3 else ""
    return (
        f"an epoch of the mixture would go through some domains more than {blend.most_epochs:g} times: {said}{more}; "
        "take fewer --rows or --tokens, a larger --max-epochs (none: however often), or --lower, which gives what is "
        "too much to the other domains."
    )


def _proxy_recipe(proxy: Proxy | None) -> dict[str, Any] | None:
    if proxy is None:
        return None
    judged = [{"target": j.target, "split": j.split, "metric": j.metric.name} for j in proxy.evals]
    return {"model": model_recipe(proxy.model), "settings": asdict(proxy.settings), "judges": judged}
