"""Kills at every change of the file system of every verb: the same command then ends in the undisturbed bytes.

A verb is run in a forked process, once to the end, which counts its changes of files; then it is killed in place of the
n-th, for every n, and run again:

    same         the place has the bytes that an undisturbed run leaves
    left over    so it has, and files of the killed one beside, which nothing reads
    said         so it has, and the command that goes on ended in one sentence (what it was to drop is gone)
    LOST         other bytes, or `verify` finds damage
    UNEXPECTED   an exception that is no CurateError

What may differ: the ledger (it has what both cost), when a run was begun and a workspace created, seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

import curate
from curate.errors import CurateError
from tests.attack import children, scene
from tests.attack.tally import Tally

OUTCOMES = ("same", "left over", "said", "LOST", "UNEXPECTED")
BAD = ("LOST", "UNEXPECTED")
TIMED = {"begun", "until", "ledger_begun", "ledger_until", "created", "seconds", "at", "peak_bytes"}
LEFT = re.compile(
    r"(^|/)\.[^/]+\.(tmp|dropped|fresh)(/|$)|/_units/|/ledger/open/|/manifests/replaced/|/manifests/[^/]+\.parquet$"
)


# --- what a place holds ----------------------------------------------------------------------------------


def held(place: Path) -> dict[str, str]:
    """Every file of a place but those of the ledger and of locks -> a digest of what may not differ."""
    files = (path for path in sorted(place.rglob("*")) if path.is_file())
    named = {str(path.relative_to(place)): path for path in files}
    kept = {name: path for name, path in named.items() if not name.startswith(("ws/ledger/", "ws/.claims/"))}
    return {name: essence(name, path.read_bytes()) for name, path in kept.items()}


def essence(name: str, data: bytes) -> str:
    """A digest of what may not differ in a file of a place."""
    if name.endswith(".json"):
        return repr(_untimed(json.loads(data)))
    if name.endswith(".parquet") and "/runs/" in name:
        table = pq.read_table(io.BytesIO(data))
        return repr(table.drop_columns([name for name in table.column_names if name in TIMED]).to_pylist())
    return hashlib.sha256(data).hexdigest()


def _untimed(value: Any) -> Any:
    """A JSON value without times, and without the digests of files that hold times."""
    if isinstance(value, dict):
        return {
            key: _untimed(one) for key, one in sorted(value.items()) if key not in TIMED | {"sha256", "run", "paid"}
        }
    return [_untimed(one) for one in value] if isinstance(value, list) else value


# --- one verb --------------------------------------------------------------------------------------------


def _run(verb: Callable[[Path], None], place: Path, at: int) -> list[str]:
    """The verb, killed in place of its at-th change (0: not at all); the changes."""
    trap = children.arm(place, at)
    verb(place)
    children.disarm()
    return trap.names


def _looked(place: Any) -> list[str]:
    if not (place / "ws/workspace.json").exists():
        return []
    return [f"{one.kind} {one.name} {one.part}: {one.what}" for one in curate.verify(scene.ws_of(place)).damaged]


def gone_on(verb: Callable[[Any], Any], place: Any) -> tuple[str, list[str]]:
    """The verb again: the sentence that it ends in, if any, and the damage that `verify` finds then."""
    said = ""
    try:
        verb(place)
    except CurateError as error:
        said = str(error)
    return said, _looked(place)


def outcome(verb: Callable[[Path], None], place: Path, whole: dict[str, str]) -> tuple[str, str]:
    """How going on after a kill ended."""
    ended = children.in_child(lambda: gone_on(verb, place))
    if ended.status or ended.error:
        return "UNEXPECTED", f"going on ended with {ended.status} {ended.error!r}"
    return judged(*ended.value, held(place), whole)


def judged(said: str, damaged: list[str], now: dict[str, str], whole: dict[str, str]) -> tuple[str, str]:
    """What it came to. said, damaged: of `gone_on`. now: what is held; whole: what an undisturbed run leaves."""
    more = now.keys() - whole.keys()
    others = sorted(name for name in whole if now.get(name) != whole[name])
    unknown = sorted(name for name in more if not LEFT.search(name))
    if damaged or others or unknown:
        return "LOST", f"other {others[:5]}, more {unknown[:5]}, damaged {damaged[:3]}, said {said!r}"
    if said and not said.endswith((".", "?")):
        return "UNEXPECTED", said
    return ("left over", str(sorted(more)[:3])) if more else ("said" if said else "same", said)


class Stage:
    """A verb, the place before it, and what an undisturbed run leaves."""

    def __init__(self, name: str, verb: Callable[[Path], None], before: Path, place: Path):
        self.name, self.verb, self.before, self.place = name, verb, before, place
        self.reset()
        ended = children.in_child(lambda: _run(verb, self.place, 0))
        if ended.status or ended.error:
            raise RuntimeError(f"{name} does not run: {ended}")
        self.changes: list[str] = ended.value
        self.whole = held(self.place)

    def reset(self) -> None:
        """The place as it is before the verb."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place)

    def kill(self, at: int) -> tuple[str, str]:
        """Kill the verb in place of a change, and go on."""
        self.reset()
        killed = children.in_child(lambda: _run(self.verb, self.place, at))
        if killed.error or killed.status not in (0, -9):
            return "UNEXPECTED", f"before the kill: {killed.status} {killed.error!r}"
        if not killed.status:
            return "same", "ended before"  # a heartbeat's file more or less
        return outcome(self.verb, self.place, self.whole)


def stages(folder: Path, place: Path, names: list[str] | None = None) -> Iterator[Stage]:
    """Every verb, on the place that those before it have made; those that only use it, each on a copy of its own.

    place: where all of them are run, as paths are part of what is recorded.
    """
    given = {**scene.MAKING, **scene.USING}
    made = folder / "made"
    scene.write_inputs(made)
    for number, name in enumerate(names or given):
        before = folder / f"before-{number}"
        shutil.copytree(made, before)
        if name in scene.BEFORE:
            scene.BEFORE[name](before)
        stage = Stage(name, given[name], before, place)
        if name in scene.MAKING:
            shutil.rmtree(made)
            shutil.copytree(place, made)
        yield stage


def attack(folder: Path, seed: int, seconds: float, names: list[str] | None = None, most: int = 1 << 60) -> Tally:
    """Kills at changes at random, in turn of every verb, for some seconds, at most so many."""
    tally, end = Tally("kills", OUTCOMES, BAD), time.monotonic() + seconds
    dice = Random(seed)
    all_stages = list(stages(folder, folder / "place", names))
    points = [dice.sample(range(1, len(stage.changes) + 1), len(stage.changes)) for stage in all_stages]
    while any(points):
        for stage, left in zip(all_stages, points, strict=True):
            if tally.tried >= most or time.monotonic() > end:
                return tally
            if left:
                at = left.pop()
                result, why = stage.kill(at)
                tally.add(stage.name, result, f"{stage.name}, killed before {stage.changes[at - 1]}: {why}")
    return tally
