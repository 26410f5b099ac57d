"""Every way to select samples before training, at three budgets: what is selected, what it teaches, what it costs.

    python pipelines/every_selector.py smoke|cpu [NEW-FOLDER] [--workers N]      (default: ./every-selector)

Arms: the best by every score, and every selector on vectors; budgets of 5, 10 and 20 % of the samples; the same number
of epochs on each selection, at the best of a few learning rates by the target's validation loss. With shuffled values,
the best by a score are a random draw: the arm `random` is the control of them all. Selectors that use more than the
value have a control of their own, at the middle budget. Quality is the accuracy on the target, and the mean accuracy on
the other tasks; of each selection: the share that is corrupt, the share of the target's skill, and how diverse the
samples are (1 - cosine of the model's hidden states, over all pairs).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from arm_rates import Rates, at_best, tried  # pyright: ignore[reportMissingImports]
from equal_flops import Job, train_all  # pyright: ignore[reportMissingImports]
from presets import PRESETS, Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.kinds.selector import Selector
from curate.kinds.vectors import Vectors
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.davir import Davir
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.embed_logits import EmbedLogits
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.gradsim import Gradsim
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.length import Length
from curate.methods.scores.near_dup import NearDup
from curate.methods.scores.ngram_classifier import NgramClassifier
from curate.methods.scores.nll import Nll
from curate.methods.scores.nuclear import Nuclear
from curate.methods.scores.repetition import Repetition
from curate.methods.scores.rho import Rho
from curate.methods.selectors.d4 import D4
from curate.methods.selectors.deita import Deita
from curate.methods.selectors.dsir import Dsir as Resampling
from curate.methods.selectors.facility import Facility
from curate.methods.selectors.fishersft import Fishersft
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.kmeans_quota import KmeansQuota
from curate.methods.selectors.lhas import Lhas
from curate.methods.selectors.quota import Quota
from curate.methods.selectors.random import Random
from curate.methods.selectors.round_robin import RoundRobin
from curate.methods.selectors.semdedup import Semdedup
from curate.methods.selectors.spice import Spice
from curate.methods.selectors.top import Top
from curate.methods.selectors.uds import Uds
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.numerics.selection_profile import diversity
from curate.numerics.statistics import Mean, paired
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.verbs.compare import compare
from curate.verbs.select import SelectionSpec

BUDGETS = {"smoke": (0.1,), "cpu": (0.05, 0.1, 0.2)}
MIDDLE = 0.1


@dataclass(frozen=True)
class Way:
    """How to select. by: a column, T in it standing for the target. drawn: at random, so anew for every seed. null:
    whether it has a control of its own."""

    name: str
    selector: Selector = field(default_factory=Top)
    by: str | None = None
    vectors: str | None = None
    target: bool = False
    where: str | None = None
    drawn: bool = False
    null: bool = False


SCORES = {
    **{name: name for name in ("length", "repetition", "nll", "entropy", "el2n", "ifd", "rho", "davir", "nuclear")},
    **{name: name for name in ("gradnorm", "gradsim")},
    **{name: f"{name}_T" for name in ("bm25", "ngram_classifier", "embed_lm", "graddot", "less", "dualsft")},
}
WAYS = (
    Way("random", Random(), drawn=True),
    Way("random_dedup", Random(), where="near_dup = 1", drawn=True),
    *(Way(name, by=column) for name, column in SCORES.items()),
    Way("loss", by="-nll"),
    Way("dsir", Resampling(), "dsir_T", drawn=True, null=True),
    Way("quota", Quota(), "bm25_T", null=True),
    Way("round_robin", RoundRobin(), vectors="embed_lm", target=True),
    Way("kcenter", Kcenter(), vectors="embed_lm"),
    Way("semdedup", Semdedup(), vectors="embed_lm"),
    Way("d4", D4(), vectors="embed_lm"),
    Way("facility", Facility(), vectors="embed_lm"),
    Way("kmeans_quota", KmeansQuota(), vectors="embed_lm"),
    Way("deita", Deita(threshold=0.95), "bm25_T", "embed_lm", null=True),
    Way("fishersft", Fishersft(), vectors="embed_lm"),
    Way("spice", Spice(), vectors="less"),
    Way("uds", Uds(), "nuclear", "embed_logits", null=True),
    Way("lhas", Lhas(), "nuclear", "embed_lm", target=True, null=True),
)


def scored(ws: Workspace, preset: Preset, target: str, model: ModelChoice, evals: list[EvalSpec]) -> None:
    """All columns and vectors; the reference of rho and davir is the model trained on everything."""
    text = (Bm25(), Dsir(min_tokens=1), NgramClassifier(), Length(), Repetition(), NearDup())
    curate.score(ws, *text, target=target)
    passes = (Nll(), Entropy(), El2n(), Ifd(above_one="keep"), Nuclear(), EmbedLm(), EmbedLogits())
    curate.score(ws, *passes, target=target, models=model)
    curate.score(ws, preset.less, preset.dual, target=target, models=model)
    curate.score(ws, Graddot(), Gradnorm(), Gradsim(), target=target, models=model)
    curate.train(ws, "full_s0", TrainingSpec(model, Uniform(), preset.training), evals=evals)
    reference = replace(model, name="full_s0")
    curate.score(ws, Rho(), Davir(), models={"base": model, "reference": reference})


def chosen(ws: Workspace, way: Way, budget: float, target: str, seed: int, null: bool) -> str:
    """The manifest of a way's choice."""
    share = f"{budget:.0%}".rstrip("%")
    name = f"{way.name}{'_null' if null else ''}_{share}_rows" + (f"_{seed}" if way.drawn or null else "")
    by = way.by and way.by.replace("_T", f"_{target}")
    top = round(budget * ws.n_rows())
    spec = SelectionSpec(by=by, where=way.where, top=top, vectors=way.vectors, target=target if way.target else None)
    if name not in ws.manifest_names():
        curate.select(ws, name, way.selector, replace(spec, seed=seed if way.drawn or null else 0, null=null))
    return name


def arms(ws: Workspace, preset: Preset, budgets: Sequence[float], target: str) -> Iterator[tuple[str, str, int]]:
    """Every run: its arm, the manifest and the seed."""
    for budget in budgets:
        for way in WAYS:
            for null in (False, True) if way.null and budget == MIDDLE else (False,):
                for seed in range(preset.seeds):
                    manifest = chosen(ws, way, budget, target, seed, null)
                    yield f"{way.name}{'_null' if null else ''}_{budget * 100:.0f}", manifest, seed


# --- the table -------------------------------------------------------------------------------------------


def checkpoint_set(ws: Workspace, manifest: str, target: str, states: Vectors) -> tuple[float, float, float]:
    """Of a selection: the share that is corrupt, the share of the target's skill, and how diverse its samples are."""
    columns = f"avg((meta->>'corrupt')::BOOLEAN::INT) AS bad, avg((meta->>'skill' = '{target}')::INT) AS mine"
    (row,) = curate.sql(ws, f"SELECT {columns}, list(m.row) AS places FROM {manifest} m JOIN pool USING (row)")
    positions = np.array(row["places"])
    return row["bad"], row["mine"], diversity(states.unit[positions[states.there[positions]]])


def all_states(ws: Workspace) -> Vectors:
    rows = list(curate.sql(ws, "SELECT vector, error FROM embed_lm"))
    width = next(len(row["vector"]) for row in rows if row["vector"])
    raw = np.array([row["vector"] or [0.0] * width for row in rows], np.float32)
    return Vectors.of(raw, [row["error"] or "" for row in rows])


def table(ws: Workspace, runs: dict[str, str], budgets: Sequence[float], target: str, rates: dict[str, Rates]) -> None:
    """runs: name -> manifest. rates: by arm."""
    compared = compare(ws, ["base", "full_s0", *runs], against="random_10_s0")
    states, by_arm = all_states(ws), dict[str, dict[str, dict[int, float]]]()
    for line in compared.lines:
        right = {key.split(" ")[0]: value for key, value in line.quality.items()}
        other_values = [value for name, value in right.items() if name != target]
        for kind, value in (("in", right[target]), ("out", float(np.mean(other_values)))):
            by_arm.setdefault(line.arm, {}).setdefault(kind, {})[line.seed] = value
    for budget in budgets:
        share = f"{budget * 100:.0f}"
        print(f"\n   {share} %{'':10} {'in domain':>15} {'over random':>26} {'out of domain':>15} {'over random':>26}"
              f" {'corrupt':>8} {'skill':>6} {'diverse':>7} {'FLOPs':>8} {'preparing':>10} {'seconds':>8}"
              f" {'rate':>8} {'its trials':>10}")  # fmt: skip
        for arm in compared.arms:
            if not arm.name.endswith(f"_{share}"):
                continue
            cells, name = "", arm.name.removesuffix(f"_{share}")
            for kind in ("in", "out"):
                own, random_values = by_arm[arm.name][kind], by_arm[f"random_{share}"][kind]
                cells += (
                    f" {Mean.of(list(own.values()))!s:>15} {_over(own, random_values) if name != 'random' else '':>26}"
                )
            shares = np.mean([checkpoint_set(ws, runs[run], target, states) for run in arm.runs], axis=0)
            cost = f"{arm.cost.total:8.1e} {arm.cost.prep:10.1e} {arm.cost.seconds:8.1f}"
            cost += f" {rates[arm.name].best:8.0e} {rates[arm.name].flops:10.1e}"
            print(f"   {name:13}{cells} {shares[0]:8.1%} {shares[1]:6.0%} {shares[2]:7.3f} {cost}")
    for name in ("base", "full"):
        values = "  ".join(f"{kind} {Mean.of(list(v.values()))}" for kind, v in by_arm[name].items())
        print(f"   {name}: {values}")


def _over(values: dict[int, float], random_values: dict[int, float]) -> str:
    difference = paired(values, random_values)
    interval = difference.interval() if difference else None
    text = f"{difference.mean:+.3f}" if difference else ""
    return text + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def main(preset: Preset, budgets: Sequence[float], folder: Path, workers: int) -> None:
    model, started = preset.base(folder), time.monotonic()
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other_target = preset.pairs[0]
    evals = [EvalSpec(name, preset.accuracy, limit=preset.questions) for name in (target, other_target, *preset.others)]
    print(f"1. Scores and vectors for {target}.", flush=True)
    curate.evaluate(ws, "base", evals, model=model)
    scored(ws, preset, target, model, evals)
    print(f"   after {time.monotonic() - started:.0f} s\n2. {len(WAYS)} ways, {len(budgets)} budgets.", flush=True)
    trainings: dict[str, list[TrainingSpec]] = {}
    for arm, manifest, seed in arms(ws, preset, budgets, target):
        training = TrainingSpec(model, Uniform(), preset.training, manifest=manifest, seed=seed)
        trainings.setdefault(arm, []).append(training)
    rates = tried(ws, {arm: specs[0] for arm, specs in trainings.items()}, target, [], workers, preset.rates)
    jobs = at_best(trainings, rates)
    train_all([Job(str(ws.path), name, training, tuple(evals)) for name, training in jobs], workers)
    runs = {name: training.manifest or "" for name, training in jobs}
    print(f"   {len(runs)} runs, and {sum(len(its.tried) for its in rates.values())} to find their rates, after "
          f"{time.monotonic() - started:.0f} s, {workers} at a time")  # fmt: skip
    print("\n3. Accuracy over seeds with its standard error; differences from random with their 95 % intervals.")
    table(ws, runs, budgets, target, rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=BUDGETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("every-selector"))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], BUDGETS[arguments.preset], arguments.folder, arguments.workers)
