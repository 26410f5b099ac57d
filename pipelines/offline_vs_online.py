"""Does choosing data before training beat reweighting it during training, once every FLOP is counted?

    python pipelines/offline_vs_online.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]      (default: ./offline-vs-online)

For an in-domain target A and an out-of-domain target B: selections by random, BM25, embedding, perplexity and LESS at
two budgets; all data; all data weighted by BM25 through ADAPT's gate, by ADAPT and by LinUpper; and as controls the
BM25 selections with shuffled scores, and ADAPT with shuffled weights. Every arm is trained for the same number of
epochs of its own data, with several seeds. Ends in a page, a picture, and the reading of both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from presets import PRESETS, Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.methods.metrics.choice import Choice as OptionChoice
from curate.methods.metrics.loss import Loss
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.nll import Nll
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.pages.comparison import page, plot, reading
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec


def selections(ws: Workspace, preset: Preset, target: str) -> Iterator[tuple[str, str, int]]:
    """Manifests of every method, budget and seed: the arm's name, the manifest's, the seed."""
    columns = {"bm25": f"bm25_{target}", "embed": f"embed_lm_{target}", "ppl": "nll", "less": f"less_{target}"}
    for budget in preset.budgets:
        share = f"{budget * 100:g}".replace(".", "_")
        for method, column in columns.items():
            manifest = f"{target}_{method}_{share}_rows"
            curate.select(ws, manifest, Top(), SelectionSpec(by=column, frac=budget))
            yield from ((f"{method}_{share}", manifest, seed) for seed in range(preset.seeds))
        for seed in range(preset.seeds):  # random draws are repeated for every seed
            random_name = f"{target}_random_{share}_rows_{seed}"
            curate.select(ws, random_name, Random(), SelectionSpec(frac=budget, seed=seed))
            yield f"random_{share}", random_name, seed
            null_name = f"{target}_bm25_{share}_null_rows_{seed}"
            curate.select(ws, null_name, Top(), SelectionSpec(by=columns["bm25"], frac=budget, seed=seed, null=True))
            yield f"bm25_{share}_null", null_name, seed


def trainings(ws: Workspace, preset: Preset, model: ModelChoice, target: str) -> Iterator[tuple[str, TrainingSpec]]:
    """Every run of one target: its name, and what is trained."""
    for arm, manifest, seed in selections(ws, preset, target):
        training = TrainingSpec(model, Uniform(), preset.training, manifest=manifest, seed=seed)
        yield f"{target}_{arm}_s{seed}", training
    for seed in range(preset.seeds):
        full = TrainingSpec(model, Uniform(), preset.training, seed=seed)
        yield f"{target}_full_s{seed}", full
        yield f"{target}_adapt_bm25_s{seed}", replace(full, weighting=AdaptStatic(), by=f"bm25_{target}")
        yield f"{target}_linupper_s{seed}", replace(full, weighting=Linupper())
        online = replace(full, weighting=Adapt(), target=target)
        yield f"{target}_adapt_s{seed}", online
        shuffled = replace(preset.training, shuffle_weights=True)
        yield f"{target}_adapt_null_s{seed}", replace(online, settings=shuffled)


def main(preset: Preset, folder: Path, named: str | None = None) -> None:
    model = ModelChoice(named) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    for target, other_target in preset.pairs:
        started = time.monotonic()
        evals = [
            EvalSpec(t, m, limit=preset.questions) for t in (target, other_target) for m in (Loss(), OptionChoice())
        ]
        print(f"\n{target} is the target, {other_target} is out of domain. Scores: BM25, embedding, perplexity, LESS.")
        curate.score(ws, Bm25(), EmbedLm(), Nll(), preset.less, target=target, models=model)
        runs = [f"{target}_base"]
        curate.evaluate(ws, runs[0], evals, model=model)
        for name, training in trainings(ws, preset, model, target):
            trained = curate.train(ws, name, training, evals=evals)
            evaluated = [e for e in trained.evaluations if e["value"] is not None]
            summary = "  ".join(f"{e['target']} {e['metric']} {e['value']:.3f}" for e in evaluated)
            print(f"  {name:32} {trained.steps:4} steps  {summary}", flush=True)
            runs.append(name)
        compared = curate.compare(ws, runs, against=f"{target}_full_s0")
        path = folder / f"{target}.html"
        path.write_text(page(compared, f"Offline against online: {target}"), encoding="utf-8")
        path.with_suffix(".png").write_bytes(plot(compared))
        print("\n" + "\n".join(reading(compared)))
        print(f"{len(runs)} runs in {time.monotonic() - started:.0f} s; the page is {path}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("offline-vs-online"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model)
