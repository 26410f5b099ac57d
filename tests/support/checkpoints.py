"""Checkpoints of a short training of the narrow model on a few samples, and LESS by them, one sample at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from curate.gradients.backward import Backward
from curate.gradients.optimizer_state import load_moments
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.tokens import encode
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.oracles import gradients as slow
from tests.support.narrow import NARROW

LORA = TrainSettings(epochs=1, batch_size=4, lr=1e-2, lora_r=2, lora_alpha=8, warmup=0.0)


def said(prompt: str, answer: str) -> dict[str, Any]:
    turns = (("user", prompt), ("assistant", answer))
    return {"messages": [{"role": r, "content": c, "extra": None} for r, c in turns], "text": None}


POOL = [said(f"what is {a} plus {b}?", f"{a + b}") for a, b in ((2, 3), (10, 7), (4, 4), (31, 5))]
POOL += [said("translate: the red river", "der rote fluss"), said("who made the bridge?", "a miller, long ago, did")]
AIM = [said("what is 6 plus 2?", "8"), said("what is 1 plus 1?", "2"), said("translate: the mill", "die mühle")]
SUBTASKS = ("sums", "sums", "words")


def write_checkpoints(folder: Path, settings: TrainSettings = LORA, steps: tuple[int, ...] = (2, 4)) -> list[Path]:
    """A short training on the pool, and the folders of its checkpoints."""
    from safetensors.torch import save_file

    made = trainable(ModelChoice(NARROW, device="cpu"), settings)
    examples = Examples.of(encode(made.model.tokenizer, POOL, 512))
    found = []
    trainer = Trainer(made.model, Data.of(examples), settings, Uniform(), Alone())
    for done in trainer.run():
        if done.step in steps:
            found.append(folder / f"checkpoint-{done.step}")
            made.save(found[-1])
            save_file(trainer.snapshot().optimizer, found[-1] / "optimizer.safetensors")
    return found


def oracle(
    checkpoints: list[CheckpointChoice],
    variant: str,
    pool: list[Any] = POOL,
    aim: list[Any] = AIM,
    subtasks: Any = SUBTASKS,
    rates: Any = (),
) -> list[float]:
    """LESS one sample at a time, in float64."""
    trained, raw = one_at_a_time(checkpoints, variant, pool, aim)
    return slow.less(trained, raw, subtasks, rates or [c.lr or 0.0 for c in checkpoints])


def one_at_a_time(
    checkpoints: list[CheckpointChoice], variant: str, pool: list[Any], aim: list[Any]
) -> tuple[list[Any], list[Any]]:
    """What LESS compares, at every checkpoint: Adam's steps of the pool's gradients, and the target's gradients."""
    trained, raw = [], []
    for checkpoint in checkpoints:
        model = Backward([checkpoint])
        model.lm.model.double()
        moments = load_moments(checkpoint, model.parameters, ())
        m, v = (torch.cat([of[n].flatten() for n in model.parameters]) for of in (moments.mean, moments.square))
        tokens = [(o.ids.tolist(), o.supervised.tolist()) for o in encode(model.lm.tokenizer, [*pool, *aim], 512)]
        g = [slow.flat(slow.gradient(model.lm.model, one, model.parameters)) for one in tokens]
        trained.append([slow.gamma(one, m, v, moments.step, variant) for one in g[: len(pool)]])
        raw.append(g[len(pool) :])
    return trained, raw
