"""A line of JSON for each figure, on the disk as soon as it is known."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.gpu.figures import BY_NAME

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "safetensors")


class Lines:
    """Writes lines into a file, behind those that it has, and keeps them.

    about: what is the same in all of them: device, versions, commit, date, size.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.about, self.kept = path, dict(about), list[dict[str, Any]]()

    def figure(self, name: str, value: float, limit: str = "", near: float | None = None, **more: Any) -> None:
        """A figure was measured. limit: what it works against; near: the share of that. more: shapes, note, …"""
        figure, value = BY_NAME[name], float(value)
        finite = value == value and abs(value) != float("inf")
        line = {"figure": name, "value": value if finite else None, "unit": figure.unit, "goal": figure.goal()}
        more = more if finite else {**more, "why": f"it came out as {value}"}
        holds = figure.holds(value, self.about["on"])
        self._write({**line, "holds": holds, "limit": limit, "near": near, **more})
        verdict = {True: "holds", False: "MISSED", None: ""}[holds]
        note = f"   ({more['note']})" if more.get("note") else ""
        shown = 100 * value if figure.unit == "%" else value
        told(f"{name:20} {shown:>12.4g} {figure.unit:8} {figure.goal():14} {verdict:7}{note}".rstrip())

    def untried(self, name: str, why: str, failed: bool = False) -> None:
        """A figure was not measured. failed: although it was tried."""
        self._write({"figure": name, "value": None, "holds": False if failed else None, "why": why})
        told(f"{name:20} {'failed' if failed else 'untried':>12}: {why}")

    def _write(self, line: dict[str, Any]) -> None:
        self.kept.append(line)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({**line, **self.about}, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())


def told(text: str) -> None:
    """Print a line at once: a run that is killed has said what it knew."""
    print(text, flush=True)


def about(device: str, size: str, commit: str) -> dict[str, Any]:
    """What every line of a run has in common."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    made = {"date": datetime.now(UTC).date().isoformat(), "commit": commit or _commit(), "on": device, "size": size}
    return {**made, "device": _device(device), "versions": versions}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the tree, with a + if files of it were changed since; '' outside git, as in a copy."""
    asked = ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def _device(device: str) -> str:
    if device == "cuda":
        torch: Any = sys.modules["torch"]
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


class Untried(Exception):
    """Why a figure cannot be made here."""
