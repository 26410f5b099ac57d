"""The workspace that a verb is given: opened already, or its folder's path."""

from __future__ import annotations

import os
from typing import TypeAlias

from curate.errors import CurateError
from curate.store.workspace import Workspace, open_workspace, waiting

AnyWorkspace: TypeAlias = Workspace | str | os.PathLike[str]


def workspace_of(
    ws: AnyWorkspace, *, create: bool = False, pinned: bool = False, wait: float | None = None
) -> Workspace:
    """The workspace itself, or that of a path. create: make one of a missing or empty folder. pinned: with the pool as
    it is now, whatever is ingested meanwhile; for verbs that read it several times. wait: the seconds for which parts
    are waited for that another process writes; default: as it was opened.

    Raises CurateError for a path without a workspace, unless it may be created, and for what is neither.
    """
    if isinstance(ws, str | os.PathLike):
        ws = open_workspace(ws, create=create)
    if isinstance(ws, Workspace):
        ws = ws if wait is None else waiting(ws, wait)
        return ws.with_pinned_pool() if pinned else ws
    raise CurateError(
        f"a workspace is its folder's path, or what curate.open_workspace gives, not {repr(ws)[:60]} "
        f"(of the type {type(ws).__name__})."
    )
