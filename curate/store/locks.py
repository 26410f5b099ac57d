"""One writer at a time: locks on parts of a workspace, with detection of dead holders.

On local disks a lock is an advisory lock of the operating system, which is released when its holder dies. Between
machines, and in object stores, such locks are unreliable: there the holder renews its claim every HEARTBEAT seconds,
and a holder that has been silent for LEASE seconds is presumed dead. On any of them the holder looks at its claim at
every beat, and learns so that it was taken over or removed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from curate.errors import CurateFailure, WorkspaceBusy
from curate.machine import LEASE, is_dead, machine, myself
from curate.store.object_store import Location, ObjectPath

HEARTBEAT = 10.0  # seconds between renewals of a held lock
FOREVER = math.inf  # for locks that are held for moments, or by one who does the same work
_PATIENCE = 1.0  # the most seconds between attempts while waiting for a lock


class Place(Protocol):
    """What is locked in parts: a workspace. wait: the seconds for which whoever opened it waits for a lock."""

    @property
    def path(self) -> Location:
        """Its folder."""
        ...

    @property
    def wait(self) -> float:
        """Seconds."""
        ...


class Lock:
    """A held lock. lost_to: who took it over, None while it is held."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lost_to: str | None = None

    def check(self) -> None:
        """Raises CurateFailure if the lock is no longer this process's."""
        if self.lost_to:
            raise CurateFailure(
                f"this process's claim on the {self.what} is gone: {self.lost_to}, as happens to one that gives no "
                f"sign of life for {LEASE:.0f} s; what was committed stands, so let no other write, and run this again."
            )


@contextlib.contextmanager
def heartbeat(seconds: float, beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` every `seconds` in a background thread while the body runs. A beat that fails with an OSError (a disk
    that is full, or away for a while) is followed by the next one all the same."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(seconds):
            with contextlib.suppress(OSError):
                beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextlib.contextmanager
def lock(place: Place | Location, what: str, wait: float | None = None) -> Iterator[Lock]:
    """Hold a part of a workspace (`pool`, `score bm25`, …) for writing.

    wait: how many seconds to wait until it is free; default: as long as the workspace was opened for, 0 for a folder.
    Raises WorkspaceBusy, which names the holder, if it is not free then.
    """
    folder, patience = (place, 0.0) if isinstance(place, Path | ObjectPath) else (place.path, place.wait)
    patience, began, pause = patience if wait is None else wait, time.monotonic(), _PATIENCE / 64
    path = folder / ".claims" / what.replace(" ", "-")
    with contextlib.ExitStack() as stack:
        while True:
            try:
                held_lock = stack.enter_context(
                    _hold_object(path, what) if isinstance(path, ObjectPath) else _hold_file(path, what)
                )
                break
            except _Held as held:
                waited = time.monotonic() - began
                if waited >= patience:
                    raise _busy(folder, what, held, waited if patience else 0.0) from None
            pause = min(2 * pause, _PATIENCE)
            time.sleep(min(pause, patience - waited))
        yield held_lock


class _Held(Exception):
    """Another process, which the message names, holds the lock. holder: its claim, as far as it can be read."""

    def __init__(self, words: str, holder: dict[str, Any] | None):
        super().__init__(words)
        self.holder = holder or {}


def _busy(folder: Location, what: str, held: _Held, waited: float) -> WorkspaceBusy:
    since = held.holder.get("since")
    begun = datetime.fromisoformat(since) if since else None
    at_work = f", since {begun:%Y-%m-%d %H:%M:%S} UTC" if begun else ""
    in_vain = f" (waited {waited:.0f} s)" if waited else ""
    message = (
        f"{folder}: {held} is writing the {what}{at_work}{in_vain}; wait for it to end (--wait SECONDS), or stop it "
        "and run this again."
    )
    return WorkspaceBusy(message, what, held.holder.get("process"), held.holder.get("host"), begun, waited)


def _words(holder: dict[str, Any], silent_for: float) -> str:
    process = f"process {holder['process']} on {holder['host']}"
    if holder["machine"] == machine():
        return process
    return f"{process} (last sign of life {silent_for:.0f} s ago; taken for dead after {LEASE:.0f} s)"


def _claim() -> dict[str, Any]:
    """What a claim says: who holds it, and since when."""
    return {**myself(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _is_mine(holder: dict[str, Any]) -> bool:
    return {**holder, **myself()} == holder


@contextlib.contextmanager
def _hold_file(path: Path, what: str) -> Iterator[Lock]:
    """The operating system's lock on PATH.lock, and PATH, which names the holder: its mtime is the last sign of life.

    These are two files because filelock, depending on its version, empties or removes the file that it locks.
    """
    from filelock import FileLock, Timeout  # which only writers load

    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # thread_local: whichever thread leaves the block gives the lock back
        file_lock = FileLock(f"{path}.lock", thread_local=False).acquire(blocking=False)
    except Timeout:
        holder, silent_for = _holder(path)
        raise _Held(_words(holder, silent_for) if holder else "another process", holder) from None
    with file_lock:
        holder, silent_for = _holder(path)
        if holder and _is_at_work(holder, silent_for):
            raise _Held(_words(holder, silent_for), holder)
        path.write_text(json.dumps(_claim()), encoding="utf-8")
        held_lock = Lock(what)
        pulse = _FilePulse(path, held_lock)
        try:
            with heartbeat(HEARTBEAT, pulse):
                yield held_lock
        finally:
            pulse.look()
            if not held_lock.lost_to:  # else it is another's
                path.write_text("", encoding="utf-8")


class _FilePulse:
    """Renews a claim at every beat, and learns when it is another's, or was removed."""

    def __init__(self, path: Path, held: Lock):
        self.path, self.held = path, held

    def __call__(self) -> None:
        self.look()
        if not self.held.lost_to:
            os.utime(self.path)

    def look(self) -> None:
        """Whose the claim is now. One that cannot be read at the moment tells nothing."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self.held.lost_to = f"{self.path} was removed"
            return
        except OSError:  # the disk is away, and may come back
            return
        holder = _read_claim(text)
        if holder is None:
            self.held.lost_to = f"{self.path} was emptied"
        elif not _is_mine(holder):
            self.held.lost_to = f"{_words(holder, 0.0)} took it over"


def _read_claim(text: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(text)
    except ValueError:
        return None  # free, or about to be taken
    return holder if isinstance(holder, dict) and myself().keys() <= holder.keys() else None


def _holder(path: Path) -> tuple[dict[str, Any] | None, float]:
    """Who is named as the holder, None if nobody is, and the seconds since its last sign of life."""
    try:
        return _read_claim(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None, 0.0


def _is_at_work(holder: dict[str, Any], silent_for: float) -> bool:
    """Whether another process holds the lock although the operating system granted it to this one.

    It is on another machine, which this one's locks may not reach, or it is an earlier version of curate, which locked
    the file with the names itself. (An earlier version also left its name there if it failed, without further signs
    of life.)
    """
    return not _is_mine(holder) and silent_for <= LEASE and not is_dead(holder, silent_for)


@contextlib.contextmanager
def _hold_object(folder: ObjectPath, what: str) -> Iterator[Lock]:
    """One object per contender under the lock's prefix; a contender that sees another live one withdraws.

    Each contender writes its object and then lists the prefix: of two, at least one sees the other, so both never hold
    the lock. (The stores are strongly consistent: a listing shows every object written before.) Times are by the clock
    of the store.
    """
    rng = random.SystemRandom()
    own_object = folder / f"{machine()}-{os.getpid()}-{rng.getrandbits(32):08x}"
    claim = json.dumps(_claim()).encode()
    for _ in range(4):  # contenders that see each other both withdraw, and retry after random delays
        own_object.write_bytes(claim)
        other_holders = _living(folder, own_object)
        if not other_holders:
            break
        own_object.unlink(missing_ok=True)
        time.sleep(rng.uniform(0.05, 0.5))
    else:
        raise other_holders[0]
    held_lock = Lock(what)
    try:
        with heartbeat(HEARTBEAT, _Pulse(own_object, held_lock, claim)):
            yield held_lock
    finally:
        own_object.unlink(missing_ok=True)


def _living(folder: ObjectPath, own_object: ObjectPath) -> list[_Held]:
    """The other live contenders; objects of dead ones are removed."""
    now, living = own_object.written(), list[_Held]()
    if now is None:
        return [_Held("another process", None)]  # which presumed this one dead and removed its object
    for contender in folder.iterdir():
        signed_at = contender.written() if contender != own_object else None
        with contextlib.suppress(FileNotFoundError):  # the other contender withdrew meanwhile
            if signed_at is not None:
                holder = json.loads(contender.read_bytes())
                if is_dead(holder, now - signed_at):
                    contender.unlink(missing_ok=True)
                else:
                    living.append(_Held(_words(holder, now - signed_at), holder))
    return living


class _Pulse:
    """Renews a held object at every beat, and detects when the lock has been lost to another process."""

    def __init__(self, mine: ObjectPath, held: Lock, claim: bytes):
        self.mine, self.held, self.claim, self.signed = mine, held, claim, time.monotonic()

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # a network outage shorter than the lease is harmless
            if self.mine.exists():
                self.mine.write_bytes(self.claim)
                self.signed = time.monotonic()
            else:
                self.held.lost_to = "another process took it over"
        if time.monotonic() - self.signed > LEASE:
            self.held.lost_to = self.held.lost_to or "perhaps another process took it over"
