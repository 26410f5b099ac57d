"""LESS against its description, one sample at a time; and what is stored, resumed and refused of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.gradients.optimizer_state import plain
from curate.kinds.vectors import Vectors
from curate.methods.scores.less import Less
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import score_samples
from curate.models.load import load
from curate.models.tokens import encode
from curate.runs.checkpoints import checkpoints_of
from curate.training.settings import TrainSettings
from tests.conftest import SAMPLE
from tests.support.checkpoints import AIM, LORA, POOL, SUBTASKS, oracle, said, write_checkpoints

EXACT: dict[str, Any] = {"projector": "none"}


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


def test_an_optimizer_that_was_given_the_frozen_base_too_is_read(tmp_path: Path) -> None:
    """AdamW(model.parameters()) of a model with LoRA numbers what it never moves."""
    (folder,) = write_checkpoints(tmp_path, steps=(1,))
    model = Backward([CheckpointChoice(ModelChoice(str(folder), device="cpu"))])
    for parameter in model.parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.lm.model.parameters(), lr=1e-3)
    model.lm.model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    choice = CheckpointChoice(ModelChoice(str(folder), device="cpu"), 1e-3, str(folder / "optimizer.pt"))
    moments = Backward([choice], moments=True).at.moments
    assert moments is not None and moments.mean.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        assert torch.equal(moments.mean[name], optimizer.state[parameter]["exp_avg"])


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


# --- where the score's order lies ------------------------------------------------------------------------


def test_checkpoints_are_summed_first_then_means_taken_and_the_maximum_last() -> None:
    """One sample, two checkpoints, three examples of two sub-tasks; each other order gives another number."""
    unit = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    sample = np.array([[unit["a"], unit["b"]]])  # its feature at each checkpoint
    aim = np.array([[[0.8, 0.6], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]], [[0.0, 1.0], [0.8, 0.6]]])
    near = np.array([[0.8, 1.0], [0.6, 0.0], [0.0, 0.6]])  # by hand: [example, checkpoint]
    shares = (0.75, 0.25)
    influence = near @ shares
    wanted = max(influence[:2].mean(), influence[2])
    max_first = near[:, 0].max() * 0.75 + near[:, 1].max() * 0.25
    (step,) = Less().passes(None)
    assert step.open
    target = Vectors.of(aim, subtasks=("one", "one", "two"), shares=shares)
    found = step.map(Vectors.of(sample, shares=shares), step.open(target))["score"][0]
    assert found == pytest.approx(wanted) == pytest.approx(0.65) and abs(found - max_first) > 0.1


# --- agreement of the projected with the unprojected -----------------------------------------------------


@pytest.mark.parametrize("projector", ["sjlt", "rademacher"])
def test_projected_scores_rank_as_the_unprojected_do(projector: Any, checkpoints: Any) -> None:
    """At 2,048 numbers, of 40 samples; at 8,192 and of 256 real samples: tests/bench/less.py."""
    lines = [json.loads(line) for line in (SAMPLE / "pool/school.jsonl").read_text().splitlines()[:40]]
    samples = [said(r["question"], r["answer"]) for r in lines]
    model, scores = GradientModel(checkpoints[:1], moments=True), []
    for less in (Less(**EXACT), Less(projector=projector, dim=2048)):
        (step,) = less.passes(None)
        assert step.open
        pool, aim = (
            Vectors.of(score_samples({"base": model}, some, {"x": how})[0]["x"]["vector"])
            for some, how in ((samples, less.vectors()), (samples[:8], less.target_vectors()))
        )
        scores.append(step.map(pool, step.open(aim))["score"])
    from scipy.stats import spearmanr

    assert spearmanr(*scores).statistic > 0.95


# --- other trainers' checkpoints -------------------------------------------------------------------------


def hugging_face(folder: Path, lora: bool) -> tuple[Path, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Two steps of Hugging Face's Trainer; its checkpoint, and its optimizer's state by the parameters' names."""
    from transformers import Trainer as Theirs
    from transformers import TrainingArguments

    model, tokenizer = load(ModelChoice("tiny", device="cpu"))
    if lora:
        import peft  # takes seconds

        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    else:
        model.requires_grad_(True)
    rows = [{"input_ids": one.ids.tolist(), "labels": one.ids.tolist()} for one in encode(tokenizer, POOL, 512)]
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=1, save_steps=1, logging_steps=1, report_to=[],
        use_cpu=True, learning_rate=1e-3, weight_decay=0.1, disable_tqdm=True,
    )  # fmt: skip
    theirs = Theirs(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)  # type: ignore[arg-type]
    theirs.train()
    state = theirs.optimizer.state  # type: ignore[union-attr]
    named = {plain(name): state[p] for name, p in model.named_parameters() if p.requires_grad}
    return folder, {name: (s["exp_avg"], s["exp_avg_sq"]) for name, s in named.items()}


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_optimizer_s_state_of_hugging_face_s_trainer_is_read_by_name(lora: bool, tmp_path: Path, ws: Any) -> None:
    folder, wanted = hugging_face(tmp_path / "out", lora)
    if lora:
        config = json.loads((folder / "checkpoint-2/adapter_config.json").read_text())
        for one in folder.glob("checkpoint-*/adapter_config.json"):  # peft cannot know what `tiny` is called
            one.write_text(json.dumps({**config, "base_model_name_or_path": "tiny"}))
    found = checkpoints_of(ws, [str(folder)], ModelChoice("", device="cpu"))
    assert [Path(c.model.name).name for c in found] == ["checkpoint-1", "checkpoint-2"]
    assert [c.lr for c in found] == pytest.approx([1e-3, 5e-4])  # linear, from 1e-3 in two steps
    model = Backward(found[1:], moments=True)
    moments = model.at.moments
    assert moments is not None and moments.step == 2 and moments.mean.keys() == wanted.keys()
    for name, (mean, square) in wanted.items():
        assert torch.equal(moments.mean[name], mean) and torch.equal(moments.square[name], square)


def test_a_plain_torch_optimizer_is_read_in_the_order_of_the_parameters(tmp_path: Path) -> None:
    model, tokenizer = load(ModelChoice("tiny", device="cpu"))
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    choice = CheckpointChoice(ModelChoice(str(tmp_path), device="cpu"), 1e-3, str(tmp_path / "optimizer.pt"))
    moments = Backward([choice], moments=True).at.moments
    assert moments is not None
    for name, parameter in model.named_parameters():
        assert torch.equal(moments.mean[name], optimizer.state[parameter]["exp_avg"])


# --- faults ----------------------------------------------------------------------------------------------


def test_what_is_of_another_training_is_refused(tmp_path: Path, checkpoints: Any, ws: Any) -> None:
    one, other = (
        checkpoints[0],
        write_checkpoints(tmp_path / "r4", TrainSettings(**{**vars(LORA), "lora_r": 4}), (1,))[0],
    )
    mixed = CheckpointChoice(one.model, 1e-3, str(other / "optimizer.safetensors"))
    with pytest.raises(CurateError, match=r"is the state of another model: .*lora_A\.weight has the shape \[2, 32\]"):
        Backward([mixed], moments=True)
    model = GradientModel([one, CheckpointChoice(ModelChoice(str(other), device="cpu"), 1e-3)])
    with pytest.raises(CurateError, match="are not checkpoints of one training: r is 2 in the one and 4 in the other"):
        score_samples({"base": model}, POOL, {"x": Less(variant="sgd", dim=64).vectors()})
    with pytest.raises(CurateError, match=r"has no optimizer state \(optimizer\.safetensors, optimizer\.pt"):
        Backward([CheckpointChoice(one.model, 1e-3)], moments=True)
    torch.save(
        {"state": {0: {"momentum": torch.ones(1)}}, "param_groups": [{"params": [0]}]}, tmp_path / "optimizer.pt"
    )
    with pytest.raises(CurateError, match="is the state of another model: it has 1 tensors, and 28 are trained"):
        Backward([CheckpointChoice(one.model, 1e-3, str(tmp_path / "optimizer.pt"))], moments=True)
    (tmp_path / "optimizer.pt").write_bytes(b"nothing")
    with pytest.raises(CurateError, match="cannot be read as the state of a torch optimizer"):
        Backward([CheckpointChoice(one.model, 1e-3, str(tmp_path / "optimizer.pt"))], moments=True)
    with pytest.raises(CurateError, match="no trainer_state.json records the learning rate it was trained at"):
        checkpoints_of(ws, [str(other)], ModelChoice(""))
    with pytest.raises(CurateError, match="there is no run of that name in"):
        checkpoints_of(ws, ["nothing"], ModelChoice(""))
    assert checkpoints_of(ws, [f"{other}@2e-5"], ModelChoice(""))[0].lr == 2e-5


def test_a_projection_of_more_numbers_than_there_are_is_refused(checkpoints: Any) -> None:
    with pytest.raises(CurateError, match="dim=9999999, and the parameters only"):
        score_samples({"base": GradientModel(checkpoints, True)}, POOL, {"x": Less(dim=9_999_999).vectors()})


def test_a_sample_whose_gradient_is_not_finite_is_null_and_the_rest_stand(checkpoints: Any) -> None:
    less, model = Less(dim=64), GradientModel(checkpoints[:1], moments=True)
    before = score_samples({"base": model}, POOL, {"x": less.vectors()})[0]["x"]
    lm = model.backward.lm
    (one, *others) = encode(lm.tokenizer, POOL[4:5] + POOL[:4], 512)
    own = set(one.ids.tolist()) - {t for other in others for t in other.ids.tolist()}
    broken = copy.deepcopy(lm.model.get_input_embeddings())  # of its own: the head shares the other
    with torch.no_grad():
        broken.weight[min(own)] = float("inf")
    lm.model.set_input_embeddings(broken)
    after = score_samples({"base": model}, POOL[:5], {"x": less.vectors()})[0]["x"]
    assert after["error"].tolist() == [""] * 4 + ["its gradient is not finite"]
    assert np.isnan(after["vector"][4]).all() and np.abs(after["vector"][:4] - before["vector"][:4]).max() < 1e-4


def test_an_example_of_the_target_with_nothing_supervised_is_left_out(checkpoints: Any) -> None:
    less, model = Less(dim=64), GradientModel(checkpoints, moments=True)
    mute = {"messages": [{"role": "user", "content": "what?", "extra": None}], "text": None}
    (step,) = less.passes(None)
    assert step.open
    aims = []
    for some in ([*AIM, mute], AIM):
        found = score_samples({"base": model}, some, {"x": less.target_vectors()})[0]["x"]
        aims.append(Vectors.of(found["vector"], found["error"], (*SUBTASKS, "words")[: len(some)]))
    assert aims[0].error[3].startswith("nothing of it is supervised")
    pool = Vectors.of(score_samples({"base": model}, POOL, {"x": less.vectors()})[0]["x"]["vector"])
    a, b = (step.map(pool, step.open(aim))["score"] for aim in aims)
    assert a == pytest.approx(b, abs=1e-6)
    with pytest.raises(CurateError, match="no example of the target has a vector: nothing of it is supervised"):
        step.open(aims[0].take(np.array([3])))
