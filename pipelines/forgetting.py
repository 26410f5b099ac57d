"""What keeps a model from forgetting while it learns: choosing data, weighting it, choosing parameters, pruning after.

    python pipelines/forgetting.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]      (default: ./forgetting)

The table of the DualSFT paper's forgetting-aware comparison. Arms: SFT and LoRA on everything; DavIR's tenth of the
data; FLOW, STM and TALR, which weight samples or tokens; NanoAdam and DualSFT's parameters, a twentieth of all; FAPM,
which prunes most of SFT's update; DualSFT's data, and both. All take the same number of steps, each at the best of a
few learning rates by the target's validation loss; every seed draws its own warm-up. Plasticity is the accuracy on the
target, stability the mean accuracy on the other tasks, overall the mean of both.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from arm_rates import Rates, at_best, tried  # pyright: ignore[reportMissingImports]
from dualsft import KINDS, arm_of, judged  # pyright: ignore[reportMissingImports]
from equal_flops import Job, train_all  # pyright: ignore[reportMissingImports]
from presets import PRESETS, Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.kinds.parameters import Mask
from curate.kinds.weighting import Weighting
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.metrics.loss import Loss
from curate.methods.pruners.fapm import Fapm
from curate.methods.scores.davir import Davir
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.talr import Talr
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.numerics.statistics import Mean, paired
from curate.pages.comparison import page, plot
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.mask_file import read_mask
from curate.store.workspace import Workspace
from curate.verbs.compare import Compared
from curate.verbs.select import SelectionSpec

DATA, PARAMETERS, SPARSITY = 0.10, 0.05, 0.9  # the paper's budgets; the most that FAPM's paper prunes


@dataclass(frozen=True)
class Way:
    """One arm. manifest, mask: names, without the seed that ends them. sparsity: of pruning SFT's update."""

    name: str
    manifest: str | None = None
    mask: str | None = None
    weighting: Weighting = field(default_factory=Uniform)
    lora: int = 0
    sparsity: float = 0.0


WAYS = (
    Way("sft"),
    Way("lora", lora=16),
    Way("data_random", "random"),
    Way("davir", "davir_best"),
    Way("flow", weighting=Flow()),
    Way("stm", weighting=Stm()),
    Way("nanoadam", mask="m_small"),
    Way("fapm", sparsity=SPARSITY),
    Way("talr", weighting=Talr()),
    Way("dualsft_param", mask="m_dual"),
    Way("dualsft_data", "dual_best"),
    Way("dualsft", "dual_best", "m_dual"),
)


def prepared(ws: Workspace, preset: Preset, target: str, model: ModelChoice, seed: int) -> dict[str, Mask]:
    """What a seed needs, with a warm-up of its own: DualSFT's score, selections, masks; returns the masks' methods."""
    dual, rows = f"dual_{seed}", round(DATA * ws.n_rows())
    method = replace(preset.dual, warmup_seed=preset.dual.warmup_seed + seed)
    curate.score(ws, method, target=target, names={"dualsft": dual}, models=model)
    curate.select(ws, f"dual_best_{seed}", Top(), SelectionSpec(by=dual, top=rows))
    curate.select(ws, f"random_{seed}", Random(), SelectionSpec(top=rows, seed=seed))
    small, best = f"m_small_{seed}", f"m_dual_{seed}"
    methods: dict[str, Mask] = {small: MagnitudeSmall(interval=max(1, preset.steps // 4)), best: DualsftMask()}
    if small not in ws.mask_names():
        curate.mask(ws, small, methods[small], PARAMETERS, model=model)
    if best not in ws.mask_names():
        curate.mask(ws, best, methods[best], PARAMETERS, score=dual)
    return methods


def davir(ws: Workspace, model: ModelChoice, seed: int) -> None:
    """The tenth with the largest share of loss removed by SFT; the reference is the model of SFT's same seed."""
    reference, name = replace(model, name=f"sft_s{seed}"), f"davir_{seed}"
    curate.score(ws, Davir(), names={"davir": name}, models={"base": model, "reference": reference})
    curate.select(ws, f"davir_best_{seed}", Top(), SelectionSpec(by=name, top=round(DATA * ws.n_rows())))


def training_of(
    ws: Workspace, preset: Preset, model: ModelChoice, way: Way, made: dict[str, Mask], seed: int
) -> TrainingSpec:
    manifest = way.manifest and f"{way.manifest}_{seed}"
    settings = replace(preset.training, steps=preset.steps, lora_r=way.lora)
    training = TrainingSpec(model, way.weighting, settings, manifest=manifest, seed=seed)
    if not way.mask:
        return training
    mask = f"{way.mask}_{seed}"
    return replace(training, mask=read_mask(ws, mask), masking=made[mask])


# --- the table -------------------------------------------------------------------------------------------


def table(ws: Workspace, found: Compared, target: str, rates: dict[str, Rates]) -> None:
    by_arm, pool = judged(found, target), ws.n_rows()
    runs = {row["name"]: row for row in curate.sql(ws, "SELECT name, samples, trainable, peak_bytes FROM runs")}
    all_parameters = max(row["trainable"] or 0 for row in runs.values())
    heads = f"{'data':>7} {'params':>8} {'rate':>8} {'FLOPs':>9} {'seconds':>8} {'peak':>9}"
    print(f"   {'arm':14}" + "".join(f"{kind:>17}" for kind in KINDS) + f" {heads}   overall over sft")
    for name, measures in by_arm.items():
        cells = "".join(f"{Mean.of(list(measures[kind].values()))!s:>17}" for kind in KINDS)
        lines = [line for line in found.lines if arm_of(line.run) == name]
        run = runs[lines[0].run]
        if run["trainable"] is None:
            print(f"   {name:14}{cells}")
            continue
        gain = ""
        if name != "sft" and (difference := paired(measures["overall"], by_arm["sft"]["overall"])):
            interval = difference.interval()
            gain = f"{difference.mean:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")
        numbers = run["trainable"] / all_parameters * (1 - SPARSITY if name == "fapm" else 1)
        total, seconds = (float(np.mean([getattr(line.cost, key) for line in lines])) for key in ("total", "seconds"))
        rate = rates["sft" if name == "fapm" else name].best
        cost = f"{rate:8.1e} {total:9.2e} {seconds:8.1f} {run['peak_bytes'] / 2**20:5.0f} MiB"
        print(f"   {name:14}{cells} {run['samples'] / pool:7.1%} {numbers:8.2%} {cost}   {gain}")


def main(preset: Preset, folder: Path, named: str | None = None, workers: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other_target = preset.pairs[0]
    print(f"1. The value of samples and parameters for {target}, by DualSFT; each seed has a warm-up.", flush=True)
    made = [prepared(ws, preset, target, model, seed) for seed in range(preset.seeds)]
    targets = (target, other_target, *preset.others)
    evals = [EvalSpec(name, metric, limit=preset.questions) for name in targets for metric in (Loss(), preset.accuracy)]
    print(f"\n2. {len(WAYS)} arms, {preset.seeds} seeds, {preset.steps} steps each, at the best of {len(preset.rates)} "
          "learning rates.", flush=True)  # fmt: skip
    curate.evaluate(ws, "base", evals, model=model)
    runs, rates = ["base"], dict[str, Rates]()
    trained = [way for way in WAYS if not way.sparsity]
    for ways in ([way for way in trained if way.name != "davir"], [way for way in trained if way.name == "davir"]):
        if ways[0].name == "davir":  # which takes SFT as its reference
            for seed in range(preset.seeds):
                davir(ws, model, seed)
        trainings = {
            way.name: [training_of(ws, preset, model, way, made[seed], seed) for seed in range(preset.seeds)]
            for way in ways
        }
        firsts = {name: specs[0] for name, specs in trainings.items()}
        rates |= tried(ws, firsts, target, [], workers, preset.rates)
        jobs = [Job(str(ws.path), name, training, tuple(evals)) for name, training in at_best(trainings, rates)]
        runs += train_all(jobs, workers)
    for seed in range(preset.seeds):
        curate.prune(ws, f"sft_s{seed}", Fapm(), SPARSITY, name=f"fapm_s{seed}")
        curate.evaluate(ws, f"fapm_s{seed}", evals)
        runs.append(f"fapm_s{seed}")
    print("\n3. Results: accuracy over seeds with its standard error, and all that it cost.")
    order = {way.name: i for i, way in enumerate(WAYS)}
    runs = ["base", *sorted(runs[1:], key=lambda run: (order[arm_of(run)], run))]
    compared = curate.compare(ws, runs, against="sft_s0")
    table(ws, compared, target, rates)
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"Learning {target} without forgetting"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    print(f"   The page is {path}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("forgetting"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model, arguments.workers)
