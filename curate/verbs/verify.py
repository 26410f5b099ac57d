"""`curate verify`: check every file against what was recorded of it, and recompute what is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, CurateFailure, DamagedError
from curate.hashing import ids_as_integers
from curate.kinds.executor import Executor
from curate.results import Result
from curate.runs import integrity as of_runs
from curate.store.commits import Parts
from curate.store.encoding import parquet_of, read_table
from curate.store.files import leftovers, remove_leftovers, remove_tree
from curate.store.half_removed import finish_removals
from curate.store.integrity import Damage, Seen, list_damage, looked_at, restored, wrong_file
from curate.store.ledger import noted_if_read_only
from curate.store.locks import lock
from curate.store.object_store import Location
from curate.store.workspace import Workspace, recipe_file
from curate.tables.adopt import adopted
from curate.tables.dependents import remove_kept_leftovers
from curate.tables.index import ensure_index, index_path, index_problem, record_of
from curate.tables.inputs import method_again, model_choices
from curate.tables.state import TableState, table_state
from curate.tables.vector_table import target_vectors
from curate.verbs.score import score


@dataclass
class Verified(Result):
    """What was checked, and the damage that was found.

    leftovers: files of killed commands, which nothing reads; temporary ones were removed.
    """

    parts: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def _facts(self) -> dict[str, Any]:
        return {"parts": self.parts, "bytes": self.bytes, "damaged": len(self.damaged)}


def verify(
    ws: AnyWorkspace,
    *,
    repair: bool = False,
    adopt: bool = False,
    executor: Executor | str | None = None,
    wait: float | None = None,
) -> Verified:
    """Check every part: its bytes, its number of rows, and that the ids of a table's rows are those of the pool; the
    lists of what must be there; runs and trials with their checkpoints, manifests, masks, targets and the ledger.

    repair: remove damaged parts that can be recomputed, and recompute exactly those; records that were lost are written
    again from the lists. What cannot be recomputed (the pool, targets, runs) is left as it is, with a remedy. A repair
    that is killed is gone on with by the next one: what it removed still counts as lost. adopt: vouch again for whole
    parts of the pool that have neither a record nor an entry in the list, if their rows are what their ids say. Reads
    everything once, one part in memory at a time.

    Raises CurateError if repair is requested while another process is writing.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, wait=wait)
    executor = method_of(Executor, executor) if executor is not None else None
    result = Verified()
    result.leftovers += map(str, leftovers(ws.path))
    with noted_if_read_only(ws.path):
        remove_leftovers(ws.path)
        result.leftovers += map(str, [*remove_kept_leftovers(ws), *finish_removals(ws)])
    listed = [*of_runs.check_contents(ws, repair)]  # first, as whatever is computed again is entered there
    _note(result, _pool(ws, result, repair, adopt))
    _note(result, _targets(ws, repair))
    for folder in sorted((ws.path / "prepared").glob("*")):
        _note(result, _prepared(ws, folder, repair))
    _note(result, of_runs.check_tokens(ws, repair, result.leftovers))
    for name in ws.vectors_names():  # before the scores, which are made of them
        _note(result, _table(ws, "vectors", name, repair, executor, result))
        _note(result, _aims(ws, name, repair))
        _note(result, _index(ws, name, repair))
    for name in ws.score_names():
        _note(result, _table(ws, "score", name, repair, executor, result))
    for name in ws.manifest_names():
        _note(result, of_runs.check_manifest(ws, name))
    _note(result, of_runs.check_kept_manifests(ws))
    for name in ws.mask_names():
        _note(result, of_runs.check_mask(ws, name))
    for name in ws.run_names():
        _note(result, of_runs.check_run(ws, name, repair))
    for name in ws.trial_names():
        _note(result, of_runs.check_trial(ws, name, repair))
    _note(result, of_runs.check_ledger(ws, repair))
    known = {(damage.kind, damage.name) for damage in result.damaged}  # said by what could not read it
    _note(result, (d for d in listed if not isinstance(d, Damage) or (d.kind, d.name) not in known))
    return result


def _note(result: Verified, items: Seen) -> None:
    for item in items:
        result.parts += 1
        if isinstance(item, Damage):
            result.damaged.append(item)
        else:
            result.bytes += item


# --- what came from outside, and cannot be computed ------------------------------------------------------


def _targets(ws: Workspace, repair: bool) -> Seen:
    yield from list_damage(ws.targets, "target", "targets", ws, "targets", repair)
    for part in looked_at(ws.targets):
        remedy = f"add it again with `curate target {part.name} PATH`"
        damage = Damage("target", part.name, part.name, part.problem, remedy)
        if part.restorable:
            yield restored(ws.targets, part, damage, ws, "targets", repair)
        else:
            yield damage if part.problem else len(part.data)


def _pool(ws: Workspace, result: Verified, repair: bool, adopt: bool) -> Seen:
    restore = "put a copy of the file back, or ingest the same files into a new workspace"
    vouch = "--adopt vouches for it again, if its rows are what their ids say"
    yield from list_damage(ws.pool, "pool", "pool", ws, "pool", repair)
    for part in looked_at(ws.pool):
        damage = Damage("pool", "pool", part.name, part.problem, restore)
        if part.restorable:
            yield restored(ws.pool, part, damage, ws, "pool", repair)
        elif part.left_over:
            result.leftovers.append(str(ws.pool.path(part.name)))
        elif part.problem and part.record is None and ws.pool.path(part.name).exists():
            yield _adopt(ws, part.name, damage) if adopt else replace(damage, remedy=vouch)
        else:
            yield damage if part.problem else len(part.data)
        for kind, sha256 in (part.record or {"beside": {}}).get("beside", {}).items():
            folder = ws.path / "rejects" if kind == "rejects" else ws.path / "pool" / kind  # copies, meta
            problem, data = wrong_file(folder / f"{part.name}.parquet", sha256)
            yield Damage(kind, kind, part.name, problem, restore) if problem else len(data)


def _adopt(ws: Workspace, name: str, damage: Damage) -> Damage:
    with lock(ws, "pool"):
        try:
            ws.pool.put(name, adopted(ws, name), listed=False)
        except CurateError as error:
            return replace(damage, remedy=str(error).rstrip("."))
    return replace(damage, repaired=True)


# --- what can be computed again --------------------------------------------------------------------------


def _prepared(ws: Workspace, folder: Location, repair: bool) -> Seen:
    """Check partials and states; what is removed is recomputed by the next score that needs it."""
    if (folder / "run.json").exists():
        yield from of_runs.check_warm_up(ws, folder, repair)
        return
    parts, remedy = Parts(folder, ".safetensors"), "--repair removes it, and the next score counts it again"
    damaged = []
    for part in looked_at(parts):
        if part.problem:
            damaged.append(Damage("prepared", folder.name, part.name, part.problem, remedy, repair))
        else:
            yield len(part.data)
    if damaged and repair:
        with lock(ws, f"prepared {folder.name}"):
            for damage in damaged:
                parts.remove(damage.part)
    yield from damaged


def _aims(ws: Workspace, name: str, repair: bool) -> Seen:
    """Check the vectors of targets."""
    parts, what = target_vectors(ws.table_folder("vectors", name)), f"vectors {name}"
    yield from list_damage(parts, "vectors", name, ws, what, repair)
    for part in looked_at(parts):
        remedy = f"--repair removes it, and the next score of `{name}` for the target '{part.name}' makes it again"
        damage = Damage("vectors", name, f"targets/{part.name}", part.problem, remedy)
        if part.restorable:
            yield restored(parts, part, damage, ws, what, repair)
        elif not part.problem:
            yield len(part.data)
        elif not part.left_over:
            if repair:
                with lock(ws, what):
                    parts.remove(part.name)
            yield replace(damage, repaired=repair)


def _index(ws: Workspace, name: str, repair: bool) -> Seen:
    record, path = record_of(ws, name), index_path(ws, name)
    if record is None and not path.exists():
        return
    problem, data = "has no record that can be read", b""
    if record is not None:
        problem, data = wrong_file(path, record.sha256, record.bytes)
    if not problem:
        yield len(data)
        return
    remedy = "--repair builds it again"
    if repair:
        with lock(ws, f"vectors {name}"):
            path.with_suffix(".json").unlink(missing_ok=True)
            remedy = ensure_index(ws, name)
    yield Damage("vectors", name, "index.faiss", problem, remedy, repair and index_problem(ws, name) is None)


def _table(ws: Workspace, kind: str, name: str, repair: bool, executor: Executor | None, result: Verified) -> Seen:
    parts, shards = Parts(ws.table_folder(kind, name)), {shard: ws.pool.path(shard) for shard in ws.pool.names()}
    yield from list_damage(parts, kind, name, ws, f"{kind} {name}", repair)
    damaged = []
    for part in looked_at(parts):
        damage = Damage(kind, name, part.name, part.problem, "--repair computes it again")
        if part.restorable:
            yield restored(parts, part, damage, ws, f"{kind} {name}", repair)
            continue
        if part.left_over:
            result.leftovers.append(str(parts.path(part.name)))
            continue
        problem = part.problem
        if not problem and part.record:
            problem = _other_rows(part.data, part.record, read_ids(shards[part.name]) if part.name in shards else None)
        if problem:
            damaged.append(replace(damage, what=problem))
        else:
            yield len(part.data)
    try:
        state = table_state(ws, kind, name, lost_ok=True)
    except CurateError as error:  # its recipe, or the pool, is damaged
        recipe, remedy = f"{name}/{recipe_file(kind)}", "score it again with --fresh"
        whole = Damage(kind, name, recipe, "cannot be read", remedy)
        yield from damaged if isinstance(error, DamagedError) else [*damaged, whole]
        return
    yield from _repaired(ws, state, executor, damaged) if damaged and repair else damaged


def _repaired(ws: Workspace, state: TableState, executor: Executor | None, damaged: Sequence[Damage]) -> Seen:
    """Remove damaged parts and compute them again. They stay on the list, so that the next repair knows of them if this
    one is killed."""
    if state.stale is not None:
        remedy = f"it is stale ({state.stale}); `{state.command()}` computes all of it anew"
        yield from (replace(damage, remedy=remedy) for damage in damaged)
        return
    parts = Parts(ws.table_folder(state.kind, state.name))
    with lock(ws, f"{state.kind} {state.name}"):
        for damage in damaged:
            parts.discard(damage.part)
        remove_tree(parts.folder / "_units")
    yield from _again(ws, state, executor, [replace(damage, repaired=True) for damage in damaged])


def read_ids(path: Location) -> np.ndarray | None:
    """The ids of a part of the pool, in order; None if it cannot be read, which is reported as damage to the pool."""
    try:
        return ids_as_integers(read_table(path, ["id"])["id"].to_pylist())
    except (CurateFailure, FileNotFoundError):
        return None


def _other_rows(data: bytes, record: Mapping[str, Any], pool: np.ndarray | None) -> str | None:
    ids = ids_as_integers(parquet_of(data, ["id"])["id"].to_pylist())
    if len(ids) != record["rows"]:
        return f"has {len(ids)} rows, not the {record['rows']} of its record"
    if pool is not None and not np.array_equal(ids, pool):
        return "does not have the pool's ids in the pool's order"
    return None


def _again(ws: Workspace, state: TableState, executor: Executor | None, damaged: Sequence[Damage]) -> Iterator[Damage]:
    """Recompute what was removed; what cannot be recomputed is reported with the reason."""
    recipe = state.recipe
    try:
        method = method_again(recipe, str(state))
    except CurateError:
        yield from (replace(d, remedy=f"`{state.command()}` makes it again", repaired=False) for d in damaged)
        return
    vectors = state.name if state.kind == "vectors" else recipe.vectors
    try:
        score(
            ws,
            method,
            target=recipe.target or None,
            names={method.name: state.name} if state.kind == "score" else {},
            vectors={method.name: vectors} if vectors else {},
            executor=executor,
            checkpoints=recipe.checkpoints_given,
            models=model_choices(recipe, ws.trusted),
        )
    except CurateFailure:
        raise
    except CurateError as error:
        damaged = [replace(d, remedy=str(error).rstrip("."), repaired=False) for d in damaged]
    yield from damaged
