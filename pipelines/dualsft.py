"""DualSFT step by step: one set of gradients chooses samples and parameters; does it beat choosing either alone?

    python pipelines/dualsft.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]      (default: ./dualsft)

Arms: all data with all parameters (SFT) or with LoRA; the data chosen by DualSFT, LESS, FisherSFT, SPICE or at random;
the parameters by DualSFT, NanoAdam, SMT, LIFT, S2FT or at random; both at once, jointly or one method after the other;
one side by DualSFT and the other at random or the lowest-ranked; both sides chosen again, each for the other; DualSFT
from the base model, with other weights of what is to be kept, and with other ways to keep it; and as checks the
lowest-ranked, and shuffled scores. All take the same number of steps, so smaller selections are repeated more often,
each at the best of a few learning rates by its validation loss. Every seed draws its own warm-ups; those of LESS and of
DualSFT are on the same samples for as many epochs. Plasticity is the accuracy on the target, stability the mean
accuracy on the other tasks, overall the mean of both. Ends in a table, a page and a picture. What the gradients
themselves show is in dualsft_diagnostics.py.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from arm_rates import Rates, at_best, tried  # pyright: ignore[reportMissingImports]
from dualsft_point import again  # pyright: ignore[reportMissingImports]
from equal_flops import SEED, Job, train_all  # pyright: ignore[reportMissingImports]
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
from curate.methods.scores.embed_tokens import EmbedTokens
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
ROUNDS = (1, 3)  # of choosing again


@dataclass(frozen=True)
class Arm:
    """manifest, mask: names, without the seed that ends them; None: all samples, all parameters."""

    name: str
    manifest: str | None = None
    mask: str | None = None
    lora: int = 0


ARMS = (
    Arm("sft"),
    Arm("lora", lora=16),
    Arm("data_random", "random"),
    Arm("data_less", "less_best"),
    Arm("data_fishersft", "fishersft_best"),
    Arm("data_spice", "spice_best"),
    Arm("data_dualsft", "dual_best"),
    Arm("data_dualsft_null", "dual_null"),
    Arm("data_dualsft_worst", "dual_worst"),
    Arm("param_random", None, "m_random"),
    Arm("param_nanoadam", None, "m_small"),
    Arm("param_smt", None, "m_blocks"),
    Arm("param_lift", None, "m_principal"),
    Arm("param_s2ft", None, "m_channels"),
    Arm("param_dualsft", None, "m_dual"),
    Arm("param_dualsft_worst", None, "m_worst"),
    Arm("less_then_s2ft", "less_best", "m_channels"),
    Arm("spice_then_s2ft", "spice_best", "m_channels"),
    Arm("less_then_nanoadam", "less_best", "m_small"),
    Arm("spice_then_nanoadam", "spice_best", "m_small"),
    Arm("both_random", "random", "m_random"),
    Arm("dualsft", "dual_best", "m_dual"),
    Arm("dualsft_null", "dual_null", "m_dual"),
    Arm("dualsft_worst", "dual_worst", "m_worst"),
    Arm("dual_data_random_mask", "dual_best", "m_random"),
    Arm("random_data_dual_mask", "random", "m_dual"),
    Arm("dual_data_worst_mask", "dual_best", "m_worst"),
    Arm("worst_data_dual_mask", "dual_worst", "m_dual"),
    *(Arm(f"dualsft_again{r}", f"again{r}_best", f"m_again{r}") for r in ROUNDS),
)
# How else DualSFT can score: at the base model; with no, or more, weight on what is to be kept; kept by other means.
VARIANTS = {
    "init": {"warmup": 0.0, "order": "first", "preserve": "none"},
    "lam0": {"preserve": "none"},
    "lam1": {"lam": 1.0},
    "l2": {"preserve": "l2"},
    "fisher": {"preserve": "fisher"},
}
ALL_ARMS = (*ARMS, *(Arm(f"dualsft_{name}", f"{name}_best", f"m_{name}") for name in VARIANTS))


def _seeded(name: str, seed: int) -> str:
    return f"{name}_{seed}"


def scores(ws: Workspace, preset: Preset, target: str, model: ModelChoice, seed: int) -> dict[str, str]:
    """Everything that is scored for a seed, with a warm-up of its own: what -> the score's name."""
    dual = replace(preset.dual, warmup_seed=preset.dual.warmup_seed + seed)
    variants = {
        "dual": dual,
        **{name: replace(dual, **change) for name, change in VARIANTS.items()},
    }
    names = {what: _seeded(what, seed) for what in (*variants, "less")}
    for what, method in variants.items():
        (scored,) = curate.score(ws, method, target=target, names={"dualsft": names[what]}, models=model)
        if what == "dual":
            print(f"   {scored.name}: {scored.rows:,} samples, {scored.nulls:,} without a score. {scored.note}")
    same = {"warmup": dual.warmup, "epochs": dual.epochs, "batch_size": dual.batch_size}
    less = replace(preset.less, **same, warmup_seed=dual.warmup_seed)
    vectors = _seeded("less_vectors", seed)
    curate.score(ws, less, target=target, names={"less": names["less"]}, vectors={"less": vectors}, models=model)
    raw = replace(less, variant="sgd")  # SPICE is about the gradients themselves
    curate.score(ws, raw, vectors={"less": _seeded("less_raw", seed)}, models=model)
    return names


def selections(ws: Workspace, names: dict[str, str], seed: int) -> None:
    rows = round(DATA * ws.n_rows())
    by = {f"{what}_best": names[what] for what in names} | {"dual_worst": f"-{names['dual']}"}
    for name, column in by.items():
        curate.select(ws, _seeded(name, seed), Top(), SelectionSpec(by=column, top=rows))
    by_tokens = SelectionSpec(top=rows, vectors="embed_tokens")
    curate.select(ws, _seeded("fishersft_best", seed), Fishersft(of="tokens"), by_tokens)
    raw = SelectionSpec(top=rows, vectors=_seeded("less_raw", seed))
    curate.select(ws, _seeded("spice_best", seed), Spice(), raw)
    curate.select(ws, _seeded("random", seed), Random(), SelectionSpec(top=rows, seed=seed))
    null = SelectionSpec(by=names["dual"], top=rows, seed=seed, null=True)
    curate.select(ws, _seeded("dual_null", seed), Top(), null)


def masks(ws: Workspace, preset: Preset, model: ModelChoice, names: dict[str, str], seed: int) -> dict[str, Mask]:
    """The masks' methods by name, each stored under it."""
    training = preset.training
    warm_up = {"lr": training.lr, "batch_size": training.batch_size, "steps": min(100, preset.steps)}
    refresh = max(1, preset.steps // 4)  # within the run
    by_weights: dict[str, Mask] = {
        "m_small": MagnitudeSmall(interval=refresh),
        "m_blocks": GradientBlock(block=16 if preset.context == 0 else 64, edges="pad", **warm_up),
        "m_principal": Principal(interval=refresh, modules="dualsft"),
        "m_random": RandomMask(seed=seed),
        "m_channels": Structured(seed=seed),
    }
    by_score = {"m_dual": "dual", "m_worst": "dual", **{f"m_{name}": name for name in VARIANTS}}
    methods = {_seeded(name, seed): method for name, method in by_weights.items()}
    for name, method in methods.items():
        if name not in ws.mask_names():
            curate.mask(ws, name, method, PARAMETERS, model=model)
    for name, what in by_score.items():
        method = methods[_seeded(name, seed)] = DualsftMask(end="smallest" if name == "m_worst" else "largest")
        if _seeded(name, seed) not in ws.mask_names():
            curate.mask(ws, _seeded(name, seed), method, PARAMETERS, score=names[what])
    for rounds in ROUNDS:
        manifest, mask = _seeded(f"again{rounds}_best", seed), _seeded(f"m_again{rounds}", seed)
        methods[mask] = DualsftMask()
        if mask not in ws.mask_names():
            again(ws, names["dual"], _seeded("m_dual", seed), rounds, DATA, PARAMETERS, manifest, mask)
    return methods


def training_of(
    ws: Workspace, preset: Preset, model: ModelChoice, arm: Arm, methods: dict[str, Mask], seed: int
) -> TrainingSpec:
    """What an arm trains with a seed. All start from the base model; SMT's from where its warm-up ended."""
    manifest, mask = (name and _seeded(name, seed) for name in (arm.manifest, arm.mask))
    settings = replace(preset.training, steps=preset.steps, lora_r=arm.lora)
    training = TrainingSpec(model, Uniform(), settings, manifest=manifest, seed=seed)
    if not mask:
        return training
    stored = read_mask(ws, mask)
    start_model = replace(model, name=stored.recipe.checkpoint or model.name)
    return replace(training, model=start_model, mask=stored, masking=methods[mask])


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
    curate.score(ws, EmbedTokens(), models=model)
    trainings: dict[str, list[TrainingSpec]] = {arm.name: [] for arm in ALL_ARMS}
    for seed in range(preset.seeds):
        names = scores(ws, preset, target, model, seed)
        if target in ("facts", "translation"):
            truth(ws, target, names)
        selections(ws, names, seed)
        methods = masks(ws, preset, model, names, seed)
        for arm in ALL_ARMS:
            trainings[arm.name].append(training_of(ws, preset, model, arm, methods, seed))

    print(f"\n2. {DATA:.0%} of the samples, {PARAMETERS:.0%} of the parameters, or both: {len(ALL_ARMS)} arms.")
    targets = (target, other_target, *preset.others)
    evals = [EvalSpec(name, metric, limit=preset.questions) for name in targets for metric in (Loss(), preset.accuracy)]
    started = time.monotonic()
    curate.evaluate(ws, "base", evals, model=model)
    on_target = EvalSpec(target, preset.accuracy, limit=preset.questions)
    rates = tried(ws, {arm: specs[0] for arm, specs in trainings.items()}, target, [on_target], workers, preset.rates)
    jobs = [Job(str(ws.path), name, training, tuple(evals)) for name, training in at_best(trainings, rates)]
    runs = ["base", *train_all(jobs, workers)]
    print(f"   {len(runs)} runs, and {sum(len(its.tried) for its in rates.values())} to find their rates, in "
          f"{time.monotonic() - started:.0f} s, {workers} at a time")  # fmt: skip

    print("\n3. Results: accuracy over seeds with its standard error, and what it cost.")
    compared = curate.compare(ws, runs, against="sft_s0")
    table(ws, compared, target, rates)
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"DualSFT: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    print(f"   The page is {path}.")
    print(f"\n4. Accuracy on {target} by learning rate, one seed.")
    at_one_rate(ws, target, rates, preset.accuracy.name)
    print("\n5. Where the time went.")
    stages(ws)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dualsft"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model, arguments.workers)
