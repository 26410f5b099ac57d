"""Choosing inside the step: every method at a fixed number of samples, with what each saving costs in quality.

    python pipelines/online_selection.py smoke|cpu|few|gpu [NEW-FOLDER] [--model MODEL]   (default: ./online-selection)

Every arm trains on the same number of samples in the same number of steps, chosen among four times as many candidates;
`random` takes the first that come; `full` all candidates, a step as large as all of them; `full_steps` the same
candidates in steps as small as everyone's, four times as many; `truth` only correct samples of the target's skill.
The target's validation split covers the facts that are tested, and asks none of the test's questions. Then
filter_then_weight with parts left out, with other projections, with the target's gradient reused for longer, and from a
stream that is seen once. few: four methods, with LoRA on real samples, eight steps of 2 among 8. Ends in tables, a
page and a picture.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from equal_flops import Job, difference, train_all  # pyright: ignore[reportMissingImports]
from presets import (
    FEW,
    PRESETS,
    STREAM,
    WITHIN_REAL,
    Preset,
    covering,
    endless,
    in_fastest_precision,
    make_sample,
    shorter,
)  # pyright: ignore[reportMissingImports]

import curate
from curate.methods.metrics.choice import Choice as OptionChoice
from curate.methods.metrics.loss import Loss
from curate.methods.scores.nll import Nll
from curate.methods.selectors.random import Random
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.rho_online import RhoOnline
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.numerics.statistics import Mean, paired
from curate.pages.comparison import page, plot
from curate.pages.diagnosis import Panel, lines
from curate.runs.config import ReplaySettings, StreamSource, TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec

METHODS = {
    "filter_then_weight": FilterThenWeight(),
    "match_span": FilterThenWeight(rescale="match_span"),
    "match_norm": FilterThenWeight(rescale="match_norm"),
    "greats": Greats(),
    "tracin_online": TracinOnline(),
    "less_online": LessOnline(),
    "grad_match": GradMatch(),
    "grad_norm": GradNorm(),
    "max_loss": MaxLoss(),
    "rho_online": RhoOnline(),
}
FEW_ARMS = ("random", "full", "filter_then_weight", "greats", "less_online", "grad_match")
PARTS = {
    "top, then weights": FilterThenWeight(filter="top"),
    "filter only": FilterThenWeight(weigh="none"),
    "no preconditioning": FilterThenWeight(precondition="none"),
    "D of projected": FilterThenWeight(precondition="projected"),
    "D with candidates": FilterThenWeight(side="candidates"),
    "unbounded weights": FilterThenWeight(weigh="signed"),
    "weights sum to batch": FilterThenWeight(rescale="sum_to_batch"),
    "same positions": FilterThenWeight(positions="same", precondition="projected"),
}
PROJECTIONS, LOOKS = (32, 64, 128, 256), (4, 16, 64)
COVERING = 240  # questions of the target's validation split
METRICS = {"loss": "loss", "choice": "accuracy"}
FEW_STEPS = replace(WITHIN_REAL, steps=8, batch_size=2, target_batch=4, lr=5e-4, eval_every=0)
ALL = {
    **PRESETS,
    "few": replace(FEW, seeds=3, online=FEW_STEPS, questions=24, parts=False, context=256, base=shorter),
}
TRUTH = "truth"  # where it is known, the candidates of the target's skill that are not corrupt: an upper bound
Values = dict[int, float]


def main_arms(preset: Preset, model: ModelChoice, target: str) -> Iterator[tuple[str, TrainingSpec]]:
    """The methods and their baselines, with every seed."""
    for name, training in _all_arms(preset, model, target):
        if preset.parts or name.rpartition("_s")[0] in FEW_ARMS:
            yield name, training


def _all_arms(preset: Preset, model: ModelChoice, target: str) -> Iterator[tuple[str, TrainingSpec]]:
    settings, times = preset.online, preset.online.oversample
    for seed in range(preset.seeds):
        training = TrainingSpec(model, Uniform(), settings, seed=seed)
        yield f"random_s{seed}", training
        large = replace(settings, batch_size=settings.batch_size * times)
        yield f"full_s{seed}", replace(training, settings=large)
        more = replace(settings, steps=settings.steps * times, eval_every=settings.eval_every * times)
        yield f"full_steps_s{seed}", replace(training, settings=more)
        if preset.drawn:
            yield f"{TRUTH}_s{seed}", replace(training, manifest=TRUTH)
        for name, weighting in METHODS.items():
            method_training = replace(training, weighting=weighting, target=target if weighting.uses_target else None)
            yield f"{name}_s{seed}", replace(method_training, by="nll_nll" if name == "rho_online" else None)


def more_arms(preset: Preset, model: ModelChoice, target: str) -> Iterator[tuple[str, str, TrainingSpec]]:
    """Variants of filter_then_weight: what differs, the run's name, the training; with one seed, in a fifth of the
    steps."""
    settings = replace(preset.online, steps=max(1, preset.online.steps // 5))
    training = TrainingSpec(model, FilterThenWeight(), settings, target=target)
    yield "as it is", "part_none", training
    for label, weighting in PARTS.items():
        yield label, f"part_{label.lower().replace(' ', '_').replace(',', '')}", replace(training, weighting=weighting)
    for k in PROJECTIONS:
        if k != settings.projection:
            yield f"k = {k}", f"projection_{k}_numbers", replace(training, settings=replace(settings, projection=k))
    yield "no projection", "projection_none", replace(training, settings=replace(settings, projection=0))
    for r in LOOKS:
        sparser = replace(settings, target_every=r)
        yield f"a look serves {r} steps", f"look_of_{r}_steps", replace(training, settings=sparser)
    if preset.drawn:
        lora = replace(settings, lora_r=16, lr=2 * settings.lr)
        yield "LoRA", "lora_samples", replace(training, settings=lora)
        yield "LoRA, tokens", "lora_tokens", replace(training, settings=lora, weighting=FilterThenWeight(unit="token"))
        records = ({"question": sample.question, "answer": sample.answer} for sample in make_sample().stream(STREAM))
        source = StreamSource("the sample's generator", records, ReplaySettings(memory=256, replay=0.25))
        yield "from a stream", "streamed", replace(training, stream=source)


# --- tables ----------------------------------------------------------------------------------------------


def quality(ws: Workspace, target: str) -> dict[str, dict[str, dict[int, float]]]:
    """metric -> run -> step -> its value on the target."""
    rows = curate.sql(
        ws, f"SELECT * FROM evaluations WHERE target = '{target}' AND split = 'test' AND value IS NOT NULL"
    )
    by_metric: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], {}).setdefault(row["run"], {})[row["step"]] = row["value"]
    return by_metric


def by_arm(found: dict[str, dict[int, float]]) -> dict[str, Values]:
    """arm -> seed -> the value after a run's last step."""
    arms: dict[str, Values] = {}
    for run, steps in found.items():
        arm, _, seed = run.rpartition("_s")
        if arm and seed.isdigit():
            arms.setdefault(arm, {})[int(seed)] = last(steps)
    return arms


def last(steps: dict[int, float]) -> float:
    return steps[max(steps)]


def costs(ws: Workspace) -> dict[str, tuple[float, float]]:
    """run -> FLOPs, and seconds per step, in all phases but evaluation."""
    query = """SELECT run, sum(flops) AS flops, sum(seconds) AS seconds FROM ledger
        WHERE run IS NOT NULL AND phase <> 'evaluate' GROUP BY run"""
    steps = {row["name"]: row["steps"] for row in curate.sql(ws, "SELECT name, steps FROM runs")}
    return {r["run"]: (r["flops"], r["seconds"] / max(steps.get(r["run"]) or 1, 1)) for r in curate.sql(ws, query)}


@dataclass(frozen=True)
class Choices:
    """What a run chose. corrupt, of_skill: shares of the samples trained on; NaN where it is not known. against: share
    whose gradient points away from the target's; NaN where none was looked at. effective: effective number of samples
    in a step's weights, mean of steps. fallbacks: steps in which the formula chose nothing."""

    corrupt: float
    of_skill: float
    against: float
    effective: float
    fallbacks: float


def looks_at_target(run: str) -> bool:
    """Whether a run compares candidates with the target; variants of filter_then_weight do."""
    arm, _, seed = run.rpartition("_s")
    if not seed.isdigit():
        return True
    return arm in METHODS and METHODS[arm].uses_target


def choices(ws: Workspace, target: str) -> dict[str, Choices]:
    """What each run chose."""
    truth = {
        row["run"]: (row["corrupt"], row["mine"])
        for row in curate.sql(
            ws,
            f"""SELECT t.run, avg((meta->>'corrupt' = 'true')::INT) AS corrupt,
            avg((meta->>'skill' = '{target}')::INT) AS mine FROM trained t JOIN pool USING (row)
            WHERE t.weight <> 0 AND t.run <> 'streamed' GROUP BY t.run""",
        )
    }
    if rows := [r["row"] for r in curate.sql(ws, "SELECT row FROM trained WHERE run = 'streamed' AND weight <> 0")]:
        seen = list(islice(make_sample().stream(STREAM), max(rows) + 1))  # a row is a place in the stream
        truth["streamed"] = tuple(np.mean([(seen[n].corrupt, seen[n].skill == target) for n in rows], axis=0))
    effective = curate.sql(
        ws,
        """SELECT run, avg(n) AS n FROM (
            SELECT run, step, pow(sum(weight::DOUBLE), 2) / sum(pow(weight::DOUBLE, 2)) AS n
            FROM trained WHERE weight <> 0 GROUP BY run, step
        ) GROUP BY run""",
    )
    against = {
        row["run"]: row["share"]
        for row in curate.sql(
            ws, "SELECT run, avg((measure < 0)::INT) AS share FROM trained WHERE weight <> 0 GROUP BY run"
        )
        if looks_at_target(row["run"])
    }
    fallbacks = {r["run"]: r["n"] for r in curate.sql(ws, "SELECT run, sum(fallback) AS n FROM metrics GROUP BY run")}
    unknown, found = float("nan"), dict[str, Choices]()
    for row in effective:
        run = row["run"]
        corrupt, mine = (unknown if share is None else float(share) for share in truth.get(run, (None, None)))
        found[run] = Choices(corrupt, mine, against.get(run, unknown), float(row["n"]), float(fallbacks.get(run) or 0))
    return found


def table(ws: Workspace, target: str) -> None:
    """The arms' losses and accuracies, what they chose and what that cost, as Markdown."""
    by_metric, cost, chose = quality(ws, target), costs(ws), choices(ws, target)
    metrics = [metric for metric in ("loss", "choice") if by_metric.get(metric)]
    at_end = {metric: by_arm(by_metric[metric]) for metric in metrics}
    head = ["arm"]
    for metric in metrics:
        head += [METRICS[metric], "over random", "over full"]
    print(f"| {' | '.join([*head, 'against', 'effective', 'corrupt', 'skill', 'fallback', 'FLOPs', 's a step'])} |")
    print("|---" * (len(head) + 7) + "|")
    for arm in (name for name in ("random", "full", "full_steps", TRUTH, *METHODS) if name in at_end[metrics[0]]):
        cells = [arm]
        for metric in metrics:
            values = at_end[metric]
            cells.append(_told(values[arm]))
            cells += [difference(paired(values[arm], values[other])) if arm != other else ""
                      for other in ("random", "full")]  # fmt: skip
        runs = [f"{arm}_s{seed}" for seed in at_end[metrics[0]][arm]]
        mean = {
            name: float(np.mean([getattr(chose[run], name) for run in runs]))
            for name in ("against", "effective", "corrupt", "of_skill", "fallbacks")
        }
        flops, seconds = (float(np.mean([cost[run][k] for run in runs])) for k in range(2))
        cells += [_percent(mean["against"]), f"{mean['effective']:.2f}", _percent(mean["corrupt"]),
                  _percent(mean["of_skill"]), f"{mean['fallbacks']:.1f}", f"{flops:.2e}", f"{seconds:.3f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    before = ", ".join(f"{METRICS[metric]} {last(by_metric[metric]['base']):.3f}" for metric in metrics)
    print(f"\nThe model before: {before}. Differences over seeds with Student's 95 % interval. Of the samples trained "
          "on: `against`, the share whose gradient points away from the target's; `effective`, the effective number in "
          "a step; `corrupt` and `skill`, the shares that are corrupt, and of the target's skill.")  # fmt: skip


def more_table(ws: Workspace, named: dict[str, str], target: str) -> None:
    by_metric, cost, chose = quality(ws, target), costs(ws), choices(ws, target)
    metrics = [metric for metric in ("loss", "choice") if by_metric.get(metric)]
    base_seconds = cost[named["as it is"]][1]
    head = ["filter_then_weight", *(METRICS[m] for m in metrics), "against", "effective", "corrupt", "skill", "FLOPs"]
    print(f"| {' | '.join([*head, 'time a step'])} |\n{'|---' * (len(head) + 1)}|")
    for label, run in named.items():
        its = chose[run]
        cells = [label, *(f"{last(by_metric[metric][run]):.3f}" for metric in metrics), _percent(its.against),
                 f"{its.effective:.2f}", _percent(its.corrupt), _percent(its.of_skill), f"{cost[run][0]:.2e}",
                 f"{cost[run][1] / base_seconds:.2f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def _told(by_seed: Values) -> str:
    mean = Mean.of(list(by_seed.values()))
    return f"{mean.mean:.3f}" + (f" ± {mean.error:.3f}" if mean.error is not None else "")


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{share:.1%}"


def picture(ws: Workspace, preset: Preset, target: str) -> bytes:
    """Loss against the share of the candidates that was trained on, for each arm."""
    by_run, steps = quality(ws, target)["loss"], preset.online.steps
    arms: dict[str, dict[int, list[float]]] = {}
    for run, by_step in by_run.items():
        arm, _, seed = run.rpartition("_s")
        for step, value in by_step.items() if arm and seed.isdigit() else ():
            arms.setdefault(arm, {}).setdefault(step, []).append(value)
    panels, half = [], len(METHODS) // 2
    for names in (list(METHODS)[:half], list(METHODS)[half:]):
        panel_lines = {}
        for name in (name for name in ("random", "full", *names) if name in arms):
            kept_share = 1.0 if name == "full" else 1 / preset.online.oversample
            panel_lines[name] = [
                (100 * kept_share * s / steps, float(np.mean(v)), None) for s, v in sorted(arms[name].items())
            ]
        panels.append(Panel(target, "% of the candidates trained on", "loss, mean of seeds", panel_lines))
    return lines(panels)


# --- the job ---------------------------------------------------------------------------------------------


def main(preset: Preset, folder: Path, named: str | None = None, workers: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    preset = replace(preset, online=in_fastest_precision(preset.online))
    ws = curate.open_workspace(folder / "ws")
    target, _ = preset.pairs[0]
    if preset.drawn:
        endless(ws, folder, preset.drawn)
        covered = covering(ws, folder, target, COVERING)
        print(f"The target has {COVERING} questions, among whose answers are {covered} of the test's.")
        condition = f"meta->>'skill' = '{target}' AND meta->>'corrupt' = 'false'"
        curate.select(ws, TRUTH, Random(), SelectionSpec(where=condition, frac=1.0))
    else:
        preset.data(ws)
    steps, batch = preset.online.steps, preset.online.batch_size
    candidates = batch * preset.online.oversample
    print(f"1. {ws.n_rows():,} candidates, {steps} steps of {batch} among {candidates}; {target} is wanted.")
    if preset.parts:  # for rho_online
        curate.score(ws, Nll(), models=ModelChoice("tiny", device="cpu") if preset.drawn else model)
    metrics = (Loss(), OptionChoice()) if preset.drawn else (Loss(),)  # what is drawn has options to choose among
    evals = [EvalSpec(target, metric, limit=preset.questions) for metric in metrics]
    curate.evaluate(ws, "base", evals, model=model)
    started = time.monotonic()
    trainings = main_arms(preset, model, target)
    jobs = [Job(str(ws.path), name, training, tuple(evals)) for name, training in trainings]
    runs = ["base", *train_all(jobs, workers)]
    print(f"   {len(runs)} runs in {time.monotonic() - started:.0f} s, {workers} at a time\n")
    table(ws, target)
    compared = curate.compare(ws, runs, against="random_s0")
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"Choosing within the step: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    (folder / "ratio.png").write_bytes(picture(ws, preset, target))
    print(f"\nThe page is {path}; loss against the share of data: {folder / 'ratio.png'}.")
    if not preset.parts:
        return
    print("\n2. filter_then_weight without its parts, with other projections and looks, and from a stream; one seed.")
    named_variants = list(more_arms(preset, model, target))
    jobs = [Job(str(ws.path), name, training, tuple(evals)) for _, name, training in named_variants
            if not training.stream]  # fmt: skip
    train_all(jobs, workers)
    for _, name, training in named_variants:
        if training.stream:  # which only this process can read
            curate.train(ws, name, training, evals=evals)
    print()
    variants = {label: name for label, name, _ in named_variants}
    more_table(ws, variants, target)
    print(f"\n{time.monotonic() - started:.0f} s in all.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=ALL)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("online-selection"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(ALL[arguments.preset], arguments.folder, arguments.model, arguments.workers)
