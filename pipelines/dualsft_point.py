"""A point in parameter space, what its gradients predict of a step from there, and what that step does.

Shared by dualsft_diagnostics.py's questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from msgspec import structs
from presets import Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.gradients.gradient_model import GradientModel
from curate.gradients.interactions import flat, look, products, reselect, summed
from curate.gradients.optimizer_state import Moments
from curate.kinds.parameters import Parameters
from curate.methods.masks.random import Random as RandomMask
from curate.methods.scores.dualsft import Dualsft
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import encode
from curate.numerics.selection_profile import place_of
from curate.numerics.top_k import largest
from curate.runs.scored_model import scored_model
from curate.store.ledger import charged
from curate.store.mask_file import read_mask, write_mask
from curate.store.workspace import Workspace
from curate.training.examples import Examples
from curate.training.realised import Decreases, RealisedTrial, Start, Validation, realised
from curate.verbs.select import SelectionSpec

DATA, PARAMETERS = 0.10, 0.05  # the paper's budgets
TERMS = ("sum", "task", "preserved")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """How the trials train that scores are held against. lr: of AdamW; of SGD the rate at which a step along the mean
    gradient of all samples is as long as AdamW's first. start: AdamW without a state, with the warm-up's second
    moments, or with both; or SGD. clip: the gradient's largest norm; 0: any. reduction: as of the trainer. drawn: how
    the masks are drawn."""

    lr: float
    horizons: tuple[int, ...]
    start: Literal["fresh", "second", "all", "sgd"] = "fresh"
    clip: float = 0.0
    reduction: Literal["sample", "token"] = "sample"
    drawn: Literal["coordinates", "blocks", "modules"] = "blocks"

    def __str__(self) -> str:
        start = {"fresh": "AdamW", "second": "AdamW, second moments", "all": "AdamW, all moments", "sgd": "SGD"}
        parts = [f"{start[self.start]}, {self.lr:g}", "token mean" if self.reduction == "token" else ""]
        parts += [f"clipped at {self.clip:g}" if self.clip else "", self.drawn if self.drawn != "blocks" else ""]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Point:
    """A point in parameter space from which a step is evaluated. samples: those of the pool that are scored. aim: the
    target's. anchors: held out; none where there is nothing to preserve yet. moments: AdamW's, where the point has none
    of its own."""

    name: str
    way: GradientModel
    method: Dualsft
    samples: Sequence[Any]
    aim: Sequence[Any]
    anchors: Sequence[Any]
    moments: Moments | None = None

    @property
    def state(self) -> Moments | None:
        return self.moments or self.way.backward.at.moments

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
        if (moments := self.state) is None:
            return None
        square = {name: value.double().cpu().numpy() for name, value in moments.square.items()}
        n = len(self.samples)
        return {name: self.method.curvature(square[name], moments.step) * g / n for name, g in self.total.items()}

    @cached_property
    def worths(self) -> dict[str, tuple[np.ndarray, Arrays]]:
        """What -> the value of each sample and of each parameter: by the order of the expansion (first, diagonal), and
        to first order of either term of the validation loss alone (task, preserved)."""
        pre = self.preserved(self.method.tau) if self.anchors else None
        directions = [self.v, self.task] + ([pre] if pre else []) + ([self.bent] if self.bent else [])
        dot, s, n = look(self.way, self.samples, directions).dot, self.method.eta / len(self.samples), len(self.samples)
        found: dict[str, tuple[np.ndarray, Arrays]] = {
            "first": (s * dot[:, 0], products(self.v, self.total)),
            "task": (s * dot[:, 1], products(self.task, self.total)),
        }
        if pre:
            found["preserved"] = (s * dot[:, 2], products(pre, self.total))
        if self.bent:
            second = s**2 / 2 * n
            q = {name: s * v - second * self.bent[name] for name, v in self.v.items()}
            found["diagonal"] = (s * dot[:, 0] - second * dot[:, -1], products(q, self.total))
        return found

    @property
    def orders(self) -> list[str]:
        return [name for name in ("first", "diagonal") if name in self.worths]

    def start(self, protocol: Protocol) -> tuple[Start, float]:
        """The optimizer of a protocol, and its learning rate."""
        if protocol.start == "sgd":
            mean, count = flat(self.total) / len(self.samples), sum(g.size for g in self.total.values())
            return Start("sgd"), protocol.lr * count**0.5 / float(np.linalg.norm(mean))
        moments = None if protocol.start == "fresh" else self.state
        return Start(moments=moments, keep="second" if protocol.start == "second" else "all"), protocol.lr

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


def random_trials(point: Point, preset: Preset, what: str, drawn: str = "blocks") -> list[RealisedTrial]:
    rng, all_rows = np.random.default_rng(0), np.arange(len(point.samples))
    if what == "data":
        size = min(preset.size, len(all_rows) // 2)
        return [RealisedTrial(rng.choice(len(all_rows), size, replace=False)) for _ in range(preset.trials)]
    return [RealisedTrial(all_rows, drawn_elements(point, PARAMETERS, drawn, seed)) for seed in range(preset.trials)]


def drawn_elements(point: Point, share: float, how: str, seed: int) -> dict[str, np.ndarray]:
    """A random share of all parameters. coordinates: of every tensor the same share of its elements; blocks: whole
    tensors (a module of a layer), one after another, and of the last as many elements as are left; modules: elements of
    all layers' tensors of one kind of module, and of the next where these are too few."""
    if how == "coordinates":
        return random_elements(point, share, seed)
    sizes = {name: int(np.prod(shape)) for name, shape in point.way.backward.at.shapes.items()}
    rng, left = np.random.default_rng(seed), round(share * sum(sizes.values()))
    groups: dict[str, list[str]] = {}
    for name in sizes:
        groups.setdefault(name if how == "blocks" else place_of(name)[1], []).append(name)
    chosen: dict[str, np.ndarray] = {}
    for key in rng.permutation(sorted(groups)):
        names = groups[key]
        starts = np.cumsum([0, *(sizes[name] for name in names)])
        taken = min(left, int(starts[-1]))
        places = np.sort(rng.choice(starts[-1], taken, replace=False))
        for name, low, high in zip(names, starts, starts[1:], strict=False):
            if len(its := places[(places >= low) & (places < high)] - low):
                chosen[name] = its
        left -= taken
        if not left:
            break
    return chosen


def random_elements(point: Point, share: float, seed: int) -> dict[str, np.ndarray]:
    """A random share of every matrix's elements."""
    weights = {name: np.broadcast_to(0.0, shape) for name, shape in point.way.backward.at.shapes.items()}
    return RandomMask(seed=seed).init(Parameters(weights, round(share * sum(w.size for w in weights.values()))))


def realised_gains(
    ws: Workspace, point: Point, preset: Preset, trials: Sequence[RealisedTrial], protocol: Protocol, phase: str
) -> Decreases:
    """How much each trial lowers the validation loss, at each horizon; charged to the ledger, too."""
    start, lr = point.start(protocol)
    settings = replace(preset.training, schedule="constant", warmup=0.0, lr=lr, clip=protocol.clip)
    settings = replace(settings, reduction=protocol.reduction)
    lm = point.way.backward.lm
    examples = Examples.of(encode(lm.tokenizer, point.samples, lm.context))
    with charged(ws.path, "diagnose", methods=["dualsft"], name=point.name, phase=phase) as meter:
        meter.begin(len(trials))
        validation, horizons = point.validation(), protocol.horizons
        gains, usage = realised(lm, examples, trials, horizons, settings, Uniform(), validation, start)
        meter.add(usage)
    return gains


def predicted_gain(worths: tuple[np.ndarray, Arrays], trial: RealisedTrial) -> float:
    """The summed value of the samples that a trial trains on, or of the parameters that it trains."""
    rows, numbers = worths
    if trial.selected is None:
        return float(rows[trial.documents].sum())
    return float(sum(numbers[name].ravel()[positions].sum() for name, positions in trial.selected.items()))


def again(
    ws: Workspace, score: str, mask: str, rounds: int, rows_share: float, share: float, manifest: str, new_mask: str
) -> None:
    """Both sides of a score chosen again, each for the other's last choice, so many rounds (F.9): stored as a manifest
    and as a mask, which is like the mask `mask` in all but its places."""
    opened = scored_model(ws, score, with_origin=True)
    query = f"SELECT row, messages, text FROM samples WHERE {score} IS NOT NULL ORDER BY row"
    samples = curate.sql(ws, query)
    method, moments = opened.method, opened.model.at.moments
    q = {}
    for name in opened.model.at.shapes:
        square, step = (moments.square[name].cpu().numpy(), moments.step) if moments else (np.zeros(1), 1)
        q[name] = np.subtract(*method.direction(opened.states, name, square, step))
    numbers = round(share * sum(value.size for value in q.values()))
    rows = round(rows_share * ws.n_rows())
    with charged(ws.path, "select", methods=["dualsft"], name=manifest, phase="choosing again") as meter:
        meter.begin(len(samples))
        chosen = reselect(GradientModel.of(opened.model), samples, q, rows, numbers, rounds)
        for each in chosen.rounds:
            meter.add(replace(opened.model.lm.usage(), flops=each.flops, seconds=each.seconds))
    places = ", ".join(str(samples[i]["row"]) for i in chosen.rows)
    curate.select(ws, manifest, Top(), SelectionSpec(by="-row", where=f"row IN ({places})", frac=1.0))
    recipe = structs.replace(read_mask(ws, mask).recipe, name=new_mask)
    write_mask(ws, new_mask, chosen.selected, recipe)
