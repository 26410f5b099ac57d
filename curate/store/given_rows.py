"""Rows that are objects of this process, taken one after the other: looked at first, and then read once.

What goes wrong where they come from ends them, and is kept, so that whoever reads them can store what came before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.exact_json import Spelled
from curate.store.input_formats import Unreadable

_AS_THEY_ARE = frozenset((str, int, float, bool, type(None), Spelled))


class GivenRows:
    """Rows of an iterator. label: what they are, for messages. numbered: whether the iterator has them as (number from
    1, row), as lines have. error: what ended them early, or None."""

    def __init__(self, label: str, rows: Iterable[Any], *, numbered: bool = False):
        self.label = label
        self.error: Exception | None = None
        self._seen: deque[tuple[int, Any]] = deque()
        self._rest = self._until_an_error(rows if numbered else enumerate(rows, 1))
        self._last = 0  # the number of the last row that the iterator gave

    def _until_an_error(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        try:
            for number, row in rows:
                self._last = number
                yield number, row
        except Exception as error:  # a user's generator may raise anything; refuse_if_stopped raises it  # noqa: BLE001
            self.error = error

    def look(self, most: int) -> Iterator[Any]:
        """The first rows, at most so many, without taking them."""
        for i in range(most):
            if i == len(self._seen):
                following = next(self._rest, None)
                if following is None:
                    return
                self._seen.append(following)
            yield self._seen[i][1]

    def read(self, skip: int = 0) -> Iterator[tuple[int, Any]]:
        """Takes the rows: (number, row), without those up to the number `skip`."""
        for number, row in chain(self._popped(), self._rest):
            if number > skip:
                yield number, row

    def _popped(self) -> Iterator[tuple[int, Any]]:
        while self._seen:
            yield self._seen.popleft()

    def refuse_if_stopped(self, kept: str) -> None:
        """Raises CurateError, caused by the error that ended the rows, if one did. kept: what became of the others."""
        if self.error is not None:
            message = (str(self.error).strip().splitlines() or [""])[0][:200].rstrip(".")
            raise CurateError(
                f"{self.label} stopped after row {self._last:,} by {type(self.error).__name__}"
                f"{f' ({message})' if message else ''}; {kept}."
            ) from self.error


def plain_row(row: Any) -> Any:
    """A row as JSON would have it: dictionaries, lists, texts and numbers, for mappings, tuples and NumPy's values.

    What is no mapping stays as it is, and is refused as a sample; what is nested too deeply is Unreadable.
    """
    try:
        return plain(row) if isinstance(row, Mapping) else row
    except RecursionError:
        return Unreadable("is nested too deeply")


def plain(value: Any) -> Any:
    """A value as JSON would have it, of whatever depth. Dates, bytes and other objects stay as they are."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, Mapping):
        return {key if type(key) is str else str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value] if value.ndim else plain(value.item())
    return value.item() if isinstance(value, np.generic) else value
