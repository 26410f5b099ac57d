"""What a device makes of samples against slow references: one sample at a time on the CPU, in float64.

The model is the tiny one, which knows something; its LoRA matrices are drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curate.gradients.backward import PHASES, Backward
from curate.gradients.gradient_model import GradientModel
from curate.gradients.optimizer_state import Moments
from curate.hashing import key_of
from curate.kinds.score import Score, Target
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.less import Less
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.numerics.projections import Sjlt, projector
from curate.numerics.rank_agreement import spearman
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.gpu.ground import Ground, plain, short_texts, tokens_of
from tests.oracles import dualsft as slow_dualsft
from tests.oracles import gradients as slow
from tests.oracles import language_model as slow_forward

Found = Iterator[tuple[str, float, dict[str, Any]]]  # figures: name, value, and what else their lines have
LORA = TrainSettings(lora_r=4, lora_alpha=16.0, lora_targets="q_proj,v_proj")
TOKEN_SCORES = ("nll", "entropy", "el2n")


def far(found: Any, wanted: Any) -> float:
    """The greatest difference, as a share of the greatest value that is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# --- models ------------------------------------------------------------------------------------------------


def tiny(device: str, dtype: str = "float32") -> LanguageModel:
    return LanguageModel(ModelChoice("tiny", device=device, dtype=dtype))  # type: ignore[arg-type]


def adapted(device: str, dtype: str = "float32") -> LanguageModel:
    """The tiny model with LoRA, whose matrices are the same on every device."""
    lm = trainable(ModelChoice("tiny", device=device, dtype=dtype), LORA).model  # type: ignore[arg-type]
    lot = torch.Generator().manual_seed(0)
    for name, parameter in lm.model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=lot))
    return lm


def exact(lm: LanguageModel) -> LanguageModel:
    """A model on the CPU in float64: the reference's."""
    lm.model.double()
    return lm


def usage(model: Backward) -> dict[str, Any]:
    return {phase: model.lm.usage() for phase in PHASES}


def through(
    method: Score, models: Mapping[str, Any], pool: Sequence[Any], target: Sequence[Any], anchors: Sequence[Any] = ()
) -> Mapping[str, Any]:
    """A score's columns of the pool, by all of its passes, without a workspace."""
    state: dict[str, np.ndarray] = {}
    *counting, last = method.passes(Target("t", None, ("",) * len(target), ""))  # type: ignore[arg-type]
    for step in counting:
        over = {"target": target, "anchors": anchors, "pool": pool}[step.over]
        given = step.open(state) if step.open else state
        partial = score_samples(models, over, {"x": step}, {"x": given})[0]["x"]
        assert step.reduce
        state |= step.state([{key: value for key, value in partial.items() if key != "error"}], state)
    given = last.open(state) if last.open else state
    return score_samples(models, pool, {"x": last}, {"x": given})[0]["x"]


# --- forward -----------------------------------------------------------------------------------------------


def forward_scores(ground: Ground) -> Found:
    samples = short_texts(ground.size.agreeing)
    reference = exact(tiny("cpu"))
    encoded = plain(tokens_of(reference, samples))
    wanted = [slow_forward.token_scores(reference.model, *one) for one in encoded]
    vectors = [slow_forward.position_weighted(reference.model, ids) for ids, _ in encoded]
    about = {"shapes": {"model": "tiny", "samples": len(samples)}}
    for dtype in ("float32", "bfloat16"):
        passes = {"nll": Nll().passes(None)[0], "entropy": Entropy().passes(None)[0], "el2n": El2n().passes(None)[0]}
        found = score_samples({"base": tiny(ground.device, dtype)}, samples, {**passes, "x": EmbedLm().vectors()})[0]
        for name in TOKEN_SCORES:
            mine, theirs = found[name].get(name, found[name]["score"]), np.array([one[name] for one in wanted])
            if dtype == "float32":
                yield f"b.{name}", far(mine, theirs), about
            else:
                yield f"b.{name}.bfloat16", spearman(mine, theirs), about
        if dtype == "float32":
            raw = found["x"]["vector"]
            yield "b.embed_lm", far(raw / np.linalg.norm(raw, axis=1, keepdims=True), vectors), about


# --- gradients ---------------------------------------------------------------------------------------------


def per_sample(ground: Ground) -> Found:
    """Gradients of single samples, of LoRA's matrices and of all parameters, parameter by parameter."""
    samples = short_texts(min(ground.size.agreeing, 6))
    for name, made in (("lora", adapted), ("all", tiny)):
        lm, reference = made(ground.device), Backward.of(exact(made("cpu")))
        encoded = tokens_of(lm, samples)
        alone = [slow.gradient(reference.lm.model, one, reference.parameters) for one in plain(encoded)]
        model, worst = Backward.of(lm), 0.0
        for g in model.gradients(encoded, usage(model)).parameters:
            worst = max(worst, far(g.full().cpu(), torch.stack([one[g.name] for one in alone])))
        yield f"b.gradients.{name}", worst, {"shapes": {"model": "tiny", "samples": len(samples)}}


def gradient_scores(ground: Ground) -> Found:
    """graddot, and LESS's features, by LoRA's matrices."""
    samples = short_texts(ground.size.agreeing)
    pool, aim = samples[: -len(samples) // 3], samples[-len(samples) // 3 :]
    reference = Backward.of(exact(adapted("cpu")))
    encoded = plain(tokens_of(reference.lm, samples))
    each = [slow.flat(slow.gradient(reference.lm.model, one, reference.parameters)) for one in encoded]
    products = slow.dots(each[: len(pool)], [torch.stack(each[len(pool) :]).mean(0)])[:, 0]
    mean, square = 0.1 * torch.stack(each).mean(0), 1e-3 * torch.stack(each).square().mean(0)
    less = Less(dim=min(ground.size.dim, 512))
    features = _projected(less, reference, [slow.gamma(g, mean, square, 3, "code") for g in each[: len(pool)]])
    about = {"shapes": {"model": "tiny", "lora_r": LORA.lora_r, "samples": len(pool), "target": len(aim)}}
    for dtype in ("float32", "bfloat16"):
        model = Backward.of(adapted(ground.device, dtype))
        ways = {"base": GradientModel.of(model)}
        mine = through(Graddot(), ways, pool, aim)["score"]
        model.at = replace(model.at, moments=Moments(_parts(model, mean), _parts(model, square), 3))
        made = score_samples(ways, pool, {"x": less.vectors()})[0]["x"]["vector"][:, 0]
        if dtype == "float32":
            yield "b.graddot", far(mine, products), about
            yield "b.less", far(made, features), about
        else:
            yield "b.graddot.bfloat16", spearman(mine, products.numpy()), about
            yield "b.less.bfloat16", spearman(made.ravel(), features.ravel()), about


def _parts(model: Backward, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """A vector of all parameters, parameter by parameter, on the model's device."""
    parts, start = dict[str, torch.Tensor](), 0
    for name, shape in model.at.shapes.items():
        n = model.at.sizes[name]
        parts[name] = flat[start : start + n].view(shape).to(model.at.device, model.at.dtype)
        start += n
    return parts


def _projected(less: Less, model: Backward, steps: Sequence[torch.Tensor]) -> np.ndarray:
    """Adam's steps, projected on the CPU in float64."""
    project = projector("sjlt", less.dim, less.seed, less.nonzeros, model.at.sizes)
    into, start, stacked = torch.zeros(len(steps), less.dim, dtype=torch.float64), 0, torch.stack(list(steps))
    for name, n in model.at.sizes.items():
        project.add(into, name, stacked[:, start : start + n].clone())
        start += n
    return into.numpy()


# --- the projection ----------------------------------------------------------------------------------------

_M = 2**64 - 1


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _M
    return x ^ (x >> 31)


def _hashed(purpose: str, name: str, index: int) -> int:
    key = (key_of(0, purpose, name) - 2**63) & _M
    return _mixed((_mixed(index ^ key) + key) & _M)


def projection(ground: Ground) -> Found:
    """Whole numbers, whose sums are exact in any order, against the sparse projection number by number."""
    n, dim = 1000, 64
    numbers = np.random.default_rng(0).integers(-99, 99, (3, n)).astype(np.float32)
    into = torch.zeros(3, dim, device=ground.device)
    Sjlt(dim, 0).add(into, "w", torch.from_numpy(numbers).to(ground.device))
    wanted = np.zeros((3, dim))
    for i in range(n):
        sign = 1 if _hashed("sjlt 0", "w", i // 64) >> (i % 64) & 1 else -1
        turn = _hashed("sjlt 0 turns", "w", i // dim)
        signed_turn = turn - 2**64 if turn >= 2**63 else turn
        wanted[:, (i % dim + signed_turn) % dim] += sign * numbers[:, i]
    yield "b.projection", float((into.cpu().numpy() != wanted).sum()), {"shapes": {"numbers": n, "dim": dim}}


# --- dualsft -----------------------------------------------------------------------------------------------


def dualsft(ground: Ground) -> Found:
    """Both terms, with distillation on anchors, by all parameters."""
    samples = short_texts(min(ground.size.agreeing, 9), 1)
    third = max(len(samples) // 3, 1)
    aim, anchors, pool = samples[:third], samples[third : 2 * third], samples[2 * third :]
    method = Dualsft(lam=0.6, eta=0.3, curvature_scale=40.0)
    model, reference = _moved(ground.device), _moved("cpu", torch.float64)
    found = through(method, {"base": GradientModel.of(model), "origin": model.others["origin"]}, pool, aim, anchors)
    g, v = ([slow.flat(slow.gradient(reference.lm.model, one, reference.parameters))
             for one in plain(tokens_of(reference.lm, some))] for some in (pool, aim))  # fmt: skip
    distilled = [_distilled(method, reference, one) for one in plain(tokens_of(reference.lm, anchors))]
    assert reference.at.moments
    square = torch.cat([reference.at.moments.square[name].flatten() for name in reference.parameters])
    h = 40.0 * ((square / (1 - 0.999**5)).sqrt() + 1e-8)
    along = torch.stack(v).mean(0) + 0.6 * torch.stack(distilled).mean(0)
    first, second = slow_dualsft.scores(g, along, lambda whole: h * whole, 0.3, True)
    worst = max(far(found["first"], first), far(found["second"], second))
    yield "b.dualsft", worst, {"shapes": {"model": "tiny", "samples": len(pool), "anchors": len(anchors)}}


def _moved(device: str, dtype: Any = torch.float32) -> Backward:
    """The tiny model a little way from where it was, with second moments."""
    origin, lm = tiny(device), tiny(device)
    origin.model.to(dtype), lm.model.to(dtype)
    lot = torch.Generator().manual_seed(0)
    for parameter in lm.model.parameters():
        parameter.data.add_((0.01 * torch.randn(parameter.shape, generator=lot)).to(parameter))
    found = Backward.of(lm, {"origin": origin})
    square = {n: (0.3 * torch.rand(p.shape, generator=lot)).to(p) for n, p in found.parameters.items()}
    found.at = replace(found.at, moments=Moments({}, square, 5))
    return found


def _distilled(method: Dualsft, model: Backward, one: tuple[list[int], list[bool]]) -> torch.Tensor:
    parameters = list(model.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    teacher = model.others["origin"].model
    loss = slow_dualsft.distillation(model.lm.model, teacher, *one, method.tau, method.confidence, method.squared_tau)
    found = torch.autograd.grad(loss, parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.cat([g.flatten() for g in found])
