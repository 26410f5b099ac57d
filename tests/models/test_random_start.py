"""Training from a configuration: random weights by the run's seed, the same whenever they are asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.methods.pruners.magnitude import Magnitude
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice, resolve, seeded, weights_fingerprint
from curate.models.load import load
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from tests.support.narrow import NARROW

SHORT = TrainSettings(batch_size=4, steps=2, lr=1e-3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with its tokenizer beside it, and no weights."""
    folder = tmp_path / "plan"
    shutil.copytree(NARROW, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "config.json"


def weights(name: str) -> dict[str, torch.Tensor]:
    model = load(ModelChoice(name, device="cpu", dtype="float32"))[0]
    return {name: parameter.clone() for name, parameter in model.named_parameters()}  # these are mapped files


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_they_are_what_transformers_draws_by_that_seed(config: Path) -> None:
    found = weights(f"config:{config}#7")
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.parent), dtype=torch.float32)
    torch.random.set_rng_state(state)
    assert same(found, dict(model.named_parameters()))


def test_a_seed_is_a_start_and_asks_nothing_of_what_was_drawn_before(config: Path, tmp_path: Path) -> None:
    name = f"config:{config}"
    first, fingerprint = weights(f"{name}#1"), weights_fingerprint(ModelChoice(f"{name}#1"))
    shutil.rmtree(tmp_path / "cache")
    before = torch.random.get_rng_state()
    assert same(first, weights(f"{name}#1")) and fingerprint == weights_fingerprint(ModelChoice(f"{name}#1"))
    assert before.equal(torch.random.get_rng_state())
    assert not same(first, weights(f"{name}#2")) and same(weights(name), weights(f"{name}#0"))
    assert resolve(f"config:{config.parent}#1") == resolve(f"{name}#1")  # its folder names it, too


def test_a_damaged_one_is_drawn_again(config: Path) -> None:
    name = f"config:{config}#1"
    first = weights(name)
    (resolve(name) / "model.safetensors").write_bytes(b"1234567890")
    assert same(first, weights(name))


def test_a_run_begins_by_its_seed_and_says_so(config: Path, few_ws: Workspace) -> None:
    spec = TrainingSpec(ModelChoice(f"config:{config}", device="cpu"), Uniform(), SHORT)
    evals = [EvalSpec("facts", curate.method("metric", "loss"), "val", limit=2)]
    for seed in (0, 1):
        curate.train(few_ws, f"scratch_{seed}", replace(spec, seed=seed), evals=evals)
    recipes = [Run(few_ws, f"scratch_{seed}").require_recipe() for seed in (0, 1)]
    assert [recipe.model.name for recipe in recipes] == [f"config:{config}#{seed}" for seed in (0, 1)]
    assert recipes[0].model.weights != recipes[1].model.weights
    compared = curate.compare(few_ws, ["scratch_0", "scratch_1"])
    assert [len(arm.runs) for arm in compared.arms] == [2]  # one arm of two seeds
    assert curate.prune(few_ws, "scratch_1", Magnitude(), 0.5).kept > 0  # which loads what it began with
    assert curate.train(few_ws, "scratch_1", replace(spec, seed=1)).steps_now == 0
    planned = curate.train(few_ws, "new", spec, dry_run=True).planned or {}
    assert planned["steps"] == 2
    with pytest.raises(CurateError, match="exists, with seed 1, not 2"):
        curate.train(few_ws, "scratch_1", replace(spec, seed=2))


def test_a_tokenizer_may_be_elsewhere(config: Path, tmp_path: Path, few_ws: Workspace) -> None:
    alone = tmp_path / "alone.json"
    shutil.copy(config, alone)
    with pytest.raises(CurateError, match=r"config:.*alone.json has no tokenizer .*model.tokenizer"):
        load(ModelChoice(f"config:{alone}", device="cpu"))
    choice = ModelChoice(f"config:{alone}", device="cpu", tokenizer=NARROW)
    result = curate.train(few_ws, "scratch", TrainingSpec(choice, Uniform(), SHORT))
    assert result.steps == 2 and (Path(result.folder) / "tokenizer.json").exists()


BAD = {
    "no such": (lambda config: config.with_name("none.json"), "there is no"),
    "no model": (lambda config: _changed(config, model_type="no_such"), "describes no causal language model"),
    "no text": (lambda config: _changed(config, model_type=None), "describes no causal language model"),
    "far too large": (lambda config: _changed(config, hidden_size=1 << 22), "more than is free"),
    "too few words": (lambda config: _changed(config, vocab_size=8), "they do not belong together"),
}


def _changed(config: Path, **settings: Any) -> Path:
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return config


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_begun_is_said(config: Path, case: str) -> None:
    change, words = BAD[case]
    with pytest.raises(CurateError, match=words):
        load(ModelChoice(f"config:{change(config)}", device="cpu"))


def test_a_seed_is_given_once() -> None:
    assert seeded(ModelChoice("config:a.json"), 3).name == "config:a.json#3"
    assert seeded(ModelChoice("config:a.json#1"), 3).name == "config:a.json#1"
    assert seeded(ModelChoice("tiny"), 3).name == "tiny"
