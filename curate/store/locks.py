"""One writer at a time: who holds which part of a workspace, and whether the holder lives.

On this machine's disks a lock is an advisory lock of the operating system, which falls with its holder, so what a
dead process held is free at once. Between machines, and in object stores, no such lock is to be relied on: there the
holder gives a sign of life every BEAT seconds, and one that has given none for LEASE seconds is taken for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from curate.errors import CurateError, CurateFailure
from curate.machine import LEASE, is_dead, machine, myself
from curate.store.object_store import Location, ObjectPath

HEARTBEAT = 10.0
_PATIENCE = 1.0  # between two looks, where one waits for a lock


class Lock:
    """A lock that is held."""

    def __init__(self) -> None:
        self.lost_to: str | None = None

    def check(self) -> None:
        """Raises CurateFailure where this process was silent for so long that another took over."""
        if self.lost_to:
            raise CurateFailure(
                f"this process gave no sign of life for {LEASE:.0f} s and {self.lost_to} took its work over; "
                "what was committed stands, so let that one end."
            )


@contextlib.contextmanager
def heartbeat(seconds: float, beat: Callable[[], None]) -> Iterator[None]:
    """Calls `beat` every so many seconds while the body runs."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def lock(workspace: Location, what: str, wait: bool = False) -> Iterator[Lock]:
    """Hold a part of a workspace (`pool`, `score bm25`, …) for writing.

    wait: until it is free; otherwise raises CurateError, which says who holds it.
    """
    path = workspace / ".claims" / what.replace(" ", "-")
    with contextlib.ExitStack() as stack:
        while True:
            try:
                held_lock = stack.enter_context(
                    _hold_object(path) if isinstance(path, ObjectPath) else _hold_file(path)
                )
                break
            except _Held as held:
                if not wait:
                    raise CurateError(
                        f"{workspace}: {held} is writing the {what}; wait for it to end, or stop it and run this again."
                    ) from None
            time.sleep(_PATIENCE)
        yield held_lock


class _Held(Exception):
    """Another process holds the lock; the text says which."""


def _words(holder: dict[str, Any], silent_for: float) -> str:
    process = f"process {holder['process']} on {holder['host']}"
    if holder["machine"] == machine():
        return process
    return f"{process} (last sign of life {silent_for:.0f} s ago; taken for dead after {LEASE:.0f} s)"


@contextlib.contextmanager
def _hold_file(path: Path) -> Iterator[Lock]:
    """A lock of the operating system on a file that says who holds it; its mtime is the last sign of life."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as f:
        holder, silent_for = _holder(f), time.time() - os.fstat(f.fileno()).st_mtime
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Held(_words(holder, silent_for) if holder else "another process") from None
        if holder and holder["machine"] != machine() and not is_dead(holder, silent_for):
            raise _Held(_words(holder, silent_for))  # locks do not reach every other machine
        f.truncate(0)
        f.write(json.dumps(myself()))
        f.flush()
        with heartbeat(HEARTBEAT, lambda: os.utime(path)):
            yield Lock()
        f.truncate(0)


def _holder(f: IO[str]) -> dict[str, Any] | None:
    f.seek(0)
    try:
        return json.loads(f.read())
    except ValueError:
        return None  # free, or just being taken


@contextlib.contextmanager
def _hold_object(folder: ObjectPath) -> Iterator[Lock]:
    """One object per contender below the lock's prefix; who sees another living one withdraws.

    Each writes its own object and then lists: of two, at least one sees the other, so never do both hold it. (The
    stores are strongly consistent: a listing shows every object written before.) Times are the store's own.
    """
    chance = random.SystemRandom()
    mine = folder / f"{machine()}-{os.getpid()}-{chance.getrandbits(32):08x}"
    for _ in range(4):  # two that met both withdraw; they come again at different times
        _sign(mine)
        others = _living(folder, mine)
        if not others:
            break
        mine.unlink(missing_ok=True)
        time.sleep(chance.uniform(0.05, 0.5))
    else:
        raise _Held(others[0])
    held = Lock()
    try:
        with heartbeat(HEARTBEAT, _Pulse(mine, held)):
            yield held
    finally:
        mine.unlink(missing_ok=True)


def _sign(mine: ObjectPath) -> None:
    mine.write_bytes(json.dumps(myself()).encode())


def _living(folder: ObjectPath, mine: ObjectPath) -> list[str]:
    """The other contenders that live, in words; the dead ones' objects are removed."""
    now, living = mine.written(), []
    if now is None:
        return ["another process"]  # which took this one for dead
    for other in folder.iterdir():
        at = other.written() if other != mine else None
        with contextlib.suppress(FileNotFoundError):  # it withdrew meanwhile
            if at is not None:
                holder = json.loads(other.read_bytes())
                if is_dead(holder, now - at):
                    other.unlink(missing_ok=True)
                else:
                    living.append(_words(holder, now - at))
    return living


class _Pulse:
    """Signs a held object again and again, and notices where it is another's by now."""

    def __init__(self, mine: ObjectPath, held: Lock):
        self.mine, self.held, self.signed = mine, held, time.monotonic()

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # a network that comes back within the lease does no harm
            if self.mine.exists():
                _sign(self.mine)
                self.signed = time.monotonic()
            else:
                self.held.lost_to = "another process"
        if time.monotonic() - self.signed > LEASE:
            self.held.lost_to = self.held.lost_to or "perhaps another process"
