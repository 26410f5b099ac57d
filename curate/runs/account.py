"""The running cost of a training, by phase, for the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from curate.results import Result
from curate.runs.config import TrainingSpec
from curate.store.ledger import Meters
from curate.store.run_record import Run

_PHASES = ("train", "losses", "anchors", "candidates", "target", "selection", "base losses", "evaluate")


@dataclass
class Trained(Result):
    """The summary of a training run."""

    name: str
    folder: str = ""
    steps: int = 0
    steps_now: int = 0
    samples: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> samples
    cut: int = 0
    partial: int = 0  # samples of which some turns are not supervised
    loss: float | None = None  # of the last step
    weight_mean: float | None = None
    flops: float = 0.0
    by_epoch: list[dict[str, Any]] = field(default_factory=list)  # weights, and the measure they were computed from
    by_source: list[dict[str, Any]] = field(default_factory=list)  # share of the samples seen, and of their weight
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    planned: dict[str, Any] | None = None


@dataclass(frozen=True)
class Account:
    """How a training is entered in the ledger: stage, methods, name; its phases' names there (ours -> theirs); and
    whether it is part of what the papers' convention counts."""

    stage: str
    methods: list[str]
    name: str
    phases: Mapping[str, str] = field(default_factory=dict)
    in_papers: bool = True


def run_meters(run: Run, training: TrainingSpec, account: Account | None, stack: ExitStack, writes: bool) -> Meters:
    """The accounts of a run's phases; none in a process that does not write."""
    account = account or Account("train", [training.weighting.name], run.name)
    return Meters(
        run.ws.path,
        account.stage,
        {phase: account.phases.get(phase, phase) for phase in _PHASES} if writes else {},
        stack,
        methods=account.methods,
        name=account.name,
        model=training.model.name,
        run=run.account,
    )
