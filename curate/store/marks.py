"""Samples that a reader marked good or bad: marks.json of a workspace, written whole at every mark, so that a killed
process loses none."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Literal

from curate.errors import CurateError
from curate.store.encoding import read_json, write_json
from curate.store.locks import FOREVER, lock
from curate.store.object_store import Location
from curate.store.workspace import Workspace

Mark = Literal["good", "bad"]
MARKS = ("good", "bad")
FORMAT = 1
_one_at_a_time = threading.Lock()  # threads of one process would see its own claim on the lock as another's


def read_marks(ws: Workspace) -> dict[str, Mark]:
    """Id -> mark, in the order in which they were made. Raises CurateError if the file was damaged or edited."""
    path = _path(ws)
    try:
        stored = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        raise CurateError(f"{path} is damaged or was edited: it is not JSON; restore it from a copy.") from None
    marks = stored.get("marks") if isinstance(stored, dict) and stored.get("format") == FORMAT else None
    if not isinstance(marks, dict) or not set(marks.values()) <= set(MARKS):
        raise CurateError(
            f"{path} holds no marks of format {FORMAT}, which is what this version of curate reads; upgrade curate, or "
            "restore it from a copy."
        )
    return marks


def set_marks(ws: Workspace, ids: Sequence[str], mark: Mark | None) -> dict[str, Mark]:
    """Mark samples, or with None take their marks away; returns all marks. They are on the disk when this returns.

    Waits for other writers, of this process and others. Raises CurateError for another mark.
    """
    if mark not in (None, *MARKS):
        raise CurateError(f"a mark is good or bad, not '{mark}'.")
    with _one_at_a_time, lock(ws, "marks", wait=FOREVER):
        marks: dict[str, Mark] = {key: value for key, value in read_marks(ws).items() if key not in set(ids)}
        if mark is not None:
            marks.update(dict.fromkeys(ids, mark))
        _write(ws, marks)
    return marks


def _write(ws: Workspace, marks: Mapping[str, Mark]) -> None:
    write_json(_path(ws), {"format": FORMAT, "marks": dict(marks)})


def _path(ws: Workspace) -> Location:
    return ws.path / "marks.json"
