"""What a command spends, added up as its tasks end, and its progress bar."""

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

_BOTH_WAYS = ("forward", "backward", "projection")  # phases of a pass that takes gradients


class Meters:
    """The accounts of a pass, each a row of the ledger: one, or one for each phase of a pass that takes gradients."""

    def __init__(self, jobs: Sequence[TableSpec], step: Pass, stack: ExitStack, prepared: str | None = None):
        """prepared: of a counting pass, what it makes."""
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
        for phase in reversed(self._phases):  # what is opened last is entered first
            self._meters[phase] = stack.enter_context(charged(jobs[0].ws.path, "score", phase=phase, **columns))

    def begin(self, samples: int) -> None:
        """Charge the work on so many samples that is about to begin."""
        for meter in self._meters.values():
            meter.begin(samples)

    def add(self, done: TaskResult) -> None:
        """What a task has cost."""
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
    """A bar over the samples of a pass, quiet where stderr is no terminal."""
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
