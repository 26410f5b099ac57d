"""DualSFT step by step: one set of gradients chooses samples and parameters; does it beat choosing either alone?

    python pipelines/dualsft.py smoke|cpu|few|gpu [NEW-FOLDER] [--model MODEL]      (default: ./dualsft)

Arms: all data with all parameters (SFT) or with LoRA; the data chosen by DualSFT, LESS, FisherSFT, SPICE or at random;
the parameters by DualSFT, NanoAdam, SMT, LIFT, S2FT or at random; both at once, jointly or one method after the other;
one side by DualSFT and the other at random or the lowest-ranked; both sides chosen again, each for the other; DualSFT
from the base model, with other weights of what is to be kept, and with other ways to keep it; and as checks the lowest-
ranked, and shuffled scores. All take the same number of steps, so smaller selections are repeated more often, each at
the best of a few learning rates by its validation loss. Every seed draws its own warm-ups; those of LESS and of DualSFT
are on the same samples for as many epochs. Plasticity is the accuracy on the target, stability the mean accuracy on the
other tasks, overall the mean of both. few: nine of the arms on 160 real samples with SmolLM2-135M, at one rate, by
losses; GSM8K is the target, and P3 what is to be kept. Ends in a table, a page and a picture. What the gradients
themselves show is in dualsft_diagnostics.py.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from arm_rates import Rates, at_best, one_rate, tried  # pyright: ignore[reportMissingImports]
from dualsft_arms import (  # pyright: ignore[reportMissingImports]
    ALL_ARMS,
    DATA,
    FEW_ARMS,
    PARAMETERS,
    ROUNDS,
    VARIANTS,
    masks,
    scores,
    selections,
    training_of,
)
from equal_flops import SEED, Job, train_all  # pyright: ignore[reportMissingImports]
from presets import (  # pyright: ignore[reportMissingImports]
    FEW,
    PRESETS,
    Preset,
    maths_and_p3,
    shorter,
)
from scipy.stats import mannwhitneyu

import curate
from curate.methods.metrics.loss import Loss
from curate.methods.scores.dualsft import Dualsft
from curate.models.choice import ModelChoice
from curate.numerics.statistics import Mean, paired
from curate.pages.comparison import page, plot
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.compare import Compared

FEW_TRAINING = TrainSettings(batch_size=4, micro_batch_size=4, lr=1e-4, schedule="cosine")
FEW_DUAL = Dualsft(warmup=0.1, batch_size=8, micro_batch_size=4, by="difference")
ALL = {
    **PRESETS,
    "few": replace(
        FEW,
        data=maths_and_p3,
        base=shorter,
        pairs=(("gsm8k", "p3"),),
        seeds=2,  # each takes a quarter of an hour on two cores for the scores alone
        training=FEW_TRAINING,
        dual=FEW_DUAL,
        steps=8,
        questions=24,
        context=256,
        accuracy=Loss(),
        parts=False,
        rates=(1.0,),
    ),
}
KINDS = ("plasticity", "stability", "overall")


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has the higher value; ties count half."""
    positives, negatives = values[positive], values[~positive]
    return float(mannwhitneyu(positives, negatives).statistic) / (len(positives) * len(negatives))


def truth(ws: Workspace, target: str, names: dict[str, str]) -> None:
    """What the sample corpus knows about its samples, against each score."""
    columns = f"meta->>'skill' = '{target}' AS mine, NOT (meta->>'corrupt')::BOOLEAN AS clean"
    for score in names.values():
        rows = curate.sql(ws, f"SELECT {columns}, {score} AS value FROM samples WHERE {score} IS NOT NULL")
        match, clean = (np.array([bool(r[name]) for r in rows]) for name in ("mine", "clean"))
        value = np.array([r["value"] for r in rows])
        best = np.argsort(-value)[: round(DATA * len(value))]
        print(
            f"   {score:16} its best {DATA:.0%}: {match[best].mean():.0%} of the skill ({match.mean():.0%} of all); "
            f"AUROC skill {auroc(value, match):.2f}, clean before corrupt {auroc(value[match], clean[match]):.2f}"
        )


# --- the table -------------------------------------------------------------------------------------------


def arm_of(run: str) -> str:
    """The arm of a run; runs of one arm may choose differently with every seed."""
    return run.rpartition(SEED)[0] or run


def judged(found: Compared, target: str) -> dict[str, dict[str, dict[int, float]]]:
    """arm -> plasticity, stability, overall -> seed -> accuracy, or, where none was measured, the negative loss."""
    by_arm: dict[str, dict[str, dict[int, float]]] = {}
    for line in found.lines:
        right = {k.split(" ")[0]: v for k, v in line.quality.items() if " loss" not in k}
        right = right or {k.split(" ")[0]: -v for k, v in line.quality.items()}
        if not right:
            continue
        others = [value for name, value in right.items() if name != target]
        measures = {"plasticity": right[target], "stability": float(np.mean(others))}
        measures["overall"] = (measures["plasticity"] + measures["stability"]) / 2
        for key, value in measures.items():
            by_arm.setdefault(arm_of(line.run), {}).setdefault(key, {})[line.seed] = value
    return by_arm


def table(ws: Workspace, found: Compared, target: str, rates: dict[str, Rates]) -> None:
    by_arm, pool = judged(found, target), ws.n_rows()
    columns = "name, samples, trainable, optimizer_bytes, peak_bytes"
    runs = {row["name"]: row for row in curate.sql(ws, f"SELECT {columns} FROM runs")}
    all_parameters = max((row["trainable"] or 0 for row in runs.values()), default=1)
    print(
        f"   {'arm':21} {'plasticity':>16} {'stability':>16} {'overall':>16} {'data':>6} {'params':>8} "
        f"{'rate':>8} {'its trials':>10} {'optimizer':>10} {'peak':>8} {'FLOPs':>9} {'preparing':>10} {'seconds':>8}"
    )
    for name in by_arm:
        cells = "".join(f" {_told(by_arm[name][k]):>16}" for k in KINDS)
        lines = [line for line in found.lines if arm_of(line.run) == name]
        run, costs = runs[lines[0].run], [line.cost for line in lines]
        if run["trainable"] is None:
            print(f"   {name:21}{cells}")
            continue
        total, prep, seconds = (
            float(np.mean([getattr(cost, key) for cost in costs])) for key in ("total", "prep", "seconds")
        )
        sizes = [run["optimizer_bytes"] / 2**20, run["peak_bytes"] / 2**20]
        print(
            f"   {name:21}{cells} {run['samples'] / pool:6.1%} {run['trainable'] / all_parameters:8.2%} "
            f"{rates[name].best:8.1e} {rates[name].flops:10.1e} {sizes[0]:6.1f} MiB "
            f"{sizes[1]:4.0f} MiB {total:9.2e} {prep:10.1e} {seconds:8.1f}"
        )
    for arm_name, reference in (
        ("dualsft", "both_random"), ("dualsft", "dualsft_null"), ("dualsft", "dualsft_worst"), ("dualsft", "sft"),
        ("data_dualsft", "data_random"), ("data_dualsft", "data_dualsft_null"), ("data_dualsft", "data_dualsft_worst"),
        ("param_dualsft", "param_random"), ("param_dualsft", "param_dualsft_worst"),
        ("dualsft", "dual_data_random_mask"), ("dualsft", "random_data_dual_mask"),
        *((f"dualsft_{what}", "dualsft") for what in (*(f"again{r}" for r in ROUNDS), *VARIANTS)),
    ):  # fmt: skip
        if not {arm_name, reference} <= by_arm.keys():
            continue
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


def at_one_rate(ws: Workspace, target: str, rates: dict[str, Rates], metric: str) -> None:
    """The same arms where all train at one rate, each in turn: what a table says that does not look for it."""
    rows = curate.sql(
        ws,
        f"""SELECT run, value FROM evaluations e WHERE target = '{target}' AND split = 'test'
        AND metric = '{metric}' AND step = (SELECT max(step) FROM evaluations WHERE run = e.run)""",
    )
    value = {row["run"]: row["value"] for row in rows}
    heads = [f"{rate:g}" for rate in next(iter(rates.values())).tried]
    print(f"   {'arm':21} " + " ".join(f"{head:>8}" for head in heads))
    for arm, its in rates.items():
        cells = [f"{value[run]:8.3f}" for run in its.runs]
        print(f"   {arm:21} {' '.join(cells)}   (taken: {its.best:g})")


def stages(ws: Workspace) -> None:
    """What each stage took, of all arms and seeds together."""
    query = """SELECT coalesce(phase, stage) AS part, sum(flops) AS flops, sum(seconds) AS seconds FROM ledger
        GROUP BY part ORDER BY seconds DESC"""
    for row in curate.sql(ws, query):
        print(f"   {row['part']:20} {row['flops']:9.2e} FLOPs {row['seconds'] / 3600:8.3f} hours")


def main(preset: Preset, folder: Path, named: str | None = None, workers: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other_target = preset.pairs[0]
    print(
        f"1. The value of each sample and each parameter for {target}; each seed has warm-ups of its own.", flush=True
    )
    arms = ALL_ARMS if preset.parts else FEW_ARMS
    trainings: dict[str, list[TrainingSpec]] = {arm.name: [] for arm in arms}
    for seed in range(preset.seeds):
        names = scores(ws, preset, target, model, seed, arms)
        if target in ("facts", "translation"):
            truth(ws, target, names)
        selections(ws, names, seed, model, arms)
        methods = masks(ws, preset, model, names, seed, arms)
        for arm in arms:
            trainings[arm.name].append(training_of(ws, preset, model, arm, methods, seed))

    print(f"\n2. {DATA:.0%} of the samples, {PARAMETERS:.0%} of the parameters, or both: {len(arms)} arms.")
    targets = (target, other_target, *preset.others)
    metrics = dict.fromkeys((Loss(), preset.accuracy))
    evals = [EvalSpec(name, metric, limit=preset.questions) for name in targets for metric in metrics]
    started = time.monotonic()
    curate.evaluate(ws, "base", evals, model=model)
    on_target = EvalSpec(target, preset.accuracy, limit=preset.questions)
    first = {arm: specs[0] for arm, specs in trainings.items()}
    searched = len(preset.rates) > 1
    rates = tried(ws, first, target, [on_target], workers, preset.rates) if searched else one_rate(first)
    jobs = [Job(str(ws.path), name, training, tuple(evals)) for name, training in at_best(trainings, rates)]
    runs = ["base", *train_all(jobs, workers)]
    print(f"   {len(runs)} runs, and {sum(len(its.tried) for its in rates.values())} to find their rates, in "
          f"{time.monotonic() - started:.0f} s, {workers} at a time")  # fmt: skip

    by = "accuracy" if preset.accuracy != Loss() else "negative loss"
    print(f"\n3. Results: {by} over seeds with its standard error, and what it cost.")
    compared = curate.compare(ws, runs, against="sft_s0")
    table(ws, compared, target, rates)
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"DualSFT: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    print(f"   The page is {path}.")
    if searched:
        print(f"\n4. Accuracy on {target} by learning rate, one seed.")
        at_one_rate(ws, target, rates, preset.accuracy.name)
    print(f"\n{4 + searched}. Where the time went.")
    stages(ws)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=ALL)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dualsft"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(ALL[arguments.preset], arguments.folder, arguments.model, arguments.workers)
