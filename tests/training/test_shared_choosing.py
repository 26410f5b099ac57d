"""Choosing within a step whose candidates several processes share: the same choice, weights and model as one alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uds_online import UdsOnline
from curate.training.settings import TrainSettings
from tests.support import forks
from tests.support.choosing import STEP, trainer_of
from tests.training.test_masked_choosing import half

THREE = replace(STEP, batch_size=1)  # candidates, for up to four processes
APART = replace(STEP, micro_batch_size=1)
TRAININGS: dict[str, tuple[Any, TrainSettings]] = {
    "adam": (FilterThenWeight(), STEP),
    "every parameter": (FilterThenWeight(), STEP),
    "projected": (FilterThenWeight(precondition="projected"), replace(STEP, projection=4)),
    "adam on the candidates": (FilterThenWeight(side="candidates"), STEP),
    "a choice of tokens": (FilterThenWeight(unit="token", filter="top", weigh="none"), STEP),
    "by position": (FilterThenWeight(positions="same", precondition="projected"), STEP),
    "passes apart": (FilterThenWeight(), APART),
    "positions, passes apart": (FilterThenWeight(positions="same", precondition="projected"), APART),
    "more processes than candidates": (TracinOnline(), THREE),
    "a target now and then": (LessOnline(), replace(STEP, target_every=2)),
    "curvature": (Greats(), STEP),
    "without a target": (GradNorm(), STEP),
    "all gradients": (GradMatch(), STEP),
    "a mask": (FilterThenWeight(), STEP),
    "losses": (MaxLoss(), STEP),
    "losses, passes apart": (MaxLoss(), APART),
}


def results(processes: Any = None) -> dict[str, np.ndarray]:
    """Of each training: its parameters, and of every step the documents, weights and losses, and the FLOPs."""
    found = {}
    for name, (weighting, settings) in TRAININGS.items():
        mask = half if name == "a mask" else None
        trainer = trainer_of(
            weighting, settings, name not in ("every parameter", "a mask"), processes=processes, mask=mask
        )
        steps = list(trainer.run())
        values = torch.cat([p.detach().flatten() for p in trainer.parameters.values()])
        found[f"{name}: parameters"] = values.numpy()
        for kind in ("documents", "weight", "loss"):
            found[f"{name}: {kind}"] = np.concatenate([getattr(step, kind) for step in steps])
        costs = [usage for step in steps for phase, usage in step.usage.items() if phase in ("train", "candidates")]
        found[f"{name}: tokens"] = np.array([sum(cost.tokens for cost in costs)])
    return found


SHARED = """
import sys, numpy as np
from accelerate import Accelerator
from tests.training.test_shared_choosing import results
processes = Accelerator(cpu=True)
found = results(processes)
np.savez(sys.argv[1] + str(processes.process_index), **found)
"""


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return results()


@pytest.mark.parametrize("count", [2, 4])
def test_the_choice_and_the_update_are_those_of_one_process(
    alone: dict[str, np.ndarray], count: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(29500 + os.getpid() % 1000 + count), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(count)} for i in range(count)]
    started = [forks.start(SHARED, str(tmp_path / "rank"), environment={**environment, **rank}) for rank in ranks]
    codes = [one.wait() for one in started]
    assert codes == [0] * count, "\n".join(one.stderr[-1500:] for one in started)
    for rank in range(count):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            for key, values in alone.items():
                assert np.allclose(found[key], values, rtol=1e-6, atol=1e-9), (key, found[key], values)


def test_what_compares_outputs_is_refused(alone: dict[str, np.ndarray]) -> None:
    class Two:
        num_processes, process_index, is_main_process = 2, 0, True

    with pytest.raises(Exception, match="'uds_online' compares outputs of all candidates, which one process has"):
        trainer_of(UdsOnline(), processes=Two())
