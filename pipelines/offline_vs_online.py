"""Does choosing data before training beat reweighting it during training, once every FLOP is counted?

    python pipelines/offline_vs_online.py smoke|cpu|few|gpu [NEW-FOLDER] [--model MODEL]

Every arm may take what so many epochs of all data cost, with its scores, warm-ups and selection paid out of that. For
an in-domain target A and an out-of-domain target B: selections by random, BM25, an encoder's and the model's own
embeddings, LESS and DualSFT; all data; all data weighted by a column (ADAPT-BM25), by ADAPT as published and centred,
at several temperatures, and by LinUpper; arms that take ADAPT apart (constant weights, shuffled ones, of mean 1,
without clipping of the gradient); and how often ADAPT looks at its target. Then the same on corpora of which more and
more is corrupt or off topic. Ends in pages, pictures and tables, in NEW-FOLDER (default: ./offline-vs-online).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from equal_flops import (  # pyright: ignore[reportMissingImports]
    Job,
    difference,
    grid,
    jobs_of,
    markdown,
    settings_within,
    train_all,
)
from presets import FEW, PRESETS, Preset, corpus, half, in_fastest_precision, shorter  # pyright: ignore[reportMissingImports]

import curate
from curate.kinds.weighting import Weighting
from curate.methods.metrics.loss import Loss
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.embed import Embed
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.pages.comparison import page, plot, plot_curves, reading
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.compare import Compared
from curate.verbs.select import SelectionSpec

NEVER = 10**9  # epochs between two looks at the target: one, before the first step


@dataclass(frozen=True)
class Protocol:
    """preset: data, base, targets, seeds. passes: the budget, in what so many epochs of all data cost. marks:
    evaluations on the way to it. taus: ADAPT's temperatures, the second of which, if there are several, the arms have
    that are at one alone.
    gradients: whether LESS and DualSFT are among the arms. apart: whether those arms are. bad: shares of corpora that
    are corrupt or off topic; rows: their size; long: their budget, like passes. center: samples over which the mean
    cosine is taken."""

    preset: Preset
    passes: float
    marks: int = 5
    taus: tuple[float, ...] = (1.0, 0.1, 0.03)
    gradients: bool = True
    apart: bool = True
    bad: tuple[float, ...] = ()
    rows: int = 0
    long: float = 0.0
    center: int = 256

    @property
    def tau(self) -> float:
        """The temperature of the arms that are at one alone."""
        return self.taus[:2][-1]


ADAPTER = TrainSettings(batch_size=16, lr=2e-4, schedule="cosine", warmup=0.05, lora_r=16)
PROTOCOLS = {
    "smoke": Protocol(
        replace(PRESETS["smoke"], seeds=1, budgets=(0.1,), training=replace(PRESETS["smoke"].training, steps=0)),
        *(0.5, 2, (1.0, 0.1)),
        bad=(0.0, 0.5),
        rows=200,
        long=0.5,
    ),
    "cpu": Protocol(replace(PRESETS["cpu"], data=half), 1.0, bad=(0.0, 0.1, 0.3, 0.5), rows=500, long=2.0),
    "few": Protocol(
        replace(
            FEW,
            base=shorter,
            pairs=(("gsm8k", "bbh"),),
            budgets=(0.1,),
            training=ADAPTER,
            questions=24,
            accuracy=Loss(),
            context=256,
        ),
        *(0.25, 1, (0.03,)),
        gradients=False,
        apart=False,
        center=32,  # a look at the target and 256 samples would cost more than the budget
    ),
    "gpu": Protocol(PRESETS["gpu"], 1.0),
}


# --- arms ------------------------------------------------------------------------------------------------


def chosen(
    ws: Workspace, preset: Preset, target: str, columns: Mapping[str, str], plain: TrainingSpec
) -> Iterator[tuple[str, list[TrainingSpec]]]:
    """The arms that choose before training: random, and each column's highest, at every budget."""
    for share in preset.budgets:
        percent = worded(share * 100)
        drawn = []
        for seed in range(preset.seeds):
            name = f"{target}_random_{percent}_rows_{seed}"
            curate.select(ws, name, Random(), SelectionSpec(frac=share, seed=seed))
            drawn.append(replace(plain, manifest=name, seed=seed))
        yield f"random_{percent}", drawn
        for method, column in columns.items():
            name = f"{target}_{method}_{percent}_rows"
            curate.select(ws, name, Top(), SelectionSpec(by=column, frac=share))
            yield f"{method}_{percent}", [replace(plain, manifest=name, seed=seed) for seed in range(preset.seeds)]


def weighted(protocol: Protocol, target: str, plain: TrainingSpec, states: str) -> Iterator[tuple[str, TrainingSpec]]:
    """The arms that weigh all data. states: the column of the model's own similarity."""
    bm25 = f"bm25_{target}"
    yield "linupper", replace(plain, weighting=Linupper())
    for tau in protocol.taus[:2]:
        yield f"adapt_bm25_tau{worded(tau)}", replace(plain, weighting=AdaptStatic(tau=tau), by=bm25)
    yield (
        f"adapt_state_tau{worded(protocol.tau)}",
        replace(plain, weighting=AdaptStatic(tau=protocol.tau), by=states),
    )
    for tau in protocol.taus:
        yield f"adapt_tau{worded(tau)}", replace(plain, weighting=Adapt(tau=tau), target=target)
        yield (
            f"adapt_centred_tau{worded(tau)}",
            replace(plain, weighting=Adapt(tau=tau, center="cosine", center_samples=protocol.center), target=target),
        )


def taken_apart(protocol: Protocol, target: str, plain: TrainingSpec) -> Iterator[tuple[str, TrainingSpec]]:
    """What ADAPT's effect is made of, and how often it has to look at the target."""
    centred = Adapt(tau=protocol.tau, center="cosine")
    online = replace(plain, weighting=centred, target=target)
    unclipped = replace(plain.settings, clip=0.0)
    yield "adapt_shuffled", replace(online, settings=replace(plain.settings, shuffle_weights=True))
    yield "adapt_constant", replace(online, weighting=replace(centred, clip_low=0.5, clip_high=0.5))
    yield "adapt_mean1", replace(online, weighting=replace(centred, normalize="mean1"))
    yield "adapt_unclipped", replace(online, settings=unclipped)
    yield "full_unclipped", replace(plain, settings=unclipped)
    looks = (("1", 1, "steps"), ("10", 10, "steps"), ("epoch", 1, "epochs"), ("never", NEVER, "epochs"))
    for name, refresh, unit in looks:  # and every 50 steps, as published, in the other arms
        yield f"adapt_every_{name}", replace(online, weighting=replace(centred, refresh=refresh, refresh_unit=unit))


def worded(number: float) -> str:
    """A number as part of a name."""
    return f"{number:g}".replace(".", "_")


def seeded(spec: TrainingSpec, seeds: int) -> list[TrainingSpec]:
    return [replace(spec, seed=seed) for seed in range(seeds)]


# --- one corpus, one target ------------------------------------------------------------------------------


def on_target(ws: Workspace, protocol: Protocol, model: ModelChoice, target: str, other: str, workers: int) -> Compared:
    """Train and compare all arms for a target."""
    preset = protocol.preset
    embeddings = f"embed_lm_{target}"
    columns = {"bm25": f"bm25_{target}", "embed": f"embed_{target}", "embed_lm": embeddings}
    curate.score(ws, Bm25(), Embed(), EmbedLm(), target=target, models=model)
    if protocol.gradients:
        curate.score(ws, preset.less, target=target, models=model)
        curate.score(ws, preset.dual, target=target, models=model)
        columns |= {"less": f"less_{target}", "dualsft": f"dualsft_{target}"}
    metrics = dict.fromkeys((Loss(), preset.accuracy))
    evals = [EvalSpec(t, m, limit=preset.questions) for t in (target, other) for m in metrics]
    curate.evaluate(ws, f"{target}_base", evals, model=model)
    budget = _budget(ws, preset, model, protocol.passes)
    plain = TrainingSpec(model, Uniform(), settings_within(preset.training, budget, protocol.marks))
    arms = {"full": seeded(plain, preset.seeds), **dict(chosen(ws, preset, target, columns, plain))}
    parts = dict(weighted(protocol, target, plain, embeddings))
    parts |= dict(taken_apart(protocol, target, plain)) if protocol.apart else {}
    arms |= {name: seeded(spec, preset.seeds) for name, spec in parts.items()}
    named = {f"{target}_{name}": specs for name, specs in arms.items()}
    runs = train_all(jobs_of(ws, named, evals), workers)
    return curate.compare(ws, [f"{target}_base", *runs], against=f"{target}_full_s0", budget=budget)


def _budget(ws: Workspace, preset: Preset, model: ModelChoice, passes: float) -> float:
    """FLOPs of so many epochs of all data, as a dry run counts them."""
    settings = replace(preset.training, epochs=passes)
    planned = curate.train(ws, "plan", TrainingSpec(model, Uniform(), settings), dry_run=True).planned
    assert planned is not None
    print(f"Every arm may take {planned['flops']:.3g} FLOPs, what {passes:g} epochs of all data cost.", flush=True)
    return float(planned["flops"])


def told(found: Compared, folder: Path, target: str, other: str, accuracy: str) -> None:
    """Write the page and the pictures, and print the tables."""
    path = folder / f"{target}.html"
    path.write_text(page(found, f"Offline against online at equal FLOPs: {target}"), encoding="utf-8")
    path.with_suffix(".png").write_bytes(plot(found))
    path.with_name(f"{target}-curves.png").write_bytes(plot_curves(found))
    keys = {(m["target"], key.split()[1]): key for key, m in found.measures.items()}
    loss, right = keys[target, "loss"], keys[target, accuracy]
    print("\n" + markdown(found, loss, right, list(dict.fromkeys((keys[other, "loss"], keys[other, accuracy])))))
    print("\n" + "\n".join(reading(found)) + f"\nThe page is {path}.")


def similarity_by_use(found: Compared, target: str, accuracy: str, tau: float, percent: str) -> str:
    """{BM25, state similarity} x {hard choice, static weight, online weight} at equal FLOPs. BM25 does not change as a
    model learns: its online weight is its static one."""
    static = f"{target}_adapt_bm25_tau{worded(tau)}"
    rows = {
        "BM25": [f"{target}_bm25_{percent}", static, static],
        "state similarity": [
            f"{target}_embed_lm_{percent}",
            f"{target}_adapt_state_tau{worded(tau)}",
            f"{target}_adapt_centred_tau{worded(tau)}",
        ],
    }
    known = {arm.name for arm in found.arms}
    named = {row: [a if a in known else f"{a}_unpaid" for a in arms] for row, arms in rows.items()}
    key = next(k for k, m in found.measures.items() if m["target"] == target and k.split()[1] == accuracy)
    return grid(found, key, named, [f"hard choice ({percent} %)", "static weight", "online weight"])


# --- corpora of falling quality --------------------------------------------------------------------------


def by_quality(protocol: Protocol, model: ModelChoice, folder: Path, target: str, workers: int) -> None:
    """Uniform weights, LinUpper, ADAPT and ADAPT-BM25 on corpora of which ever more is corrupt or off topic."""
    tau, preset = protocol.tau, protocol.preset
    evals = [EvalSpec(target, metric, limit=preset.questions) for metric in (Loss(), preset.accuracy)]
    jobs: list[Job] = []
    spaces: dict[str, Workspace] = {}
    for share in protocol.bad:
        ws = curate.open_workspace(folder / "corpora" / f"bad{share * 100:g}")
        really = corpus(ws, protocol.rows, share) if ws.n_rows() == 0 else share
        spaces[f"{really:.0%}"] = ws
        curate.score(ws, Bm25(), target=target)
        budget = _budget(ws, preset, model, protocol.long)
        plain = TrainingSpec(model, Uniform(), settings_within(preset.training, budget, 1))
        kinds: dict[str, tuple[Weighting, dict[str, str]]] = {
            "uniform": (Uniform(), {}),
            "linupper": (Linupper(), {}),
            "adapt": (Adapt(tau=tau, center="cosine"), {"target": target}),
            "adapt_bm25": (AdaptStatic(tau=tau), {"by": f"bm25_{target}"}),
        }
        arms = {k: seeded(replace(plain, weighting=w, **more), preset.seeds) for k, (w, more) in kinds.items()}
        jobs += jobs_of(ws, arms, evals)
    train_all(jobs, workers)
    runs = [(job.ws, job.name) for job in jobs]
    print(f"\n| corrupt or off topic | arm | loss | accuracy | loss against uniform |\n{'|---' * 5}|")
    for share, ws in spaces.items():
        found = curate.compare(ws, [name for space, name in runs if space == str(ws.path)], against="uniform_s0")
        loss, right = (next(k for k in found.measures if k.split()[1] == m.name) for m in (Loss(), preset.accuracy))
        for arm in found.arms:
            cells = [share, arm.name, arm.shown(loss), arm.shown(right), difference(arm.against.get(loss))]
            print(f"| {' | '.join(cells)} |")


def main(protocol: Protocol, folder: Path, named: str | None, workers: int) -> None:
    model, preset, began = (
        ModelChoice(named, context=protocol.preset.context) if named else protocol.preset.base(folder),
        protocol.preset,
        time.monotonic(),
    )
    preset = replace(preset, training=in_fastest_precision(preset.training))
    protocol = replace(protocol, preset=preset)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    for target, other in preset.pairs:
        print(f"\n{target} is the target, {other} is out of domain.")
        found = on_target(ws, protocol, model, target, other, workers)
        told(found, folder, target, other, preset.accuracy.name)
        for share in preset.budgets:
            print("\n" + similarity_by_use(found, target, preset.accuracy.name, protocol.tau, worded(share * 100)))
    if protocol.bad:
        by_quality(protocol, model, folder, preset.pairs[0][0], workers)
    print(f"\nIn all {(time.monotonic() - began) / 60:.1f} minutes.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PROTOCOLS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("offline-vs-online"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trainings at the same time")
    arguments = parser.parse_args()
    main(PROTOCOLS[arguments.preset], arguments.folder, arguments.model, arguments.workers)
