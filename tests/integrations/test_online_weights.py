"""OnlineWeights in transformers' Trainer and TRL's: against the trainers alone, and against curate's own loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.data.data_collator import DataCollatorWithFlattening
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from curate.integrations import OnlineWeights
from curate.integrations.base_losses import BaseLosses
from curate.kinds.weighting import Weighting
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.extremes import Extremes
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.linear import Linear
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.quadratic import Quadratic
from curate.methods.weightings.rho_weight import RhoWeight
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.talr import Talr
from curate.models.choice import ModelChoice
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.inference import base_losses
from curate.training.loop import Trainer as OurTrainer
from curate.training.objective import Objective
from curate.training.settings import TrainSettings
from curate.training.trainable import trainable
from tests.support.narrow import NARROW

STEPS, BATCH, LR = 5, 8, 3e-3
EPSILON = 1e-5  # of AdamW: with its own 1e-8, a parameter whose gradient is all rounding is moved by that


class Weighted(OnlineWeights, Trainer):
    pass


class WeightedSFT(OnlineWeights, SFTTrainer):
    pass


def rows(n: int = BATCH * STEPS, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of random tokens, each with a prompt that is not trained on."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        ids = rng.integers(5, 200, rng.integers(4, 20))
        labels = np.where(np.arange(len(ids)) < rng.integers(1, 4), -100, ids)
        made.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "nll": float(rng.uniform(0.5, 6.0)), "i": i})
    return made


ANCHORS = [{"input_ids": row["input_ids"]} for row in rows(5, seed=9)]


def model(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(NARROW, dtype=dtype, attn_implementation="sdpa")


def arguments(folder: Path, micro: int, kind: type[Any] = TrainingArguments, **more: Any) -> Any:
    same = {
        "output_dir": str(folder), "per_device_train_batch_size": micro, "gradient_accumulation_steps": BATCH // micro,
        "learning_rate": LR, "adam_epsilon": EPSILON, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1, "report_to": [], "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "seed": 3,
        "disable_tqdm": True, "train_sampling_strategy": "sequential", "bf16": False,
    }  # fmt: skip
    return kind(**{**same, **more})


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NARROW)


def parameters(of: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in of.named_parameters()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@dataclass
class Run:
    """What a training left."""

    parameters: dict[str, Tensor]
    losses: list[float]
    log: list[dict[str, Any]]


def trainer_of(
    kind: type[Any],
    folder: Path,
    micro: int,
    collate: str = "padded",
    changed: dict[str, Any] | None = None,
    start: Any = None,
    **given: Any,
) -> Any:
    """Transformers' or TRL's Trainer, with or without weights."""
    sft = issubclass(kind, SFTTrainer)
    more: dict[str, Any] = {"max_length": None, "packing": False} if sft else {}
    if sft:
        more["padding_free"] = collate == "free"
        more |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    collator = None
    if not sft:
        collator = DataCollatorWithFlattening() if collate == "free" else DataCollatorForSeq2Seq(tokenizer())
    args = arguments(folder, micro, SFTConfig if sft else TrainingArguments, **more, **changed or {})
    kept = {"data_collator": collator} if collator else {}
    data = Dataset.from_list([{k: v for k, v in row.items() if k != "i"} for row in rows()])
    return kind(model=start or model(), args=args, train_dataset=data, processing_class=tokenizer(), **kept, **given)


def trained(kind: type[Any], folder: Path, micro: int, collate: str = "padded", **given: Any) -> Run:
    """Train with it."""
    trainer = trainer_of(kind, folder, micro, collate, **given)
    trainer.train()
    return Run(parameters(trainer.model), losses(trainer), trainer.state.log_history)


def ours(
    weighting: Weighting, micro: int, column: bool, dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[dict[str, Tensor], list[Any]]:
    """The same training by curate's own loop."""
    settings = TrainSettings(
        **{
            "batch_size": BATCH, "micro_batch_size": micro, "lr": LR, "eps": EPSILON, "schedule": "constant",
            "warmup": 0.0, "order": "pool", "epochs": 1, **more,
        }
    )  # fmt: skip
    start = trainable(ModelChoice(str(NARROW), device="cpu", dtype="float32"), settings, None, 3)
    start.model.model.to(dtype)
    encoded = [Encoded(np.array(r["input_ids"], np.int32), np.array(r["labels"]) != -100) for r in rows()]
    for one in encoded:
        one.supervised[0] = False
    asked = [np.array(row["input_ids"], np.int32) for row in ANCHORS]
    anchors = Examples.of([Encoded(ids, np.arange(len(ids)) > 0) for ids in asked])
    values = np.array([row["nll"] for row in rows()]) if column else None
    data = Data.of(Examples.of(encoded), anchors=anchors, column=values)
    if {"base_loss", "base_token_loss"} & set(weighting.needs):
        known = base_losses if "base_loss" in weighting.needs else made_up
        tokens, _ = known(Objective(start.model), data.examples)
        means = np.array([part.mean() for part in np.split(tokens, np.cumsum(data.examples.counts)[:-1])])
        data = replace(data, base_token_loss=tokens, column=means)
    trainer = OurTrainer(start.model, data, settings, weighting, Alone(), seed=3)
    steps = list(trainer.run())
    return parameters(start.model.model), steps


@pytest.mark.parametrize("collate", ["padded", "free"])
@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize(("plain", "weighted"), [(Trainer, Weighted), (SFTTrainer, WeightedSFT)])
def test_uniform_is_the_trainer_alone_to_the_bit(
    tmp_path: Path, plain: type[Any], weighted: type[Any], micro: int, collate: str
) -> None:
    alone = trained(plain, tmp_path / "a", micro, collate)
    with_weights = trained(weighted, tmp_path / "b", micro, collate, weighting="uniform")
    assert alone.losses == with_weights.losses and len(alone.losses) == STEPS
    assert all(torch.equal(alone.parameters[name], with_weights.parameters[name]) for name in alone.parameters)


def made_up(objective: Objective, examples: Examples, **more: Any) -> tuple[np.ndarray, Any]:
    """Base losses apart from the model's own: at the first step those differ from its losses by rounding alone, and
    which tokens have the largest differences is then rounding's choice."""
    values, usage = base_losses(objective, examples)
    return np.random.default_rng(0).uniform(0, 2, len(values)), usage


def weights_of(step: Any, weighting: Weighting) -> np.ndarray:
    """The weights of a step as they enter its loss."""
    counts = np.array([sum(label != -100 for label in row["labels"][1:]) for row in rows()])[step.documents]
    mean = (step.weight * counts).sum() / counts.sum() if weighting.normalize == "mean1" else 1.0
    return step.weight / mean


@pytest.mark.parametrize("collate", ["padded", "free"])
@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize(
    "weighting",
    [Adapt(tau=0.1, refresh=2), Adapt(tau=0.1, refresh=2, normalize="mean1", center="states", center_samples=7),
     Linupper(), Linear(), Quadratic(), Extremes(), Talr(), AdaptStatic(), Flow(), Stm(), RhoWeight()],
    ids=lambda weighting: weighting.name,
)  # fmt: skip
@pytest.mark.parametrize("kind", [Weighted, WeightedSFT])
def test_each_weighting_is_that_of_our_own_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any], weighting: Weighting, micro: int, collate: str
) -> None:
    if "base_token_loss" in weighting.needs:
        monkeypatch.setattr("curate.integrations.base_losses.base_losses", made_up)
    column = "nll" if "column" in weighting.needs else None
    expected, steps = ours(weighting, micro, column is not None)
    found = trained(
        kind, tmp_path, micro, collate, weighting=weighting, column=column,
        anchors=ANCHORS if weighting.uses_target else None,
    )  # fmt: skip
    assert furthest(found.parameters, expected) < 1e-5
    lines = [line for line in found.log if "weight_mean" in line]
    means = [line["weight_mean"] for line in lines]
    assert means == pytest.approx([float(np.mean(weights_of(step, weighting))) for step in steps], rel=1e-5)
    assert lines[0]["weight_min"] < lines[0]["weight_max"] and 0 < lines[0]["effective_share"] < 1
    moved = trained(Trainer, tmp_path / "plain", micro, collate)
    assert furthest(found.parameters, moved.parameters) > 1e-4  # the weights did something


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("weighting", [Adapt(tau=0.1, refresh=2), Quadratic(), Flow()], ids=lambda one: one.name)
def test_in_float64_nothing_but_rounding_is_left_of_the_difference(
    tmp_path: Path, weighting: Weighting, micro: int
) -> None:
    column = "nll" if "column" in weighting.needs else None
    expected, _ = ours(weighting, micro, column is not None, torch.float64)
    found = trained(
        Weighted, tmp_path, micro, start=model(torch.float64), weighting=weighting, column=column,
        anchors=ANCHORS if weighting.uses_target else None,
    )  # fmt: skip
    assert furthest(found.parameters, expected) < 1e-11


def test_base_losses_are_those_of_the_model_that_training_begins_with(tmp_path: Path) -> None:
    trainer = trainer_of(Weighted, tmp_path, 4, weighting=Stm())
    collate = trainer._collate
    found = BaseLosses(
        trainer, "stm", lambda some: collate([{k: row[k] for k in ("input_ids", "labels")} for row in some])
    )
    expected = []
    with torch.no_grad():
        for row in rows():
            logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
            labels = torch.tensor(row["labels"][1:])
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
            expected.append(losses[labels != -100].numpy())
    places = np.array([7, 0, 31])
    assert found.tokens(places) == pytest.approx(np.concatenate([expected[i] for i in places]), rel=1e-5)
    assert found.means() == pytest.approx([one.mean() for one in expected], rel=1e-5)
    assert found.cost.flops > 0 and found.samples == len(rows())
