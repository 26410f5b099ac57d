"""Interleaved pairs, the only way two programs can be compared on a shared machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any


def timed(f: Callable[[], Any]) -> float:
    torch = sys.modules.get("torch")  # a GPU goes on when its caller does
    wait = torch.cuda.synchronize if torch is not None and torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    f()
    wait()
    return time.perf_counter() - start


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], pairs: int) -> tuple[float, float, float]:
    """Median, least and greatest of slow/fast over interleaved pairs, after one pair that is not counted."""
    ratios = [timed(slow) / timed(fast) for _ in range(pairs + 1)][1:]
    return statistics.median(ratios), min(ratios), max(ratios)


def told(name: str, found: Sequence[float], wanted: str, good: bool) -> None:
    median, low, high = found
    print(f"{name:52} {median:8.2f}x  ({low:.2f} to {high:.2f})   wanted {wanted}: {'holds' if good else 'MISSED'}")


def machine(*packages: str) -> None:
    versions = ", ".join(f"{p} {version(p)}" for p in packages)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n")
