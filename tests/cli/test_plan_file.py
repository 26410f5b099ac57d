"""`curate train --plan FILE`: options and settings from a file, the command line before it, and what it may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.store.run_record import Run
from tests.cli.test_cli import Cli, ok, sentence
from tests.conftest import SAMPLE
from tests.support.narrow import NARROW

PLAN = f"""
model = {json.dumps(str(NARROW))}
weighting = "adapt"
target = "arithmetic"
eval = ["arithmetic"]
limit = 3
seed = 4

[set]
lr = 1e-3
batch_size = 8
max_steps = 2
keep_weights = false

[set.adapt]
tau = 0.5
"""


@pytest.fixture
def plan(tmp_path: Path, sums_ws: Any) -> Path:
    curate.target(sums_ws, "arithmetic", str(SAMPLE / "targets/arithmetic_test.jsonl"), split="test")
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def recipe(ws: Any, name: str) -> Any:
    return Run(ws, name).require_recipe()


def test_a_plan_says_what_the_command_line_would(cli: Cli, sums_ws: Any, plan: Path) -> None:
    ok(cli("train", "planned", "--plan", plan, ws=sums_ws))
    said = ["--model", NARROW, "--weighting", "adapt", "--target", "arithmetic", "--eval", "arithmetic", "--limit", "3"]
    said += [
        "--seed",
        "4",
        "--set",
        "lr=1e-3",
        "--set",
        "batch_size=8",
        "--set",
        "max_steps=2",
        "--set",
        "adapt.tau=0.5",
    ]
    ok(cli("train", "said", *said, "--set", "keep_weights=false", ws=sums_ws))
    planned, by_hand = recipe(sums_ws, "planned"), recipe(sums_ws, "said")
    assert planned.settings == by_hand.settings and planned.weighting == by_hand.weighting and planned.seed == 4
    assert len(curate.compare(sums_ws, ["planned", "said"]).arms) == 1
    assert curate.sql(sums_ws, "SELECT DISTINCT questions FROM evaluations") == [{"questions": 3}]


def test_the_command_line_comes_before_the_plan(cli: Cli, sums_ws: Any, plan: Path) -> None:
    ok(cli("train", "other", "--plan", plan, "--seed", "9", "--set", "lr=1e-4", "--set", "adapt.tau=2", ws=sums_ws))
    other = recipe(sums_ws, "other")
    assert (other.seed, other.settings["lr"], other.weighting.settings["tau"]) == (9, 1e-4, 2.0)
    assert other.settings["steps"] == 2


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (["--set", "learning_rate=1e-4"], {"lr": 1e-4, "steps": 2}),
        (["--set", "epochs=0.5"], {"epochs": 0.5, "steps": 0}),
        (["--flops", "2e9"], {"flops": 2e9, "steps": 0}),
        (["--set", "batch_tokens=300"], {"batch_tokens": 300, "batch_size": 32}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_command_line_says_by_another_name_or_in_another_unit_comes_first_too(
    cli: Cli, sums_ws: Any, plan: Path, given: list[str], changed: dict[str, Any]
) -> None:
    ok(cli("train", "other", "--plan", plan, *given, ws=sums_ws))
    settings = recipe(sums_ws, "other").settings
    assert {key: settings[key] for key in changed} == changed


def test_a_plan_s_length_gives_way_to_another_run_s_flops(cli: Cli, sums_ws: Any, plan: Path) -> None:
    ok(cli("train", "first", "--plan", plan, ws=sums_ws))
    ok(cli("train", "second", "--plan", plan, "--weighting", "adapt", "--flops-of", "first", ws=sums_ws))
    assert recipe(sums_ws, "second").settings["flops"] > 0
    plan.write_text(PLAN.replace("max_steps = 2\n", "").replace("[set]", "flops = 5e9\n[set]", 1))
    ok(cli("train", "third", "--plan", plan, "--set", "steps=1", ws=sums_ws))
    assert recipe(sums_ws, "third").settings["flops"] == 0 and recipe(sums_ws, "third").settings["steps"] == 1


def test_settings_of_a_weighting_that_is_not_used_are_left_out_and_said(cli: Cli, sums_ws: Any, plan: Path) -> None:
    plan.write_text(PLAN.replace('target = "arithmetic"\n', ""))
    text = ok(cli("train", "plain", "--plan", plan, "--weighting", "uniform", ws=sums_ws))
    assert "the plan's adapt.tau is left out, as the weighting is uniform" in text
    plan.write_text(PLAN + "\n[set.model]\ncontext = 64\n")
    ok(cli("train", "lora", "--plan", plan, "--set", "lora_r=2", "--set", "lora_targets=q_proj", ws=sums_ws))
    plan.write_text(PLAN.replace("[set]", '[set]\nlora_r = 2\nlora_targets = ["q_proj", "v_proj"]', 1))
    ok(cli("train", "listed", "--plan", plan, ws=sums_ws))
    assert recipe(sums_ws, "listed").settings["lora_targets"] == "q_proj,v_proj"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle = 'tiny'", "'modle', which is no option of this command: did you mean 'model'?"),
        ("model = 'tiny'\neval = 'facts'", "eval is a list"),
        ("model = ['tiny']", "model is one value"),
        ("model = 'tiny'\nset = 3", "the settings are a table"),
        ("model = tiny", "is no TOML"),
        ("model = 'tiny'\n[set.model]\nallow_remote_code = true", "lets the model's own code run"),
        ("model = 'tiny'\nsettings = true", "'settings', which is no option of this command"),
        ("weighting = 'uniform'", "Missing option '--model'|--model"),
    ],
)
def test_a_plan_that_is_none_is_a_sentence(cli: Cli, sums_ws: Any, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert re.search(said, sentence(cli("train", "bad", "--plan", tmp_path / "bad.toml", ws=sums_ws)))
    assert "No such file" in sentence(cli("train", "bad", "--plan", tmp_path / "none.toml", ws=sums_ws))
