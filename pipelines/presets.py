"""The experiments that pipelines share: which data, which model, how much of everything. A preset fixes all of it.

smoke   for continuous integration, on a sixth of the corpus: that it runs
cpu     half an hour on two cores, three seeds: that it means something
gpu     real data with SmolLM2-135M (the folder that CURATE_SHARED names, or ../shared)
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import curate
from curate.kinds.metric import Metric
from curate.methods.exports.jsonl import Jsonl
from curate.methods.metrics.choice import Choice as OptionChoice
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.less import Less
from curate.methods.selectors.random import Random
from curate.models.choice import ModelChoice
from curate.models.load import load_tokenizer
from curate.models.rates import processor_rates
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
SKILLS = ("arithmetic", "facts", "program", "strings", "table", "translation")
OTHERS = ("arithmetic", "program", "strings")  # besides a pair's two: where a model may have forgotten something
STREAM = 7  # the seed of a stream that neither the corpus nor the models in data/ have seen
COVER = 11  # the seed of another one
SHARED = Path(os.environ.get("CURATE_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data"


@dataclass(frozen=True)
class Preset:
    """data: fills a workspace with a pool and targets. base: the model that is trained, made in a folder if necessary.
    pairs: in-domain target A and out-of-domain target B. others: further targets, which show what a model can still do.
    budgets: fractions of the pool. questions: how many of a target's test split are asked; 0: all. less, dual: with
    their warm-ups. steps: of every training in dualsft.py. online: settings of those in online_selection.py, which
    train on `data`, or on that many samples of the corpus's endless stream (drawn). trials, horizons: subsets of `size`
    samples, and steps of training on each, to validate scores with. context: of a model that is named instead of the
    base, in tokens; 0: its own. accuracy: how the share of right answers is measured. parts: whether a method is taken
    apart, too, and all are compared. rates: by which the training's learning rate is multiplied where every arm looks
    for its own."""

    data: Callable[[Workspace], None]
    base: Callable[[Path], ModelChoice]
    pairs: tuple[tuple[str, str], ...]
    budgets: tuple[float, ...]
    seeds: int
    training: TrainSettings
    less: Less
    dual: Dualsft
    others: tuple[str, ...] = ()
    questions: int = 0
    context: int = 0
    steps: int = 100
    online: TrainSettings = TrainSettings()
    drawn: int = 0
    trials: int = 32
    horizons: tuple[int, ...] = (10, 50)
    size: int = 256
    accuracy: Metric = OptionChoice()
    parts: bool = True
    rates: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)


# --- data ------------------------------------------------------------------------------------------------


def sample(ws: Workspace) -> None:
    """The sample corpus: six skills in four domains; 10 % of its answers are corrupt, 5 % is off topic."""
    curate.ingest(ws, sorted(str(path) for path in (SAMPLE / "pool").iterdir()))
    skills(ws)


def sixth(ws: Workspace) -> None:
    """Every sixth sample of the corpus, where only that a pipeline runs is looked at."""
    _every(ws, 6)


def half(ws: Workspace) -> None:
    """Every other sample of the corpus, where there are very many trainings."""
    _every(ws, 2)


def _every(ws: Workspace, nth: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((SAMPLE / "pool").iterdir()):
            lines = path.read_text(encoding="utf-8").split("\n")[::nth]
            (Path(folder) / path.name).write_text("\n".join(lines), encoding="utf-8")
        curate.ingest(ws, sorted(str(path) for path in Path(folder).iterdir()))
    skills(ws)


def skills(ws: Workspace) -> None:
    """The sample corpus's targets."""
    for name in ("facts", "translation", *OTHERS):
        for split in ("val", "test"):
            curate.target(ws, name, str(SAMPLE / f"targets/{name}_{split}.jsonl"), subtask="subtask", split=split)


def endless(ws: Workspace, folder: Path, rows: int) -> None:
    """The same targets, and the first samples of another stream of the corpus's generator, which has no end."""
    skills(ws)
    curate.ingest(ws, [str(stream_file(folder, rows))])


def covering(ws: Workspace, folder: Path, name: str, rows: int) -> int:
    """Make the target's validation split of so many clean questions of another stream, none of them asked in its test
    split, which the sample's is too small to cover; returns how many of the test's answers are among theirs."""
    made = make_sample()
    test = [json.loads(line) for line in (SAMPLE / f"targets/{name}_test.jsonl").read_text("utf-8").splitlines()]
    asked = {made.core(row["question"]) for row in test}
    found: dict[str, Any] = {}
    for item in islice(made.stream(COVER), 200 * rows):
        question = made.core(item.question)
        if item.skill == name and not item.corrupt and question not in asked:
            found.setdefault(question, item)
        if len(found) == rows:
            break
    path = folder / f"{name}_val.jsonl"
    fields = [{"question": item.question, "answer": item.answer, "subtask": item.task} for item in found.values()]
    path.write_text("".join(json.dumps(row) + "\n" for row in fields), encoding="utf-8")
    curate.target(ws, name, str(path), subtask="subtask", split="val")
    answers = {row["answer"] for row in fields}
    return sum(row["answer"] in answers for row in test)


def stream_file(folder: Path, rows: int) -> Path:
    """That many samples of the endless stream, as a file in a folder."""
    path = folder / "stream.jsonl"
    if not path.exists():
        samples = islice(make_sample().stream(STREAM), rows)
        path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in samples), encoding="utf-8")
    return path


def corpus(ws: Workspace, rows: int, bad: float) -> float:
    """Samples of a stream, half of a share `bad` of them corrupt and half off topic, without the targets' questions;
    and the targets. Returns the share of it that is one or the other."""
    made = make_sample()
    skills(ws)
    asked = {made.core(row["question"]) for name in SKILLS for row in _targets(name)}
    samples = (item for item in made.stream(STREAM, bad / 2, bad / 2) if made.core(item.question) not in asked)
    drawn = list(islice(samples, rows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in drawn), encoding="utf-8")
        curate.ingest(ws, [str(path)])
    return sum(item.corrupt or item.skill == "chat" for item in drawn) / len(drawn)


def _targets(name: str) -> list[dict[str, str]]:
    paths = [SAMPLE / f"targets/{name}_{split}.jsonl" for split in ("val", "test")]
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def make_sample() -> Any:
    """data/make_sample.py as a module."""
    spec = importlib.util.spec_from_file_location("make_sample", SAMPLE.parent / "make_sample.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real(ws: Workspace) -> None:
    """38,692 real samples; the targets GSM8K and BIG-Bench-Hard."""
    curate.ingest(ws, sorted(str(path) for path in (SHARED / "pool").iterdir()))
    real_targets(ws)


def few(ws: Workspace) -> None:
    """400 of the real samples, drawn at random; the same targets."""
    if ws.n_rows() == 0:
        with tempfile.TemporaryDirectory() as folder:
            full_ws = curate.open_workspace(f"{folder}/whole")
            real(full_ws)
            curate.select(full_ws, "few", Random(), SelectionSpec(top=400))
            curate.ingest(
                ws, curate.export(full_ws, "few", Jsonl(), f"{folder}/out").files, mapping={"source": "source"}
            )
    real_targets(ws)


def maths_and_p3(ws: Workspace) -> None:
    """80 samples each of GSM8K and of P3, drawn at random; 48 examples of GSM8K as a target, and P3, of which another
    24 samples are asked, as what is to be kept."""
    rng = random.Random(0)
    maths = rng.sample((SHARED / "pool/gsm8k.jsonl").read_text("utf-8").splitlines(), 80)
    with gzip.open(SHARED / "pool/p3.jsonl.gz", "rt", encoding="utf-8") as file:
        p3 = rng.sample(file.read().splitlines(), 104)
    aim = (SHARED / "targets/gsm8k_val.jsonl").read_text("utf-8").splitlines()[:48]
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, lines in (("pool", maths + p3[:80]), ("kept", p3[80:]), ("aim", aim)):
            paths[name] = str(Path(folder) / f"{name}.jsonl")
            Path(paths[name]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        curate.ingest(ws, [paths["pool"]])
        curate.target(ws, "gsm8k", paths["aim"])
        curate.target(ws, "p3", paths["kept"], split="test")
    curate.target(ws, "gsm8k", str(SHARED / "eval/gsm8k_test.jsonl"), split="test")


def real_targets(ws: Workspace) -> None:
    fields = {"prompt": "question", "completion": "answer"}
    curate.target(ws, "gsm8k", str(SHARED / "targets/gsm8k_val.jsonl"), mapping=fields)
    curate.target(ws, "gsm8k", str(SHARED / "eval/gsm8k_test.jsonl"), split="test", mapping=fields)
    curate.target(ws, "bbh", str(SHARED / "targets/bbh_val.jsonl"), subtask="subtask", mapping=fields)
    fields = {"prompt": "input", "completion": "target"}
    curate.target(ws, "bbh", str(SHARED / "eval/bbh_test.jsonl"), subtask="subtask", split="test", mapping=fields)


# --- bases -----------------------------------------------------------------------------------------------


def tiny(_: Path) -> ModelChoice:
    """The tiny model. It knows what the sample corpus teaches, so training it shows little."""
    return ModelChoice("tiny", device="cpu")


def young(folder: Path) -> ModelChoice:
    """The same recipe, stopped at 600 of its 1,500 steps: it has half of the facts and most of the translations."""
    model = folder.resolve() / "young"  # absolute, so that the path a run records is valid from any folder
    if not (model / "tokenizer.json").exists():  # written last
        print("The base: the tiny model's recipe, stopped at 600 steps (two and a half minutes).", flush=True)
        recipe = Path(__file__).parent / "train_tiny_model.py"
        subprocess.run([sys.executable, str(recipe), "--steps", "600", "-o", str(model)], check=True)
    return ModelChoice(str(model), device="cpu")


def beginning(folder: Path, width: int, layers: int, device: str = "cpu") -> ModelChoice:
    """A model with random weights and the tiny model's tokenizer."""
    import torch
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    path = folder.resolve() / "beginning"
    if not (path / "tokenizer.json").exists():
        tokenizer = load_tokenizer(ModelChoice("tiny"))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 20),
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = LlamaForCausalLM(config)
        print(f"A model of {model.num_parameters():,} random parameters.", flush=True)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return ModelChoice(str(path), device=device)


def narrow(folder: Path) -> ModelChoice:
    """A model that knows nothing and costs little, where only that a pipeline runs is looked at."""
    return beginning(folder, 32, 2)


def short(_: Path) -> ModelChoice:
    return ModelChoice("smollm2-135m", context=512)


def shorter(_: Path) -> ModelChoice:
    return ModelChoice("smollm2-135m", context=256)


def smollm2(_: Path) -> ModelChoice:
    return ModelChoice("smollm2-135m", context=1024)


def in_fastest_precision(settings: TrainSettings) -> TrainSettings:
    """LoRA in bfloat16 where this machine, without a GPU, multiplies that more than twice as fast."""
    fast = settings.lora_r and not os.environ.get("CUDA_VISIBLE_DEVICES") and processor_rates().gain > 2
    return replace(settings, precision="bfloat16") if fast else settings


LONG = TrainSettings(epochs=4, batch_size=32, lr=1e-3, schedule="cosine", warmup=0.05)
SHORT = replace(LONG, steps=4)
FINE = TrainSettings(epochs=1, batch_size=64, micro_batch_size=16, lr=1e-4, schedule="cosine")

# A model of two million parameters needs a longer warm-up than a twentieth of 3,000 samples, and all its layers.
# Chosen after comparing six such warm-ups with the sample's ground truth, so results here are no test of the method.
SMALL = Less(warmup=0.3, epochs=4, batch_size=128, lr=1e-3, lora_targets="all-linear", keep_subtasks=True)
BRIEF = replace(SMALL, warmup=0.1, epochs=1, lora_r=8, dim=1024)

# DualSFT's scripts warm up on a tenth; lambda is theirs, too, and twice the epochs are ours.
DUAL = Dualsft(warmup=0.1, epochs=2, batch_size=32, lr=5e-4, eta=1e-3)
HURRIED = replace(DUAL, warmup=0.05, epochs=1)
DUAL_REAL = Dualsft(warmup=0.05, batch_size=64, micro_batch_size=8)

# Choosing within the step: 240 steps of 4 among 16; 5 % of the real samples. At this rate training on all candidates
# lowers the target's loss, and on a quarter of them at random raises it little (docs/results/in-step.md has a grid).
WITHIN = replace(LONG, batch_size=4, lr=2e-4, steps=240, target_batch=16, reduction="sample", eval_every=120)
WITHIN_REAL = TrainSettings(
    batch_size=8, lr=1e-4, steps=242, lora_r=8, schedule="cosine", reduction="sample", eval_every=50, projection=256
)

PRESETS = {
    "smoke": Preset(
        *(sixth, narrow, (("facts", "translation"),), (0.05,), 2, SHORT, BRIEF, HURRIED, OTHERS),
        questions=8,
        steps=4,
        online=replace(WITHIN, steps=4, eval_every=2),
        drawn=100,
        trials=4,
        horizons=(2, 4),
        size=32,
        rates=(1.0, 10.0),
    ),
    "cpu": Preset(
        *(sample, young, (("facts", "translation"),), (0.1, 0.3), 3, LONG, SMALL, DUAL, OTHERS),
        online=WITHIN,
        drawn=4_000,
        horizons=(1, 10, 50),
    ),
    "gpu": Preset(
        *(
            real,
            smollm2,
            (("gsm8k", "bbh"), ("bbh", "gsm8k")),
            (0.05, 0.2),
            3,
            FINE,
            Less(keep_subtasks=True),
            DUAL_REAL,
        ),
        steps=200,
        online=WITHIN_REAL,
        trials=64,
        horizons=(10, 50, 200, 500, 1000),
        accuracy=ExactMatch(),  # GSM8K's questions have no options
    ),
}

# For less.py alone: the whole corpus and a model that knows it, so that its choice can be judged; and few real samples
# with a real model.
WHOLE = replace(PRESETS["smoke"], data=sample, base=tiny)
HASTY = Less(warmup=0.25, epochs=1, batch_size=16, micro_batch_size=4, lr=2e-4, keep_subtasks=True)
FEW = Preset(few, short, (("gsm8k", "bbh"),), (0.05,), 1, FINE, HASTY, DUAL_REAL, context=512)
