"""The published recipes in pipelines/plans/published: the commands at the head of each file, on a model of 60,000
parameters."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.store.run_record import Run
from tests.cli.test_cli import Cli, ok
from tests.conftest import ROOT, SAMPLE
from tests.support.narrow import NARROW

PLANS = sorted((ROOT / "pipelines/plans/published").glob("*.toml"))
BRIEF = {  # what makes them small; everything else is the file's
    "score": ["--set", "warmup=0.2", "--set", "batch_size=8"],
    "train": ["--set", "model.context=128"],
}
BRIEF_TRAINING = {
    "adapt_table1": ["--model", str(NARROW), "--set", "batch_size=32", "--set", "epochs=0.5"],
    "adapt_table2": ["--set", "batch_tokens=2000", "--set", "epochs=0.5"],
    "filter_then_weight": ["--model", str(NARROW), "--set", "steps=2", "--set", "batch_size=2"],
}


def commands(plan: Path) -> list[list[str]]:
    """The commands at the head of a plan, with the names that a user fills in."""
    lines = re.findall(r"^#   curate (.+)$", plan.read_text(encoding="utf-8"), re.MULTILINE)
    filled = [
        line.replace("TARGET", "arithmetic")
        .replace("config:FOLDER", f"config:{NARROW}")
        .replace("MODEL", str(NARROW))
        .replace("pipelines/", f"{ROOT}/pipelines/")
        for line in lines
    ]
    return [shlex.split(line) for line in filled]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.stem)
def test_a_published_recipe_runs_as_its_head_says(cli: Cli, sums_ws: Any, plan: Path) -> None:
    curate.target(sums_ws, "arithmetic", str(SAMPLE / "targets/arithmetic_test.jsonl"), split="test")
    told = commands(plan)
    assert told and told[-1][0] == "train"
    for words in told:
        brief = BRIEF.get(words[0], []) + (BRIEF_TRAINING.get(plan.stem, []) if words[0] == "train" else [])
        ok(cli(*words, *brief, ws=sums_ws))
    (name,) = sums_ws.run_names()
    recipe = Run(sums_ws, name).require_recipe()
    assert Run(sums_ws, name).is_complete() and recipe.weighting is not None
    overridden = {"epochs", "steps", "batch_size", "batch_tokens"} if plan.stem in BRIEF_TRAINING else set()
    for key, value in _settings(plan).items():
        if key not in overridden:
            assert recipe.settings[key] == value, key


def _settings(plan: Path) -> dict[str, Any]:
    import tomllib

    return {k: v for k, v in tomllib.loads(plan.read_text())["set"].items() if not isinstance(v, dict)}


def test_the_shape_of_120_million_parameters_has_about_as_many() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = json.loads((ROOT / "pipelines/plans/published/llama_120m.json").read_text())
    with torch.device("meta"):
        count = LlamaForCausalLM(LlamaConfig(**shape)).num_parameters()
    assert count == pytest.approx(120e6, rel=0.05)
