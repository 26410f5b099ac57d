"""This machine and its processes: who is who, who still lives, how much memory one has held."""

from __future__ import annotations

import functools
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most memory this process has held. (Linux's ru_maxrss begins with that of the process which started it.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `peak_bytes` be of what this process holds from now on, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@functools.cache
def machine() -> str:
    """A name for this machine that another one, even of the same host name, does not bear."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    return f"{host}-{boot.read_text()[:8]}" if boot.exists() else host


def lives(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


LEASE = 60.0


def myself() -> dict[str, Any]:
    """What tells this process from every other."""
    return {"machine": machine(), "host": socket.gethostname(), "process": os.getpid(), "born": _born(os.getpid())}


def is_dead(holder: dict[str, Any], silent_for: float) -> bool:
    """Whether a process, as `myself` described it there, is gone; one of another machine, whether it has been silent
    for LEASE seconds."""
    if holder["machine"] != machine():
        return silent_for > LEASE
    return not lives(holder["process"]) or _born(holder["process"]) != holder["born"]


def _born(process: int) -> str | None:
    """When a process of this machine started, as Linux counts; numbers of processes are used again."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
