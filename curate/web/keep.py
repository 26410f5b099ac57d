"""Marked samples kept for good: as a target, or as a manifest that any trainer follows."""

from __future__ import annotations

from curate.errors import CurateError
from curate.kinds.registry import find
from curate.store.marks import MARKS, read_marks
from curate.store.workspace import Workspace
from curate.tables.views import literal
from curate.verbs.select import SelectionSpec, select
from curate.verbs.target import target_from_pool

KINDS = ("manifest", "target")


def keep(ws: Workspace, name: str, kind: str, *, mark: str = "good", split: str = "val", replace: bool = False) -> str:
    """Store the samples of a mark as the manifest, or as a split of the target, `name`; returns what was stored, in a
    sentence.

    A manifest is a selection whose condition lists the ids, so its recipe repeats it. replace: whether an existing one
    of that name may be replaced. Raises CurateError for a name that is taken, or if no sample has the mark.
    """
    if kind not in KINDS:
        raise CurateError(f"marks are kept as a manifest or a target, not as '{kind}'.")
    if mark not in MARKS:
        raise CurateError(f"a mark is good or bad, not '{mark}'.")
    ws.check_name(name, kind)
    if not replace and _exists(ws, kind, name, split):
        what = f"the split {split} of a target" if kind == "target" else "a manifest"
        raise CurateError(f"there is {what} '{name}' already; choose another name, or say that it be replaced.")
    ids = [key for key, value in read_marks(ws).items() if value == mark]
    if not ids:
        raise CurateError(f"no sample is marked {mark} yet; mark some first.")
    if kind == "target":
        stored = target_from_pool(ws, name, ids, split=split)
        return _sentence(f"Target {name}, split {split}: {stored.rows[split]:,} samples.", stored.warnings)
    spec = SelectionSpec(where=f"id IN ({', '.join(map(literal, ids))})", frac=1.0)
    selected = select(ws, name, find("selector", "random")(), spec, fresh=replace)
    absent = len(ids) - selected.rows
    gone = [f"{absent:,} marked samples are not in the pool any more"] if absent else []
    return _sentence(f"Manifest {name}: {selected.rows:,} samples.", gone)


def _exists(ws: Workspace, kind: str, name: str, split: str) -> bool:
    if kind == "manifest":
        return name in ws.manifest_names()
    return name in ws.target_names() and split in ws.target_rows(name)["split"].to_pylist()


def _sentence(text: str, warnings: list[str]) -> str:
    return " ".join([text, *(f"Note: {warning}." for warning in warnings)])
