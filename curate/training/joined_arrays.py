"""One-dimensional arrays that lie in several files, read as if they were one: only what is asked for is in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np


class Flat(Protocol):
    """What slices of are arrays: an array, or several joined."""

    def __getitem__(self, span: slice, /) -> Any:
        """The values from span.start up to span.stop."""
        ...


@dataclass(frozen=True)
class Joined:
    """Arrays end to end. parts: each as it is, such as memory-mapped; or None, for one of the value `fill` throughout.
    lengths: of the parts. A span must lie in one part, as a document does."""

    parts: Sequence[np.ndarray | None]
    lengths: Sequence[int]
    dtype: Any
    fill: float = 1

    @cached_property
    def starts(self) -> list[int]:
        """Where each part begins."""
        return [0, *np.cumsum(self.lengths, dtype=np.int64).tolist()][: len(self.lengths)]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop = int(span.start), int(span.stop)
        part = max(bisect_right(self.starts, start) - 1, 0)
        values = self.parts[part] if self.parts else None
        if values is None:
            return np.full(stop - start, self.fill, self.dtype)
        offset = self.starts[part]
        return values[start - offset : stop - offset]


def everything(size: int, dtype: Any = bool) -> Joined:
    """1 throughout, whatever its length, and no memory."""
    return Joined([None], [size], dtype)
