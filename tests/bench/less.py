"""LESS against its authors' way: one sample at a time, and a dense projection made in blocks. Interleaved pairs.

    python -m tests.bench.less [MODEL] [SAMPLES] [PAIRS]    default: SmolLM2-135M from its package, 48 real samples, 3
    python -m tests.bench.less agreement [SAMPLES]          do projected scores rank as the unprojected do?
    python -m tests.bench.less bergson PYTHON [SAMPLES]     beside bergson, from the environment of that Python
    python -m tests.bench.less memory [ROWS] [GIB]          peak memory of a step of its warm-up, on long real samples

The same model and LoRA (r = 128 beside q, k, v, o) in one process: per-sample gradients, the projection to 8,192
numbers apart, both end to end, where the time goes, and directions two ways. The limit of a pass without weight
gradients is 4N FLOPs a token; the rate of matrix products is measured beside it. Needs torch, transformers and peft
only; MODEL `1b` is Llama-3.2-1B's shape with random weights.
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
from curate.gradients.directions import forward_mode, ghost
from curate.gradients.gradient_model import GradientModel
from curate.gradients.optimizer_state import Moments
from curate.kinds.vectors import Vectors
from curate.machine import forget_peak, peak_bytes
from curate.methods.scores.less import Less
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.forward import by_length, score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.numerics.projections import Kind, projector
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.bench.forward import SHARED, chat, one_b, real, smollm2
from tests.bench.timing import figure, machine, matrix_rate, ratio, told

TARGETS, DIM = "q_proj,k_proj,v_proj,o_proj", 8192


def model_of(name: str, r: int = 128) -> Backward:
    """The model with LoRA whose matrices are not zero, and with moments as after a step."""
    lora = TrainSettings(lora_r=r, lora_alpha=4.0 * r, lora_targets=TARGETS)
    lm = trainable(ModelChoice(name, context=512), lora).model
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
    watch = less.vectors().requests["gradient"].watch  # type: ignore[union-attr]
    assert watch
    costs = usage(model)
    for batch in batches(model, encoded):
        found = model.gradients(batch, costs)
        began = time.perf_counter()
        collector = watch(model.at, None, found.good)
        for g in found.parameters:
            collector.take(g)
        collector.columns()
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
    limit = "4N FLOPs a token at the rate of matrix products"
    note = f"{flops / tokens / n:.2f} N FLOPs a token; products {rate:.3g} FLOPs a second"
    figure("features", tokens / whole, "tokens/s", "", None, note, limit, 4 * n * tokens / whole / rate)
    figure("forward and backward: share of the rate of matrix products", flops / both / rate, "%")


def writing(n: int) -> float:
    """Seconds of making and writing the table of n features; 0 where there is no Arrow."""
    try:
        import pyarrow as pa

        from curate.store.commits import Parts
        from curate.tables.vector_table import vector_table
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
    note = f"they differ by {off:.0e}"
    told(f"a direction, {what}: jvp / ghost", ratio(by_jvp, by_ghost, pairs), "", True, note)


def agreement(samples: int = 256) -> None:
    """Spearman of projected and unprojected scores: LoRA r = 8, one checkpoint, real samples."""
    from scipy.stats import spearmanr

    model = GradientModel.of(model_of(smollm2() or "tiny", 8))
    model.backward.lm.batch_tokens = 6144  # the dense matrix is made again for every batch
    asked = real(2 * samples)
    whole = [not one.error and bool(one.supervised.any()) for one in encode(model.backward.lm.tokenizer, asked, 512)]
    asked = [one for one, good in zip(asked, whole, strict=True) if good]
    pool, aim = asked[:samples], asked[samples : samples + 32]
    numbers = sum(model.backward.at.sizes.values())
    print(
        f"{len(pool)} real samples, r = 8 beside {TARGETS}: {numbers:,} numbers; target {len(aim)} others", flush=True
    )
    kinds: tuple[Kind, ...] = ("none", "sjlt", "rademacher")
    methods = {kind: Less(projector=kind, dim=DIM, aggregate="mean") for kind in kinds}
    trained = score_samples({"base": model}, pool, {kind: less.vectors() for kind, less in methods.items()})[0]
    raw = score_samples({"base": model}, aim, {kind: less.target_vectors() for kind, less in methods.items()})[0]
    found = {}
    for kind, less in methods.items():
        (step,) = less.passes(None)
        assert step.open
        scores = step.map(Vectors.of(trained[kind]["vector"]), step.open(Vectors.of(raw[kind]["vector"])))
        found[kind] = np.asarray(scores["score"])
    for kind in kinds[1:]:
        apart = np.abs(found[kind] - found["none"])
        note = f"scores apart by {apart.mean():.5f} in the mean, of a spread of {found['none'].std():.5f}"
        agree = float(spearmanr(found["none"], found[kind]).statistic)
        figure(f"Spearman of {kind} with no projection", agree, "", note=note)


def bergson(python: str, samples: int = 100) -> None:
    """Tokens a second of bergson's whole command and of curate's features, over the same rows; what both need before
    the first row, measured by a run over four, is taken off."""
    import json
    import subprocess
    from pathlib import Path

    model = model_of(smollm2() or "tiny")
    rows = [json.loads(line) for line in (SHARED / "gsm8k.jsonl").read_text().splitlines()[:samples]]
    asked = [chat(row["question"], row["answer"]) for row in rows]
    encoded = encode(model.lm.tokenizer, asked, 512)
    tokens = sum(len(one.ids) for one in encoded)
    with tempfile.TemporaryDirectory() as folder:
        base = LanguageModel(ModelChoice(smollm2() or "tiny"))
        base.model.save_pretrained(f"{folder}/model")
        base.tokenizer.save_pretrained(f"{folder}/model")

        def built(n: int, *more: str) -> float:
            kept = Path(folder, f"{n}.jsonl")
            pairs = [{"prompt": row["question"], "completion": row["answer"]} for row in rows[:n]]
            kept.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            command = [str(Path(python).parent / "bergson"), "build", f"{folder}/index", "--overwrite", "--model"]
            command += [f"{folder}/model", "--dataset", str(kept), "--prompt_column", "prompt"]
            command += ["--completion_column", "completion", "--precision", "fp32", "--projection_dim", "16"]
            command += ["--token_batch_size", "1024", *more]
            return clocked(lambda: subprocess.run(command, check=True, capture_output=True, cwd=folder))[0]

        adapter = f"r=128,lora_alpha=512,target_modules={TARGETS.replace(',', '|')}"
        for what, more in (("all linear layers", ()), ("LoRA, r = 128", ("--peft_init_kwargs", adapter))):
            seconds = built(samples, *more) - built(4, *more)
            figure(f"bergson, {what}, 16 x 16 numbers of each, no Adam", tokens / seconds, "tokens/s")
    seconds = clocked(lambda: features(model, encoded, Less(dim=DIM)))[0]
    figure("curate, LESS's features, LoRA, r = 128, 8,192 numbers", tokens / seconds, "tokens/s")


def main(name: str, samples: int = 48, pairs: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(one_b(folder) if name == "1b" else name)
    encoded = [one for one in encode(model.lm.tokenizer, real(2 * samples), 512) if not one.error][:samples]
    encoded = [one for one in encoded if one.supervised.any()]
    less, numbers = Less(dim=DIM), sum(model.at.sizes.values())
    mean = np.mean([len(one.ids) for one in encoded])
    print(f"{name}: {len(encoded)} samples of {mean:.0f} tokens, LoRA r = 128, {numbers:,} numbers a gradient\n")
    one_by_one = ratio(lambda: [alone(model, x) for x in encoded], lambda: per_sample(model, encoded), pairs)
    told("per-sample gradients: batch 1 / curate", one_by_one, ">= 1.4x", one_by_one[0] >= 1.4)
    batch = torch.randn(4, numbers // 30, device=model.at.device)
    project, into = projector("sjlt", DIM, 0, 1, {"w": batch.shape[1]}), torch.zeros(4, DIM, device=model.at.device)
    apart = ratio(lambda: dense(batch), lambda: project.add(into, "w", batch), pairs)
    told("projection of 4 gradients to 8,192: dense / sjlt", apart, ">= 10x", apart[0] >= 10)
    on_cpu = model.at.device.type == "cpu"  # where a dense projection of r = 128 takes a quarter of an hour
    few, another = (encoded[:16], model_of(name, 8)) if on_cpu else (encoded, model)
    whole = ratio(lambda: theirs(another, few, less), lambda: features(another, few, less), pairs)
    note = f"{len(few)} samples{', r = 8' * on_cpu}"
    told("end to end: batch 1, dense / curate", whole, ">= 10x", whole[0] >= 10, note)
    parts(model, encoded, less)
    directions(model, few[:12], pairs, "LoRA")


def whole_model(name: str, samples: int = 12, pairs: int = 3) -> None:
    """Directions along all parameters."""
    model = Backward.of(LanguageModel(ModelChoice(name, context=512)))
    encoded = [one for one in encode(model.lm.tokenizer, real(2 * samples), 512) if not one.error][:samples]
    directions(model, [one for one in encoded if one.supervised.any()], pairs, "all parameters")


def memory(rows: int = 64, gib: float = 0.0) -> None:
    """Peak memory of a step of the warm-up with its own settings, on the longest real samples. gib: the setting
    activation_gib; 0: the default."""
    settings = replace(TrainSettings(**Less().warm_up().settings), batch_size=rows, steps=1, activation_gib=gib)
    lm = trainable(ModelChoice(smollm2() or "tiny", device="cpu"), settings).model
    encoded = [one for one in encode(lm.tokenizer, real(4 * rows), 2048) if not one.error and one.supervised.any()]
    longest = sorted(encoded, key=lambda one: -len(one.ids))[:rows]
    trainer = Trainer(lm, Data.of(Examples.of(longest)), settings, Uniform(), Alone())
    room = trainer.costs.room
    assert room is not None
    forget_peak()
    (step,) = trainer.run()
    whole = min(settings.micro_batch_size, rows) * len(longest[0].ids) * room.token / 2**30
    print(f"{rows} rows of up to {len(longest[0].ids)} tokens, {step.metrics['tokens']} in all")
    print(f"undivided, {settings.micro_batch_size} rows at once would keep {whole:.1f} GiB for the backward pass")
    peak = peak_bytes() / 2**30
    figure("a warm-up's step: peak memory of the process", peak, "GiB", "<= 4 GiB", peak <= 4)


if __name__ == "__main__":
    machine("torch", "transformers", "peft")
    if sys.argv[1:2] == ["memory"]:
        torch.set_num_threads(1)
        memory(*(kind(word) for kind, word in zip((int, float), sys.argv[2:], strict=False)))
        raise SystemExit
    if sys.argv[1:2] == ["agreement"]:
        agreement(*map(int, sys.argv[2:]))
    elif sys.argv[1:2] == ["bergson"]:
        bergson(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        given = sys.argv[1] if len(sys.argv) > 1 else smollm2() or "tiny"
        main(given, *map(int, sys.argv[2:]))
        whole_model(given) if given != "1b" else None
