"""Score, select, train, drop, again and again: files, bytes and the time of `status` stay bounded.

What may grow is the ledger, by a file for every pass, and the files of locks no more after the first cycle.

    bounded      a cycle ended with the files of the first, but for the ledger's
    GROWN        it left more
    SLOWER       `status` took more than three times (and a second) as long as at first
    UNEXPECTED   it ended otherwise
"""

from __future__ import annotations

import time
from pathlib import Path

import curate
from tests.attack import children, scene
from tests.attack.tally import Tally

OUTCOMES = ("bounded", "GROWN", "SLOWER", "UNEXPECTED")
BAD = ("GROWN", "SLOWER", "UNEXPECTED")


def _cycle(place: Path) -> float:
    """One cycle; the seconds that `status` takes after it."""
    ws = scene.ws_of(place)
    curate.score(ws, "length")
    curate.select(ws, "best", "top", by="length", top=8)
    curate.train(ws, "short", model=scene.model(), manifest="best", steps=1, batch_size=2)
    for name in ("short", "best", "length"):
        curate.drop(ws, name)
    started = time.perf_counter()
    curate.status(ws)
    return time.perf_counter() - started


def _size(place: Path) -> tuple[int, int, int]:
    """Files but those of the ledger, their bytes, and the ledger's files."""
    files = [path for path in place.rglob("*") if path.is_file()]
    ours = [path for path in files if "ledger" not in path.parts]
    return len(ours), sum(path.stat().st_size for path in ours), len(files) - len(ours)


def attack(folder: Path, seed: int, seconds: float, most: int = 1 << 60) -> Tally:
    """Cycles for some seconds, at most so many."""
    tally, place, end = Tally("cycles", OUTCOMES, BAD), folder / "place", time.monotonic() + seconds
    children.in_child(lambda: scene.make(place, ["ingest"]))
    first: tuple[int, int, int, float] | None = None
    while tally.tried < most and time.monotonic() < end:
        ended = children.in_child(lambda: _cycle(place))
        if ended.status or ended.error:
            tally.add("cycles", "UNEXPECTED", f"cycle {tally.tried}: {ended.status} {ended.error!r}")
            return tally
        files, size, ledger = _size(place)
        first = first or (files, size, ledger, ended.value)
        now = (files, size, ledger, ended.value)
        told = f"cycle {tally.tried}: files, bytes, files of the ledger, seconds of status {now}; the first {first}"
        grown = files > first[0] or size > first[1] + 4096 or ledger > first[2] * (tally.tried + 1)
        slower = ended.value > 3 * first[3] + 1
        tally.add("cycles", "GROWN" if grown else "SLOWER" if slower else "bounded", told)
        tally.last = told
    return tally
