"""A small plan of an audit, the workspace that it is for, and what was found of each cell."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import curate
from curate.store.encoding import read_json
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE, copy_of
from tests.support.narrow import NARROW

PLAN: dict[str, Any] = {
    "model": {"name": NARROW, "device": "cpu"},
    "selectors": ["random", "lhas"],
    "seeds": 1,
    "budget": {"top": 16},
    "limit": 6,
    "out_of_domain": ["strings"],
    "stage": [{"name": name, "where": f"meta->>'skill' = '{name}'", "target": name} for name in ("facts", "program")],
    "train": {"steps": 2, "batch_size": 8, "lora_r": 4, "lr": 1e-3},
    "probe": {"steps": 2, "every": 1, "limit": 6},
    "measures": {"gradients": 8, "clusters": "meta->>'task'"},
}


def workspace(folder: Path) -> Workspace:
    return copy_of(_made(), folder)


@functools.cache
def _made() -> Path:
    """What the stages choose from, 70 samples each, and others beside."""
    folder = Path(tempfile.mkdtemp(prefix="curate-audit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    lines = (SAMPLE / "pool/forum.jsonl").read_text().splitlines()[:100]
    for file, skill, count in (("atlas.jsonl", "facts", 60), ("workshop.json", "program", 60)):
        its = [line.rstrip(",") for line in (SAMPLE / "pool" / file).read_text().splitlines()]
        lines += [line for line in its if f'"skill":"{skill}"' in line][:count]
    (folder / "pool.jsonl").write_text("\n".join(lines))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(folder / "pool.jsonl")], shard_bytes=10_000)
    for name in ("facts", "program", "strings"):
        for split in ("val", "test"):
            path = str(SAMPLE / f"targets/{name}_{split}.jsonl")
            curate.target(ws, name, path, subtask="subtask", split=split)
    return folder / "ws"


def cells(ws: Workspace, name: str = "two") -> dict[str, dict[str, Any]]:
    """What was found of each, but for what a clock or a kill changes."""
    found = {path.stem: read_json(path) for path in sorted((ws.path / "audits" / name / "cells").glob("*.json"))}
    return {stem: {k: v for k, v in cell.items() if k not in ("seconds", "flops")} for stem, cell in found.items()}
