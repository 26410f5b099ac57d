"""The tokens that a trainer trains on, by its own code and the settings written beside an export, against those that
are scored."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.kinds.export import Export
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random
from curate.models.choice import ModelChoice
from curate.models.load import load_tokenizer
from curate.models.tokens import encode
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl
from tests.support.exports import LONG, toy_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chats(turns: int, n: int = 40) -> list[dict[str, Any]]:
    """Chats of so many answers, every third with a system turn."""
    rng, rows = random.Random(turns), []
    for i in range(n):
        said = [{"role": "system", "content": "Answer  briefly.\n"}] if i % 3 == 0 else []
        for turn in range(turns):
            numbers = [rng.randrange(1000) for _ in range(rng.randrange(2, 9))]
            said += [
                {"role": "user", "content": f"{i}.{turn}: what is {' + '.join(map(str, numbers))}?"},
                {"role": "assistant", "content": f"It is\n\n  {sum(numbers)}. " * rng.randrange(1, 4)},
            ]
        rows.append({"messages": said})
    return rows


def made(folder: Path, rows: list[dict[str, Any]]) -> Workspace:
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [write_jsonl(folder / "rows.jsonl", rows)])
    curate.select(ws, "best", Random(), SelectionSpec(frac=1.0))
    return ws


def ours(ws: Workspace, tokenizer: Any, **options: Any) -> list[tuple[int, int]]:
    """Of every sample in the pool's order: its tokens, and those that are scored."""
    rows = list(curate.sql(ws, "SELECT p.* FROM best JOIN pool p USING (row) ORDER BY row"))
    return [(len(one.ids), int(one.supervised.sum())) for one in encode(tokenizer, rows, 1 << 40, **options)]


def trl(folder: Path, monkeypatch: pytest.MonkeyPatch, template: str | None) -> tuple[Any, Any]:
    """The SFTTrainer that TRL's own parser makes of an export's sft_config.yaml, and its tokenizer."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_dataset

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder.parent / "cache"))
    words = ["--config", "sft_config.yaml", "--output_dir", str(folder.parent / "run"), "--report_to", "none"]
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    words += ["--use_cpu", "true", "--bf16", "false", "--max_steps", "1"]
    _, settings, _, mixture = parser.parse_args_and_config(words)
    model, tokenizer = toy_model()
    tokenizer.chat_template = template
    data = get_dataset(mixture)["train"]
    return SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer), tokenizer


def theirs(trainer: Any) -> list[tuple[int, int]]:
    return [(len(r["input_ids"]), sum(i != -100 for i in r["labels"][1:])) for r in trainer.train_dataset]


def test_trl_trains_on_the_answer_of_chats_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds the line break that the template prints behind the last turn: one token a sample here."""
    ws = made(tmp_path, chats(1))
    said = curate.export(ws, "best", Trl(), str(tmp_path / "out")).assumes
    assert "completion_only_loss is true" in said
    trainer, tokenizer = trl(tmp_path / "out", monkeypatch, CHATML)
    assert theirs(trainer) == [(n, scored + 1) for n, scored in ours(ws, tokenizer)]
    assert trainer.train().training_loss > 0


def test_trl_trains_on_all_answers_by_a_template_that_marks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = made(tmp_path, [*chats(1, 10), *chats(3), {"messages": LONG}])
    assert "only with sft_config.yaml" in curate.export(ws, "best", Trl(), str(tmp_path / "out")).assumes
    trainer, tokenizer = trl(tmp_path / "out", monkeypatch, MARKED)
    assert theirs(trainer) == ours(ws, tokenizer)
    with pytest.raises(ValueError, match="not training-compatible"):  # TRL's own refusal: never on prompts in silence
        trl(tmp_path / "out", monkeypatch, CHATML)


def test_trl_trains_on_tokens_and_labels_by_any_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_weights = [{**LONG[2], "weight": 0}, LONG[3], LONG[4]]
    rows = [
        *chats(1, 10),
        *chats(3),
        {"messages": [*LONG[:2], *of_weights]},
        {"text": "Raw text, of which all counts."},
    ]
    ws = made(tmp_path, rows)
    said = curate.export(ws, "best", Trl(tokenizer="tiny"), str(tmp_path / "out")).assumes
    assert said.startswith("TRL trains on the labels")
    trainer, _ = trl(tmp_path / "out", monkeypatch, None)
    want = ours(ws, load_tokenizer(ModelChoice("tiny")), add_eos_token=True)
    assert theirs(trainer) == want and len(want) == 52
    assert want[-2][1] < want[-3][1]  # of LONG only the last answer is learnt


def test_trl_trains_on_all_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = made(tmp_path, [{"text": f"A text of no turns, {i}." * 200} for i in range(5)])
    curate.export(ws, "best", Trl(), str(tmp_path / "out"))
    trainer, tokenizer = trl(tmp_path / "out", monkeypatch, None)
    assert theirs(trainer) == ours(ws, tokenizer, add_eos_token=True)  # of more than 1,024 tokens: nothing is cut


def test_tokens_want_a_tokenizer_and_nothing_else_does(tmp_path: Path) -> None:
    ws = made(tmp_path, chats(1, 2))
    for wrong in (Trl(style="tokens"), Trl(style="messages", tokenizer="tiny")):
        with pytest.raises(CurateError, match="tokenizer="):
            curate.export(ws, "best", wrong, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- by code of trainers that do not fit this environment -------------------------------------------------

PACKAGES = {
    "axolotl": ["axolotl==0.19.0", "addict==2.4.0"],
    "llamafactory": ["llamafactory==0.9.5", "peft==0.18.1", "omegaconf", "antlr4-python3-runtime==4.9.3",
                     "torchdata==0.11.0"],
}  # fmt: skip
COUNT = {
    "axolotl": """
import json, sys, yaml
from axolotl.prompt_strategies.chat_template import load
from axolotl.utils.dict import DictDefault
from datasets import load_dataset
from transformers import AutoTokenizer
told = yaml.safe_load(open("best.axolotl.yaml"))
(one,) = told["datasets"]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
strategy = load(tokenizer, DictDefault({**told, "sequence_len": 1 << 20}), DictDefault(one))
rows = load_dataset("json", data_files=one["path"], split="train", cache_dir="cache")
done = [strategy.tokenize_prompt(row) for row in rows]
""",
    "llamafactory": """
import json, sys, yaml
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import AutoTokenizer, Seq2SeqTrainingArguments
told = yaml.safe_load(open("best.llamafactory.yaml"))
assert told.pop("stage") == "sft"
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
data = DataArguments(**told)
(attributes,) = get_dataset_list(data.dataset, data.dataset_dir)
training = Seq2SeqTrainingArguments(output_dir="run", report_to=[])
rows = _load_single_dataset(attributes, ModelArguments(model_name_or_path="none"), data, training)
template = get_template_and_fix_tokenizer(tokenizer, data)
processor = SupervisedDatasetProcessor(template=template, tokenizer=tokenizer, processor=None, data_args=data)
made = processor.preprocess_dataset({name: rows[name] for name in rows.column_names})
done = [{"input_ids": ids, "labels": labels} for ids, labels in zip(made["input_ids"], made["labels"])]
""",
}
SAY = "print(json.dumps([[len(r['input_ids']), sum(i != -100 for i in r['labels'])] for r in done]))"


def real_chats(shared: Path) -> list[dict[str, Any]]:
    """100 real questions with their answers, and 100 conversations of two of them."""
    lines = (shared / "pool/gsm8k.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    said = [
        [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
        for r in map(json.loads, lines)
    ]
    several = [a + b for a, b in zip(said[100:200], said[200:], strict=True)]
    return [{"messages": m} for m in [*said[:100], *several]]


@pytest.mark.consumers
@pytest.mark.parametrize(("exporter", "more"), [(Axolotl(), 0), (Llamafactory(), 1)], ids=["axolotl", "llamafactory"])
def test_other_trainers_train_on_the_same_tokens(exporter: Export, more: int, tmp_path: Path, shared: Path) -> None:
    """axolotl on the same; LLaMA-Factory on the line break behind every answer too, which it takes for its end."""
    site, rows = tmp_path / "site", real_chats(shared)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, *PACKAGES[exporter.name]], check=True, timeout=600)
    (site / "torchaudio.py").write_text("")  # imported, not used for text
    ws = made(tmp_path, rows)
    curate.export(ws, "best", exporter, str(tmp_path / "out"))
    _, tokenizer = toy_model()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    environment = {
        "PYTHONPATH": str(site),
        "DISABLE_VERSION_CHECK": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    words = [sys.executable, "-c", COUNT[exporter.name] + SAY, str(tmp_path / "tokenizer")]
    done = subprocess.run(words, cwd=tmp_path / "out", env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [tuple(pair) for pair in json.loads(done.stdout.splitlines()[-1])]
    answers = [sum(m["role"] == "assistant" for m in row["messages"]) for row in rows]
    want = ours(ws, tokenizer)
    show(exporter.name, want, found)
    assert [n for n, _ in found] == [n for n, _ in want]
    assert [s for _, s in found] == [s + more * n for (_, s), n in zip(want, answers, strict=True)]


def show(name: str, want: list[Any], found: list[Any]) -> None:
    """The line of docs/data.md, shown by pytest's -rP."""
    (tokens, scored), (read, learnt) = ([sum(column) for column in zip(*both, strict=True)] for both in (want, found))
    print(f"{name}: {scored:,} of {tokens:,} tokens are scored; the trainer learns {learnt:,} of {read:,}")


@pytest.mark.consumers
@pytest.mark.parametrize(("single", "template", "more"), [(True, CHATML, 1), (False, MARKED, 0)])
def test_trl_trains_on_the_same_tokens_of_real_chats(
    single: bool, template: str, more: int, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = made(tmp_path, [row for row in real_chats(shared) if len(row["messages"]) == (2 if single else 4)])
    curate.export(ws, "best", Trl(), str(tmp_path / "out"))
    trainer, tokenizer = trl(tmp_path / "out", monkeypatch, template)
    want, found = ours(ws, tokenizer), theirs(trainer)
    show("trl, one answer" if single else "trl, several answers", want, found)
    assert found == [(n, scored + more) for n, scored in want] and len(want) == 100


@pytest.mark.consumers
def test_trl_trains_on_the_same_tokens_of_real_chats_as_tokens(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = made(tmp_path, real_chats(shared))
    curate.export(ws, "best", Trl(tokenizer="tiny"), str(tmp_path / "out"))
    trainer, _ = trl(tmp_path / "out", monkeypatch, None)
    want, found = ours(ws, load_tokenizer(ModelChoice("tiny"))), theirs(trainer)
    show("trl, tokenizer=tiny", want, found)
    assert found == want
