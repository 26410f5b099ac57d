"""The ledger: what each pass cost, appended as one small part per pass and never changed.

A pass under way has an open account, a small file that says what it has cost so far. Work is charged when it begins,
so what a kill throws away is charged too: the account of a dead process becomes its row of the ledger, as it stands,
the next time the workspace is opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from curate.machine import is_dead, myself, peak_bytes
from curate.store.encoding import read_json, write_json, write_table
from curate.store.files import remove_leftovers
from curate.store.locks import heartbeat
from curate.store.object_store import Location, ObjectPath
from curate.store.schema import LEDGER

_SAVED_EVERY = 2.0  # seconds; a killed pass is charged at least up to then


class Meter:
    """Counts what a pass does while it runs; filled in by the stage that runs it."""

    def __init__(self, account: Location, columns: dict[str, Any]) -> None:
        self.samples = 0
        self.through_model: dict[str, Any] = {}  # columns of a pass through a model
        self.flops = 0.0  # of a pass over vectors
        self.peak_bytes = 0  # of worker processes; this one's own is added at the end
        self._account, self._columns = account, columns
        self._started, self._saved, self._lock = time.perf_counter(), 0.0, threading.Lock()

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin."""
        self.samples += samples
        # A request to an object store for each unit would cost more than it tells.
        if not isinstance(self._account, ObjectPath) or time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()

    def add(self, usage: Any) -> None:
        """What a unit has cost on its way through a model (curate.models.usage.Usage)."""
        for what in ("tokens", "padded_tokens", "flops", "flops_paper", "flops_counted", "seconds"):
            if (more := getattr(usage, what)) is not None:
                self.through_model[what] = (self.through_model.get(what) or 0) + more
        self.through_model |= {"device": usage.device, "n_params": usage.n_params}

    def save(self) -> None:
        with self._lock:
            if self.samples:
                write_json(self._account, {"owner": myself(), "row": self.row()}, flush=False)
                self._saved = time.monotonic()

    def row(self) -> dict[str, Any]:
        """Columns left out are null, but for the FLOPs of work without tensors, which are zero."""
        return {
            "at": datetime.now(UTC),
            "samples": self.samples,
            "seconds": time.perf_counter() - self._started,
            "flops_paper": 0.0,
            "flops": self.flops,
            "device": "cpu",
            "peak_bytes": max(self.peak_bytes, peak_bytes()),
            **self.through_model,
            **self._columns,
        }


@contextmanager
def charged(workspace: Location, stage: str, **columns: Any) -> Iterator[Meter]:
    """Append one ledger row for the work inside, also when it fails or is killed: thrown-away work is charged too."""
    name = f"part-{time.time_ns()}-{os.getpid()}"  # two writers never meet in one file
    account = _accounts(workspace) / f"{name}.json"
    meter = Meter(account, {"stage": stage, **columns})
    try:
        with heartbeat(_SAVED_EVERY, meter.save):
            yield meter
    finally:
        if meter.samples:
            _append(workspace, name, meter.row())
            account.unlink(missing_ok=True)


def close_dead_accounts(workspace: Location) -> None:
    """Enter the accounts of dead processes into the ledger. Done twice, it writes the same row to the same place."""
    remove_leftovers(workspace / "ledger")
    for account in _accounts(workspace).glob("part-*.json"):
        with suppress(FileNotFoundError, ValueError):  # another process settled it meanwhile; cut by a loss of power
            opened = read_json(account)
            at, name = datetime.fromisoformat(opened["row"]["at"]), account.name.removesuffix(".json")
            if is_dead(opened["owner"], (datetime.now(UTC) - at).total_seconds()):
                if not _row_path(workspace, name).exists():  # else it was killed between its row and this
                    _append(workspace, name, {**opened["row"], "at": at})
                account.unlink(missing_ok=True)


def _accounts(workspace: Location) -> Location:
    return workspace / "ledger" / "open"


def _row_path(workspace: Location, name: str) -> Location:
    return workspace / "ledger" / f"{name}.parquet"


def _append(workspace: Location, name: str, row: dict[str, Any]) -> None:
    write_table(_row_path(workspace, name), pa.Table.from_pylist([row], schema=LEDGER))
