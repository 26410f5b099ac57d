"""`curate evaluate`: metrics on a real model, the questions they are asked, and programs in the sandbox."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.kinds.metric import Question
from curate.methods.metrics._sandbox import run_python
from curate.methods.metrics.choice import Choice
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.loss import Loss
from curate.methods.metrics.pass_at_1 import PassAt1
from curate.methods.metrics.perplexity import Perplexity
from curate.methods.metrics.token_f1 import TokenF1
from curate.models.answers import continuations, generate_answers
from curate.models.choice import TINY as TINY_FOLDER
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode, rendered
from curate.runs.evaluation import EvalSpec, questions
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE, write_jsonl
from tests.oracles.language_model import token_scores

TINY = ModelChoice("tiny", device="cpu")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(TINY)


@pytest.fixture
def ready(sample_ws: Workspace) -> Workspace:
    for name in ("arithmetic", "facts"):
        for split in ("val", "test"):
            path = str(SAMPLE / f"targets/{name}_{split}.jsonl")
            curate.target(sample_ws, name, path, split=split, subtask="subtask")
    return sample_ws


def said(question: str, answer: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": question, "extra": None},
        {"role": "assistant", "content": answer, "extra": None},
    ]


# --- questions -------------------------------------------------------------------------------------------


def test_worked_examples_are_the_val_split_s_of_the_same_subtask(ready: Workspace) -> None:
    asked = questions(ready, EvalSpec("arithmetic", Loss(), shots=2))
    val = curate.sql(ready, "SELECT messages, subtask FROM targets WHERE target = 'arithmetic' AND split = 'val'")
    for _, question in asked[:5]:
        same = [m for row in val if row["subtask"] == question.subtask for m in row["messages"]][:4]
        assert list(question.shots) == same and len(question.prompt()) == 5
        assert question.sample()["messages"][-1]["content"] == question.answer
    with pytest.raises(CurateError, match="--shots 99: the target 'arithmetic' has 24 chats in its split val"):
        questions(ready, EvalSpec("arithmetic", Loss(), shots=99))


def test_a_question_s_tools_are_in_its_prompt(ready: Workspace, tmp_path: Path, lm: LanguageModel) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "adds"}}
    rows = [{"question": "one plus two?", "answer": "3", "tools": [tool]}]
    curate.target(ready, "tools", write_jsonl(tmp_path / "t.jsonl", rows), split="test")
    ((_, question),) = questions(ready, EvalSpec("tools", Choice()))
    assert json.loads(question.template_kwargs or "") == {"tools": [tool]}
    with_tools = copy.copy(lm)
    with_tools.tokenizer = copy.deepcopy(lm.tokenizer)
    with_tools.tokenizer.chat_template = "{{ tools[0].function.name if tools }}" + str(lm.tokenizer.chat_template)
    (shown,) = encode(with_tools.tokenizer, [question.sample()], 512)
    assert with_tools.tokenizer.decode(shown.ids).lstrip().startswith("add")
    prompt = rendered(with_tools.tokenizer, question.prompt(), template_kwargs=question.template_kwargs)
    tokens = len(with_tools.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    _, error, usage = generate_answers(with_tools, [question], 1)
    assert not error.any() and usage.tokens in (tokens, tokens + 1)


# --- metrics against what is slow and obvious ------------------------------------------------------------


def test_the_loss_is_that_of_the_last_answer_alone(lm: LanguageModel) -> None:
    shots = tuple(said("two plus two?", "2 + 2 = 4."))
    asked = [Question(said("one plus two?", "1 + 2 = 3."), shots=shots), Question(said("say a", "a"))]
    found = Loss().evaluate(lm, asked)
    slow = LanguageModel(TINY).model.double()
    for question, value in zip(asked, found.values, strict=True):
        text = rendered(lm.tokenizer, question.prompt())
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        (whole,) = encode(lm.tokenizer, [question.sample()], 512)
        want = token_scores(slow, whole.ids.tolist(), [i >= len(ids) for i in range(len(whole.ids))])
        assert value == pytest.approx(want["nll"], abs=1e-5)
    assert Perplexity().evaluate(lm, asked).values == pytest.approx(np.exp(found.values))
    assert Perplexity().summary(np.exp(found.values)) == pytest.approx(np.exp(found.values.mean()))


def test_what_is_said_is_greedy_whatever_is_asked_beside(lm: LanguageModel) -> None:
    prompts = [
        said(f"{who} has 3 lamps and finds {n} more. How many lamps has {who} now?", "")[:1]
        for who, n in (("Pavo", 2), ("Mira", 12))
    ]
    prompts.append(said("Say in Velic: big tree", "")[:1])
    together, error, usage = generate_answers(lm, [Question(prompt) for prompt in prompts], 20)
    assert error.tolist() == ["", "", ""] and usage.tokens > 0
    for prompt, text in zip(prompts, together, strict=True):
        ids = lm.tokenizer(rendered(lm.tokenizer, prompt), add_special_tokens=False)["input_ids"]
        start = len(ids)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == lm.tokenizer.eos_token_id:
                break
        assert text == lm.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert together[0].startswith("3 + 2 = 5")
    whole = [c + d for c, d in zip(["a"], continuations(lm, ["a"], 3)[0], strict=True)]
    assert whole[0].startswith("a")
    assert "leaves no room" in generate_answers(lm, [Question(said("x " * 400, "")[:1])], 200)[1][0]


@pytest.mark.parametrize(
    ("setting", "text", "final"),
    [
        ("number", "so 1,200 shells\n#### 1,205", "1205"),
        ("number", "it is -3.50 or 7.0", "7"),
        ("number", "none", ""),
        ("last_line", "think\n (B) ", "(b)"),
        ("whole", "The Corv runs\nthrough it.", "the corv runs through it"),
    ],
)
def test_what_counts_of_an_answer(setting: Any, text: str, final: str) -> None:
    assert ExactMatch(final_answer=setting).final(text) == final


@pytest.mark.parametrize(
    ("said_", "wanted", "f1"), [("a b c", "b c d", 0.8), ("The x!", "x", 1.0), ("", "", 1.0), ("p", "q", 0.0)]
)
def test_token_f1_is_squad_s(said_: str, wanted: str, f1: float) -> None:
    assert TokenF1().of(said_, wanted) == pytest.approx(f1)  # 'a' is an article


def test_exact_match_and_f1_of_a_model_that_knows(lm: LanguageModel) -> None:
    asked = [
        Question(
            said(
                f"Pavo has {n} lamps and finds 2 more. How many lamps has Pavo now?",
                f"{n} + 2 = {n + 2}. Pavo has {n + 2} lamps.",
            )
        )
        for n in range(3, 9)
    ]
    exact = ExactMatch(max_new_tokens=24).evaluate(lm, asked)
    assert exact.values.mean() > 0.6 and exact.answers and "lamps" in exact.answers[0]
    assert TokenF1().evaluate(lm, asked).values.mean() > 0.8


# --- programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import math, re, typing, collections, heapq, hashlib, json\nassert math.sqrt(4) == 2", None),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("while True: pass", "did not end within"),
        ("import time; time.sleep(60)", "did not end within"),
        ("import os\nos.fork()", "no attribute 'fork'"),
        ("import posix\nwhile True: posix.fork()", "os.fork"),
        ("import subprocess; subprocess.run(['ls'])", "imports subprocess"),
        ("import os; os.system('ls')", "os.system"),
        ("open('/etc/passwd').read()", "opens a file"),
        ("import posix; posix.open('/etc/passwd', 0)", "opens a file"),
        ("open('left', 'w')", "opens a file"),
        ("import os; os.listdir('/')", "os.listdir"),
        ("import socket", "imports socket"),
        ("import ctypes", "imports ctypes"),
        ("x = [0] * 10**10", "MemoryError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import posix; posix._exit(0)", "left the interpreter"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import posix; posix.kill(1, 9)", "os.kill"),
    ],
)
def test_a_program_does_no_harm(code: str, why: str | None) -> None:
    found = run_python(code, 2.0, 512)
    assert found is None if why is None else found is not None and why in found, found


def test_pass_at_1_on_humaneval_s_own_problems(shared: Path, lm: LanguageModel) -> None:
    """Every canonical solution passes its own tests in the sandbox; a wrong one does not."""
    with gzip.open(shared / "eval/HumanEval.jsonl.gz", "rt") as f:
        problems = [json.loads(line) for line in f]
    metric, failed = PassAt1(), []
    for problem in problems[::2]:
        why = run_python(metric.program(problem["prompt"], problem["canonical_solution"], problem), 20, 1024)
        failed += [(problem["task_id"], why)] if why else []
    assert not failed, failed
    wrong = metric.program(problems[0]["prompt"], "    return None\n", problems[0])
    assert run_python(wrong, 20, 1024) == "AssertionError"


def test_pass_at_1_asks_the_model(ready: Workspace, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "def one():\n",
            "completion": "    return 1\n",
            "test": "def check(f):\n    assert f() == 1",
            "entry_point": "one",
        }
    ]
    curate.target(ready, "code", write_jsonl(tmp_path / "h.jsonl", rows), split="test")
    result = curate.evaluate(ready, "base", [EvalSpec("code", PassAt1(max_new_tokens=16))], model=TINY)
    assert result.evaluations[0]["value"] == 0.0 and result.evaluations[0]["judged"] == 1
    assert (
        PassAt1(style="chat")
        .program("import math\ndef one():\n", "```python\ndef one():\n    return 1\n```", rows[0])
        .count("def one")
        == 2
    )


# --- the verb --------------------------------------------------------------------------------------------


def test_a_model_as_it_is_can_be_judged_and_what_was_judged_is_kept(ready: Workspace) -> None:
    evals = [EvalSpec("arithmetic", Loss(), limit=8), EvalSpec("facts", Choice(), limit=8, shots=1)]
    first = curate.evaluate(ready, "base", evals, model=TINY)
    assert [row["judged"] for row in first.evaluations] == [8, 8] and first.step == 0
    again = curate.evaluate(ready, "base", evals)
    assert again.evaluations == first.evaluations
    spent = curate.sql(ready, "SELECT sum(samples) AS n FROM ledger WHERE stage = 'evaluate'")
    assert spent[0]["n"] == 16  # once
    parts = Run(ready, "base").evaluations
    table = parts.read(parts.names()[0])
    assert table.num_rows == 8 and table["value"].null_count == 0
    with pytest.raises(CurateError, match="'base' exists, and is not the model"):
        curate.evaluate(ready, "base", evals, model=replace(TINY, context=64))


def test_it_refuses_to_judge_on_the_split_that_chose(ready: Workspace) -> None:
    with pytest.raises(CurateError, match="the split val of 'facts' is used for selection"):
        curate.evaluate(ready, "base", [EvalSpec("facts", Loss(), split="val")], model=TINY)
    told = curate.evaluate(ready, "base", [EvalSpec("facts", Loss(), split="val", limit=3)], model=TINY, allow_val=True)
    assert told.evaluations[0]["split"] == "val"


@pytest.mark.parametrize(
    ("eval_spec", "said_"),
    [
        (EvalSpec("fact", Loss()), "did you mean 'facts'"),
        (EvalSpec("only_val", Loss()), "no split 'test', on which to evaluate; add it with `curate target only_val"),
    ],
)
def test_a_target_that_is_not_there_is_said(ready: Workspace, eval_spec: EvalSpec, said_: str) -> None:
    curate.target(ready, "only_val", str(SAMPLE / "targets/table_val.jsonl"))
    with pytest.raises(CurateError, match=said_):
        curate.evaluate(ready, "base", [eval_spec], model=TINY)
    assert not ready.run_names()
    with pytest.raises(CurateError, match="has no run 'nothing'"):
        curate.evaluate(ready, "nothing", [EvalSpec("facts", Loss())])


def test_a_model_that_does_not_load_leaves_no_run_behind(ready: Workspace, tmp_path: Path) -> None:
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CurateError, match="cannot be read as safetensors"):
        curate.evaluate(ready, "base", [EvalSpec("facts", Loss(), limit=2)], model=ModelChoice(str(folder)))
    assert not ready.run_names()


def test_the_command_line_judges(ready: Workspace, cli: Any) -> None:
    done = cli(
        "evaluate",
        "base",
        "--model",
        "tiny",
        "--target",
        "arithmetic",
        "--metric",
        "exact_match",
        "--limit",
        "4",
        "--set",
        "exact_match.max_new_tokens=24",
        ws=ready,
    )
    assert done.returncode == 0, done.stderr
    assert "exact_match" in done.stdout and "higher" in done.stdout
    assert (
        "did you mean 'exact_match'"
        in cli("evaluate", "base", "--target", "arithmetic", "--metric", "exactmatch", ws=ready).stderr
    )
    assert "--target NAME" in cli("evaluate", "base", ws=ready).stderr
