"""What keeps a model from forgetting while it learns: choosing data, weighting it, choosing parameters, pruning after.

    python pipelines/forgetting.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]      (default: ./forgetting)

The table of the DualSFT paper's forgetting-aware comparison. Arms: SFT and LoRA on everything; DavIR's tenth of the
data; FLOW, STM and TALR, which weight samples or tokens; NanoAdam and DualSFT's parameters, a twentieth of all; FAPM,
which prunes most of SFT's update; DualSFT's data, and both. All take the same number of steps. Plasticity is the
accuracy on the target, stability the mean accuracy on the other tasks, overall the mean of both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualsft import KINDS, judged  # pyright: ignore[reportMissingImports]
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
    """One arm. manifest, mask: names; {seed}: each seed has its own. sparsity: of pruning SFT's update."""

    name: str
    manifest: str | None = None
    mask: str | None = None
    weighting: Weighting = field(default_factory=Uniform)
    lora: int = 0
    sparsity: float = 0.0


WAYS = (
    Way("sft"),
    Way("lora", lora=16),
    Way("data_random", "random_{seed}"),
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


def masks(ws: Workspace, target: str, model: ModelChoice) -> dict[str, Mask]:
    """The masks' methods by name, each stored under it."""
    methods: dict[str, Mask] = {"m_small": MagnitudeSmall(interval=100), "m_dual": DualsftMask()}
    for name, method in methods.items():
        if name not in ws.mask_names():
            score, mask_model = (f"dualsft_{target}", None) if method.uses_score else (None, model)
            curate.mask(ws, name, method, PARAMETERS, model=mask_model, score=score)
    return methods


def davir(ws: Workspace, model: ModelChoice) -> None:
    """The tenth with the largest share of loss removed by SFT; the reference is the model of SFT's first seed."""
    reference = replace(model, name="sft_s0")
    curate.score(ws, Davir(), models={"base": model, "reference": reference})
    curate.select(ws, "davir_best", Top(), SelectionSpec(by="davir", top=round(DATA * ws.n_rows())))


def trained(
    ws: Workspace, preset: Preset, model: ModelChoice, made: dict[str, Mask], evals: list[EvalSpec]
) -> Iterator[str]:
    """Every run, evaluated."""
    for way in WAYS:
        if way.name == "davir":
            davir(ws, model)
        for seed in range(preset.seeds):
            name = f"{way.name}_s{seed}"
            if way.sparsity:
                curate.prune(ws, f"sft_s{seed}", Fapm(), way.sparsity, name=name)
                curate.evaluate(ws, name, evals)
            else:
                manifest = way.manifest and way.manifest.format(seed=seed)
                settings = replace(preset.training, steps=preset.steps, lora_r=way.lora)
                training = TrainingSpec(model, way.weighting, settings, manifest=manifest, seed=seed)
                if way.mask:
                    training = replace(training, mask=read_mask(ws, way.mask), masking=made[way.mask])
                curate.train(ws, name, training, evals=evals)
            yield name


# --- the table -------------------------------------------------------------------------------------------


def table(ws: Workspace, found: Compared, target: str) -> None:
    by_arm, pool = judged(found, target), ws.n_rows()
    runs = {row["name"]: row for row in curate.sql(ws, "SELECT name, samples, trainable, peak_bytes FROM runs")}
    all_parameters = max(row["trainable"] or 0 for row in runs.values())
    sft = next(arm for arm in found.arms if arm.name == "sft")
    heads = f"{'data':>7} {'params':>8} {'FLOPs':>9} {'seconds':>8} {'peak':>9}"
    print(f"   {'arm':14}" + "".join(f"{kind:>17}" for kind in KINDS) + f" {heads}   overall over sft")
    for arm in found.arms:
        cells = "".join(f"{Mean.of(list(by_arm[arm.name][kind].values()))!s:>17}" for kind in KINDS)
        run = runs[arm.runs[0]]
        if run["trainable"] is None:
            print(f"   {arm.name:14}{cells}")
            continue
        difference = paired(by_arm[arm.name]["overall"], by_arm["sft"]["overall"])
        interval = difference.interval() if difference else None
        gain = f"{difference.mean:+.3f}" if difference and arm is not sft else ""
        gain += f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval and arm is not sft else ""
        numbers = run["trainable"] / all_parameters * (1 - SPARSITY if arm.name == "fapm" else 1)
        cost = f"{arm.cost.total:9.2e} {arm.cost.seconds:8.1f} {run['peak_bytes'] / 2**20:5.0f} MiB"
        print(f"   {arm.name:14}{cells} {run['samples'] / pool:7.1%} {numbers:8.2%} {cost}   {gain}")


def main(preset: Preset, folder: Path, named: str | None = None) -> None:
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other_target = preset.pairs[0]
    print(f"1. The value of samples and parameters for {target}, by DualSFT.", flush=True)
    curate.score(ws, preset.dual, target=target, models=model)
    rows = round(DATA * ws.n_rows())
    curate.select(ws, "dual_best", Top(), SelectionSpec(by=f"dualsft_{target}", top=rows))
    for seed in range(preset.seeds):
        curate.select(ws, f"random_{seed}", Random(), SelectionSpec(top=rows, seed=seed))
    mask_methods = masks(ws, target, model)
    targets = (target, other_target, *preset.others)
    evals = [EvalSpec(name, metric, limit=preset.questions) for name in targets for metric in (Loss(), preset.accuracy)]
    print(f"\n2. {len(WAYS)} arms, {preset.seeds} seeds, {preset.steps} steps each.", flush=True)
    runs, started = ["base"], time.monotonic()
    curate.evaluate(ws, "base", evals, model=model)
    for name in trained(ws, preset, model, mask_methods, evals):
        print(f"   {name:18} after {time.monotonic() - started:5.0f} s", flush=True)
        runs.append(name)
    print("\n3. Results: accuracy over seeds with its standard error, and all that it cost.")
    compared = curate.compare(ws, runs, against="sft_s0")
    table(ws, compared, target)
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"Learning {target} without forgetting"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    print(f"   The page is {path}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("forgetting"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model)
