"""What it costs to lose nothing: the share of a text score's time that goes to units, records, checksums and accounts.

    python -m tests.bench.machinery [ROWS]      default: 1000000

A score has to read each shard, run the method's own functions and encode its table. These are timed, the functions
while the engine runs; all the rest of the engine's time is the machinery's, whatever it went to.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import curate
from curate.kinds.passes import Pass
from curate.kinds.score import Score
from curate.kinds.text import Text
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from curate.store.commits import Parts
from curate.store.encoding import parquet, read_table
from curate.store.workspace import Shard, Workspace
from curate.tables import unit_worker as tasks
from curate.tables.inputs import load_target
from tests.bench.scale import generate, prepare
from tests.bench.timing import figure, machine, spread, timed

RUNS = 5


def share(ws: Workspace, method: Score) -> tuple[float, float]:
    """The machinery's share of one whole run, and the seconds of that run."""
    for folder in (ws.path / "prepared").glob("*"):
        shutil.rmtree(folder)  # type: ignore[arg-type]
    target = "goal" if method.uses_target else None
    spent: Counter[str] = Counter()
    with _clocked(method, spent):
        total = timed(lambda: curate.score(ws, method, target=target, names={method.name: "probe"}, fresh=True))
    passes = method.passes(load_target(ws, target) if target else None)
    shards, parts = ws.shards(), Parts(ws.score_folder("probe"))
    read = sum(timed(partial(_read, shard)) for _ in passes for shard in shards)
    encode = sum(timed(partial(parquet, parts.read(name))) for name in parts.names())
    return 1 - (spent["method"] + read + encode) / total, total


@contextmanager
def _clocked(method: Score, spent: Counter[str]) -> Iterator[None]:
    """Adds up the seconds in the method's own functions, and in making a table of what they return."""

    def clock(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return f(*args)
            finally:
                spent["method"] += time.perf_counter() - start

        return call

    def reduce(step: Pass) -> Any:  # what is read while it runs is the machinery's
        return step.reduce and (lambda partials: clock(step.reduce)(list(partials)))  # type: ignore[arg-type]

    def passes(self: Score, target: Any) -> Sequence[Pass]:
        return [
            dataclasses.replace(s, map=clock(s.map), open=s.open and clock(s.open), reduce=reduce(s))
            for s in plain(self, target)
        ]

    plain = type(method).passes
    with patch.object(type(method), "passes", passes), patch.object(tasks, "score_table", clock(tasks.score_table)):
        yield


def _read(shard: Shard) -> None:
    Text(read_table(shard.path, Text.schema.names))


def main(rows: int) -> None:
    machine("polars", "pyarrow", "numpy")
    folder = Path(tempfile.mkdtemp(prefix="curate-machinery-"))
    try:
        generate(folder / "input", rows)
        ws = prepare(folder)
        print(f"{ws.n_rows():,} samples in {len(ws.shards())} shards; median of {RUNS} runs\n")
        for method in (Length(), Bm25(), Repetition()):
            shares, seconds = zip(*[share(ws, method) for _ in range(RUNS + 1)][1:], strict=True)
            found, note = spread(shares), f"of {statistics.median(seconds):.1f} s"
            figure(f"share of machinery: {method.name}", found, "%", "<= 5 %", found[0] <= 0.05, note)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
