"""This machine and its processes: their identity, whether they are alive, and their peak memory."""

from __future__ import annotations

import functools
import gc
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes.

    VmHWM is preferred because a child's ru_maxrss on Linux starts from its parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Reset the peak that `peak_bytes` reports to the current memory, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_memory() -> float:
    """The bytes of memory that can be had without swapping, as far as the system says (Linux); else all there are."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For code that makes many objects and no circles of them, which the collector would look through again and
    again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def machine() -> str:
    """A name that is unique to this boot of this machine, even among machines with the same host name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    return f"{host}-{boot.read_text()[:8]}" if boot.exists() else host


def lives(process: int) -> bool:
    """Whether a process with this id is running on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


LEASE = 60.0  # seconds of silence after which a process on another machine is presumed dead


def myself() -> dict[str, Any]:
    """What identifies this process among all others: machine, host, process id and start time."""
    return {"machine": machine(), "host": socket.gethostname(), "process": os.getpid(), "born": _born(os.getpid())}


def is_dead(holder: dict[str, Any], silent_for: float) -> bool:
    """Whether a process, as `myself` described it there, is gone; on another machine: whether it has been silent for
    more than LEASE seconds."""
    if holder["machine"] != machine():
        return silent_for > LEASE
    return not lives(holder["process"]) or _born(holder["process"]) != holder["born"]


def _born(process: int) -> str | None:
    """The start time of a process on this machine (Linux clock ticks); needed because process ids are reused.

    None for a process that has ended, even while its id is kept for its parent (a zombie).
    """
    try:
        state, *more = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in ("Z", "X") else more[18]
    except (OSError, ValueError, IndexError):
        return None
