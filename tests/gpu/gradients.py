"""Scores by gradients at the size of the run: LESS's features, and products along directions of all parameters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.gradients.backward import Backward
from curate.gradients.collectors import Dots
from curate.gradients.gradient_model import GradientModel
from curate.gradients.optimizer_state import Moments
from curate.kinds.passes import GradientRequest
from curate.methods.scores.less import Less
from curate.methods.scores.nll import Nll
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded
from curate.models.usage import Usage
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.gpu.agreement import Found
from tests.gpu.forward import scored
from tests.gpu.ground import Ground, texts, timed, tokens_of
from tests.gpu.lines import Untried

_BLOCK = 1024  # rows of a dense projection made at once


def features(ground: Ground) -> Found:
    """Texts to features by LoRA's matrices with Adam's moments, where the time goes, and the authors' way."""
    size = ground.size
    model = _adapted(ground)
    less, samples = Less(dim=size.dim), texts(size.gradients, 512)
    ways = {"base": GradientModel.of(model)}
    score_samples(ways, samples[: size.alone], {"less": less.vectors()})
    found: dict[str, Usage] = {}
    seconds = timed(lambda: found.update(cost=score_samples(ways, samples, {"less": less.vectors()})[1]))
    usage = found["cost"]
    tokens = usage.phases["forward"].tokens
    base = model.lm.n_params - sum(model.at.sizes.values())
    share, limit = 4.0 * base * tokens / seconds / ground.rate(), "4N FLOPs a token at the rate of products in bfloat16"
    shapes = ground.shapes(samples=len(samples), tokens=tokens, lora_r=size.r, dim=size.dim)
    yield "d.share", share, {"shapes": shapes, "limit": limit, "near": share}
    about = {"shapes": shapes, "tokens_per_sample": tokens / len(samples)}
    yield "d.tokens", tokens / seconds, {"limit": limit, "near": share, **about}
    for phase in ("forward", "backward", "projection"):
        yield f"d.{phase}", (usage.phases[phase].seconds or 0.0) / seconds, {"shapes": shapes}
    few = tokens_of(model.lm, samples[: size.alone])
    mean, square = (torch.cat([of[n].flatten() for n in model.parameters]) for of in _moments(model))
    theirs = timed(lambda: _authors(model, few, less, mean, square)) / len(few)
    note = f"{len(few)} of the samples one by one"
    yield "d.authors", theirs / (seconds / len(samples)), {"shapes": shapes, "note": note}


def _adapted(ground: Ground) -> Backward:
    """The model with LoRA whose matrices are not zero, and with moments as after a step."""
    settings = TrainSettings(lora_r=ground.size.r, lora_alpha=4.0 * ground.size.r, lora_targets=Less().lora_targets)
    lm = trainable(ground.choice(context=min(512, ground.size.longest)), settings).model
    torch.manual_seed(0)
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    model = Backward.of(lm)
    moments = {name: 1e-3 * torch.randn_like(p, dtype=torch.float32) for name, p in model.parameters.items()}
    model.at = replace(model.at, moments=Moments(moments, {n: v.square() for n, v in moments.items()}, 1))
    return model


def _moments(model: Backward) -> tuple[Any, Any]:
    assert model.at.moments
    return model.at.moments.mean, model.at.moments.square


def _authors(model: Backward, encoded: Sequence[Encoded], less: Less, mean: Tensor, square: Tensor) -> None:
    """A backward pass for each sample; sixteen gradients at a time through a dense projection in blocks."""
    waiting = list[Tensor]()
    for i, one in enumerate(encoded):
        waiting.append(less.gamma(torch.cat(_alone(model, one))[None], mean, square, 1)[0])
        if len(waiting) == 16 or i == len(encoded) - 1:
            gradients, waiting = torch.stack(waiting), []
            into = gradients.new_zeros(len(gradients), less.dim)
            for start in range(0, gradients.shape[1], _BLOCK):
                block = gradients[:, start : start + _BLOCK]
                signs = torch.randint(0, 2, (block.shape[1], less.dim), device=block.device, dtype=torch.int8)
                into += block @ (signs.to(block.dtype) * 2 - 1)


def _alone(model: Backward, one: Encoded) -> list[Tensor]:
    """The gradient of one sample, by a backward pass of its own."""
    parameters = list(model.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = None
    ids, _, supervised = model.lm.padded([one], len(one.ids))
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        logits = model.lm.model(input_ids=ids, use_cache=False).logits[0, :-1]
    at = supervised[0, 1:]
    cross_entropy(logits[at].float(), ids[0, 1:][at]).backward()
    found = [parameter.grad.flatten().float() for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return found


# --- all parameters ----------------------------------------------------------------------------------------


def directions(ground: Ground) -> Found:
    """DualSFT's pass over the data, products with two directions, against a forward pass of the same samples."""
    samples = texts(max(ground.size.gradients // 4, 2), 512, 1)
    lm = LanguageModel(ground.choice(context=min(512, ground.size.longest)))
    model = Backward.of(lm)
    torch.manual_seed(0)
    q = {n: torch.randn(2, *p.shape, device=p.device) for n, p in model.parameters.items()}
    ways = GradientModel.of(model)
    request = GradientRequest(lambda at, state, places: Dots(q))

    def products() -> None:
        ways.way(samples, "whole", {("x", "x"): request}, {})

    def forward() -> None:
        scored(lm, samples, Nll())

    pairs = [timed(products) / timed(forward) for _ in range(ground.size.pairs + 1)][1:]
    yield "g.dualsft", statistics.median(pairs), {"shapes": ground.shapes(samples=len(samples), directions=2)}


def influence(ground: Ground) -> Found:
    """Untried until there is such a score."""
    there = find_spec("curate.methods.scores.influence") is not None
    raise Untried("its pass is not in this script yet" if there else "there is no such score yet")
    yield ""
