"""Methods that go wrong on purpose, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.methods.scores.bm25 import Bm25


class Small(Bm25):
    """Bm25 in many units."""

    unit_bytes: ClassVar[int] = 10_000


class Slow(Small):
    """Bm25 in many units that take their time, so that a kill meets them under way; it notes each in $CURATE_BEGUN."""

    def _count(self, batch: Text, given: Arrays) -> Arrays:
        _note("count", batch)
        return super()._count(batch, given)

    def _score(self, batch: Text, query: Any) -> Columns:
        _note("score", batch)
        return super()._score(batch, query)


Small.name = Slow.name = "bm25"


def _note(what: str, batch: Text) -> None:
    """One line for each unit begun. A short line appended at once is not torn by a kill, nor by a neighbour."""
    with open(os.environ["CURATE_BEGUN"], "a") as f:
        f.write(f"{what} {batch.frame['id'][0]} {len(batch)}\n")
    time.sleep(0.02)


@dataclass(frozen=True)
class Faulty(Score):
    """Counts the samples, then scores each by its length and their number; goes wrong on samples that hold `on`."""

    scope: ClassVar[Literal["row", "pool"]] = "row"
    unit_bytes: ClassVar[int] = 10_000
    columns: ClassVar = {"chars": "int32"}

    on: str = "nothing holds this"
    how: Literal["raise", "memory", "kill", "hang", "leave", "tear"] = "raise"
    where: Literal["count", "score"] = "score"
    once: str = ""  # a file: while it is not there, it goes wrong and makes it; afterwards it is fine

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        return (
            Pass("count", partial(self._guarded, "count"), reduce=_total, shaped_by=("on", "how", "where", "once")),
            Pass("score", partial(self._guarded, "score")),
        )

    def _guarded(self, where: str, batch: Text, state: Arrays) -> Any:
        if where == self.where and batch.whole.str.contains(self.on, literal=True).any():
            self._go_wrong()
        lengths = batch.whole.str.len_chars().to_numpy()
        if where == "count":
            return {"n": np.array([len(batch)])}
        return {"score": lengths + state["n"][0] / 1e4, "chars": lengths}

    def _go_wrong(self) -> None:
        if self.once:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        match self.how:
            case "raise":
                raise ValueError("this one is odd\nand here is more about it")
            case "memory":
                raise MemoryError
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "leave":
                os._exit(3)
            case "tear":  # what a worker of another machine leaves that is lost while it writes
                kind = {"count": "prepared", "score": "scores"}[self.where]
                for folder in (Path(self.once).parent / kind).glob("*"):
                    (folder / ".part-00000.parquet.elsewhere.1.tmp").touch()


def _total(partials: Iterable[Arrays]) -> Arrays:
    return {"n": np.sum([p["n"] for p in partials], axis=0)}
