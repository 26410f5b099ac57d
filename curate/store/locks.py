"""One writer at a time: locks on parts of a workspace, with detection of dead holders.

On local disks a lock is an advisory lock of the operating system, which is released when its holder dies. Between
machines, and in object stores, such locks are unreliable: there the holder renews its claim every HEARTBEAT seconds,
and a holder that has been silent for LEASE seconds is presumed dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from curate.errors import CurateError, CurateFailure
from curate.machine import LEASE, is_dead, machine, myself
from curate.store.object_store import Location, ObjectPath

HEARTBEAT = 10.0  # seconds between renewals of a held lock
_PATIENCE = 1.0  # seconds between attempts while waiting for a lock


class Lock:
    """A held lock. lost_to: who took it over, None while it is held."""

    def __init__(self) -> None:
        self.lost_to: str | None = None

    def check(self) -> None:
        """Raises CurateFailure if this process was silent for so long that another one took over the lock."""
        if self.lost_to:
            raise CurateFailure(
                f"this process gave no sign of life for {LEASE:.0f} s and {self.lost_to} took its work over; "
                "what was committed stands, so let that one end."
            )


@contextlib.contextmanager
def heartbeat(seconds: float, beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` every `seconds` in a background thread while the body runs."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(seconds):
            beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextlib.contextmanager
def lock(workspace: Location, what: str, wait: bool = False) -> Iterator[Lock]:
    """Hold a part of a workspace (`pool`, `score bm25`, …) for writing.

    wait: whether to wait until it is free; otherwise raises CurateError, which names the holder.
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
    """Another process, which the message names, holds the lock."""


def _words(holder: dict[str, Any], silent_for: float) -> str:
    process = f"process {holder['process']} on {holder['host']}"
    if holder["machine"] == machine():
        return process
    return f"{process} (last sign of life {silent_for:.0f} s ago; taken for dead after {LEASE:.0f} s)"


@contextlib.contextmanager
def _hold_file(path: Path) -> Iterator[Lock]:
    """The operating system's lock on PATH.lock, and PATH, which names the holder: its mtime is the last sign of life.

    These are two files because filelock, depending on its version, empties or removes the file that it locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # thread_local: whichever thread leaves the block gives the lock back
        file_lock = FileLock(f"{path}.lock", thread_local=False).acquire(blocking=False)
    except Timeout:
        holder, silent_for = _holder(path)
        raise _Held(_words(holder, silent_for) if holder else "another process") from None
    with file_lock:
        holder, silent_for = _holder(path)
        if holder and _is_at_work(holder, silent_for):
            raise _Held(_words(holder, silent_for))
        path.write_text(json.dumps(myself()), encoding="utf-8")
        try:
            with heartbeat(HEARTBEAT, lambda: os.utime(path)):
                yield Lock()
        finally:
            path.write_text("", encoding="utf-8")


def _holder(path: Path) -> tuple[dict[str, Any] | None, float]:
    """Who is named as the holder, None if nobody is, and the seconds since its last sign of life."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return None, 0.0  # free, or about to be taken


def _is_at_work(holder: dict[str, Any], silent_for: float) -> bool:
    """Whether another process holds the lock although the operating system granted it to this one.

    It is on another machine, which this one's locks may not reach, or it is an earlier version of curate, which locked
    the file with the names itself. (An earlier version also left its name there if it failed, without further signs
    of life.)
    """
    return holder != myself() and silent_for <= LEASE and not is_dead(holder, silent_for)


@contextlib.contextmanager
def _hold_object(folder: ObjectPath) -> Iterator[Lock]:
    """One object per contender under the lock's prefix; a contender that sees another live one withdraws.

    Each contender writes its object and then lists the prefix: of two, at least one sees the other, so both never hold
    the lock. (The stores are strongly consistent: a listing shows every object written before.) Times are by the clock
    of the store.
    """
    rng = random.SystemRandom()
    own_object = folder / f"{machine()}-{os.getpid()}-{rng.getrandbits(32):08x}"
    for _ in range(4):  # contenders that see each other both withdraw, and retry after random delays
        _sign(own_object)
        other_holders = _living(folder, own_object)
        if not other_holders:
            break
        own_object.unlink(missing_ok=True)
        time.sleep(rng.uniform(0.05, 0.5))
    else:
        raise _Held(other_holders[0])
    held_lock = Lock()
    try:
        with heartbeat(HEARTBEAT, _Pulse(own_object, held_lock)):
            yield held_lock
    finally:
        own_object.unlink(missing_ok=True)


def _sign(own_object: ObjectPath) -> None:
    own_object.write_bytes(json.dumps(myself()).encode())


def _living(folder: ObjectPath, own_object: ObjectPath) -> list[str]:
    """Descriptions of the other live contenders; objects of dead ones are removed."""
    now, living = own_object.written(), []
    if now is None:
        return ["another process"]  # which presumed this one dead and removed its object
    for contender in folder.iterdir():
        signed_at = contender.written() if contender != own_object else None
        with contextlib.suppress(FileNotFoundError):  # the other contender withdrew meanwhile
            if signed_at is not None:
                holder = json.loads(contender.read_bytes())
                if is_dead(holder, now - signed_at):
                    contender.unlink(missing_ok=True)
                else:
                    living.append(_words(holder, now - signed_at))
    return living


class _Pulse:
    """Renews a held object at every beat, and detects when the lock has been lost to another process."""

    def __init__(self, mine: ObjectPath, held: Lock):
        self.mine, self.held, self.signed = mine, held, time.monotonic()

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # a network outage shorter than the lease is harmless
            if self.mine.exists():
                _sign(self.mine)
                self.signed = time.monotonic()
            else:
                self.held.lost_to = "another process"
        if time.monotonic() - self.signed > LEASE:
            self.held.lost_to = self.held.lost_to or "perhaps another process"
