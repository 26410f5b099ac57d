"""`curate verify`: check every part against its commit record, and recompute what is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from curate.arguments.methods import method_of
from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, CurateFailure
from curate.hashing import ids_as_integers
from curate.kinds.executor import Executor
from curate.kinds.registry import find
from curate.results import Result
from curate.store.commits import Parts
from curate.store.encoding import digest, parquet_of, read_table
from curate.store.files import remove_tree
from curate.store.locks import lock
from curate.store.manifests import kept_manifests, kept_path, manifest_recipe
from curate.store.mask_file import read_mask
from curate.store.object_store import Location
from curate.store.recipes import ManifestRecipe, MixtureRecipe
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.tables.index import ensure_index, index_path, index_problem, record_of
from curate.tables.inputs import model_choices
from curate.tables.state import TableState, table_state
from curate.tables.vector_table import target_vectors
from curate.verbs.score import score


@dataclass(frozen=True)
class Damage:
    """One part that does not match its record. remedy: how to fix it, if `repair` did not."""

    kind: str  # pool, rejects, copies, target, score, vectors, prepared, manifest, mask
    name: str  # of the score, target, manifest or folder
    part: str
    what: str
    remedy: str
    repaired: bool = False


@dataclass
class Verified(Result):
    """What was checked, and the damage that was found."""

    parts: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def _facts(self) -> dict[str, Any]:
        return {"parts": self.parts, "bytes": self.bytes, "damaged": len(self.damaged)}


def verify(
    ws: AnyWorkspace,
    *,
    repair: bool = False,
    executor: Executor | str | None = None,
) -> Verified:
    """Check every part: its bytes, its number of rows, and that the ids of a table's rows are those of the pool.

    repair: remove damaged parts that can be recomputed, and recompute exactly those. Parts that cannot be recomputed
    (the pool, targets) are left as they are, with a remedy. Reads everything once, one part in memory at a time.

    Raises CurateError if repair is requested while another process is writing.
    """
    ws = workspace_of(ws)
    executor = method_of(Executor, executor) if executor is not None else None
    result = Verified()
    for name in ("pool", *ws.target_names()):
        _note(result, _originals(ws, name))
    for folder in sorted((ws.path / "prepared").glob("*")):
        _note(result, _prepared(ws, folder, repair))
    for name in ws.vectors_names():  # before the scores, which are made of them
        _note(result, _table(ws, "vectors", name, repair, executor))
        _note(result, _aims(ws, name, repair))
        _note(result, _index(ws, name, repair))
    for name in ws.score_names():
        _note(result, _table(ws, "score", name, repair, executor))
    for name in ws.manifest_names():
        _note(result, _manifest(ws, name))
    for stamp, recipe in kept_manifests(ws).items():
        _note(result, _kept_manifest(ws, stamp, recipe))
    for name in ws.mask_names():
        _note(result, _mask(ws, name))
    return result


_Seen = Iterator[int | Damage]  # the size of an intact part in bytes, or its damage


def _note(result: Verified, items: _Seen) -> None:
    for item in items:
        result.parts += 1
        if isinstance(item, Damage):
            result.damaged.append(item)
        else:
            result.bytes += item


def _problem(parts: Parts, name: str, record: Mapping[str, Any] | None) -> tuple[str | None, bytes]:
    """The problem with a part's file (None if intact), and its bytes."""
    path = parts.path(name)
    if record is None:
        return ("has no commit record that can be read" if path.exists() else "is not there"), b""
    if not path.exists():
        return "is not there, but its commit record is", b""
    return _wrong(data := path.read_bytes(), record["sha256"], record.get("bytes")), data


def _wrong(data: bytes, sha256: str, size: int | None = None) -> str | None:
    if size is not None and len(data) != size:
        return f"has {len(data)} bytes, not the {size} that were written"
    return None if digest(data) == sha256 else "has other bytes than were written (its SHA-256 differs)"


def _named(parts: Parts) -> list[str]:
    """The names of parts that have a file, a record or both."""
    return sorted({*parts.names(), *parts.sizes()})


# --- what came from outside, and cannot be computed ------------------------------------------------------


def _originals(ws: Workspace, name: str) -> _Seen:
    if name == "pool":
        yield from _pool(ws)
        return
    remedy = f"add it again with `curate target {name} PATH`"
    problem, data = _problem(ws.targets, name, ws.targets.record(name))
    yield Damage("target", name, name, problem, remedy) if problem else len(data)


def _pool(ws: Workspace) -> _Seen:
    restore = "put a copy of the file back, or ingest the same files into a new workspace"
    unrecorded = "nothing reads it; the next `curate ingest` removes it"
    for name in _named(ws.pool):
        record = ws.pool.record(name)
        problem, data = _problem(ws.pool, name, record)
        yield Damage("pool", "pool", name, problem, restore if record else unrecorded) if problem else len(data)
        for kind, sha256 in (record or {"beside": {}})["beside"].items():
            folder = ws.path / "rejects" if kind == "rejects" else ws.path / "pool" / kind  # copies, meta
            path = folder / f"{name}.parquet"
            data = path.read_bytes() if path.exists() else b""
            file_problem = _wrong(data, sha256) if path.exists() else "is not there"
            yield Damage(kind, kind, name, file_problem, restore) if file_problem else len(data)


# --- what can be computed again --------------------------------------------------------------------------


def _prepared(ws: Workspace, folder: Location, repair: bool) -> _Seen:
    """Check partials and states; what is removed is recomputed by the next score that needs it."""
    if (folder / "run.json").exists():
        yield from _warm_up(ws, folder, repair)
        return
    parts, remedy = Parts(folder, ".safetensors"), "--repair removes it, and the next score counts it again"
    damaged = []
    for name in _named(parts):
        problem, data = _problem(parts, name, parts.record(name))
        if problem:
            damaged.append(Damage("prepared", folder.name, name, problem, remedy, repair))
        else:
            yield len(data)
    if damaged and repair:
        with lock(ws.path, f"prepared {folder.name}"):
            for damage in damaged:
                parts.remove(damage.part)
    yield from damaged


def _warm_up(ws: Workspace, folder: Location, repair: bool) -> _Seen:
    """Check the checkpoints of a warm-up; if one is damaged, all are removed, to be retrained to the same bytes."""
    run, damaged = Run(ws, f"warmup of {folder.name}", place=folder), []
    for checkpoint in run.checkpoints():
        for name, sha256 in checkpoint.record["files"].items():
            path = checkpoint.folder / name
            data = path.read_bytes() if path.exists() else b""
            if problem := _wrong(data, sha256) if path.exists() else "is not there":
                part, remedy = (
                    f"{checkpoint.folder.name}/{name}",
                    "--repair removes the warm-up, which is trained again",
                )
                damaged.append(Damage("prepared", folder.name, part, problem, remedy, repair))
            else:
                yield len(data)
    if damaged and repair:
        with lock(ws.path, f"prepared {folder.name}"):
            remove_tree(folder, marker="run.json")
    yield from damaged


def _aims(ws: Workspace, name: str, repair: bool) -> _Seen:
    """Check the vectors of targets."""
    state, parts = table_state(ws, "vectors", name), target_vectors(ws.table_folder("vectors", name))
    for target in _named(parts):
        problem, data = _problem(parts, target, parts.record(target))
        if not problem:
            yield len(data)
            continue
        if repair:
            with lock(ws.path, f"vectors {name}"):
                parts.remove(target)
        remedy = f"--repair removes it, and `{state.command(target)}` makes it again"
        yield Damage("vectors", name, f"targets/{target}", problem, remedy, repair)


def _index(ws: Workspace, name: str, repair: bool) -> _Seen:
    record, path = record_of(ws, name), index_path(ws, name)
    if record is None:
        return
    data = path.read_bytes() if path.exists() else b""
    problem = _wrong(data, record.sha256, record.bytes) if path.exists() else "is not there"
    if problem is None:
        yield len(data)
        return
    remedy = "--repair builds it again"
    if repair:
        with lock(ws.path, f"vectors {name}"):
            path.with_suffix(".json").unlink(missing_ok=True)
            remedy = ensure_index(ws, name)
    yield Damage("vectors", name, "index.faiss", problem, remedy, repair and index_problem(ws, name) is None)


def _table(ws: Workspace, kind: str, name: str, repair: bool, executor: Executor | None) -> _Seen:
    state, parts = table_state(ws, kind, name), Parts(ws.table_folder(kind, name))
    shards = {shard.name: shard for shard in ws.shards()}
    damaged = []
    for part in _named(parts):
        record = parts.record(part)
        problem, data = _problem(parts, part, record)
        if not problem and record:
            problem = _other_rows(data, record, read_ids(shards[part].path) if part in shards else None)
        if problem:
            damaged.append(Damage(kind, name, part, problem, "--repair computes it again", repair))
        else:
            yield len(data)
    if damaged and repair:
        with lock(ws.path, f"{kind} {name}"):
            for damage in damaged:
                parts.remove(damage.part)
            remove_tree(parts.folder / "_units")
        if state.stale is None:
            damaged = [*_again(ws, state, executor, damaged)]
        else:
            remedy = f"it is stale ({state.stale}); `{state.command()}` computes all of it anew"
            damaged = [replace(d, remedy=remedy, repaired=False) for d in damaged]
    yield from damaged


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
    method = find("score", recipe.method)(**recipe.settings)
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


def _kept_manifest(ws: Workspace, stamp: str, recipe: ManifestRecipe) -> _Seen:
    path = kept_path(ws, stamp)
    data = path.read_bytes() if path.exists() else b""
    problem = _wrong(data, recipe.sha256) if path.exists() else "is not there, but its JSON is"
    remedy = "restore it from a copy; runs only name it"
    yield Damage("manifest", recipe.name, f"replaced/{stamp}", problem, remedy) if problem else len(data)


def _mask(ws: Workspace, name: str) -> _Seen:
    try:
        read_mask(ws, name)
    except CurateError:
        yield Damage("mask", name, name, "is not a whole mask", "`curate mask` makes it again")
    else:
        yield len(ws.mask_path(name).read_bytes())


def _manifest(ws: Workspace, name: str) -> _Seen:
    path = ws.manifest_path(name)
    recipe = manifest_recipe(ws, name)
    command = (
        f"mix {name} …" if isinstance(recipe, MixtureRecipe) else f"select {name} --replay {path.with_suffix('.json')}"
    )
    remedy = f"`curate {command}` makes it again"
    data = path.read_bytes() if path.exists() else b""
    problem = _wrong(data, recipe.sha256) if path.exists() else "is not there, but its JSON is"
    yield Damage("manifest", name, name, problem, remedy) if problem else len(data)
