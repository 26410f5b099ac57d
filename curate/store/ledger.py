"""The ledger: the cost of each pass, appended when it ends and never modified (curate.store.ledger_files).

A running pass has an open account, a small file with its cost so far. Work is charged when it starts, so work lost to
a kill is charged too: the next time the workspace is opened, the account of a dead process becomes its row of the
ledger.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from curate.machine import is_dead, myself, peak_bytes
from curate.store.encoding import read_json, write_json
from curate.store.files import remove_leftovers
from curate.store.ledger_files import append, folder_of
from curate.store.locks import heartbeat
from curate.store.object_store import Location, ObjectPath

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_told: set[Location] = set()  # read-only workspaces of which it was said
_SAVED_EVERY = 2.0  # seconds between saves; a killed pass is charged at least up to its last save


class Meter:
    """Counts the work of a running pass; updated by the stage that runs it."""

    def __init__(self, account: Location, columns: dict[str, Any]) -> None:
        self.samples = 0
        self.through_model: dict[str, Any] = {}  # columns of a pass through a model
        self.flops = 0.0  # of a pass over vectors
        self.peak_bytes = 0  # of worker processes; `row` takes the maximum with this process's own
        self._account, self._columns = account, columns
        self._started, self._saved, self._lock = time.perf_counter(), 0.0, threading.Lock()

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin."""
        self.samples += samples
        # One request per unit to an object store would cost more than the information is worth.
        if not isinstance(self._account, ObjectPath) or time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()

    def add(self, usage: Any) -> None:
        """Add the cost of a unit's pass through a model (curate.models.usage.Usage)."""
        for column in ("tokens", "padded_tokens", "flops", "flops_paper", "flops_counted", "seconds"):
            if (amount := getattr(usage, column)) is not None:
                self.through_model[column] = (self.through_model.get(column) or 0) + amount
        self.through_model |= {"device": usage.device, "n_params": usage.n_params}

    def save(self) -> None:
        """Write the account as it is now, if any work was charged."""
        with self._lock:
            if self.samples:
                self._saved = time.monotonic()
                with noted_if_read_only(self._account.parent.parent.parent):
                    write_json(self._account, {"owner": myself(), "row": self.row()}, flush=False)

    def row(self) -> dict[str, Any]:
        """The row of the ledger. Missing columns are NULL, except the FLOPs of work without tensors, which are 0."""
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
    """Append one ledger row for the work in the body, even if it fails or is killed: lost work is charged too."""
    name = f"part-{time.time_ns()}-{os.getpid()}"  # unique, so two writers never share a file
    account = _accounts(workspace) / f"{name}.json"
    meter = Meter(account, {"stage": stage, **columns})
    try:
        with heartbeat(_SAVED_EVERY, meter.save):
            yield meter
    finally:
        if meter.samples:
            with noted_if_read_only(workspace):
                append(workspace, name, meter.row())
                account.unlink(missing_ok=True)


class Meters:
    """The accounts of work in several phases, each a row of the ledger."""

    def __init__(self, workspace: Location, stage: str, phases: Mapping[str, str], stack: ExitStack, **columns: Any):
        """phases: name -> name in the ledger. stack: closes the accounts when it is closed."""
        self._meters: dict[str, Meter] = {}
        for phase in reversed(list(phases)):  # closed in reverse order: the rows are in order of phase
            self._meters[phase] = stack.enter_context(charged(workspace, stage, phase=phases[phase], **columns))

    def __getitem__(self, phase: str) -> Meter:
        return self._meters[phase]

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin, to every phase."""
        for meter in self._meters.values():
            meter.begin(samples)

    def add(self, cost: Any, peak_bytes: int) -> None:
        """Add the cost of a finished task: FLOPs of a pass over vectors, a usage, whose phases are charged apart, or
        None. peak_bytes: of the worker process that did it."""
        for phase, meter in self._meters.items():
            meter.peak_bytes = max(meter.peak_bytes, peak_bytes)
            if isinstance(cost, float):
                meter.flops += cost
            elif cost is not None:
                meter.add(cost.phases[phase] if cost.phases else cost)

    def charge(self, phase: str, samples: int, usage: Any) -> None:
        """Add a usage and a number of samples to one phase, if there are accounts."""
        if self._meters:
            self._meters[phase].add(usage)
            self._meters[phase].begin(samples)


def close_dead_accounts(workspace: Location) -> None:
    """Move the accounts of dead processes into the ledger. Idempotent: a repeat writes the same row and file."""
    remove_leftovers(workspace / "ledger")
    for account in _accounts(workspace).glob("part-*.json"):
        with suppress(FileNotFoundError, ValueError):  # settled by another process; truncated by a power failure
            content = read_json(account)
            charged_at, name = datetime.fromisoformat(content["row"]["at"]), account.name.removesuffix(".json")
            if is_dead(content["owner"], (datetime.now(UTC) - charged_at).total_seconds()):
                append(workspace, name, {**content["row"], "at": charged_at}, again=True)  # killed after it, perhaps
                account.unlink(missing_ok=True)


def _accounts(workspace: Location) -> Location:
    return folder_of(workspace) / "open"


@contextmanager
def noted_if_read_only(workspace: Location) -> Iterator[None]:
    """Goes on after the body failed because nothing may be written in the workspace, as where one reads a copy that is
    another's; says once on the standard error that the cost is not recorded."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        if workspace not in _told:
            _told.add(workspace)
            print(f"note: {workspace} cannot be written, so what this costs is not recorded", file=sys.stderr)
