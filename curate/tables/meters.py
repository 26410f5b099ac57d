"""The cost of a command, summed as its tasks finish, and its progress."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from curate.kinds.executor import Tasks
from curate.kinds.passes import GradientRequest, Pass
from curate.models.rates import measured
from curate.progress import Progress
from curate.store.ledger import Meters
from curate.tables.spec import TableSpec
from curate.tables.units import Unit

_BOTH_WAYS = ("forward", "backward", "projection")  # phases of a pass that computes gradients


def meters_of(jobs: Sequence[TableSpec], step: Pass, stack: ExitStack, prepared: str | None = None) -> Meters:
    """The accounts of a pass: one, or one per phase of a pass that computes gradients.

    prepared: for a counting pass, the name of the state that it makes.
    """
    both_ways = any(isinstance(request, GradientRequest) for request in step.requests.values())
    phases = _BOTH_WAYS if both_ways else (step.name,)
    models = dict.fromkeys(choice.name for job in jobs for choice in job.models.values())
    return Meters(
        jobs[0].ws.path,
        "score",
        dict(zip(phases, phases, strict=True)),
        stack,
        methods=[job.method.name for job in jobs],
        name=", ".join(job.name for job in jobs),
        prepared=prepared,
        **({"model": ", ".join(models), **_rates()} if models else {}),
    )


def _rates() -> dict[str, float]:
    """FLOP/s of the processor's matrix products, by column of the ledger, if they chose how a model is computed."""
    rates = measured()
    return {"float32_rate": rates.float32, "bfloat16_rate": rates.bfloat16} if rates else {}


def progress(jobs: Sequence[TableSpec], step: Pass, every: Sequence[Unit], todo: Tasks) -> Progress:
    """The progress of a pass, in samples."""
    rows, remaining = sum(unit.samples for unit in every), todo.samples()
    what = f"{', '.join(job.name for job in jobs)}: {step.name}"
    return Progress(what, max(rows, remaining), done=max(rows - remaining, 0))
