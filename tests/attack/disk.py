"""A disk with little room: a verb ends in a sentence, and with room the same command ends in the undisturbed bytes.

Every verb is run on a small file system in memory, with 0, 24 or 200 KB left, in a name space of its own:

    fit          there was room enough
    said         it ended in one sentence (or the system's own error, which the command line says as one)
    LOST         with room again, other bytes than those of an undisturbed run, or `verify` finds damage
    UNEXPECTED   another exception
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from functools import partial
from pathlib import Path
from random import Random

from curate.errors import CurateError
from tests.attack import children, kills
from tests.attack.tally import Tally

OUTCOMES = ("fit", "said", "LOST", "UNEXPECTED")
BAD = ("LOST", "UNEXPECTED")
ROOM = (0, 24, 200)  # KB
_WHOLE = 1 << 20  # KB
_NEW_USER, _NEW_MOUNTS, _REMOUNT = 0x10000000, 0x20000, 32


def _mount(folder: Path, size: int, flags: int = 0) -> None:
    """Mount a file system of so many KB in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}k".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _alone() -> None:
    """A name space of its own for this process, in which it may mount."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def is_permitted(folder: Path) -> bool:
    """Whether a user may mount a small file system here."""

    def tried() -> None:
        _alone()
        _mount(folder, 64)

    ended = children.in_child(tried)
    return not ended.status and not ended.error


def _squeezed(stage: kills.Stage, room: int) -> tuple[str, str]:
    """Run a verb with so many KB left, and again with all. In a process of its own."""
    place, verb = stage.place, stage.verb
    _alone()
    place.parent.mkdir(exist_ok=True)
    _mount(place.parent, _WHOLE)
    shutil.copytree(stage.before, place)
    used = os.statvfs(place.parent)
    _mount(place.parent, (used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + max(room, 1), _REMOUNT)
    if not room:
        _fill(place.parent)
    ended = children.in_child(lambda: verb(place))
    (place.parent / "fill").unlink(missing_ok=True)
    _mount(place.parent, _WHOLE, _REMOUNT)
    if ended.status or ended.error and not _is_sentence(ended.error):
        return "UNEXPECTED", f"{ended.status} {type(ended.error).__name__}: {ended.error}"
    result, why = kills.outcome(verb, place, stage.whole)
    if result in BAD:
        return result, f"{why} after {ended.error!r}"
    return ("said" if ended.error else "fit"), f"{ended.error}"


def _fill(folder: Path) -> None:
    with open(folder / "fill", "wb", buffering=0) as f:
        try:
            while True:
                f.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _is_sentence(error: BaseException) -> bool:
    if isinstance(error, CurateError):
        return "\n" not in str(error)
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def attack(folder: Path, seed: int, seconds: float, names: list[str] | None = None, most: int = 1 << 60) -> Tally:
    """Every verb with every room, in an order at random, for some seconds, at most so many."""
    tally, end = Tally("disk", OUTCOMES, BAD), time.monotonic() + seconds
    small = folder / "small"
    small.mkdir()
    if not is_permitted(small):
        tally.wrong.append("not tried: this machine lets no user mount a small file system")
        return tally
    stages = list(kills.stages(folder, small / "place", names))
    cases: list[tuple[kills.Stage, int]] = [(stage, room) for stage in stages for room in ROOM]
    for stage, room in Random(seed).sample(cases, len(cases)):
        if tally.tried >= most or time.monotonic() > end:
            break
        ended = children.in_child(partial(_squeezed, stage, room), 300)
        result, why = ended.value if ended.value else ("UNEXPECTED", f"{ended.status} {ended.error!r}")
        tally.add(stage.name, result, f"{stage.name}, {room} KB: {why}")
    return tally
