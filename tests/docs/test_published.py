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
from curate.models.choice import ModelChoice
from curate.models.load import load_tokenizer
from curate.models.tokens import encode
from curate.store.run_record import Run
from tests.cli.test_cli import Cli, ok
from tests.conftest import ROOT, SAMPLE, write_jsonl
from tests.support.models import chat
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


# A row of each data set as its page shows it: what the commands that name it are given here in its place.
SETS = {
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"lang": "python", "problem": "Add two.", "solution": "a + b"},
    "meta-math/MetaMathQA": {"type": "GSM_AnsAug", "query": "1 + 1?", "original_question": "1+1?", "response": "2"},
    "openai/openai_humaneval#test": {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " pass"},
    "openai/gsm8k:main#test": {"question": "1 + 1?", "answer": "2"},
    "allenai/ai2_arc:ARC-Challenge#test": {
        "question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"
    },
    "baber/piqa#validation": {"goal": "Open it.", "sol1": "Pull.", "sol2": "Wait.", "label": 0},
    "cais/mmlu:all#test": {"question": "Which?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", ["dualsft_magicoder", "dualsft_metamath"])
def test_the_data_of_a_recipe_are_read_as_its_head_says(cli: Cli, tmp_path: Path, name: str) -> None:
    head = (ROOT / f"pipelines/plans/published/{name}.toml").read_text(encoding="utf-8")
    told = [shlex.split(line) for line in re.findall(r"^#     curate (.+)$", head, re.MULTILINE)]
    assert {words[0] for words in told} == {"ingest", "target"}
    for words in told:
        (place,) = (i for i, word in enumerate(words) if word in SETS)
        path = write_jsonl(tmp_path / f"{len(SETS)}{place}.jsonl", [SETS[words[place]]])
        printed = ok(cli(*words[:place], path, *words[place + 1 :], ws=tmp_path / "ws"))
        assert not re.search(r"[1-9]\d* rejected", printed)
    ws = curate.open_workspace(tmp_path / "ws")
    assert ws.n_rows() == 1 and set(ws.target_names()) >= {"arc_c", "piqa", "mmlu"}


def test_alpaca_s_template_prints_its_prompt_and_marks_the_answer() -> None:
    choice = ModelChoice(str(NARROW), chat_template=str(ROOT / "pipelines/plans/published/alpaca.jinja"))
    tokenizer = load_tokenizer(choice)
    turns = [{"role": "user", "content": "What is 2?"}, {"role": "assistant", "content": "Two."}]
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    asked = f"{tokenizer.bos_token}{head}\n\n### Instruction:\nWhat is 2?\n\n### Response:\n"
    assert tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) == asked
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"{asked}Two.{tokenizer.eos_token}"
    (encoded,) = encode(tokenizer, [chat(*(turn["content"] for turn in turns))], 512)
    assert tokenizer.decode(encoded.ids[encoded.supervised]) == f"Two.{tokenizer.eos_token}"
