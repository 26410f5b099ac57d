"""LESS against its authors' way: one sample at a time, and a dense projection made in blocks. Interleaved pairs.

    python -m tests.bench.less [MODEL] [SAMPLES] [PAIRS]    default: SmolLM2-135M from its package, 48 real samples, 3

The same model and LoRA (r = 128 beside q, k, v, o) in one process: per-sample gradients, the projection to 8,192
numbers apart, both end to end, where the time goes, directions two ways, and (`agreement` in place of MODEL) whether
projected scores rank as the unprojected do. The limit of a pass without weight gradients is 4N FLOPs a token; the rate
of matrix products is measured beside it. Needs torch, transformers and peft only; MODEL `1b` is Llama-3.2-1B's shape
with random weights.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curate.gradients.backward import PHASES, Backward
from curate.gradients.checkpoints import Moments
from curate.gradients.directions import forward_mode, ghost
from curate.gradients.gradient_model import GradientModel
from curate.gradients.projectors import projector
from curate.models.batches import by_length
from curate.models.forward import score_samples
from curate.models.load import ModelChoice
from curate.models.tokens import Encoded, encode
from curate.scores.less import Less
from curate.training.settings import TrainSettings
from curate.training.trainee import trainee
from curate.vectors import Vectors
from tests.bench.forward import matrix_rate, one_b, real, smollm2
from tests.bench.timing import ratio, told

TARGETS, DIM = "q_proj,k_proj,v_proj,o_proj", 8192


def model_of(name: str, r: int = 128) -> Backward:
    """The model with LoRA whose matrices are not zero, and with moments as after a step."""
    lora = TrainSettings(lora_r=r, lora_alpha=4.0 * r, lora_targets=TARGETS)
    lm = trainee(ModelChoice(name, context=512), lora).model
    torch.manual_seed(0)
    for parameter_name, parameter in lm.model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.01)
    model = Backward.of(lm)
    some = encode(lm.tokenizer, real(8), 256)
    g = {p.name: p.total() / 8 for p in model.gradients(some, usage(model)).parameters}
    moments = Moments({n: 0.1 * v for n, v in g.items()}, {n: 0.001 * v**2 for n, v in g.items()}, 1)
    model.at = replace(model.at, moments=moments)
    return model


def usage(model: Backward) -> dict[str, Any]:
    return {phase: model.lm.usage() for phase in PHASES}


def batches(model: Backward, encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    lengths = np.array([len(one.ids) for one in encoded])
    return [[encoded[i] for i in places] for places in by_length(lengths, model.lm.batch_tokens)]


# --- the authors' way ------------------------------------------------------------------------------------


def alone(model: Backward, one: Encoded) -> list[Tensor]:
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
    found = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return found


def theirs(model: Backward, encoded: Sequence[Encoded], less: Less) -> None:
    """Features at batch size 1; sixteen gradients at a time through a dense projection in blocks."""
    names, waiting = list(model.parameters), list[Tensor]()
    moments = model.at.moments
    assert moments is not None
    mean, square = (torch.cat([m[n].flatten() for n in names]) for m in (moments.mean, moments.square))
    for i, one in enumerate(encoded):
        waiting.append(less.gamma(torch.cat(alone(model, one)), mean, square, moments.step))
        if len(waiting) == 16 or i == len(encoded) - 1:
            dense(torch.stack(waiting))
            waiting = []


def dense(gradients: Tensor) -> Tensor:
    """A dense projection in blocks of a matrix of random signs."""
    into = gradients.new_zeros(len(gradients), DIM)
    for start in range(0, gradients.shape[1], 1024):
        block = gradients[:, start : start + 1024]
        signs = torch.randint(0, 2, (block.shape[1], DIM), device=block.device, dtype=torch.int8)
        into += block @ (signs.to(block.dtype) * 2 - 1)
    return into


# --- side by side ----------------------------------------------------------------------------------------


def per_sample(model: Backward, encoded: Sequence[Encoded]) -> None:
    for batch in batches(model, encoded):
        for g in model.gradients(batch, usage(model)).parameters:
            g.full()


def features(model: Backward, encoded: Sequence[Encoded], less: Less) -> Any:
    """Features as the score makes them, of samples in tokens; what each phase cost."""
    watch = less.vectors().legs["gradient"].watch  # type: ignore[union-attr]
    assert watch
    costs = usage(model)
    for batch in batches(model, encoded):
        found = model.gradients(batch, costs)
        began = time.perf_counter()
        watcher = watch(model.at, None, found.good)
        for g in found.parameters:
            watcher.take(g)
        watcher.columns()
        costs["projection"].seconds = (costs["projection"].seconds or 0.0) + time.perf_counter() - began
    return costs


def parts(model: Backward, encoded: Sequence[Encoded], less: Less) -> None:
    """Where the time of features goes."""
    costs, moments = features(model, encoded, less), model.at.moments
    assert moments is not None
    spent = {"forward": costs["forward"].seconds, "backward": costs["backward"].seconds}
    spent |= dict.fromkeys(("outer products", "gamma", "projection"), 0.0)
    project = projector("sjlt", DIM, 0, 1, model.at.sizes)
    for batch in batches(model, encoded):
        gradients = model.gradients(batch, usage(model)).parameters
        into = torch.zeros(len(batch), DIM, device=model.at.device)
        for g in gradients:
            seconds, full = clocked(lambda g=g: g.full().flatten(1))
            spent["outer products"] += seconds
            m, v = moments.mean[g.name].flatten(), moments.square[g.name].flatten()
            seconds, made = clocked(lambda full=full, m=m, v=v: less.gamma(full, m, v, 1))
            spent["gamma"] += seconds
            spent["projection"] += clocked(lambda g=g, made=made, into=into: project.add(into, g.name, made))[0]
    spent["writing"] = writing(len(encoded))
    whole = sum(spent.values())
    print("where the time goes: " + ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in spent.items()))
    tokens = costs["forward"].tokens
    flops = costs["forward"].flops + costs["backward"].flops
    both = spent["forward"] + spent["backward"]
    rate = matrix_rate(model.lm.device, next(model.lm.model.parameters()).dtype)
    n = model.lm.n_params - sum(model.at.sizes.values())
    print(
        f"{tokens} tokens, {tokens / whole:.0f} a second; {flops / tokens / n:.2f} N FLOPs a token, forward and "
        f"backward; of the rate of matrix products ({rate:.3g} a second): {flops / both / rate:.0%} in these, "
        f"{4 * n * tokens / whole / rate:.0%} by 4N over all"
    )


def writing(n: int) -> float:
    """Seconds of making and writing the table of n features; 0 where there is no Arrow."""
    try:
        import pyarrow as pa

        from curate.shards import Parts
        from curate.tables import vector_table
    except ImportError:
        return 0.0
    from pathlib import Path

    made = np.random.default_rng(0).normal(size=(n, 1, DIM)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        table = Parts(Path(folder))
        ids = pa.array([f"{i:016x}" for i in range(n)])
        return clocked(lambda: table.commit("part-00000", vector_table(ids, {"vector": made})))[0]


def clocked(f: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def directions(model: Backward, encoded: Sequence[Encoded], pairs: int, what: str) -> None:
    torch.manual_seed(0)
    q = {name: torch.randn(1, *p.shape, device=p.device) for name, p in model.parameters.items()}

    def by_jvp() -> Any:
        for batch in batches(model, encoded):
            ids, _, supervised = model.lm.padded(batch, max(len(one.ids) for one in batch))
            found = forward_mode(model, ids, supervised, q)
        return found

    def by_ghost() -> Any:
        for batch in batches(model, encoded):
            found = ghost(model.gradients(batch, usage(model)).parameters, q)
        return found

    a, b = by_jvp(), by_ghost()
    off = float((a - b).abs().max() / b.abs().max())
    told(f"a direction, {what}: jvp / ghost (they differ by {off:.0e})", ratio(by_jvp, by_ghost, pairs), "any", True)


def agreement(samples: int = 256) -> None:
    """Spearman of projected and unprojected scores: LoRA r = 8, one checkpoint, real samples."""
    from scipy.stats import spearmanr

    model = GradientModel.of(model_of(smollm2() or "tiny", 8))
    pool, aim = real(samples + 32)[:samples], real(samples + 32)[samples:]
    numbers = sum(model.backward.at.sizes.values())
    print(f"{samples} real samples, r = 8 beside {TARGETS}: {numbers:,} numbers; target 32 others")
    found = {}
    for kind in ("none", "sjlt", "rademacher"):
        less = Less(projector=kind, dim=DIM, aggregate="mean")
        seconds, both = clocked(
            lambda less=less: [
                Vectors.of(score_samples({"base": model}, some, {"x": step})[0]["x"]["vector"])
                for some, step in ((pool, less.vectors()), (aim, less.target_vectors()))
            ]
        )
        (step,) = less.passes(None)
        assert step.open
        found[kind] = np.asarray(step.map(both[0], step.open(both[1]))["score"])
        apart = np.abs(found[kind] - found["none"])
        print(
            f"  {kind:10} {seconds:6.0f} s  Spearman with none {spearmanr(found['none'], found[kind]).statistic:.4f}, "
            f"scores apart by {apart.mean():.5f} in the mean, of a spread of {found['none'].std():.5f}"
        )


def main(name: str, samples: int = 48, pairs: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(one_b(folder) if name == "1b" else name)
    encoded = [one for one in encode(model.lm.tokenizer, real(2 * samples), 512) if not one.error][:samples]
    encoded = [one for one in encoded if one.supervised.any()]
    less, numbers = Less(dim=DIM), sum(model.at.sizes.values())
    mean = np.mean([len(one.ids) for one in encoded])
    print(f"{name}: {len(encoded)} samples of {mean:.0f} tokens, LoRA r = 128, {numbers:,} numbers a gradient\n")
    one_by_one = ratio(lambda: [alone(model, x) for x in encoded], lambda: per_sample(model, encoded), pairs)
    told("per-sample gradients: batch 1 / curate", one_by_one, "1.4", one_by_one[0] >= 1.4)
    batch = torch.randn(4, numbers // 30, device=model.at.device)
    project, into = projector("sjlt", DIM, 0, 1, {"w": batch.shape[1]}), torch.zeros(4, DIM, device=model.at.device)
    apart = ratio(lambda: dense(batch), lambda: project.add(into, "w", batch), pairs)
    told("projection of 4 gradients to 8,192: dense / sjlt", apart, "10", apart[0] >= 10)
    on_cpu = model.at.device.type == "cpu"  # where a dense projection of r = 128 takes a quarter of an hour
    few, another = (encoded[:16], model_of(name, 8)) if on_cpu else (encoded, model)
    whole = ratio(lambda: theirs(another, few, less), lambda: features(another, few, less), pairs)
    what = f"end to end, {len(few)} samples{', r = 8' * on_cpu}: batch 1, dense / curate"
    told(what, whole, "any" if on_cpu else "10", on_cpu or whole[0] >= 10)
    parts(model, encoded, less)
    directions(model, few[:12], pairs, "LoRA")


def whole_model(name: str, samples: int = 12, pairs: int = 3) -> None:
    """Directions along all parameters."""
    from curate.models.language_model import LanguageModel

    model = Backward.of(LanguageModel(ModelChoice(name, context=512)))
    encoded = [one for one in encode(model.lm.tokenizer, real(2 * samples), 512) if not one.error][:samples]
    directions(model, [one for one in encoded if one.supervised.any()], pairs, "all parameters")


if __name__ == "__main__":
    if sys.argv[1:2] == ["agreement"]:
        agreement(*map(int, sys.argv[2:]))
    else:
        given = sys.argv[1] if len(sys.argv) > 1 else smollm2() or "tiny"
        main(given, *map(int, sys.argv[2:]))
        whole_model(given) if given != "1b" else None
