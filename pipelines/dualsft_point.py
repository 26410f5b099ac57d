"""A point in parameter space, what its gradients predict of a step from there, and what that step does.

Shared by dualsft_diagnostics.py's questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from presets import Preset  # pyright: ignore[reportMissingImports]

from curate.gradients.gradient_model import GradientModel
from curate.gradients.interactions import look, products, summed
from curate.kinds.parameters import Parameters
from curate.methods.masks.random import Random as RandomMask
from curate.methods.scores.dualsft import Dualsft
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import encode
from curate.numerics.top_k import largest
from curate.store.ledger import charged
from curate.store.workspace import Workspace
from curate.training.examples import Examples
from curate.training.realised import RealisedTrial, Validation, realised

DATA, PARAMETERS = 0.10, 0.05  # the paper's budgets
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Point:
    """A point in parameter space from which a step is evaluated. samples: those of the pool that are scored. aim: the
    target's. anchors: held out; none where there is nothing to preserve yet."""

    name: str
    way: GradientModel
    method: Dualsft
    samples: Sequence[Any]
    aim: Sequence[Any]
    anchors: Sequence[Any]

    @cached_property
    def task(self) -> Arrays:
        (total,), (count,), _ = summed(self.way, self.aim)
        return {name: value / count for name, value in total.items()}

    def preserved(self, tau: float) -> Arrays:
        """The gradient of L_pre at a temperature."""
        loss = replace(self.method, tau=tau).distillation
        (total,), (count,), _ = summed(self.way, self.anchors, loss=loss, beside="origin")
        return {name: value / count for name, value in total.items()}

    @cached_property
    def v(self) -> Arrays:
        if not self.anchors:
            return self.task
        pre = self.preserved(self.method.tau)
        return {name: value + self.method.lam * pre[name] for name, value in self.task.items()}

    @cached_property
    def total(self) -> Arrays:
        """G, of all samples."""
        (total,), _, _ = summed(self.way, self.samples)
        return total

    @cached_property
    def bent(self) -> Arrays | None:
        """h * G / N; None where there is no optimizer state."""
        if (moments := self.way.backward.at.moments) is None:
            return None
        square = {name: value.double().cpu().numpy() for name, value in moments.square.items()}
        n = len(self.samples)
        return {name: self.method.curvature(square[name], moments.step) * g / n for name, g in self.total.items()}

    @cached_property
    def worths(self) -> dict[str, tuple[np.ndarray, Arrays]]:
        """order -> the value of each sample and of each parameter."""
        directions = [self.v] + ([self.bent] if self.bent else [])
        dot, s, n = look(self.way, self.samples, directions).dot, self.method.eta / len(self.samples), len(self.samples)
        by_order: dict[str, tuple[np.ndarray, Arrays]] = {"first": (s * dot[:, 0], products(self.v, self.total))}
        if self.bent:
            second = s**2 / 2 * n
            q = {name: s * v - second * self.bent[name] for name, v in self.v.items()}
            by_order["diagonal"] = (s * dot[:, 0] - second * dot[:, 1], products(q, self.total))
        return by_order

    def validation(self) -> Validation:
        lm, lam = self.way.backward.lm, self.method.lam if self.anchors else 0.0
        encoded_target, encoded_anchors = (
            encode(lm.tokenizer, samples, lm.context) for samples in (self.aim, self.anchors)
        )
        return Validation(self.way.backward, encoded_target, encoded_anchors, lam, self.method.distillation, "origin")


def best_elements(worths: Arrays, share: float) -> dict[str, np.ndarray]:
    """The indices of the most valuable share of all parameters."""
    sizes = {name: value.size for name, value in worths.items()}
    return largest(lambda name: worths[name], sizes, round(share * sum(sizes.values())))


def random_trials(point: Point, preset: Preset, what: str) -> list[RealisedTrial]:
    rng, all_rows = np.random.default_rng(0), np.arange(len(point.samples))
    if what == "data":
        size = min(preset.size, len(all_rows) // 2)
        return [RealisedTrial(rng.choice(len(all_rows), size, replace=False)) for _ in range(preset.trials)]
    return [RealisedTrial(all_rows, random_elements(point, PARAMETERS, seed)) for seed in range(preset.trials)]


def random_elements(point: Point, share: float, seed: int) -> dict[str, np.ndarray]:
    """A random share of every matrix's elements."""
    weights = {name: np.broadcast_to(0.0, shape) for name, shape in point.way.backward.at.shapes.items()}
    return RandomMask(seed=seed).init(Parameters(weights, round(share * sum(w.size for w in weights.values()))))


def realised_gains(
    ws: Workspace, point: Point, preset: Preset, trials: Sequence[RealisedTrial], horizons: Sequence[int], phase: str
) -> np.ndarray:
    """How much each trial lowers the validation loss, at each horizon; charged to the ledger, too."""
    settings = replace(preset.training, schedule="constant", warmup=0.0, lr=preset.dual.eta)
    lm = point.way.backward.lm
    examples = Examples.of(encode(lm.tokenizer, point.samples, lm.context))
    with charged(ws.path, "diagnose", methods=["dualsft"], name=point.name, phase=phase) as meter:
        meter.begin(len(trials))
        moments = point.way.backward.at.moments
        gains, usage = realised(lm, examples, trials, horizons, settings, Uniform(), point.validation(), moments)
        meter.add(usage)
    return gains


def predicted_gain(worths: tuple[np.ndarray, Arrays], trial: RealisedTrial) -> float:
    """The summed value of the samples that a trial trains on, or of the parameters that it trains."""
    rows, numbers = worths
    if trial.selected is None:
        return float(rows[trial.documents].sum())
    return float(sum(numbers[name].ravel()[positions].sum() for name, positions in trial.selected.items()))
