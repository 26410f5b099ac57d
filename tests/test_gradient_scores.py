"""Scores by gradients against one sample at a time by autograd; and the stage that runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.method import Target
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import CheckpointChoice, ModelChoice
from curate.models.tokens import encode
from curate.scores.graddot import Graddot
from curate.scores.gradnorm import Gradnorm
from curate.scores.gradsim import Gradsim
from curate.scores.tracin import Tracin
from tests.oracles import gradients as slow
from tests.test_less import AIM, POOL, SUBTASKS


def double(lora: bool = False) -> Backward:
    lm = LanguageModel(ModelChoice("tiny", device="cpu"))
    lm.model.double()
    return Backward.of(lm)


def scored(model: Any, method: Any, samples: list[Any], aim: list[Any] | None = None) -> Any:
    """The columns of a score with counting passes, from memory, each pass over batches of two samples."""
    target = Target("t", None, SUBTASKS, "") if aim else None  # type: ignore[arg-type]
    state: Any = None
    *counting, last = method.passes(target)
    for step in counting:
        over = aim if step.over == "target" else samples
        given = [over] if step.over == "target" else [over[i : i + 2] for i in range(0, len(over), 2)]
        partials = [score_samples({"base": model}, some, {"x": step}, {"x": state})[0]["x"] for some in given]
        state = step.reduce({k: v for k, v in p.items() if k != "error"} for p in partials)
    state = last.open(state) if last.open else state
    return score_samples({"base": model}, samples, {"x": last}, {"x": state})[0]["x"]


@pytest.fixture(scope="module")
def model() -> Backward:
    return double()


@pytest.fixture(scope="module")
def gradients(model: Backward) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of the pool and of the target, one sample at a time."""
    tokens = [(one.ids.tolist(), one.supervised.tolist()) for one in encode(model.lm.tokenizer, [*POOL, *AIM], 512)]
    found = [slow.flat(slow.gradient(model.lm.model, one, model.parameters)) for one in tokens]
    return found[: len(POOL)], found[len(POOL) :]


def test_gradnorm_is_the_length_of_the_gradient(model: Backward, gradients: Any) -> None:
    found = scored(GradientModel.of(model), Gradnorm(), POOL)
    assert found["score"] == pytest.approx([float(g.norm()) for g in gradients[0]], rel=1e-9)


def test_gradsim_is_the_cosine_with_the_pool_s_mean_gradient(model: Backward, gradients: Any) -> None:
    found = scored(GradientModel.of(model), Gradsim(), POOL)
    mean = torch.stack(gradients[0]).mean(0)
    wanted = [float(g @ mean / (g.norm() * mean.norm())) for g in gradients[0]]
    assert found["score"] == pytest.approx(wanted, rel=1e-6)  # the mean is kept in float32


@pytest.mark.parametrize("by", ["ghost", "jvp"])
@pytest.mark.parametrize("aggregate", ["mean", "subtask_max"])
def test_graddot_is_the_product_with_the_target_s_mean_gradient(
    model: Backward, gradients: Any, by: Any, aggregate: Any
) -> None:
    found = scored(GradientModel.of(model), Graddot(aggregate=aggregate, by=by, keep_subtasks=True), POOL, AIM)
    pool, aim = gradients
    sums, words = torch.stack(aim[:2]).mean(0), aim[2]
    of_each = np.array([[float(g @ sums), float(g @ words)] for g in pool])
    wanted = of_each @ [2 / 3, 1 / 3] if aggregate == "mean" else of_each.max(1)
    scale = np.abs(wanted).max()
    assert np.abs(found["score"] - wanted).max() < 2e-5 * scale
    assert np.abs(found["subtasks"]["sums"] - of_each[:, 0]).max() < 2e-5 * scale


def test_tracin_is_the_sum_over_checkpoints_by_their_learning_rates(tmp_path: Path) -> None:
    from tests.test_less import LORA, write_checkpoints

    folders = write_checkpoints(tmp_path, dataclasses.replace(LORA, epochs=2))
    choices = [
        CheckpointChoice(ModelChoice(str(f), device="cpu"), lr) for f, lr in zip(folders, (0.5, 0.1), strict=True)
    ]
    wanted = np.zeros(len(POOL))
    for choice in choices:
        model = Backward([choice])
        tokens = encode(model.lm.tokenizer, [*POOL, *AIM], 512)
        model.lm.model.double()
        g = [
            slow.flat(slow.gradient(model.lm.model, (t.ids.tolist(), t.supervised.tolist()), model.parameters))
            for t in tokens
        ]
        mean = torch.stack(g[len(POOL) :]).mean(0)
        wanted += [(choice.lr or 0.0) * float(one @ mean) for one in g[: len(POOL)]]
    found = scored(GradientModel(choices), Tracin(), POOL, AIM)
    assert np.abs(found["score"] - wanted).max() < 1e-4 * np.abs(wanted).max()


# --- the stage -------------------------------------------------------------------------------------------
