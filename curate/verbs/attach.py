"""`curate attach`: columns or vectors that another tool made, as a score or vectors like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.column_names import plain_name, refuse_column_names
from curate.results import Result
from curate.store.commits import Parts
from curate.store.contents import enter, require_intact, take_out
from curate.store.encoding import read_table
from curate.store.files import remove_leftovers, remove_tree
from curate.store.foreign_columns import ForeignTable
from curate.store.ledger import charged
from curate.store.locks import Lock, lock
from curate.store.object_store import Location
from curate.store.recipes import AttachedRecipe, TableRecipe, read_recipe, write_recipe
from curate.store.workspace import Shard, Workspace, recipe_file
from curate.tables import attached
from curate.tables.index import ensure_index
from curate.tables.plan import refuse_hidden_columns
from curate.tables.vector_table import vector_table

METHOD = "attached"
_LEFT = 5  # columns of a file that are named in a message


@dataclass
class Attached(Result):
    """What was attached. matched: samples with a row in the file; missing: those without; nulls: samples without a
    value, for whatever reason. unknown: rows of the file that are of no sample. computed: samples whose values were
    written now. index: for vectors, a description of their FAISS index."""

    name: str
    kind: str
    column: str
    by: str
    rows: int = 0
    matched: int = 0
    missing: int = 0
    nulls: int = 0
    unknown: int = 0
    computed: int = 0
    index: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def attach(
    ws: AnyWorkspace,
    name: str,
    files: str | Path | Sequence[str | Path],
    *,
    score: str | None = None,
    columns: Mapping[str, str] | Sequence[str] = (),
    vector: str | None = None,
    by: str | None = None,
    ignore_unknown: bool = False,
    flops: float = 0.0,
    fresh: bool = False,
    wait: float | None = None,
) -> Attached:
    """Attach a column of files (Parquet, Arrow, CSV, TSV, JSON Lines) as the score `name`, or vectors.

    score: the column that is the score; default: `score`, or NAME, or the only column of numbers. columns: further
    ones, by the name that each gets (NAME_OWN in `samples`), or a list of columns that keep their names. vector: a
    column of lists of numbers, attached as vectors instead. by: how rows are matched with samples: `id`, `row` (a
    column of that name, or the order of the rows if there is none), or a field of the samples' metadata that is also a
    column; default: id if there is such a column, else row. ignore_unknown: whether rows of no sample are left out
    rather than refused. flops: what it cost to make, for the ledger. fresh: replace one that was attached otherwise.

    A sample that the file has no row of, or no finite number for, is null, with the reason. Raises CurateError for a
    missing or unusable column, a key that occurs twice, or a file of another pool.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, wait=wait)
    paths = [files] if isinstance(files, str | Path) else list(files)
    kind, shards = "vectors" if vector else "score", ws.require_pool()
    ws.check_name(name, kind)
    if vector and (score or columns):
        raise CurateError("vectors are attached by themselves; attach the score under a name of its own.")
    table = ForeignTable.of([str(path) for path in paths], texts=[key for key in ("id", by) if key and key != "row"])
    own = dict(columns) if isinstance(columns, Mapping) else {plain_name(column): column for column in columns}
    refuse_column_names(list(own) if isinstance(columns, Mapping) else [plain_name(c) for c in columns])
    by = by or ("id" if "id" in table.schemas[0].names else "row")
    main = vector or score or _score_column(table, name, by, own)
    found = attached.read(table, by, [] if vector else [main, *own.values()], vector)
    file = ", ".join(path.name for path in table.files[:2]) + (", …" if len(table.files) > 2 else "")
    matched = attached.match(ws, shards, found, by, file)
    result = Attached(name, kind, main, by, rows=len(matched.rows), missing=matched.missing, unknown=matched.unknown)
    result.matched, result.columns = result.rows - result.missing, own
    _refuse_another_pool(result, file, ignore_unknown)
    recipe = _recipe(table, result, found, ignore_unknown)
    if kind == "score":
        refuse_hidden_columns(ws, name, recipe)
        if n := attached.rounded(found.columns[main]):
            result.warnings.append(f"{n:,} values are integers that float32, as scores are stored, rounds to others")
    with lock(ws, f"{kind} {name}") as held:
        folder = _folder(ws, kind, name, recipe, fresh)
        with charged(ws.path, "score", methods=[METHOD], name=name, phase="attach") as meter:
            _write(held, folder, shards, found, matched, result, recipe, file)
            if result.computed:
                meter.samples, meter.flops = result.computed, flops
        _finish(ws, kind, name, folder)
        if kind == "vectors":
            result.index = ensure_index(ws, name)
    result.nulls = sum(record["nulls"] for record in Parts(ws.table_folder(kind, name)).records().values())
    if result.nulls > result.missing:
        result.warnings.append(f"{result.nulls - result.missing:,} values are missing or not finite, and null here")
    if unknown := result.unknown:
        result.warnings.append(f"{unknown:,} rows of {file} are of no sample here, and left out")
    return result


def _score_column(table: ForeignTable, name: str, by: str, own: Mapping[str, str]) -> str:
    """The column that is the score, where none is named. Raises CurateError if that cannot be told."""
    numbers = attached.number_columns(table, (by, "id", "row", *own.values()))
    for column in ("score", name):
        if column in numbers:
            return column
    if len(numbers) == 1:
        return numbers[0]
    listed = ", ".join(numbers[:_LEFT]) + (", …" if len(numbers) > _LEFT else "")
    said = f"several columns of numbers ({listed})" if numbers else "no column of numbers"
    raise CurateError(f"{table.files[0]} has {said}: say which is the score, by --score COLUMN.")


def _refuse_another_pool(result: Attached, file: str, ignore_unknown: bool) -> None:
    if not result.matched:
        raise CurateError(
            f"no row of {file} is of a sample here (by {result.by}): it is of another pool, or has other keys."
        )
    if result.unknown and not ignore_unknown:
        raise CurateError(
            f"{result.unknown:,} rows of {file} are of no sample here (by {result.by}); attach the file of this pool, "
            "or leave them out by --ignore-unknown."
        )


def _recipe(table: ForeignTable, result: Attached, found: attached.Read, ignore_unknown: bool) -> TableRecipe:
    digests = table.digests()
    settings = {"columns": result.columns, "ignore_unknown": ignore_unknown}
    files = list(digests.values())
    files = files if found.keys is None else sorted(files)  # without keys their order tells whose a row is
    stamp = fingerprint(METHOD, result.kind, files, result.by, result.column, result.columns)
    of_score = {
        "target": None,
        "target_fingerprint": None,
        "pool_fingerprint": None,
        "columns": {own: found.columns[column].dtype for own, column in result.columns.items()},
        "keeps_subtasks": False,
    }
    return TableRecipe(
        method=METHOD,
        version=1,
        settings=settings,
        changed={},
        scope="row",
        attached=AttachedRecipe(files=digests, by=result.by, column=result.column),
        fingerprint=stamp,
        **(of_score if result.kind == "score" else {}),
    )


def _folder(ws: Workspace, kind: str, name: str, recipe: TableRecipe, fresh: bool) -> Location:
    """The folder to write to: that of the table, where it is this one or there is none; beside it if it is replaced."""
    final, staging = ws.table_folder(kind, name), ws.staging_folder(kind, name)
    marker = final / recipe_file(kind)
    if marker.exists():
        require_intact(ws, kind, name)
        old = read_recipe(marker, TableRecipe)
        if old.fingerprint == recipe.fingerprint:
            return final
        if not fresh:
            how = "attached from other files or columns" if old.attached else f"made by {old.method}"
            raise CurateError(f"the {kind} '{name}' is there, {how}; choose another name, or --fresh to replace it.")
    folder = staging if marker.exists() else final
    beside = folder / recipe_file(kind)
    if not beside.exists() or read_recipe(beside, TableRecipe).fingerprint != recipe.fingerprint:
        remove_tree(folder)
        write_recipe(beside, recipe)
    return folder


def _write(
    held: Lock,
    folder: Location,
    shards: Sequence[Shard],
    found: attached.Read,
    matched: attached.Matched,
    result: Attached,
    recipe: TableRecipe,
    file: str,
) -> None:
    """Write the parts of the shards that have none yet."""
    parts = Parts(folder)
    parts.remove_leftovers(lost_ok=True)
    records = parts.records(lost_ok=True)
    further = {own: found.columns[column] for own, column in result.columns.items()}
    for shard in shards:
        stamp: dict[str, Any] = {"fingerprint": recipe.fingerprint, "shard": shard.sha256}
        if stamp.items() <= records.get(shard.name, {}).items():
            continue
        held.check()
        ids, rows = read_table(shard.path, ["id"])["id"], matched.rows[shard.start : shard.start + shard.rows]
        if found.vector is not None:
            table = vector_table(ids, _vectors_at(found.vector, rows, file))
        else:
            table = attached.shard_table(ids, rows, found.columns[result.column], further, file)
        nulls = len(table) - table["error"].null_count
        parts.commit(shard.name, table, listed=False, nulls=nulls, flops=0.0, **stamp)
        result.computed += shard.rows


def _vectors_at(vectors: np.ndarray, rows: np.ndarray, file: str) -> dict[str, np.ndarray]:
    """The vectors of samples, and why one has none."""
    own = vectors[rows]
    own[rows < 0] = np.nan
    there = np.isfinite(own).all(1) & (np.abs(own).max(1, initial=0) > 0)
    lacks = f"{file} has no vector of finite numbers for it, or one of zeros"
    reasons = np.where(rows < 0, f"{file} has no row of it", lacks)
    return {"vector": np.where(there[:, None], own, 0), "error": np.where(there, "", reasons).astype(object)}


def _finish(ws: Workspace, kind: str, name: str, folder: Location) -> None:
    remove_leftovers(folder, mine=True)
    Parts(folder).certify()
    if folder != ws.table_folder(kind, name):
        take_out(ws, kind, name)
        ws.swap_table(kind, name)
    enter(ws, kind, name)
