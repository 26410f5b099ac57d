"""The candidates of a selection: those of a small pool as one table; of any pool in blocks, for selectors by a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import fingerprint, ids_as_integers
from curate.kinds.selector import Budget, Candidates, RankingSelector, Selector
from curate.machine import free_memory
from curate.store.commits import Parts
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.leaders import Columns, Leaders, Tally, by_group
from curate.tables.selection_spec import SelectionSpec
from curate.tables.state import TableState

_MEMORY = "2GiB"  # that DuckDB may hold
_MANY = 1 << 20  # samples of a pool for which a database that holds no more than that is worth opening
_BYTES_HELD = 200  # of a candidate in `candidate_table`, with what selectors make of it
_BYTES_CHOSEN = 250  # of a sample that is chosen from blocks, until its manifest is written


@dataclass
class Chosen:
    """What was chosen. table: row, id (as an integer), source, value, tokens; group by group, the best first.
    candidates: by source. valued: how many of them had a value and tokens."""

    table: pa.Table
    candidates: dict[str, int]
    valued: int
    flops: float = 0.0
    warnings: list[str] = field(default_factory=list)


def bounded(ws: Workspace) -> str:
    """What DuckDB may hold in memory of a query over this pool, as for `sql.connect`."""
    return _MEMORY if ws.n_rows() > _MANY else ""


def in_blocks(spec: SelectionSpec) -> bool:
    """Whether the candidates can be read in blocks: not if values are shuffled, or groups choose one after another."""
    return not spec.null and spec.per != "subtask"


# --- all in one table ------------------------------------------------------------------------------------


def candidate_table(ws: Workspace, spec: SelectionSpec) -> pa.Table:
    """The samples that satisfy `where`, by id: row, id (as an integer), source, value, tokens."""
    columns = f"""row, ('0x' || id)::UBIGINT AS id, source, {spec.value()} AS "value", {spec.size()} AS tokens"""
    table = sql.fetch(ws, f"{spec.from_samples(columns)} ORDER BY id")
    require_some(spec, table.num_rows)
    return table


def require_some(spec: SelectionSpec, candidates: int) -> None:
    """Raises CurateError if there is no candidate."""
    if not candidates:
        raise CurateError(f'no sample passes --where "{spec.where}".')


def require_room(ws: Workspace, spec: SelectionSpec, selector: Selector, vectors: TableState | None) -> None:
    """Raises CurateError if the candidates, and their vectors, are more than the free memory holds."""
    stored = Parts(ws.table_folder("vectors", vectors.name)).records().values() if vectors else ()
    each = _BYTES_HELD + sum(record["bytes"] for record in stored) / ws.n_rows()
    free = free_memory()
    if ws.n_rows() * each < free or (n := sum(_counts(ws, spec, False).values())) * each < free:
        return
    why = "--null" if spec.null else "--per subtask" if spec.per == "subtask" else f"the selector '{selector.name}'"
    raise CurateError(
        f"{why} holds all {n:,} candidates in memory, about {n * each / 2**30:.1f} GiB, of which {free / 2**30:.1f} "
        "are free; narrow them by --where, or take a machine with more."
    )


# --- block by block --------------------------------------------------------------------------------------


def chosen_in_blocks(
    ws: Workspace, spec: SelectionSpec, selector: RankingSelector, begun: Callable[[], None]
) -> Chosen:
    """What a selector by a key chooses, of candidates of which one block is in memory at a time. begun: called when
    the query has given a block, and so is one that DuckDB takes."""
    shares = _shares(ws, spec)
    _refuse_what_holds_too_much(ws, spec, shares)
    sources: dict[str, int] = {}  # source -> its number
    labels: list[str] = []  # of the groups, by number
    n_of, flops = np.zeros(0, np.int64), 0.0
    leaders = Leaders(lambda group: budget_of(spec, shares.get(labels[group], 0)))
    for block in _blocks(ws, spec, sources):
        begun()
        n_of = np.append(n_of, np.zeros(len(sources) - len(n_of), np.int64))
        n_of += np.bincount(block["sources"], minlength=len(sources))
        labels[:] = sources if spec.per else [""]
        found, spent = _keyed(block, spec, selector, labels, list(sources))
        leaders.add(found, len(labels))
        flops += spent
    require_some(spec, int(n_of.sum()))
    best = sorted(zip(labels, leaders.best(), strict=True), key=lambda group: group[0])
    chosen = [columns for _, (columns, _) in best]
    return Chosen(
        _table(spec, chosen, list(sources)),
        dict(zip(sources, n_of.tolist(), strict=True)),
        sum(tally.count for _, (_, tally) in best),
        flops,
        [w for label, (_, t) in best for w in unspent(selector, budget_of(spec, shares.get(label, 0)), t, label)],
    )


def _shares(ws: Workspace, spec: SelectionSpec) -> dict[str, int]:
    """Of how many candidates --frac is a share, by group; {} without it."""
    if spec.frac is None:
        return {}
    if spec.frac_of == "candidates" and not (spec.where or spec.one_per or spec.per):
        return {"": ws.n_rows()}
    counts = _counts(ws, spec, spec.frac_of == "valued")
    return counts if spec.per else {"": sum(counts.values())}


def _counts(ws: Workspace, spec: SelectionSpec, valued: bool) -> dict[str, int]:
    """How many candidates each source has; valued: that have tokens, and a value if there are values."""
    columns = f'source, {spec.value()} AS "value", {spec.size()} AS tokens'
    usable = "isfinite(tokens)" + (' AND isfinite("value")' if spec.by else "")
    counted = f"count(*) {f'FILTER (WHERE {usable})' if valued else ''} AS n"
    query = f"SELECT source, {counted} FROM ({spec.from_samples(columns)}) GROUP BY source"
    return {row["source"]: row["n"] for row in sql.fetch(ws, query, memory=bounded(ws)).to_pylist()}


def _blocks(ws: Workspace, spec: SelectionSpec, sources: dict[str, int]) -> Iterator[Columns]:
    """The candidates: rows, ids, sources (numbers in `sources`, to which new ones are added), values, tokens."""
    columns = f'row, id, source, {spec.value()} AS "value", {spec.size()} AS tokens'
    for batch in sql.batches(ws, spec.from_samples(columns), bounded(ws)):
        found = batch.column("source").dictionary_encode()
        numbers = [sources.setdefault(name, len(sources)) for name in found.dictionary.to_pylist()]
        yield {
            "rows": batch.column("row").to_numpy(),
            "ids": _numbers(batch.column("id")),
            "sources": np.array(numbers, np.int32)[found.indices.to_numpy()],
            "values": batch.column("value").to_numpy(zero_copy_only=False),
            "tokens": batch.column("tokens").to_numpy(zero_copy_only=False),
        }


def _numbers(ids: pa.StringArray) -> np.ndarray:
    """Ids as integers, uint64 [n]."""
    digits = ids.cast(pa.binary(16))
    return ids_as_integers([digits.buffers()[1].to_pybytes()[16 * digits.offset :][: 16 * len(ids)].decode()])


def _keyed(
    block: Columns, spec: SelectionSpec, selector: RankingSelector, labels: list[str], sources: list[str]
) -> tuple[Columns, float]:
    """Those of a block that have tokens, and a value if there are values, as `Leaders` takes them; and the FLOPs that
    their keys cost."""
    usable = usable_of(block["tokens"], block["values"] if spec.by else None)
    found = {name: column[usable] for name, column in block.items()}
    n, flops = int(usable.sum()), 0.0
    groups = found["sources"] if spec.per else np.zeros(n, np.int32)
    sizes, keys = sizes_of(spec, found["tokens"]), np.zeros(n)
    for group, at in enumerate(by_group(groups, len(labels))):
        values = found["values"][at] if spec.by else None
        candidates = Candidates(found["ids"][at], values, found["sources"][at], sources, sizes[at])
        keys[at] = selector.keys(candidates, group_seed(spec.seed, labels[group]))
        flops += sum(candidates.flops)
    return {**found, "keys": keys, "sizes": sizes, "groups": groups}, flops


def _table(spec: SelectionSpec, chosen: list[Columns], sources: list[str]) -> pa.Table:
    """The chosen ones of all groups, one after another, as `Chosen` has them."""
    columns = {n: np.concatenate([part[n] for part in chosen]) for n in ("rows", "ids", "sources", "values", "tokens")}
    names = pa.DictionaryArray.from_arrays(pa.array(columns["sources"]), pa.array(sources, pa.string()))
    return pa.table(
        {
            "row": columns["rows"],
            "id": columns["ids"],
            "source": names.cast(pa.string()),
            "value": pa.array(columns["values"]) if spec.by else pa.nulls(len(columns["rows"]), pa.float64()),
            "tokens": columns["tokens"],
        }
    )


def _refuse_what_holds_too_much(ws: Workspace, spec: SelectionSpec, shares: dict[str, int]) -> None:
    """Raises CurateError if more samples are to be chosen than the free memory holds."""
    most = sum(int(budget_of(spec, n).amount) for n in shares.values()) or spec.top or 0
    needed, free = min(most, ws.n_rows()) * _BYTES_CHOSEN, free_memory()
    if needed > free:
        raise CurateError(
            f"{most:,} chosen samples take about {needed / 2**30:.1f} GiB of memory until they are written, of which "
            f"{free / 2**30:.1f} are free; choose fewer, or take a machine with more."
        )


# --- both ------------------------------------------------------------------------------------------------


def usable_of(tokens: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    """Which candidates can be chosen: those that have tokens, and a value if there are values."""
    return np.isfinite(tokens) if values is None else np.isfinite(tokens) & np.isfinite(values)


def sizes_of(spec: SelectionSpec, tokens: np.ndarray) -> np.ndarray:
    """What each candidate takes of the budget. Raises CurateError for a negative number of tokens."""
    if spec.tokens is None:
        return np.ones(len(tokens))
    if len(tokens) and tokens.min() < 0:
        raise CurateError(
            f"--token-count gives {tokens.min():g} for a sample; a budget in --tokens needs 0 or more of each."
        )
    return tokens


def budget_of(spec: SelectionSpec, share_of: int) -> Budget:
    """The budget of a group; share_of: of how many samples --frac is a share."""
    if spec.tokens is not None:
        return Budget("tokens", spec.tokens)
    return Budget("rows", spec.top if spec.top is not None else int(spec.frac * share_of + 1e-9))  # type: ignore[operator]


def group_seed(seed: int, group: str) -> int:
    """A seed for each group, so that samples left over by one group do not meet the same noise in the next."""
    return int(fingerprint(seed, group), 16) if group else seed


def unspent(selector: Selector, budget: Budget, tally: Tally, label: str) -> list[str]:
    """Warnings for a budget larger than the candidates, or with room left for any of the remaining ones."""
    warnings, suffix = [], f" of {label}" if label else ""
    amount = f"{budget.amount:,.0f} {budget.unit}"
    if budget.amount > tally.size:
        size_note = "" if budget.unit == "rows" else f" have ({tally.size:,.0f})"
        warnings.append(f"the budget of {amount} is more than the {tally.count:,} candidates{suffix}{size_note}")
    if budget.amount - tally.spent >= tally.largest_left > -np.inf:
        warnings.append(f"'{selector.name}' takes {tally.spent:,.0f}{suffix} of the {amount} it may")
    return warnings
