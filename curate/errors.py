"""Errors that the user sees: one sentence that states what is wrong, where, the rule and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import datetime

_SHOWN = 15  # known names listed when none is similar


class CurateError(Exception):
    """A mistake that the user can correct; the command exits with status 2."""

    exit_status = 2


class WorkspaceBusy(CurateError):
    """A part of a workspace that another process writes at the moment; free once it has ended.

    what: the part (`pool`, `score bm25`, …). process, host: who writes it, since: since when (UTC); None if that is not
    known. waited: the seconds for which it was waited for.
    """

    def __init__(
        self,
        message: str,
        what: str,
        process: int | None = None,
        host: str | None = None,
        since: datetime | None = None,
        waited: float = 0.0,
    ):
        super().__init__(message)
        self.what, self.process, self.host, self.since, self.waited = what, process, host, since, waited

    def __reduce__(self) -> tuple[type[WorkspaceBusy], tuple[object, ...]]:  # so that worker processes can hand it on
        return type(self), (str(self), self.what, self.process, self.host, self.since, self.waited)


class CurateFailure(CurateError):
    """A failure of the machine (a full disk, a killed worker); the command exits with status 1."""

    exit_status = 1


class DamagedError(CurateFailure):
    """Stored data that is gone, or is not what was written; `curate verify` lists all of it."""

    exit_status = 2


class MissingError(DamagedError, FileNotFoundError):
    """A stored file that is gone."""


class DivergedError(CurateFailure):
    """A training run whose loss or gradient is no longer finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the most similar known name, else a list of the known ones."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.65)
    if close:
        return f"did you mean '{close[0]}'?"
    listed = ", ".join([*choices[:_SHOWN], "…"] if len(choices) > _SHOWN else choices)
    return f"there is {listed}." if choices else "there is none yet."


def require(what: str, good: bool, rule: str) -> None:
    """Raises CurateError unless `good`, stating the rule that the setting `what` must follow."""
    if not good:
        raise CurateError(f"{what} must be {rule}.")
