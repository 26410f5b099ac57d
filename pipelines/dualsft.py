"""DualSFT step by step: one set of gradients chooses samples and parameters; does it beat choosing either alone?

    python pipelines/dualsft.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]      (default: ./dualsft)

Arms: all data with all parameters (SFT) or with LoRA; the data chosen by DualSFT, LESS, FisherSFT, SPICE or at random;
the parameters by DualSFT, NanoAdam, SMT, LIFT, S2FT or at random; both at once, jointly or one method after the other;
and as checks the same with the lowest-ranked, and with shuffled scores. All take the same number of steps, so smaller
selections are repeated more often. Plasticity is the accuracy on the target, stability the mean accuracy on the other
tasks, overall the mean of both. Ends in a table, a page and a picture. What the gradients themselves show is in
dualsft_diagnostics.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from presets import PRESETS, Preset  # pyright: ignore[reportMissingImports]
from scipy.stats import mannwhitneyu

import curate
from curate.kinds.parameters import Mask
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.principal import Principal
from curate.methods.masks.random import Random as RandomMask
from curate.methods.masks.structured import Structured
from curate.methods.metrics.loss import Loss
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.selectors.fishersft import Fishersft
from curate.methods.selectors.random import Random
from curate.methods.selectors.spice import Spice
from curate.methods.selectors.top import Top
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

DATA, PARAMETERS = 0.10, 0.05  # the paper's budgets
KINDS = ("plasticity", "stability", "overall")


@dataclass(frozen=True)
class Arm:
    """manifest, mask: names, with {seed} where each seed has its own; None: all samples, all parameters."""

    name: str
    manifest: str | None = None
    mask: str | None = None
    lora: int = 0


ARMS = (
    Arm("sft"),
    Arm("lora", lora=16),
    Arm("data_random", "random_{seed}"),
    Arm("data_less", "less_best"),
    Arm("data_fishersft", "fisher_best"),
    Arm("data_spice", "spice_best"),
    Arm("data_dualsft", "dual_best"),
    Arm("data_dualsft_null", "dual_null_{seed}"),
    Arm("data_dualsft_worst", "dual_worst"),
    Arm("param_random", None, "m_random_{seed}"),
    Arm("param_nanoadam", None, "m_small"),
    Arm("param_smt", None, "m_blocks"),
    Arm("param_lift", None, "m_principal"),
    Arm("param_s2ft", None, "m_channels_{seed}"),
    Arm("param_dualsft", None, "m_dual"),
    Arm("param_dualsft_worst", None, "m_worst"),
    Arm("less_then_s2ft", "less_best", "m_channels_{seed}"),
    Arm("spice_then_s2ft", "spice_best", "m_channels_{seed}"),
    Arm("less_then_nanoadam", "less_best", "m_small"),
    Arm("spice_then_nanoadam", "spice_best", "m_small"),
    Arm("both_random", "random_{seed}", "m_random_{seed}"),
    Arm("dualsft", "dual_best", "m_dual"),
    Arm("dualsft_null", "dual_null_{seed}", "m_dual"),
    Arm("dualsft_worst", "dual_worst", "m_worst"),
)


def selections(ws: Workspace, target: str, seeds: int) -> None:
    dual, rows = f"dualsft_{target}", round(DATA * ws.n_rows())
    curate.select(ws, "dual_best", Top(), SelectionSpec(by=dual, top=rows))
    curate.select(ws, "dual_worst", Top(), SelectionSpec(by=f"-{dual}", top=rows))
    curate.select(ws, "less_best", Top(), SelectionSpec(by=f"less_{target}", top=rows))
    curate.select(ws, "fisher_best", Fishersft(), SelectionSpec(top=rows, vectors="embed_lm"))
    curate.select(ws, "spice_best", Spice(), SelectionSpec(top=rows, vectors="less"))
    for seed in range(seeds):  # random draws are repeated for every seed
        curate.select(ws, f"random_{seed}", Random(), SelectionSpec(top=rows, seed=seed))
        curate.select(ws, f"dual_null_{seed}", Top(), SelectionSpec(by=dual, top=rows, seed=seed, null=True))


def masks(ws: Workspace, preset: Preset, target: str, model: ModelChoice) -> dict[str, Mask]:
    """The masks' methods by name, each stored under it."""
    training = preset.training
    warm_up = {"lr": training.lr, "batch_size": training.batch_size, "steps": min(100, preset.steps)}
    methods: dict[str, Mask] = {
        "m_small": MagnitudeSmall(interval=100),
        "m_blocks": GradientBlock(block=16 if preset.context == 0 else 64, edges="pad", **warm_up),
        "m_principal": Principal(interval=100),
        "m_dual": DualsftMask(),
        "m_worst": DualsftMask(end="smallest"),
        **{f"m_random_{seed}": RandomMask(seed=seed) for seed in range(preset.seeds)},
        **{f"m_channels_{seed}": Structured(seed=seed) for seed in range(preset.seeds)},
    }
    for name, method in methods.items():
        if name in ws.mask_names():
            continue
        score, mask_model = (f"dualsft_{target}", None) if method.uses_score else (None, model)
        curate.mask(ws, name, method, PARAMETERS, model=mask_model, score=score)
    return methods


def trainings(
    ws: Workspace, preset: Preset, model: ModelChoice, made: dict[str, Mask]
) -> Iterator[tuple[str, TrainingSpec]]:
    """Every run: its name, and what is trained. All start from the base model; SMT's from where its warm-up ended."""
    for arm in ARMS:
        for seed in range(preset.seeds):
            manifest, mask = (name and name.format(seed=seed) for name in (arm.manifest, arm.mask))
            settings = replace(preset.training, steps=preset.steps, lora_r=arm.lora)
            training = TrainingSpec(model, Uniform(), settings, manifest=manifest, seed=seed)
            if mask:
                stored = read_mask(ws, mask)
                start_model = replace(model, name=stored.recipe.checkpoint or model.name)
                training = replace(training, model=start_model, mask=stored, masking=made[mask])
            yield f"{arm.name}_s{seed}", training


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has the higher value; ties count half."""
    positives, negatives = values[positive], values[~positive]
    return float(mannwhitneyu(positives, negatives).statistic) / (len(positives) * len(negatives))


def truth(ws: Workspace, target: str) -> None:
    """What the sample corpus knows about its samples, against each score."""
    columns = f"meta->>'skill' = '{target}' AS mine, NOT (meta->>'corrupt')::BOOLEAN AS clean"
    for score in (f"dualsft_{target}", f"less_{target}"):
        rows = curate.sql(ws, f"SELECT {columns}, {score} AS value FROM samples WHERE {score} IS NOT NULL")
        match, clean = (np.array([bool(r[name]) for r in rows]) for name in ("mine", "clean"))
        value = np.array([r["value"] for r in rows])
        best = np.argsort(-value)[: round(DATA * len(value))]
        print(
            f"   {score:16} its best {DATA:.0%}: {match[best].mean():.0%} of the skill ({match.mean():.0%} of all); "
            f"AUROC skill {auroc(value, match):.2f}, clean before corrupt {auroc(value[match], clean[match]):.2f}"
        )


# --- the table -------------------------------------------------------------------------------------------


def judged(found: Compared, target: str) -> dict[str, dict[str, dict[int, float]]]:
    """arm -> plasticity, stability, overall -> seed -> accuracy."""
    by_arm: dict[str, dict[str, dict[int, float]]] = {}
    for line in found.lines:
        right = {k.split(" ")[0]: v for k, v in line.quality.items() if " loss" not in k}
        if not right:
            continue
        other_accuracies = [value for name, value in right.items() if name != target]
        measures = {"plasticity": right[target], "stability": float(np.mean(other_accuracies))}
        measures["overall"] = (measures["plasticity"] + measures["stability"]) / 2
        for key, value in measures.items():
            by_arm.setdefault(line.arm, {}).setdefault(key, {})[line.seed] = value
    return by_arm


def table(ws: Workspace, found: Compared, target: str) -> None:
    by_arm, pool = judged(found, target), ws.n_rows()
    columns = "name, samples, trainable, optimizer_bytes, peak_bytes"
    runs = {row["name"]: row for row in curate.sql(ws, f"SELECT {columns} FROM runs")}
    all_parameters = max((row["trainable"] or 0 for row in runs.values()), default=1)
    print(
        f"   {'arm':20} {'plasticity':>16} {'stability':>16} {'overall':>16} {'data':>6} {'params':>8} "
        f"{'optimizer':>10} {'peak':>8} {'FLOPs':>9} {'preparing':>10} {'seconds':>8}"
    )
    for arm in found.arms:
        cells = "".join(f" {_told(by_arm[arm.name][k]):>16}" for k in KINDS)
        run = runs[arm.runs[0]]
        if run["trainable"] is None:
            print(f"   {arm.name:20}{cells}")
            continue
        sizes = [run["optimizer_bytes"] / 2**20, run["peak_bytes"] / 2**20]
        print(
            f"   {arm.name:20}{cells} {run['samples'] / pool:6.1%} {run['trainable'] / all_parameters:8.2%} "
            f"{sizes[0]:6.1f} MiB "
            f"{sizes[1]:4.0f} MiB {arm.cost.total:9.2e} {arm.cost.prep:10.1e} {arm.cost.seconds:8.1f}"
        )
    for arm_name, reference in (
        ("dualsft", "both_random"), ("dualsft", "dualsft_null"), ("dualsft", "dualsft_worst"), ("dualsft", "sft"),
        ("data_dualsft", "data_random"), ("data_dualsft", "data_dualsft_null"), ("data_dualsft", "data_dualsft_worst"),
        ("param_dualsft", "param_random"), ("param_dualsft", "param_dualsft_worst"),
    ):  # fmt: skip
        parts = []
        for key in KINDS:
            difference = paired(by_arm[arm_name][key], by_arm[reference][key])
            assert difference is not None
            interval = difference.interval()
            reach = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
            parts.append(f"{key} {difference.mean:+.3f}{reach}")
        print(f"   {arm_name} over {reference}: {', '.join(parts)}")


def _told(by_seed: dict[int, float]) -> str:
    mean = Mean.of(list(by_seed.values()))
    return f"{mean.mean:.3f}" + (f" ± {mean.error:.3f}" if mean.error is not None else "")


def main(preset: Preset, folder: Path, named: str | None = None) -> None:
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other_target = preset.pairs[0]

    print(f"1. The value of each sample and each parameter for {target}: one warm-up, one set of gradients.")
    (dual,) = curate.score(ws, preset.dual, target=target, models=model)
    print(f"   {dual.name}: {dual.rows:,} samples, {dual.nulls:,} held out or without a gradient. {dual.note}")
    curate.score(ws, preset.less, EmbedLm(), target=target, models=model)
    if target in ("facts", "translation"):
        truth(ws, target)

    print(f"\n2. {DATA:.0%} of the samples, {PARAMETERS:.0%} of the parameters, or both: {len(ARMS)} arms.")
    selections(ws, target, preset.seeds)
    mask_methods = masks(ws, preset, target, model)
    targets = (target, other_target, *preset.others)
    evals = [EvalSpec(name, metric, limit=preset.questions) for name in targets for metric in (Loss(), preset.accuracy)]
    runs, started = ["base"], time.monotonic()
    curate.evaluate(ws, "base", evals, model=model)
    for name, training in trainings(ws, preset, model, mask_methods):
        trained = curate.train(ws, name, training, evals=evals)
        right = [e["value"] for e in trained.evaluations if e["metric"] != "loss" and e["target"] == target]
        print(f"   {name:24} {trained.steps:4} steps, {target} {right[0]:.3f}", flush=True)
        runs.append(name)
    print(f"   {len(runs)} runs in {time.monotonic() - started:.0f} s")

    print("\n3. Results: accuracy over seeds with its standard error, and what it cost.")
    compared = curate.compare(ws, runs, against="sft_s0")
    table(ws, compared, target)
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"DualSFT: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    print(f"   The page is {path}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dualsft"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model)
