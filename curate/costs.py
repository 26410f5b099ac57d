"""The ledger: what each pass cost, appended as one small part per pass and never changed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.schema import LEDGER
from curate.shards import write_table


class Meter:
    """Counts what a pass does while it runs; filled in by the stage that runs it."""

    def __init__(self) -> None:
        self.samples = 0
        self.started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started


@contextmanager
def charged(workspace: Path, stage: str, **columns: Any) -> Iterator[Meter]:
    """Append one ledger row for the work inside, also when it fails: thrown-away work is charged too."""
    meter = Meter()
    try:
        yield meter
    finally:
        if meter.samples:
            _append(workspace, stage=stage, samples=meter.samples, seconds=meter.seconds(), **columns)


def _append(workspace: Path, **columns: Any) -> None:
    """Columns left out are null, but for the FLOPs of work without tensors, which are zero."""
    row = {
        "at": datetime.now(UTC),
        "flops_paper": 0.0,
        "flops": 0.0,
        "device": "cpu",
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **columns,
    }
    folder = workspace / "ledger"
    name = f"part-{time.time_ns()}-{os.getpid()}.parquet"  # two writers never meet in one file
    write_table(folder / name, pa.Table.from_pylist([row], schema=LEDGER))
