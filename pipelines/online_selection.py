"""Choosing inside the step: every method at a fixed budget of samples, with what each saving costs in quality.

    python pipelines/online_selection.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL]   (default: ./online-selection)

Every arm trains on the same number of samples in the same number of steps, chosen among four times as many candidates;
`random` takes the first that come, `full` all candidates, `truth` only correct samples of the target's skill. Then
filter_then_weight with parts left out, with other projections, with the target's gradient reused for longer, and from a
stream that is seen once. Ends in tables, a page and a picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from presets import PRESETS, STREAM, Preset, endless, make_sample  # pyright: ignore[reportMissingImports]

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
    "greats": Greats(),
    "tracin_online": TracinOnline(),
    "less_online": LessOnline(),
    "grad_match": GradMatch(),
    "grad_norm": GradNorm(),
    "max_loss": MaxLoss(),
    "rho_online": RhoOnline(),
}
PARTS = {
    "top, then weights": FilterThenWeight(filter="top"),
    "filter only": FilterThenWeight(weigh="none"),
    "no preconditioning": FilterThenWeight(precondition="none"),
    "neither": FilterThenWeight(precondition="none", weigh="none"),
    "D of projected": FilterThenWeight(precondition="projected"),
    "D with candidates": FilterThenWeight(side="candidates"),
    "unbounded weights": FilterThenWeight(weigh="signed"),
    "weights sum to batch": FilterThenWeight(rescale="sum_to_batch"),
    "weights as they come": FilterThenWeight(rescale="none"),
}
PROJECTIONS, LOOKS = (32, 64, 128, 256), (4, 16, 64)
TRUTH = "truth"  # where it is known, the candidates of the target's skill that are not corrupt: an upper bound
Values = dict[int, float]


def main_arms(preset: Preset, model: ModelChoice, target: str) -> Iterator[tuple[str, TrainingSpec]]:
    """The methods and their baselines, with every seed."""
    settings = preset.online
    for seed in range(preset.seeds):
        training = TrainingSpec(model, Uniform(), settings, seed=seed)
        yield f"random_s{seed}", training
        full_settings = replace(settings, batch_size=settings.batch_size * settings.oversample)
        yield f"full_s{seed}", replace(training, settings=full_settings)
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


def quality(ws: Workspace, target: str) -> dict[str, dict[int, float]]:
    """run -> step -> accuracy on the target; where it has no options to choose among, minus the loss."""
    rows = curate.sql(
        ws, f"SELECT * FROM evaluations WHERE target = '{target}' AND split = 'test' AND value IS NOT NULL"
    )
    metric = "choice" if any(row["metric"] == "choice" for row in rows) else "loss"
    by_run: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == metric:
            by_run.setdefault(row["run"], {})[row["step"]] = row["value"] if metric == "choice" else -row["value"]
    return by_run


def by_arm(found: dict[str, dict[int, float]], what: Any) -> dict[str, Values]:
    """arm -> seed -> one number of a run's steps."""
    arms: dict[str, Values] = {}
    for run, steps in found.items():
        arm, _, seed = run.rpartition("_s")
        if arm and seed.isdigit():
            arms.setdefault(arm, {})[int(seed)] = what(steps)
    return arms


def last(steps: dict[int, float]) -> float:
    return steps[max(steps)]


def best(steps: dict[int, float]) -> float:
    return max(steps.values())


def costs(ws: Workspace) -> dict[str, tuple[float, float]]:
    """run -> FLOPs, and seconds per step, in all phases but evaluation."""
    query = """SELECT run, sum(flops) AS flops, sum(seconds) AS seconds FROM ledger
        WHERE run IS NOT NULL AND phase <> 'evaluate' GROUP BY run"""
    steps = {row["name"]: row["steps"] for row in curate.sql(ws, "SELECT name, steps FROM runs")}
    return {r["run"]: (r["flops"], r["seconds"] / max(steps.get(r["run"]) or 1, 1)) for r in curate.sql(ws, query)}


def shares(ws: Workspace, target: str) -> dict[str, tuple[float, float, float]]:
    """run -> of the samples it trained on, the share that is corrupt, and of the target's skill; fallbacks."""
    rows = curate.sql(
        ws,
        f"""SELECT t.run, avg((meta->>'corrupt' = 'true')::INT) AS corrupt,
        avg((meta->>'skill' = '{target}')::INT) AS mine FROM trained t JOIN pool USING (row)
        WHERE t.weight <> 0 AND t.run <> 'streamed' GROUP BY t.run""",
    )
    by_run = {row["run"]: (row["corrupt"] or 0.0, row["mine"] or 0.0) for row in rows}
    if stream_rows := [
        r["row"] for r in curate.sql(ws, "SELECT row FROM trained WHERE run = 'streamed' AND weight <> 0")
    ]:
        stream_samples = list(
            islice(make_sample().stream(STREAM), max(stream_rows) + 1)
        )  # a row is a place in the stream
        facts = [(stream_samples[n].corrupt, stream_samples[n].skill == target) for n in stream_rows]
        by_run["streamed"] = tuple(np.mean(facts, axis=0))
    fallbacks = {r["run"]: r["n"] for r in curate.sql(ws, "SELECT run, sum(fallback) AS n FROM metrics GROUP BY run")}
    return {run: (*pair, float(fallbacks[run])) for run, pair in by_run.items()}


def table(ws: Workspace, preset: Preset, target: str) -> None:
    by_run, cost, share = quality(ws, target), costs(ws), shares(ws, target)
    at_end, at_best = by_arm(by_run, last), by_arm(by_run, best)
    print(f"   {'arm':20} {'fixed budget':>16} {'over random':>28} {'over full':>28} {'best of run':>16} {'FLOPs':>9} "
          f"{'s/step':>7} {'corrupt':>8} {'skill':>6} {'fallback':>8}")  # fmt: skip
    for arm in (a for a in ("random", "full", TRUTH, *METHODS) if a in at_end):
        values = at_end[arm]
        runs = [f"{arm}_s{seed}" for seed in values]
        mean_shares = [float(np.mean([share[run][k] for run in runs])) for k in range(3)]
        flops, seconds = (float(np.mean([cost[run][k] for run in runs])) for k in range(2))
        differences = "".join(
            f" {_difference(values, at_end[reference]) if arm != reference else '':>28}"
            for reference in ("random", "full")
        )
        print(f"   {arm:20} {_told(values):>16}{differences} {_told(at_best[arm]):>16} {flops:9.2e} {seconds:7.3f} "
              f"{mean_shares[0]:8.1%} {mean_shares[1]:6.0%} {mean_shares[2]:8.1f}")  # fmt: skip
    print(
        f"   The model before: {last(by_run['base']):.3f}. Corrupt and of the skill: shares of the samples trained on."
    )


def more_table(ws: Workspace, named: dict[str, str], target: str) -> None:
    by_run, cost, share = quality(ws, target), costs(ws), shares(ws, target)
    base_seconds = cost[named["as it is"]][1]
    for label, run in named.items():
        corrupt, of_skill, fallbacks = share[run]
        print(f"   {label:24} {last(by_run[run]):.3f}, best {best(by_run[run]):.3f}   {cost[run][0]:.2e} FLOPs, "
              f"{cost[run][1] / base_seconds:.2f} of its time a step   corrupt {corrupt:.1%}, skill {of_skill:.0%}, "
              f"fallback {fallbacks:.0f}")  # fmt: skip


def _told(by_seed: Values) -> str:
    mean = Mean.of(list(by_seed.values()))
    return f"{mean.mean:.3f}" + (f" ± {mean.error:.3f}" if mean.error is not None else "")


def _difference(values: Values, reference: Values) -> str:
    difference = paired(values, reference)
    assert difference is not None
    interval = difference.interval()
    return f"{difference.mean:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def picture(ws: Workspace, preset: Preset, target: str) -> bytes:
    """Quality against the share of the candidates that was trained on, for each arm."""
    by_run, steps = quality(ws, target), preset.online.steps
    arms: dict[str, dict[int, list[float]]] = {}
    for run, by_step in by_run.items():
        arm, _, seed = run.rpartition("_s")
        for step, value in by_step.items() if arm and seed.isdigit() else ():
            arms.setdefault(arm, {}).setdefault(step, []).append(value)
    panels = []
    for names in (("random", "full", *list(METHODS)[:4]), ("random", "full", *list(METHODS)[4:])):
        panel_lines = {}
        for name in names:
            kept_share = 1.0 if name == "full" else 1 / preset.online.oversample
            panel_lines[name] = [
                (100 * kept_share * s / steps, float(np.mean(v)), None) for s, v in sorted(arms[name].items())
            ]
        panels.append(Panel(target, "% of the candidates trained on", "accuracy, mean of seeds", panel_lines))
    return lines(panels)


# --- the job ---------------------------------------------------------------------------------------------


def main(preset: Preset, folder: Path, named: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    if preset.drawn:
        endless(ws, folder, preset.drawn)
    else:
        preset.data(ws)
    target, _ = preset.pairs[0]
    if preset.drawn:
        condition = f"meta->>'skill' = '{target}' AND meta->>'corrupt' = 'false'"
        curate.select(ws, TRUTH, Random(), SelectionSpec(where=condition, frac=1.0))
    steps, batch = preset.online.steps, preset.online.batch_size
    candidates = batch * preset.online.oversample
    print(f"1. {ws.n_rows():,} candidates, {steps} steps of {batch} among {candidates}; {target} is wanted.")
    curate.score(ws, Nll(), models=ModelChoice("tiny", device="cpu") if preset.drawn else model)  # for rho_online
    evals = [EvalSpec(target, metric, limit=preset.questions) for metric in (Loss(), OptionChoice())]
    curate.evaluate(ws, "base", evals, model=model)
    started, runs = time.monotonic(), ["base"]
    for name, training in main_arms(preset, model, target):
        _run(ws, name, training, evals)
        runs.append(name)
    print(f"   {len(runs)} runs in {time.monotonic() - started:.0f} s\n")
    table(ws, preset, target)

    print("\n2. filter_then_weight without its parts, with other projections and looks, and from a stream; one seed.")
    variants = {}
    for label, name, training in more_arms(preset, model, target):
        _run(ws, name, training, evals)
        variants[label] = name
    print()
    more_table(ws, variants, target)
    compared = curate.compare(ws, runs, against="random_s0")
    path = folder / f"{target}.html"
    path.write_text(page(compared, f"Choosing within the step: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(compared))
    (folder / "ratio.png").write_bytes(picture(ws, preset, target))
    print(f"\nThe page is {path}; quality against the share of data: {folder / 'ratio.png'}. "
          f"{time.monotonic() - started:.0f} s in all.")  # fmt: skip


def _run(ws: Workspace, name: str, training: TrainingSpec, evals: list[EvalSpec]) -> None:
    trained = curate.train(ws, name, training, evals=evals)
    summary = "  ".join(f"{e['metric']} {e['value']:.3f}" for e in trained.evaluations if e["value"] is not None)
    print(f"   {name:26} {trained.steps:4} steps  {summary}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("online-selection"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model)
