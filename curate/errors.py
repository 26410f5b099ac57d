"""What a user may read when something is wrong: one sentence that says what, where, the rule and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 15  # names listed where none is near


class CurateError(Exception):
    """A mistake the user can mend; the command exits with status 2."""

    exit_status = 2


class CurateFailure(CurateError):
    """Something the machine did not do (a full disk, a killed worker); the command exits with status 1."""

    exit_status = 1


class DivergedError(CurateFailure):
    """A training whose loss or gradient is no finite number any more."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else what there is."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.65)
    if close:
        return f"did you mean '{close[0]}'?"
    some = ", ".join([*choices[:_SHOWN], "…"] if len(choices) > _SHOWN else choices)
    return f"there is {some}." if choices else "there is none yet."


def require(what: str, good: bool, rule: str) -> None:
    """Raises CurateError for a setting that breaks its rule."""
    if not good:
        raise CurateError(f"{what} must be {rule}.")
