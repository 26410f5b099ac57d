"""`curate drop`: remove a score, vectors, a manifest, a mask, a target, a run, a trial, or kept tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, nearest
from curate.results import Result
from curate.store.contents import take_out
from curate.store.files import remove_tree
from curate.store.locks import lock
from curate.store.manifests import keep_manifest
from curate.store.token_files import FOLDER, TokenFiles, drop_tokens, kept_tokens
from curate.store.workspace import TABLES, Workspace, recipe_file
from curate.tables.dependents import dependents, named, release_kept


@dataclass
class Dropped(Result):
    """What was removed, or with `dry_run` would be. dependents: kind -> names of what was made from it, and remains.
    kept: whether a copy of the manifest is kept for the runs that were trained on it."""

    kind: str
    name: str
    dependents: dict[str, list[str]] = field(default_factory=dict)
    kept: bool = False
    dry_run: bool = False


def drop(
    ws: AnyWorkspace,
    name: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    wait: float | None = None,
) -> Dropped:
    """Remove the object called `name`. What was made from it remains, with its recipes unchanged; a manifest that runs
    were trained on is kept in manifests/replaced while they are there. Tokens kept for trainings are called
    tokens/FINGERPRINT, as `status` shows; they are made again when a training asks for them.

    force: remove it also if something was made from it. dry_run: only find out what was. Raises CurateError if no
    object, or more than one, has the name; or if something was made from it, or something else is damaged that may be,
    unless forced.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, wait=wait)
    if name.startswith(f"{FOLDER}/"):
        return _drop_tokens(ws, name, dry_run)
    kind = _kind(ws, name)
    result = Dropped(kind, name, dependents(ws, kind, name, readable=force), dry_run=dry_run)
    if dry_run:
        return result
    if result.dependents and not force:
        raise CurateError(
            f"without the {kind} '{name}', {named(result.dependents)} would be stale or could not be repeated; drop "
            "what was made from it first, or remove it all the same with --force."
        )
    with lock(ws, "targets" if kind == "target" else f"{kind} {name}"):
        if kind == "manifest" and result.dependents:
            result.kept = keep_manifest(ws, name)
        _remove(ws, kind, name)
    if kind in ("run", "manifest"):
        release_kept(ws)
    return result


def _drop_tokens(ws: Workspace, name: str, dry_run: bool) -> Dropped:
    names = [row["name"] for row in kept_tokens(ws)]
    if name not in names:
        raise CurateError(f"{ws.path} has no {name}: {nearest(name, names)}")
    files = TokenFiles(ws, name.removeprefix(f"{FOLDER}/"))
    if not dry_run:
        with lock(ws, files.lock_name):
            drop_tokens(files)
    return Dropped("tokens", name, dry_run=dry_run)


def _kind(ws: Workspace, name: str) -> str:
    by_kind = {kind: ws.having(kind) for kind in (*TABLES, "manifest", "mask", "target", "run", "trial")}
    kinds = [kind for kind, names in by_kind.items() if name in names]
    if not kinds:
        all_names = [n for names in by_kind.values() for n in names]
        raise CurateError(
            f"{ws.path} has no score, vectors, manifest, mask, target, run or trial '{name}': "
            f"{nearest(name, all_names)}"
        )
    if len(kinds) > 1:
        raise CurateError(
            f"'{name}' is both a {' and a '.join(kinds)}; drop the one by removing its file in {ws.path}."
        )
    return kinds[0]


def _remove(ws: Workspace, kind: str, name: str) -> None:
    take_out(ws, kind, name)
    if kind in TABLES:
        remove_tree(ws.table_folder(kind, name), marker=recipe_file(kind))
    elif kind == "run":
        remove_tree(ws.run_folder(name), marker="run.json")
    elif kind == "trial":
        remove_tree(ws.trial_folder(name), marker="trial.json")
    elif kind == "manifest":
        ws.manifest_path(name).with_suffix(".json").unlink()
        ws.manifest_path(name).unlink(missing_ok=True)
    elif kind == "mask":
        ws.mask_path(name).unlink()
    else:
        for split in ("val", "test"):
            (ws.path / "rejects" / f"target-{name}-{split}.parquet").unlink(missing_ok=True)
        ws.targets.remove(name)
