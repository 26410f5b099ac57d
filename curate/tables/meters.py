"""The cost of a command, summed as its tasks finish, and its progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from curate.kinds.executor import TaskResult, Tasks
from curate.kinds.passes import GradientRequest, Pass
from curate.store.ledger import Meter, charged
from curate.tables.spec import TableSpec
from curate.tables.units import Unit

_BOTH_WAYS = ("forward", "backward", "projection")  # phases of a pass that computes gradients


class Meters:
    """The accounts of a pass, each a row of the ledger: one, or one per phase of a pass that computes gradients."""

    def __init__(self, jobs: Sequence[TableSpec], step: Pass, stack: ExitStack, prepared: str | None = None):
        """prepared: for a counting pass, the name of the state that it makes."""
        methods, names = [job.method.name for job in jobs], ", ".join(job.name for job in jobs)
        used = dict.fromkeys(choice.name for job in jobs for choice in job.models.values())
        columns = {
            "methods": methods,
            "name": names,
            "prepared": prepared,
            **({"model": ", ".join(used)} if used else {}),
        }
        both_ways = any(isinstance(request, GradientRequest) for request in step.requests.values())
        self._phases = _BOTH_WAYS if both_ways else (step.name,)
        self._meters: dict[str, Meter] = {}
        for phase in reversed(self._phases):  # closed in reverse order: the rows are in order of phase
            self._meters[phase] = stack.enter_context(charged(jobs[0].ws.path, "score", phase=phase, **columns))

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin."""
        for meter in self._meters.values():
            meter.begin(samples)

    def add(self, done: TaskResult) -> None:
        """Add the cost of a finished task."""
        for phase, meter in self._meters.items():
            meter.peak_bytes = max(meter.peak_bytes, done.peak_bytes)
            self._charge(phase, meter, done.result)

    def _charge(self, phase: str, meter: Meter, cost: Any) -> None:
        if isinstance(cost, float):
            meter.flops += cost
        elif cost is not None:
            meter.add(cost.phases[phase] if cost.phases else cost)


@contextmanager
def progress(jobs: Sequence[TableSpec], step: Pass, every: Sequence[Unit], todo: Tasks) -> Iterator[Any]:
    """A progress bar over the samples of a pass, hidden if stderr is not a terminal."""
    rows, left = sum(unit.samples for unit in every), todo.samples()
    with tqdm(
        total=max(rows, left),
        initial=max(rows - left, 0),
        desc=f"{', '.join(job.name for job in jobs)}: {step.name}",
        unit=" samples",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        yield bar
