"""Interleaved pairs, the only way two programs can be compared on a shared machine; and figures, printed and kept.

Every figure is a line of JSON in build/bench.jsonl, or in $CURATE_BENCH, from which `python -m tests.bench.figures`
takes those that docs/performance.md shows.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_versions: dict[str, str] = {}  # of the packages that `machine` named


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
    return spread([timed(slow) / timed(fast) for _ in range(pairs + 1)][1:])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def told(
    name: str,
    found: Sequence[float],
    wanted: str,
    good: bool,
    note: str = "",
    limit: str = "",
    near: float | None = None,
) -> None:
    """A ratio: its median, least and greatest. The rest as for `figure`."""
    figure(name, found, "x", wanted, good, note, limit, near)


def figure(
    name: str,
    found: float | Sequence[float],
    unit: str,
    wanted: str = "",
    good: bool | None = None,
    note: str = "",
    limit: str = "",
    near: float | None = None,
) -> None:
    """Print a figure, and keep it.

    name: what it is of, the same in every run. found: a number, or its median, least and greatest. unit: x, s, GiB, …
    wanted, good: the bound it should keep, as in ">= 2x", and whether it does. note: what of this run is worth saying.
    limit: what it works against; near: the share of that, as far as the benchmark measures it.
    """
    values = [found, found, found] if isinstance(found, int | float) else list(found)
    median, low, high = (float(value) for value in values)
    shown = [short(value, unit) for value in (median, low, high)]
    interval = f"({shown[1]} to {shown[2]})" if low < high else ""
    verdict = f"   wanted {wanted}: {'holds' if good else 'MISSED'}" if wanted and good is not None else ""
    told_near = f"   {near:.0%} of {limit}" if near is not None else ""
    told_note = f"   ({note})" if note else ""
    print(f"{name:58} {shown[0]:>9} {unit:4} {interval:20}{verdict}{told_near}{told_note}", flush=True)
    kept = {"ratio" if unit == "x" else "value": median, "interval": [low, high], "unit": unit}
    near, good = near if near is None else float(near), good if good is None else bool(good)
    _keep({"what": name, **kept, "wanted": wanted, "holds": good, "limit": limit, "near": near, "note": note})


def short(value: float, unit: str = "") -> str:
    """Three digits of a number; shares (unit %) in hundredths."""
    value = 100 * value if unit == "%" else value
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" if abs(value) >= 1 else f"{value:.3g}"


def machine(*packages: str) -> None:
    """Print what it runs on, and keep these packages' versions with every figure that follows."""
    _versions.update({package: version(package) for package in packages})
    versions = ", ".join(f"{p} {version(p)}" for p in packages)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n")


def matrix_rate(device: Any, dtype: Any) -> float:
    """FLOPs a second of large matrix products in a dtype, by torch."""
    import torch

    n = 8192 if torch.device(device).type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    timed(lambda: a @ a)
    return 2.0 * n**3 / min(timed(lambda: a @ a) for _ in range(5))


# --- lines of JSON ---------------------------------------------------------------------------------------


def _keep(line: dict[str, Any]) -> None:
    path = Path(os.environ.get("CURATE_BENCH") or ROOT / "build/bench.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.now(UTC).date().isoformat(), "commit": _commit(), "command": _command()}
    made_on = {"device": _device(), "rates": _rates(), "versions": {"python": platform.python_version(), **_versions}}
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps({**about, **line, **made_on}, ensure_ascii=False, separators=(",", ":")) + "\n")


def _command() -> str:
    """What was run; of a path only its last part, as another machine has others."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec is not None else "?"
    return " ".join(["python -m", name, *(word.rstrip("/").rpartition("/")[2] for word in sys.argv[1:])])


@functools.cache
def _commit() -> str:
    """The commit of the tree, with a + if files of it were changed since; '' outside git."""
    asked = ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


@functools.cache
def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores"


@functools.cache
def _rates() -> dict[str, float] | None:
    """FLOPs a second of matrix products in float32 and bfloat16, where torch is used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: matrix_rate(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
