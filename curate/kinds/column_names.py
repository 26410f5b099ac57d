"""Names of a score's further columns that come from outside: labels of a model, columns of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from curate.errors import CurateError

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = ("id", "score", "error", "subtasks")


def plain_name(text: str) -> str:
    """A text as a name that SQL takes unquoted: small letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"c_{name}".rstrip("_")


def refuse_column_names(names: Sequence[str]) -> None:
    """Raises CurateError for a name that SQL does not take, that every score has, or that occurs twice."""
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise CurateError(
                f"the column name '{name}' must match [a-z][a-z0-9_]* (small letters, digits, underscores); "
                f"'{plain_name(name)}' would do."
            )
        if name in _TAKEN:
            raise CurateError(f"every score has a column '{name}' of its own; call the further column otherwise.")
        if name in names[:i]:
            raise CurateError(f"two further columns would be called '{name}'; name each otherwise.")
