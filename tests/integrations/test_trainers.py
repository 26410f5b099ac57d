"""OnlineWeights where trainers differ: packing, LoRA, bfloat16, checkpoints, several processes; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import curate
from curate.errors import CurateError
from curate.integrations.documents import documents_of
from curate.integrations.online_weights import STATE
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.talr import Talr
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE
from tests.integrations.test_online_weights import (
    ANCHORS,
    BATCH,
    STEPS,
    Weighted,
    WeightedSFT,
    arguments,
    furthest,
    model,
    parameters,
    rows,
    tokenizer,
    trained,
    trainer_of,
)

NEAR = Adapt(tau=0.1, refresh=3)
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"How many are {i} and {i}?"},
            {"role": "assistant", "content": str(2 * i)},
        ]
    }
    for i in range(12)
]


def test_where_documents_are_in_a_padded_batch() -> None:
    found = documents_of(
        {
            "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0], [0, 0, 8, 9]]),
            "labels": torch.tensor([[-100, 6, 7, -100], [-100, -100, -100, -100], [-100, -100, 8, 9]]),
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]]),
        }
    )
    assert found.kept.tolist() == [0, 2] and found.counts.tolist() == [2, 2]  # one has nothing to learn
    assert found.document.tolist() == [[0, 0, 0, 2], [2, 2, 2, 2], [2, 2, 1, 1]]
    assert found.place[0, :3].tolist() == [0, 1, 2] and found.place[2, 2:].tolist() == [0, 1]
    assert found.labels.tolist() == [6, 7, 8, 9] and found.supervised.tolist() == [1, 2, 10, 11]


def test_where_documents_are_in_a_packed_batch() -> None:
    found = documents_of(
        {
            "input_ids": torch.tensor([[5, 6, 7, 8, 9, 4, 3, 0, 0]]),
            "labels": torch.tensor([[-100, 6, 7, -100, 9, -100, -100, -100, -100]]),
            "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1, 0, 0]]),  # the last two are padding
        }
    )
    assert found.counts.tolist() == [2, 1] and found.kept.tolist() == [0, 1]
    assert found.document.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2]]


def test_a_mask_may_number_the_documents_of_a_row() -> None:
    given = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]), "labels": torch.tensor([[-100, 6, -100, 8, 9, -100]])}
    found = documents_of({**given, "attention_mask": torch.tensor([[1, 1, 2, 2, 2, 0]])})
    assert found.document.tolist() == [[0, 0, 1, 1, 1, 2]] and found.counts.tolist() == [1, 2]
    assert found.place.tolist() == [[0, 1, 0, 1, 2, 0]]


def test_another_program_may_make_the_trainer(tmp_path: Path) -> None:
    """Which knows nothing of weightings: what is chosen is the class's."""

    class Chosen(Weighted):
        options: ClassVar[dict[str, Any]] = {"weighting": Linupper()}

    given, chosen = (trained(kind, tmp_path, 4, **more) for kind, more in
                     ((Weighted, {"weighting": Linupper()}), (Chosen, {})))  # fmt: skip
    assert furthest(given.parameters, chosen.parameters) == 0
    with pytest.raises(CurateError, match="OnlineWeights needs weighting="):
        trained(Weighted, tmp_path, 4)


@pytest.mark.parametrize("weighting", [NEAR, Linupper(), Talr()], ids=lambda one: one.name)
def test_packed_rows_are_weighted_document_by_document(tmp_path: Path, weighting: Any) -> None:
    """All documents in one step, so that it is the same step however they are packed."""
    given = {"weighting": weighting, "anchors": ANCHORS if weighting.uses_target else None}
    settings = {"per_device_train_batch_size": 99, "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    packing = {**settings, "packing": True, "max_length": 32, "padding_free": True}
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows()])
    alone = trained(WeightedSFT, tmp_path / "a", BATCH, changed=settings, **given)
    args = arguments(tmp_path / "b", BATCH, SFTConfig, **packing)
    trainer = WeightedSFT(model=model(), args=args, train_dataset=data, processing_class=tokenizer(), **given)
    assert sum(1 for _ in trainer.get_train_dataloader().dataset) < len(data)
    trainer.train()
    assert furthest(parameters(trainer.model), alone.parameters) < 1e-5


@pytest.mark.parametrize("weighting", [NEAR, Talr()], ids=lambda one: one.name)
def test_it_resumes_from_a_checkpoint(tmp_path: Path, weighting: Any) -> None:
    given = {"weighting": weighting, "anchors": ANCHORS if weighting.uses_target else None}
    whole = trained(Weighted, tmp_path / "a", 4, **given)
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(Weighted, tmp_path / "b", 4, changed=saving, **given)
    folder = tmp_path / "b/checkpoint-2"
    assert (folder / STATE).exists()
    again = trainer_of(Weighted, tmp_path / "b", 4, **given)
    again.train(resume_from_checkpoint=str(folder))
    assert furthest(parameters(again.model), whole.parameters) < 1e-6
    (folder / STATE).unlink()
    with pytest.raises(CurateError, match=f"has no {STATE}: it is of a training without these weights"):
        trainer_of(Weighted, tmp_path / "b", 4, **given).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "bf16": True}],
    ids=lambda settings: "+".join(settings),
)
@pytest.mark.parametrize("lora", [False, True])
def test_lora_bfloat16_and_gradient_checkpointing_are_weighted_too(
    tmp_path: Path, settings: dict[str, Any], lora: bool
) -> None:
    """The same weights in both trainers, and the same training where nothing but memory differs."""
    given = {"weighting": NEAR, "anchors": ANCHORS}
    peft: dict[str, Any] = {"peft_config": LoraConfig(r=4, target_modules="all-linear")} if lora else {}
    runs = [
        trained(WeightedSFT, tmp_path / name, 4, changed=its, **given, **peft)
        for name, its in (("a", {"bf16": settings.get("bf16", False)}), ("b", settings))
    ]
    means = [[line["weight_mean"] for line in run.log if "weight_mean" in line] for run in runs]
    assert len(means[0]) == STEPS and means[0] == pytest.approx(means[1], rel=1e-6)
    assert len({round(mean, 6) for mean in means[0]}) > 1
    if not lora:  # an adapter begins with random numbers
        assert furthest(runs[0].parameters, runs[1].parameters) < 1e-6


_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.linupper import Linupper
from tests.integrations.test_online_weights import *
from transformers import DataCollatorForSeq2Seq
folder, processes = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
found = {}
for weighting, kind in (
    (Adapt(tau=0.1, refresh=2), WeightedSFT),
    (Adapt(tau=0.1, refresh=2, normalize="mean1"), Weighted),
    (Linupper(), WeightedSFT),
):
    sft = issubclass(kind, SFTTrainer)
    more = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}} if sft else {}
    args = arguments(folder / "out", 2, SFTConfig if sft else TrainingArguments, **more,
                     gradient_accumulation_steps=BATCH // 2 // processes, ddp_backend="gloo")
    data = Dataset.from_list([{k: row[k] for k in ("input_ids", "labels")} for row in rows()])
    kept = {} if sft else {"data_collator": DataCollatorForSeq2Seq(tokenizer())}
    anchors = ANCHORS if weighting.uses_target else None
    trainer = kind(model=model(), args=args, train_dataset=data, processing_class=tokenizer(), weighting=weighting,
                   anchors=anchors, **kept)
    trainer.train()
    name = f"{weighting.name}-{weighting.normalize}-{kind.__name__}"
    found[name] = [line["weight_mean"] for line in trainer.state.log_history if "weight_mean" in line]
    if trainer.accelerator.is_main_process:
        torch.save(parameters(trainer.model), folder / f"{name}.pt")
        (folder / "means.json").write_text(json.dumps(found))
"""


def test_processes_train_as_one(tmp_path: Path) -> None:
    """Real processes over gloo, on this machine alone: the same weights, and the same parameters."""
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += ["--master-addr=127.0.0.1", f"--master-port={29500 + os.getpid() % 1000}"]
        command += [str(script), str(folder), str(processes)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / str(n) / "means.json").read_text()) for n in (1, 2))
    assert len(one) == 3 and one.keys() == two.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5)
        assert furthest(*(torch.load(tmp_path / str(n) / f"{name}.pt") for n in (1, 2))) < 1e-5, name


def test_samples_and_anchors_may_be_chats(tmp_path: Path, sums_ws: Workspace) -> None:
    """TRL renders the samples, and curate the target: a list of chats, or one in a workspace."""
    curate.target(sums_ws, "sums", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    given: list[dict[str, Any]] = [
        {"anchors": CHATS[:3]},
        {"anchors": "sums", "workspace": sums_ws},
        {"anchors": "sums", "workspace": str(sums_ws.path)},
    ]
    means = []
    for i, its in enumerate(given):
        args = arguments(tmp_path / str(i), 4, SFTConfig, num_train_epochs=3, assistant_only_loss=False)
        trainer = WeightedSFT(model=model(), args=args, train_dataset=Dataset.from_list(CHATS),
                              processing_class=tokenizer(), weighting=NEAR, **its)  # fmt: skip
        trainer.train()
        means.append([line["weight_mean"] for line in trainer.state.log_history if "weight_mean" in line])
    assert means[1] == means[2] != means[0] and all(np.isfinite(means[0]))


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        ({"weighting": "no_such"}, {}, "there is no weighting 'no_such'|no weighting 'no_such'"),
        ({"weighting": AdaptStatic()}, {}, "uses a column of the training set; give column="),
        ({"weighting": AdaptStatic(), "column": "quality"}, {}, "has no column 'quality', which .* its columns are"),
        ({"weighting": Linupper(), "column": "nll"}, {}, "uses no column; leave out column='nll'"),
        ({"weighting": NEAR}, {}, "give anchors=, a list of its samples"),
        ({"weighting": NEAR, "anchors": "facts"}, {}, "anchors='facts' is the name of a target; say which workspace="),
        ({"weighting": NEAR, "anchors": [{"nothing": 1}]}, {}, r"anchors\[0\] "),
        ({"weighting": Linupper()}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor makes a loss"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, given: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(CurateError, match=said):
        trained(Weighted, tmp_path, 4, changed=settings, **given)


def test_losses_that_are_not_of_single_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="loss_type=dft weights tokens itself"):
        trained(WeightedSFT, tmp_path, 4, changed={"loss_type": "dft"}, weighting=Linupper())
    with pytest.raises(CurateError, match="compute_loss_func makes a loss of its own"):
        trained(Weighted, tmp_path, 4, weighting=Linupper(), compute_loss_func=lambda *_, **__: torch.zeros(()))
    args = arguments(tmp_path, BATCH, SFTConfig, packing=True, max_length=32)
    chats = Dataset.from_list(CHATS)
    with pytest.raises(CurateError, match="must know which samples a batch has: train without packing"):
        WeightedSFT(model=model(), args=args, train_dataset=chats, processing_class=tokenizer(), weighting=Stm())
    with pytest.raises(CurateError, match="has no column 'nll'.*packing drops the columns"):
        data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels", "nll")} for row in rows()])
        WeightedSFT(model=model(), args=args, train_dataset=data, processing_class=tokenizer(),
                    weighting=AdaptStatic(), column="nll")  # fmt: skip


def test_evaluation_is_not_weighted(tmp_path: Path) -> None:
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels", "nll")} for row in rows()])
    found = []
    for kind, given in ((Trainer, {}), (Weighted, {"weighting": AdaptStatic(), "column": "nll"})):
        found.append(trainer_of(kind, tmp_path, 4, **given).evaluate(data)["eval_loss"])
    assert found[0] == found[1]


assert SFTTrainer in WeightedSFT.__mro__


def test_weights_in_half_precision_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the weights that are trained are in torch.bfloat16, in which steps"):
        trainer_of(Weighted, tmp_path, 4, start=model(torch.bfloat16), weighting="uniform")
