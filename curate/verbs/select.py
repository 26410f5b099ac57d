"""`curate select`: choose samples by columns under a budget; writes a manifest that records how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.arguments.methods import method_of
from curate.arguments.specs import spec_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, nearest
from curate.kinds.selector import Candidates, RankingSelector, Selector
from curate.kinds.vectors import Vectors
from curate.results import Result
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.manifests import read_manifest
from curate.store.recipes import SelectionRecipe
from curate.store.workspace import Workspace, __version__
from curate.tables import sql
from curate.tables.candidates import (
    Chosen,
    bounded,
    budget_of,
    candidate_table,
    chosen_in_blocks,
    group_seed,
    in_blocks,
    require_room,
    sizes_of,
    unspent,
)
from curate.tables.dependents import refuse_other, replace_manifest
from curate.tables.inputs import method_recipe, pool_recipe, settings_words, table_recipe, target_fingerprint
from curate.tables.leaders import Tally
from curate.tables.lookup import GUESSED, TOKENS, token_count
from curate.tables.selection_spec import SelectionSpec as SelectionSpec
from curate.tables.state import TableState, score_state, table_state, usable
from curate.tables.vector_table import load_vectors, vectors_of


@dataclass
class Selected(Result):
    """The result of a selection."""

    name: str
    candidates: int = 0
    without_value: int = 0
    rows: int = 0
    tokens: float = 0.0
    counted_by: str = TOKENS  # SQL for the tokens of a sample
    flops: float = 0.0
    by_source: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    command: str = ""
    dry_run: bool = False


def select(
    ws: AnyWorkspace,
    name: str,
    selector: Selector | str | None = None,
    choice: SelectionSpec | None = None,
    *,
    dry_run: bool = False,
    fresh: bool = False,
    wait: float | None = None,
    **fields: Any,
) -> Selected:
    """Choose samples and write manifests/NAME.parquet and NAME.json.

    selector: None: top; random without `by`. fields: those of a SelectionSpec, in place of `choice` (by="bm25_maths",
    frac=0.05).

    Samples whose value is NULL are never chosen. fresh: replace a manifest of that name that was made in another way,
    or that something was made from; without it that is an error. Raises CurateError for a stale or incomplete score
    (unless allowed), a name that is taken, invalid SQL, or a budget that no candidate fits in.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws, choice = workspace_of(ws, pinned=True, wait=wait), spec_of(SelectionSpec, choice, fields, "select")
    selector = method_of(Selector, selector or ("top" if choice.by else "random"))
    ws.check_name(name, "manifest")
    shards = ws.require_pool()
    choice = replace(choice, token_count=token_count(ws, choice.token_count, choice.tokens is not None))
    result = Selected(name, dry_run=dry_run)
    made = {"selector": method_recipe(selector).as_json(), "choice": choice.recorded()}
    refuse_other(ws, "manifest", name, made, fresh or dry_run)
    _refuse_unused(selector, choice)
    states = [score_state(ws, s) for s in sql.scores_named(ws, *choice.expressions())]
    vectors = table_state(ws, "vectors", choice.vectors) if choice.vectors else None
    tables = [*states, vectors] if vectors else states
    result.warnings += usable(tables, choice.allow_stale)
    target = load_vectors(ws, choice.vectors, choice.target) if choice.vectors and choice.target else None
    with charged(ws.path, "select", methods=[selector.name], name=name, phase="select") as meter:

        def begun() -> None:
            meter.samples = 0 if dry_run else ws.n_rows()

        if isinstance(selector, RankingSelector) and in_blocks(choice):
            chosen = chosen_in_blocks(ws, choice, selector, begun)
        else:
            chosen = _chosen_of_all(ws, choice, selector, vectors, target, begun)
        result.warnings += [*_left_for_others(ws, choice), *chosen.warnings]
        meter.flops = result.flops = chosen.flops
    selected, result.candidates = chosen.table, sum(chosen.candidates.values())
    result.rows, result.without_value = selected.num_rows, result.candidates - chosen.valued
    if not result.rows:
        raise CurateError("nothing was selected: no candidate has a value and fits the budget; check --by and --where.")
    result.tokens = float(selected["tokens"].to_numpy().sum())
    result.by_source = _by_source(chosen.candidates, selected)
    result.counted_by = choice.token_count or TOKENS
    if choice.tokens is not None and result.counted_by == TOKENS:
        result.warnings.append(GUESSED)
    result.command = _command(name, selector, choice)
    if not dry_run:
        recipe = SelectionRecipe(
            name=name,
            curate=__version__,
            selector=method_recipe(selector),
            choice=choice.recorded(),
            command=result.command,
            pool=pool_recipe(ws, shards),
            scores={s.name: s.recipe for s in tables},
            target=target_fingerprint(ws, choice.target) if choice.target else None,
            history={name: _stamp(ws, name) for name in choice.before},
            result={k: v for k, v in asdict(result).items() if k not in ("name", "command", "dry_run")},
        )
        with lock(ws, f"manifest {name}"):
            replace_manifest(ws, name, _rows(selected), recipe, fresh)
    return result


# --- candidates ------------------------------------------------------------------------------------------


def _refuse_unused(selector: Selector, spec: SelectionSpec) -> None:
    """Raises CurateError for vectors or a target that the selector lacks, or an option that it does not use."""
    if spec.history and not selector.uses_history:
        raise CurateError(f"the selector '{selector.name}' uses no history; leave out --history {spec.history}.")
    uses = (("vectors", spec.vectors, selector.uses_vectors), ("target", spec.target, selector.uses_target))
    for option, value, used in uses:
        if value and not used:
            raise CurateError(f"the selector '{selector.name}' uses no {option}; leave out --{option} {value}.")
        if used and not value:
            hint = "`curate score embed` makes some" if option == "vectors" else "`curate target` makes one"
            raise CurateError(f"the selector '{selector.name}' needs {option}: add --{option} NAME ({hint}).")


def _history(ws: Workspace, spec: SelectionSpec, state: TableState) -> Vectors:
    """The vectors of the samples trained on earlier, in their order. Raises CurateError for a name that is neither a
    manifest nor a target, or a target without vectors."""
    blocks = []
    for name in spec.before:
        if name in ws.manifest_names():
            rows, of_each = np.unique(read_manifest(ws, name)[0]["row"].to_numpy(), return_inverse=True)
            blocks.append(_vectors(ws, rows, state).take(of_each))
        elif name in ws.target_names():
            blocks.append(load_vectors(ws, state.name, name))
        else:
            available = [*ws.manifest_names(), *ws.target_names()]
            raise CurateError(f"--history {name}: there is no manifest and no target of that name: "
                              f"{nearest(name, available)}")  # fmt: skip
    unit, norm, error = (
        np.concatenate([getattr(v, attribute) for v in blocks]) for attribute in ("unit", "norm", "error")
    )
    return Vectors(unit, norm, error)


def _stamp(ws: Workspace, name: str) -> str:
    """A fingerprint of a manifest's rows, or of a target's."""
    return read_manifest(ws, name)[1].sha256 if name in ws.manifest_names() else target_fingerprint(ws, name)


def _vectors(ws: Workspace, at: np.ndarray, state: TableState) -> Vectors:
    """The vectors of distinct rows of the pool, in the given order, float16; one stored part is read at a time, to
    limit memory."""
    position_of = np.full(ws.n_rows(), -1, np.int64)  # row of the pool -> position in `at`, or -1
    position_of[at] = np.arange(len(at))
    parts, unit = Parts(ws.table_folder("vectors", state.name)), None
    norm, error = None, np.full(len(at), "is not encoded yet", object)
    for shard in state.done:
        vectors = vectors_of(read_table(parts.path(shard.name)))
        positions = position_of[shard.start : shard.start + shard.rows]
        rows = np.flatnonzero(positions >= 0)
        if unit is None or norm is None:
            unit = np.zeros((len(at), vectors.unit.shape[1]), np.float16)
            norm = np.full((len(at), *vectors.norm.shape[1:]), np.nan, np.float32)
        unit[positions[rows]], norm[positions[rows]], error[positions[rows]] = (
            vectors.unit[rows],
            vectors.norm[rows],
            vectors.error[rows],
        )
    if unit is None or norm is None:
        unit, norm = np.zeros((len(at), 0), np.float16), np.full(len(at), np.nan, np.float32)
    return Vectors(unit, norm, error, score=state.recipe.method)


def _left_for_others(ws: Workspace, spec: SelectionSpec) -> list[str]:
    """A warning that says how many samples are no candidates since another one of their group is, and which."""
    if spec.one_per is None:
        return []
    counted = f"SELECT count(*) AS n, list((id, kept))[:{_SHOWN}] AS pairs FROM ({spec.left_out()})"
    (found,) = sql.fetch(ws, counted, memory=bounded(ws)).to_pylist()
    shown = ", ".join(f"{left} for {kept}" for left, kept in map(dict.values, found["pairs"] or []))
    more = ", …" if found["n"] > _SHOWN else ""
    told = f"{found['n']:,} samples were left out for another one of the same {spec.one_per}: {shown}{more}"
    return [told] if found["n"] else []


@dataclass(frozen=True)
class _Group:
    """Samples ranked separately, with their own budget: label, rows int64 [n] ascending, values float64 [N] or None."""

    label: str
    rows: np.ndarray
    values: np.ndarray | None


def _groups(
    ws: Workspace, frame: pa.Table, spec: SelectionSpec, codes: np.ndarray, sources: Sequence[str]
) -> Iterator[_Group]:
    values = frame["value"].to_numpy() if spec.by else None
    if spec.null and values is not None:
        values = np.random.default_rng(spec.seed % 2**63).permutation(values)
    if spec.per == "subtask":
        yield from _subtask_groups(ws, frame, spec)
    elif spec.per == "source":
        by_source, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(sources)))
        for code in sorted(range(len(sources)), key=lambda code: sources[code]):
            yield _Group(sources[code], by_source[ends[code - 1] if code else 0 : ends[code]], values)
    else:
        yield _Group("", np.arange(frame.num_rows), values)


def _subtask_groups(ws: Workspace, frame: pa.Table, spec: SelectionSpec) -> Iterator[_Group]:
    """One group, with all candidates, per sub-task of the score that --by names."""
    name = (spec.by or "").strip()
    if name not in ws.score_names():
        raise CurateError("--per subtask ranks by the sub-tasks of one score; name that score alone with --by.")
    if not score_state(ws, name).recipe.keeps_subtasks:
        raise CurateError(
            f"the score '{name}' kept no sub-tasks; score it again with --set keep_subtasks=true --fresh."
        )
    keys = sql.fetch(ws, f"SELECT map_keys(subtasks) AS k FROM {name} WHERE subtasks IS NOT NULL LIMIT 1")
    for label in keys["k"].to_pylist()[0] if keys.num_rows else []:
        literal = label.replace("'", "''")
        table = sql.fetch(ws, f"SELECT {name}_subtasks['{literal}']::DOUBLE AS v FROM samples ORDER BY row")
        yield _Group(label, np.arange(frame.num_rows), table["v"].to_numpy()[frame["row"].to_numpy()])


def _chosen_of_all(
    ws: Workspace,
    spec: SelectionSpec,
    selector: Selector,
    vectors: TableState | None,
    target: Vectors | None,
    begun: Callable[[], None],
) -> Chosen:
    """What a selector chooses of candidates that are all in memory, with their vectors if it uses them."""
    require_room(ws, spec, selector, vectors)
    frame = candidate_table(ws, spec)
    begun()
    candidate_vectors = _vectors(ws, frame["row"].to_numpy(), vectors) if vectors else None
    history = _history(ws, spec, vectors) if vectors and spec.history else None
    if vectors and table_recipe(ws, "vectors", vectors.name) != vectors.recipe:
        raise CurateError(f"{vectors} were replaced while they were read; select again.")
    return _choose(ws, frame, selector, spec, candidate_vectors, target, history)


def _choose(
    ws: Workspace,
    frame: pa.Table,
    selector: Selector,
    spec: SelectionSpec,
    vectors: Vectors | None,
    target: Vectors | None,
    history: Vectors | None,
) -> Chosen:
    """What a selector chooses, group by group, of candidates that are all in memory; no sample is chosen twice."""
    ids, tokens = frame["id"].to_numpy(), frame["tokens"].to_numpy()
    sources = frame["source"].combine_chunks().dictionary_encode()
    codes, names = sources.indices.to_numpy(zero_copy_only=False), sources.dictionary.to_pylist()
    available, has_value, chosen = np.isfinite(tokens), np.zeros(len(ids), dtype=bool), []
    flops, warnings = 0.0, []
    if vectors is not None:
        available &= vectors.there
    for group in _groups(ws, frame, spec, codes, names):
        rows = group.rows[available[group.rows]]
        if group.values is not None:
            rows = rows[np.isfinite(group.values[rows])]
        has_value[rows] = True
        budget = budget_of(spec, len(rows) if spec.frac_of == "valued" else len(group.rows))
        values = None if group.values is None else group.values[rows]
        sizes = sizes_of(spec, tokens[rows])
        group_vectors = vectors if vectors is None or len(rows) == len(ids) else vectors.take(rows)
        candidates = Candidates(ids[rows], values, codes[rows], names, sizes, group_vectors, target, history)
        selected = selector.select(candidates, budget, group_seed(spec.seed, group.label))
        picked, left = rows[selected], np.delete(sizes, selected)
        flops += sum(candidates.flops)
        tally = Tally(len(rows), float(sizes.sum()), float(sizes[selected].sum()), left.max(initial=-np.inf))
        warnings += unspent(selector, budget, tally, group.label)
        available[picked] = False
        chosen.append(picked)
    positions = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
    counts = dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))
    return Chosen(frame.take(pa.array(positions)), counts, int(has_value.sum()), flops, warnings)


# --- the manifest ----------------------------------------------------------------------------------------


def _rows(selected: pa.Table) -> pa.Table:
    n = selected.num_rows
    digits = selected["id"].to_numpy().astype(">u8").tobytes().hex().encode()
    ends = np.arange(0, 16 * n + 1, 16)
    ids = pa.LargeStringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(digits))
    return pa.table(
        {
            "id": ids,
            "row": selected["row"],
            "source": selected["source"],
            "weight": np.ones(n, dtype=np.float32),
            "repeats": np.ones(n, dtype=np.int32),
            "rank": np.arange(n),
        }
    )


def _by_source(candidates: Mapping[str, int], selected: pa.Table) -> list[dict[str, Any]]:
    """The numbers selected from every source, largest first; candidates: by source."""
    pool = pl.DataFrame({"source": [*candidates], "candidates": [*candidates.values()]})
    by_source = pl.DataFrame(selected.select(["source", "value", "tokens"])).group_by("source")
    counts = by_source.agg(
        pl.len().alias("selected"), pl.col("tokens").sum(), pl.col("value").mean().alias("mean_value")
    )
    joined = pool.join(counts, on="source", how="left").with_columns(pl.col("selected", "tokens").fill_null(0))
    share = (pl.col("selected") / selected.num_rows).alias("share")
    return joined.with_columns(share).sort(["selected", "source"], descending=[True, False]).to_dicts()


def _command(name: str, selector: Selector, spec: SelectionSpec) -> str:
    """The command line that reproduces this selection."""
    words = ["curate", "select", name, "--selector", selector.name]
    words += settings_words(selector.settings())
    for key, value in asdict(spec).items():
        if value is True:
            words.append(f"--{key.replace('_', '-')}")
        elif value not in (None, False) and (key, value) not in _DEFAULTS and not (key == "frac_of" and not spec.frac):
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)


_SHOWN = 3  # pairs of a sample that is left out and the one that is kept for it
_DEFAULTS = (("token_count", TOKENS), ("frac_of", "candidates"), ("keep", "first"))
