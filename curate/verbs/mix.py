"""`curate mix`: how often to draw from each domain, as a mixture that trainings sample from and exports realise.

pool ── domains, their sizes and scores ── mixer ─┬─ weights ── quotas, or probabilities ── manifest
                                                  └─ proxies, trained on mixtures, if it uses them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.arguments.methods import method_of
from curate.arguments.specs import spec_of
from curate.arguments.trainings import proxy_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.mixer import Domains, Mixer
from curate.models.choice import ModelChoice
from curate.numerics.apportion import largest_remainders
from curate.numerics.resampling import differ
from curate.results import Result
from curate.runs.evaluation import EvalSpec, questions
from curate.runs.proxies import Pool, Proxy, Trainings
from curate.runs.samples import TrainingRows, places_of, rows_of
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.recipes import EvalRecipe, ManifestReference, MixtureRecipe, ProxyRecipe
from curate.store.workspace import Workspace, __version__
from curate.tables.dependents import refuse_other, replace_manifest
from curate.tables.inputs import method_recipe, model_of, model_recipe, pool_recipe
from curate.tables.lookup import GUESSED, TOKENS, column_of, scores_of, texts_of, token_count
from curate.tables.run_costs import charged_entries
from curate.tables.state import usable


@dataclass(frozen=True)
class MixtureSpec:
    """What is mixed, and how the weights are realised.

    rows, tokens: the size of an epoch of the mixture; neither: the number of samples. Weights are shares of tokens if
    `tokens` is given, else of samples. exact: every epoch has each domain's quota; else the domain of each draw is
    random. most_epochs: how many passes over a domain's samples an epoch of the mixture may make; None: no limit.
    lower: give a domain's excess over that limit to the others; else it is an error. by: SQL expression over `samples`,
    whose mean over a domain is its value. domain: SQL text over `samples`, the domain of a sample. manifest: mix the
    samples of this manifest; else the whole pool.
    """

    rows: int | None = None
    tokens: float | None = None
    exact: bool = True
    most_epochs: float | None = 4.0
    lower: bool = False
    by: str | None = None
    domain: str = "source"
    manifest: str | None = None
    token_count: str | None = None  # None: as for a selection
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
        """What weights of domains are shares of."""
        return "rows" if self.tokens is None else "tokens"


@dataclass
class MixtureResult(Result):
    """A mixture. by_domain: weight, draws per epoch, their tokens, available samples, and passes over these.

    told: figures that the mixer reports on how it found the weights. lowered: domains whose weight the cap reduced.
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
    ws: AnyWorkspace,
    name: str,
    mixer: Mixer | str,
    blend: MixtureSpec | None = None,
    *,
    proxy: Proxy | ModelChoice | str | None = None,
    evals: Sequence[EvalSpec | str] = (),
    fresh: bool = False,
    wait: float | None = None,
    **fields: Any,
) -> MixtureResult:
    """Compute domain weights, and write the mixture as the manifest `name`.

    fields: those of a MixtureSpec, in place of `blend` (rows=1000, by="nll"). proxy: how to train the proxy models that
    some mixers use, or the model that they start from; evals: the targets that they are evaluated on. They are stored,
    so that the same call, after a kill or with another size, re-uses them. fresh: replace a manifest of that name, as
    for `select`.

    Raises CurateError for a domain that would be repeated more often than allowed, or has no sample; a column that the
    mixer needs and lacks, or does not use; a stale score (unless allowed); or a name that is taken.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, mixer = workspace_of(ws, pinned=True, wait=wait), method_of(Mixer, mixer)
    blend = spec_of(MixtureSpec, blend, fields, "mix")
    proxy = proxy_of(proxy, evals)
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
    blend = replace(blend, token_count=token_count(ws, blend.token_count, blend.tokens is not None))
    made = {"mixer": method_recipe(mixer).as_json(), "choice": _choice(blend)}
    refuse_other(ws, "manifest", name, made, fresh)
    result = MixtureResult(name, blend.unit)
    columns = {"methods": [mixer.name], "name": name, "phase": "mix"}
    with lock(ws, f"manifest {name}"):
        with charged(ws.path, "mix", **columns) as meter:
            ground = _ground(ws, blend, result)
            meter.samples = len(ground.rows.row)
        proxies = None
        if proxy:
            pool = Pool(
                str(ws.path), name, mixer.name, blend.manifest, ground.domain, ground.names, ground.draws, blend.seed
            )
            proxies = Trainings(pool, proxy)
        mixed = mixer.mix(Domains(ground.names, ground.there / ground.draws, ground.values), proxies)
        result.told = dict(mixed.info)
        table = _realised(_refuse(mixer, mixed.weights), ground, blend, result)
        result.rows, result.tokens = sum(table["rows"].to_pylist()), sum(table["tokens"].to_pylist())
        result.by_domain = sorted(table.to_pylist(), key=lambda row: (-row["weight"], row["source"]))
        accounts = proxies.made if proxies else []
        recipe = _recipe(ws, mixer, blend, proxy, ground, table, result, accounts)
        replace_manifest(ws, name, table, recipe, fresh)
    return result


@dataclass(frozen=True)
class _Ground:
    """The inputs of a mixture. names: the D domains. domain: of each sample, positions among them (-1: none). there,
    tokens, values: of each domain, its samples, tokens and value. draws: of each domain, draws per unit of weight."""

    rows: TrainingRows
    names: list[str]
    domain: np.ndarray
    there: np.ndarray
    tokens: np.ndarray
    values: np.ndarray | None
    draws: np.ndarray


def _ground(ws: Workspace, spec: MixtureSpec, result: MixtureResult) -> _Ground:
    rows = rows_of(ws, spec.manifest, None, spec.allow_stale)
    if rows.draws:
        raise CurateError(f"the manifest '{spec.manifest}' is a mixture itself; name one of samples to mix.")
    if (rows.repeats != 1).any() or differ(rows.weight):
        raise CurateError(
            f"the manifest '{spec.manifest}' repeats or weights samples, but a mixture sets itself how often each "
            "is drawn; name one that does neither."
        )
    result.warnings += usable(scores_of(ws, spec.domain, spec.token_count), spec.allow_stale)
    if spec.tokens is not None and (spec.token_count or TOKENS) == TOKENS:
        result.warnings.append(GUESSED)
    names, domain = _domains(ws, rows, spec, result)
    counts, tokens = _sizes(ws, rows, domain, len(names), spec)
    values, warnings = _values(ws, rows, names, domain, spec)
    result.warnings += warnings
    per_unit = np.ones(len(names)) if spec.unit == "rows" else counts / tokens
    return _Ground(rows, names, domain, counts, tokens, values, per_unit)


def _choice(spec: MixtureSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if key != "manifest"}


def _recipe(
    ws: Workspace,
    mixer: Mixer,
    spec: MixtureSpec,
    proxy: Proxy | None,
    ground: _Ground,
    table: pa.Table,
    result: MixtureResult,
    proxies: list[str],
) -> MixtureRecipe:
    share, base = table["weight"].to_numpy() * ground.draws, ground.rows.recipe
    return MixtureRecipe(
        name=result.name,
        curate=__version__,
        mixer=method_recipe(mixer),
        choice=_choice(spec),
        exact=spec.exact,
        share=(share / share.sum()).tolist(),  # of the draws, by domain
        domain=spec.domain,
        manifest=ManifestReference(name=base.name, sha256=base.sha256) if base else None,
        selection=base.step() if base else None,
        proxy=_proxy_recipe(proxy),
        paid=charged_entries(ws, [proxy.model.name] if proxy else []),
        pool=pool_recipe(ws, ws.shards()),
        scores={s.name: s.recipe for s in scores_of(ws, spec.by, spec.domain, spec.token_count)},
        result={key: value for key, value in asdict(result).items() if key != "name"},
        proxies=proxies,
    )


def _refuse_unused(mixer: Mixer, spec: MixtureSpec, proxy: Proxy | None) -> None:
    for option, is_given, is_used in (
        ("a column: --by SQL", bool(spec.by), mixer.uses_values),
        ("a model to train proxies of: --model MODEL", proxy is not None, mixer.trains),
        ("targets to evaluate proxies on: --target NAME", bool(proxy and proxy.evals), mixer.evaluates),
    ):
        if is_given != is_used:
            verb = "needs" if is_used else "has no use for"
            raise CurateError(f"the mixer '{mixer.name}' {verb} {option}{'' if is_used else '; leave that out'}.")


def _domains(
    ws: Workspace, rows: TrainingRows, spec: MixtureSpec, result: MixtureResult
) -> tuple[list[str], np.ndarray]:
    """The domains' names, sorted, and the domain of each sample as a position among them; -1 for none."""
    of_each = texts_of(ws, spec.domain, rows.row)
    names = sorted({name for name in of_each if name})
    if not names:
        raise CurateError(f"no sample has a domain: --domain {spec.domain} is empty for all of them.")
    domain = places_of(of_each, names)
    result.without_domain = int((domain < 0).sum())
    return names, domain


def _sizes(
    ws: Workspace, rows: TrainingRows, domain: np.ndarray, n: int, spec: MixtureSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The number of samples, int64 [D], and of tokens, float64 [D], of each domain."""
    tokens, in_domain = column_of(ws, spec.token_count or TOKENS, rows.row), domain >= 0
    if not (np.isfinite(tokens) & (tokens >= 0)).all():
        raise CurateError(f"--token-count {spec.token_count} gives no number of 0 or more for some sample.")
    sums = np.bincount(domain[in_domain], tokens[in_domain], minlength=n)
    if spec.unit == "tokens" and (sums <= 0).any():
        raise CurateError(f"--token-count {spec.token_count} gives some domain no tokens at all; mix by --rows.")
    return np.bincount(domain[in_domain], minlength=n), sums


def _values(
    ws: Workspace, rows: TrainingRows, names: Sequence[str], domain: np.ndarray, spec: MixtureSpec
) -> tuple[np.ndarray | None, list[str]]:
    """The mean of the column over each domain's samples that have a value, float64 [D]; and warnings."""
    if not spec.by:
        return None, []
    warnings = usable(scores_of(ws, spec.by), spec.allow_stale)
    column = column_of(ws, spec.by, rows.row)
    valid = np.isfinite(column) & (domain >= 0)
    counts = np.bincount(domain[valid], minlength=len(names))
    if not counts.all():
        raise CurateError(f"no sample of the domain '{names[int(np.argmin(counts))]}' has a value of --by {spec.by}.")
    return np.bincount(domain[valid], column[valid], minlength=len(names)) / counts, warnings


def _refuse(mixer: Mixer, weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise CurateError(
            f"the mixer '{mixer.name}' gave the weights {weights.tolist()}; they are numbers of 0 or more, not all 0."
        )
    return weights / weights.sum()


# --- weights become draws --------------------------------------------------------------------------------


def _realised(weights: np.ndarray, ground: _Ground, spec: MixtureSpec, result: MixtureResult) -> pa.Table:
    """The stored table of the mixture. If the cap reduced a domain, the weights are those that the draws realise."""
    counts = _counts(weights, ground, spec, result)
    drawn_tokens = counts * ground.tokens / ground.there
    if result.lowered:
        shares = counts / ground.draws
        weights = shares / shares.sum()
    return pa.table(
        {
            "source": ground.names,
            "weight": weights,
            "rows": counts,
            "tokens": np.round(drawn_tokens).astype(np.int64),
            "available": ground.there,
            "epochs": counts / ground.there,
        }
    )


def _counts(weights: np.ndarray, ground: _Ground, spec: MixtureSpec, result: MixtureResult) -> np.ndarray:
    """The draws of an epoch from each domain, int64 [D], within the cap."""
    expected = weights * ground.draws * (spec.tokens if spec.tokens is not None else spec.rows or ground.there.sum())
    size = max(1, round(float(expected.sum())))
    counts = largest_remainders(expected, size)
    if spec.most_epochs is None:
        return counts
    caps = np.floor(ground.there * spec.most_epochs).astype(np.int64)
    capped = np.flatnonzero(counts > caps).tolist()
    if not capped:
        return counts
    if not spec.lower or caps.sum() < size:
        raise CurateError(_too_small(counts, ground, capped, size, int(caps.sum()), spec))
    result.lowered = [ground.names[i] for i in capped]
    return _lowered(counts, caps, expected, size)


def _lowered(counts: np.ndarray, caps: np.ndarray, expected: np.ndarray, size: int) -> np.ndarray:
    """Give the excess of the capped domains to the others, in proportion to their weights or, if these are all 0, to
    their remaining capacity."""
    counts = np.minimum(counts, caps)
    while (remaining := size - int(counts.sum())) > 0:
        room = caps - counts
        share = np.where(room > 0, expected, 0.0)
        counts = counts + np.minimum(
            largest_remainders(share if share.any() else room.astype(np.float64), remaining), room
        )
    return counts


def _too_small(
    counts: np.ndarray, ground: _Ground, capped: list[int], size: int, capacity: int, spec: MixtureSpec
) -> str:
    if spec.lower:
        return (
            f"a mixture of {size:,} draws is more than {spec.most_epochs:g} epochs of all domains together have "
            f"({capacity:,}); take fewer --rows or --tokens, or a larger --max-epochs."
        )
    examples = ", ".join(
        f"{ground.names[i]} ({counts[i]:,} draws from {ground.there[i]:,} samples)" for i in capped[:3]
    )
    more = f" and {len(capped) - 3} more" if len(capped) > 3 else ""
    return (
        f"an epoch of the mixture would go through some domains more than {spec.most_epochs:g} times: "
        f"{examples}{more}; "
        "take fewer --rows or --tokens, a larger --max-epochs (none: however often), or --lower, which gives what is "
        "too much to the other domains."
    )


def _proxy_recipe(proxy: Proxy | None) -> ProxyRecipe | None:
    if proxy is None:
        return None
    evals = [EvalRecipe(target=spec.target, split=spec.split, metric=spec.metric.name) for spec in proxy.evals]
    return ProxyRecipe(model=model_recipe(proxy.model), settings=asdict(proxy.settings), judges=evals)
