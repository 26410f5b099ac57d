"""Which mixture of domains to pretrain on: mixed beforehand, or reweighted during training, every FLOP counted.

    python pipelines/mixing.py smoke|cpu|gpu [NEW-FOLDER]      (default: ./mixing)

A small model is trained from random weights on the endless stream of the sample corpus, whose domains are its skills;
two of them are kept out of the pool, to see what happens on domains that were never trained on. Arms: uniform and
proportional mixtures, DoReMi, RegMix; and proportional ones weighted by LinUpper, by BM25 through ADAPT's gate, and by
ADAPT. All take the same number of steps. Ends in the perplexity on every domain, what each arm cost, and a picture.
gpu: a model of 60 million parameters and ten times the steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from presets import SAMPLE, SKILLS, beginning, stream_file  # pyright: ignore[reportMissingImports]

import curate
from curate.methods.executors.local import Local
from curate.methods.metrics.loss import Loss
from curate.methods.metrics.perplexity import Perplexity
from curate.methods.mixers.doremi import Doremi
from curate.methods.mixers.proportional import Proportional
from curate.methods.mixers.regmix import Regmix
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform as Plain
from curate.models.choice import ModelChoice
from curate.pages.comparison import page, plot, reading
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.proxies import Proxy
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.compare import compare
from curate.verbs.mix import MixtureSpec

UNSEEN = ("strings", "translation")
SEEN = tuple(skill for skill in SKILLS if skill not in UNSEEN)
DOMAIN = "meta->>'skill'"


@dataclass(frozen=True)
class Size:
    """rows: of the stream. width, layers: of the model. settings: of every arm's training. proxy_steps, trials: the
    length and the number of RegMix's proxy trainings."""

    rows: int
    width: int
    layers: int
    settings: TrainSettings
    proxy_steps: int
    trials: int
    seeds: int
    device: str = "cpu"


PRETRAINING = TrainSettings(steps=600, batch_size=32, lr=3e-3, schedule="cosine", loss="all", weight_decay=0.1)
SIZES = {
    "smoke": Size(600, 32, 1, replace(PRETRAINING, steps=4, batch_size=8), 2, 6, 2),
    "cpu": Size(12_000, 80, 3, PRETRAINING, 150, 64, 3),
    "gpu": Size(200_000, 512, 12, replace(PRETRAINING, steps=6000, batch_size=128, lr=1e-3), 600, 128, 5, "auto"),
}


def workspace(folder: Path, size: Size) -> Workspace:
    """The stream without the unseen skills; a target for every skill, and `seen`, the val samples of those that are."""
    ws = curate.open_workspace(folder / "ws")
    lines = stream_file(folder, size.rows).read_text(encoding="utf-8").splitlines(keepends=True)
    seen_file = folder / "seen.jsonl"
    seen_file.write_text(
        "".join(line for line in lines if not any(f'"skill": "{s}"' in line for s in UNSEEN)), encoding="utf-8"
    )
    curate.ingest(ws, [str(seen_file)])
    for skill in SKILLS:
        for split in ("val", "test"):
            file = str(SAMPLE / f"targets/{skill}_{split}.jsonl")
            curate.target(ws, target_of(skill), file, subtask="subtask", split=split)
    seen_targets = folder / "seen_targets.jsonl"
    files = [SAMPLE / f"targets/{skill}_val.jsonl" for skill in SEEN]
    seen_targets.write_text("".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    curate.target(ws, "seen", str(seen_targets), subtask="subtask")
    return ws


def target_of(skill: str) -> str:
    return f"{skill}s" if skill == "table" else skill  # `table` is a reserved word of SQL


def mixtures(ws: Workspace, size: Size, model: ModelChoice) -> None:
    """The manifests that the arms draw from."""
    spec = MixtureSpec(domain=DOMAIN, rows=size.settings.steps * size.settings.batch_size, most_epochs=None)
    curate.mix(ws, "mix_uniform", Uniform(), spec)
    curate.mix(ws, "mix_proportional", Proportional(), spec)
    started = time.monotonic()
    mixed = curate.mix(ws, "mix_doremi", Doremi(), spec, proxy=Proxy(model, Plain(), size.settings))
    _tell("DoReMi", mixed.by_domain, mixed.told, started)
    started = time.monotonic()
    evals = [EvalSpec(target_of(skill), Loss(), "val") for skill in SEEN]
    short_settings = replace(size.settings, steps=size.proxy_steps)
    workers = Local(workers=2 if size.device == "cpu" else None)
    proxy = Proxy(model, Plain(), short_settings, evals, workers)
    mixed = curate.mix(ws, "mix_regmix", Regmix(trials=size.trials), spec, proxy=proxy)
    _tell("RegMix", mixed.by_domain, mixed.told, started)


def _tell(name: str, domains: list[dict[str, object]], info: dict[str, float], started: float) -> None:
    weights = "  ".join(f"{row['source']} {row['weight']:.3f}" for row in domains)
    details = ", ".join(f"{key} {value:.3g}" for key, value in info.items())
    print(f"{name}: {weights}  ({details}; {time.monotonic() - started:.0f} s)", flush=True)


def arms(size: Size, model: ModelChoice) -> Iterator[tuple[str, TrainingSpec]]:
    """Every run's name, and what is trained."""
    for seed in range(size.seeds):
        for name in ("proportional", "uniform", "doremi", "regmix"):
            yield f"{name}_s{seed}", TrainingSpec(model, Plain(), size.settings, manifest=f"mix_{name}", seed=seed)
        training = TrainingSpec(model, Plain(), size.settings, manifest="mix_proportional", seed=seed)
        yield f"linupper_s{seed}", replace(training, weighting=Linupper())
        yield f"adapt_bm25_s{seed}", replace(training, weighting=AdaptStatic(), by="bm25_seen")
        yield f"adapt_s{seed}", replace(training, weighting=Adapt(), target="seen")


def main(preset: str, folder: Path) -> None:
    size, started = SIZES[preset], time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    model, ws = beginning(folder, size.width, size.layers, size.device), workspace(folder, size)
    curate.score(ws, Bm25(), target="seen")
    mixtures(ws, size, model)
    evals = [EvalSpec(target_of(skill), Perplexity()) for skill in SKILLS]
    names = []
    for name, training in arms(size, model):
        trained = curate.train(ws, name, training, evals=evals)
        perplexities = {row["target"]: row["value"] for row in trained.evaluations if row["metric"] == "perplexity"}
        print(f"  {name:18}" + "  ".join(f"{target} {value:.2f}" for target, value in perplexities.items()), flush=True)
        names.append(name)
    compared = compare(ws, names, against="proportional_s0")
    print(
        f"\n{'perplexity':16}"
        + "".join(f"{target_of(s) + ('*' if s in UNSEEN else ''):>20}" for s in SKILLS)
        + "    extra FLOPs"
    )
    baseline = next(arm for arm in compared.arms if arm.name == "proportional")
    for arm in compared.arms:
        info = "".join(f"{arm.quality[f'{target_of(s)} perplexity']!s:>20}" for s in SKILLS)
        print(f"{arm.name:16}{info}    {arm.cost.total / baseline.cost.total - 1:+.1%}")
    print("* kept out of the pool.\n\n" + "\n".join(reading(compared)))
    (folder / "mixing.html").write_text(page(compared, "Mixtures, from scratch"), encoding="utf-8")
    (folder / "mixing.png").write_bytes(plot(compared))
    print(f"\nThe page is {folder / 'mixing.html'}; {time.monotonic() - started:.0f} s in all.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=SIZES)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("mixing"))
    arguments = parser.parse_args()
    main(arguments.preset, arguments.folder)
