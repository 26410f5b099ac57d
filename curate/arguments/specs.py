"""The specification that a verb is given: an object, or its fields by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from curate.errors import CurateError, nearest

S = TypeVar("S")


def spec_of(cls: type[S], given: S | None, settings: Mapping[str, Any], verb: str) -> S:
    """The specification itself, or one of the given fields. verb: for messages.

    Raises CurateError for both at once, and for a field that there is not, suggesting the nearest.
    """
    if given is not None and not isinstance(given, cls):
        raise CurateError(
            f"curate.{verb} is given a {cls.__name__}, or its fields by name, not {repr(given)[:60]} "
            f"({type(given).__name__})."
        )
    refuse_unknown(settings, [f.name for f in fields(cls)], verb)  # type: ignore[arg-type]
    if given is not None and settings:
        raise CurateError(
            f"curate.{verb} is given a {cls.__name__} and {', '.join(settings)} beside it; put these into the "
            f"{cls.__name__}, or leave it out."
        )
    return given if given is not None else cls(**settings)


def refuse_unknown(settings: Mapping[str, Any], known: list[str], verb: str) -> None:
    """Raises CurateError for an argument that a verb does not have."""
    for name in settings:
        if name not in known:
            guess = nearest(name, known)
            listed = guess if guess.startswith("did you mean") else f"there is {', '.join(known)}."
            raise CurateError(f"curate.{verb} has no argument '{name}': {listed}")
