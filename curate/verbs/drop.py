"""`curate drop`: remove a score, vectors, a manifest, a mask, a target or a run."""

from __future__ import annotations

from curate.errors import CurateError, nearest
from curate.store.files import remove_tree
from curate.store.locks import lock
from curate.store.workspace import TABLES, Workspace, recipe_file


def drop(ws: Workspace, name: str) -> str:
    """Remove the object called `name`; returns its kind. Objects made from it remain, with their recipes unchanged.

    Raises CurateError if no object, or more than one, has the name.
    """
    by_kind = {kind: ws.having(kind) for kind in (*TABLES, "manifest", "mask", "target", "run")}
    kinds = [kind for kind, names in by_kind.items() if name in names]
    if not kinds:
        all_names = [n for names in by_kind.values() for n in names]
        raise CurateError(
            f"{ws.path} has no score, vectors, manifest, mask, target or run '{name}': {nearest(name, all_names)}"
        )
    if len(kinds) > 1:
        raise CurateError(
            f"'{name}' is both a {' and a '.join(kinds)}; drop the one by removing its file in {ws.path}."
        )
    kind = kinds[0]
    with lock(ws.path, "targets" if kind == "target" else f"{kind} {name}"):
        if kind in TABLES:
            remove_tree(ws.table_folder(kind, name), marker=recipe_file(kind))
        elif kind == "run":
            remove_tree(ws.run_folder(name), marker="run.json")
        elif kind == "manifest":
            ws.manifest_path(name).with_suffix(".json").unlink()
            ws.manifest_path(name).unlink(missing_ok=True)
        elif kind == "mask":
            ws.mask_path(name).unlink()
        else:
            for split in ("val", "test"):
                (ws.path / "rejects" / f"target-{name}-{split}.parquet").unlink(missing_ok=True)
            ws.targets.remove(name)
    return kind
