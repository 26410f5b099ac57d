"""LESS against its description, one sample at a time; and what is stored, resumed and refused of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.gradients.backward import Backward
from curate.gradients.checkpoints import load_moments
from curate.gradients.gradient_model import GradientModel
from curate.models.forward import score_samples
from curate.models.load import CheckpointChoice, ModelChoice
from curate.models.tokens import encode
from curate.scores.less import Less
from curate.training.examples import Examples
from curate.training.loop import Alone, Data, Trainer
from curate.training.settings import TrainSettings
from curate.training.trainee import trainee
from curate.vectors import Vectors
from curate.weightings.uniform import Uniform
from tests.oracles import gradients as slow

LORA = TrainSettings(epochs=1, batch_size=4, lr=1e-2, lora_r=2, lora_alpha=8, warmup=0.0)
EXACT: dict[str, Any] = {"projector": "none"}


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

    made = trainee(ModelChoice("tiny", device="cpu"), settings)
    examples = Examples.of(encode(made.model.tokenizer, POOL, 512))
    found = []
    trainer = Trainer(made.model, Data.of(examples), settings, Uniform(), Alone())
    for done in trainer.run():
        if done.step in steps:
            found.append(folder / f"checkpoint-{done.step}")
            made.save(found[-1])
            save_file(trainer.snapshot().optimizer, found[-1] / "optimizer.safetensors")
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: Any) -> list[CheckpointChoice]:
    folders = write_checkpoints(tmp_path_factory.mktemp("c"), TrainSettings(**{**vars(LORA), "epochs": 2}))
    rates = (1e-2, 3e-3)
    return [
        CheckpointChoice(ModelChoice(str(f), device="cpu"), lr, str(f / "optimizer.safetensors"))
        for f, lr in zip(folders, rates, strict=True)
    ]


def features(model: Any, less: Less, samples: list[Any], aim: bool = False) -> Vectors:
    step = less.target_vectors() if aim else less.vectors()
    found = score_samples({"base": model}, samples, {"x": step})[0]["x"]
    return Vectors.of(found["vector"], found["error"], SUBTASKS if aim else (), (10 / 13, 3 / 13))


def oracle(checkpoints: list[CheckpointChoice], variant: str) -> list[float]:
    """LESS one sample at a time, in float64."""
    trained, raw = [], []
    for checkpoint in checkpoints:
        model = Backward([checkpoint])
        model.lm.model.double()
        moments = load_moments(checkpoint, model.parameters)
        m, v = slow.flat(moments.mean), slow.flat(moments.square)
        order = [list(moments.mean).index(name) for name in model.parameters]
        m = torch.cat([list(moments.mean.values())[i].flatten() for i in order])
        v = torch.cat([list(moments.square.values())[i].flatten() for i in order])
        tokens = [(one.ids.tolist(), one.supervised.tolist()) for one in encode(model.lm.tokenizer, [*POOL, *AIM], 512)]
        g = [slow.flat(slow.gradient(model.lm.model, one, model.parameters)) for one in tokens]
        trained.append([slow.gamma(one, m, v, moments.step, variant) for one in g[: len(POOL)]])
        raw.append(g[len(POOL) :])
    return slow.less(trained, raw, SUBTASKS, [c.lr or 0.0 for c in checkpoints])


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_less_without_a_projection_is_less_one_sample_at_a_time(checkpoints: Any, variant: Any) -> None:
    less, wanted = Less(variant=variant, **EXACT), oracle(checkpoints, variant)
    model = GradientModel(checkpoints, moments=True)
    (step,) = less.passes(None)
    assert step.open
    found = step.map(features(model, less, POOL), step.open(features(model, less, AIM, aim=True)))
    assert np.abs(found["score"] - wanted).max() < 1e-5
    alone = [step.map(features(model, less, [one]), step.open(features(model, less, AIM, aim=True))) for one in POOL]
    assert np.abs(np.concatenate([one["score"] for one in alone]) - wanted).max() < 1e-5


def test_the_two_variants_differ(checkpoints: Any) -> None:
    assert np.abs(np.array(oracle(checkpoints, "code")) - oracle(checkpoints, "paper")).max() > 1e-2
