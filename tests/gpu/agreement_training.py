"""What a device makes of training steps against slow references on the CPU, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curate.kinds.passes import Arrays
from curate.kinds.signals import Step, Weights
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.settings import TrainSettings
from tests.gpu.agreement import Found, adapted, exact, far, tiny
from tests.gpu.ground import Ground, plain, short_texts, tokens_of
from tests.oracles import choosing as slow_choosing
from tests.oracles import training as slow

PLAIN = TrainSettings(
    batch_size=8, lr=1e-3, warmup=0.0, schedule="constant", precision="float32", clip=0.0, reduction="sample"
)


def adapt(ground: Ground) -> Found:
    """The weights of a step, whose samples and anchors go through the model in training."""
    samples = short_texts(min(ground.size.agreeing, 12), 2)
    lm, reference = tiny(ground.device), exact(tiny("cpu"))
    lm.model.requires_grad_(True)
    encoded = tokens_of(lm, samples)
    half = len(encoded) // 2
    pool, anchors = encoded[:half], encoded[half:]
    data = Data.of(Examples.of(pool), anchors=Examples.of(anchors))
    settings = replace(PLAIN, batch_size=len(pool), steps=1)
    (done,) = Trainer(lm, data, settings, Adapt(tau=0.5), Alone()).run()
    aims = [one.ids.tolist() for one in anchors]
    wanted = [slow.adapt(reference.model, pool[i].ids.tolist(), aims, 0.5) for i in done.documents]
    yield "b.adapt", far(done.weight, wanted), {"shapes": {"model": "tiny", "samples": len(pool)}}


# --- selection inside the step -----------------------------------------------------------------------------


class _Watched(FilterThenWeight):
    """Keeps the model and Adam's state as they were when a step's candidates were compared."""

    trainer: Any = None
    kept: dict[str, Any] = {}

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        result, trainer = super().update(step, state), _Watched.trainer
        _Watched.kept = {
            "weights": result[0].values, "room": step.room,
            "model": {n: p.detach().cpu().double() for n, p in trainer.model.model.named_parameters()},
            "state": {name: dict(trainer.optimizer.state.get(p, {})) for name, p in trainer.parameters.items()},
        }  # fmt: skip
        for held in _Watched.kept["state"].values():
            held |= {key: value.detach().cpu().double() for key, value in held.items()}
        return result


def selection(ground: Ground) -> Found:
    """The second step, in which Adam has a state; gradients are not projected."""
    candidates, room = 3 * (ground.size.agreeing // 4), max(ground.size.agreeing // 4, 1)
    samples = short_texts(candidates + 4, 3)
    lm = adapted(ground.device)
    encoded = tokens_of(lm, samples)
    settings = replace(PLAIN, batch_size=room, oversample=3, steps=2, epochs=2, projection=0, target_batch=4)
    weighting = _Watched()
    data = Data.of(Examples.of(encoded[:candidates]), anchors=Examples.of(encoded[candidates:]))
    trainer = Trainer(lm, data, settings, weighting, Alone())
    _Watched.trainer = trainer
    documents = [done.documents for done in trainer.run()][-1]
    kept, _Watched.trainer = _Watched.kept, None
    wanted = _chosen(kept, [encoded[i] for i in documents], encoded[candidates:], settings)
    mine, about = kept["weights"], {"shapes": {"model": "tiny", "candidates": candidates, "room": room}}
    yield "b.choice", float(((mine > 0) != (wanted > 0)).sum()), about
    yield "b.weights", far(mine, wanted), about


def _chosen(
    kept: dict[str, Any], candidates: Sequence[Encoded], aims: Sequence[Encoded], settings: TrainSettings
) -> np.ndarray:
    """The weights of a step's candidates, from whole gradients."""
    model = exact(adapted("cpu")).model
    parameters = dict(model.named_parameters())
    for name, value in kept["model"].items():
        parameters[name].data.copy_(value)
    those = {name: parameters[name] for name in kept["state"]}
    g = slow_choosing.vectors(model, plain(candidates), those)
    q = slow_choosing.vectors(model, plain(aims), those).mean(0)
    scales = []
    for name, parameter in those.items():
        held = kept["state"][name]
        if not held:
            scales.append(np.ones(parameter.numel()))
            continue
        t = float(held["step"]) + 1
        hat = held["exp_avg_sq"].numpy().flatten() / (1 - settings.beta2 ** (t - 1))
        scales.append((1 - settings.beta1) / ((1 - settings.beta1**t) * (np.sqrt(hat) + settings.eps)))
    q = q * np.concatenate(scales)
    chosen = slow_choosing.filtered(g, q, kept["room"])
    weights = np.zeros(len(g))
    weights[chosen] = slow_choosing.weighed(g[chosen], g[chosen] @ q, 0.01)
    if not weights.any():  # then they count 1
        weights[chosen] = 1.0
    return weights


# --- a mask ------------------------------------------------------------------------------------------------


def masked(ground: Ground) -> Found:
    """Five steps of a hundredth of the parameters; eps is large, as the signs of gradients of nothing are anyone's."""
    samples = short_texts(min(ground.size.agreeing, 8), 4)
    lm, reference = tiny(ground.device), exact(tiny("cpu"))
    lm.model.requires_grad_(True)
    chance = np.random.default_rng(0)
    mask = {n: np.flatnonzero(chance.random(p.numel()) < 0.01) for n, p in lm.model.named_parameters()}
    mask = {name: places for name, places in mask.items() if len(places)}
    encoded, steps = tokens_of(lm, samples), 5
    settings = replace(PLAIN, batch_size=len(samples), steps=steps, eps=1e-3, weight_decay=0.1, reduction="token")
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    list(Trainer(lm, Data.of(Examples.of(encoded)), settings, Uniform(), Alone(), mask=Refreshed(mask)).run())
    wanted = _adamw(reference.model, encoded, mask, settings, steps)
    about = {"shapes": {"model": "tiny", "samples": len(samples), "numbers": sum(map(len, mask.values()))}}
    worst, others = 0.0, 0
    for name, parameter in lm.model.named_parameters():
        moved = (parameter.detach() - before[name]).flatten().cpu().double().numpy()
        places = mask.get(name, np.zeros(0, np.int64))
        others += int(np.count_nonzero(np.delete(moved, places)))
        if len(places):
            worst = max(worst, far(moved[places], wanted[name]))
    yield "b.masked", worst, about
    yield "b.masked.rest", float(others), about


def _adamw(
    model: Any, encoded: Sequence[Encoded], mask: dict[str, np.ndarray], settings: TrainSettings, steps: int
) -> dict[str, np.ndarray]:
    """How far AdamW moves the numbers of a mask, all samples in each step."""
    model.requires_grad_(True)
    parameters, samples = dict(model.named_parameters()), plain(encoded)
    divisor = float(sum(sum(supervised[1:]) for _, supervised in samples))
    first, second = ({name: np.zeros(len(places)) for name, places in mask.items()} for _ in range(2))
    moved = {name: np.zeros(len(places)) for name, places in mask.items()}
    b1, b2 = settings.beta1, settings.beta2
    for t in range(1, steps + 1):
        gradient = slow.weighted_gradient(model, samples, [1.0] * len(samples), divisor)
        for name, places in mask.items():
            g, flat = gradient[name].flatten().numpy()[places], parameters[name].data.view(-1)
            at = torch.from_numpy(places)
            first[name], second[name] = b1 * first[name] + (1 - b1) * g, b2 * second[name] + (1 - b2) * g**2
            step = (first[name] / (1 - b1**t)) / (np.sqrt(second[name] / (1 - b2**t)) + settings.eps)
            decay = settings.weight_decay if parameters[name].ndim >= 2 else 0.0
            change = -settings.lr * (step + decay * flat[at].numpy())
            flat[at] += torch.from_numpy(change)
            moved[name] += change
    return moved
