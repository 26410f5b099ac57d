"""What DualSFT's gradients show, and how far to trust them: the diagnostics of its appendix, as tables and pictures.

    python pipelines/dualsft_diagnostics.py smoke|cpu|gpu [NEW-FOLDER] [--model MODEL] [--only data|parameters|rest]

It works in the folder of dualsft.py (default: ./dualsft), or makes what it needs. --only: score fidelity of one side,
or all but it. Do summed scores predict how much training lowers the
validation loss (score fidelity)? What does each side lose by ignoring the other (regret), and does choosing again help?
How many anchors are enough, and how sensitive are the results to lambda, tau and the budgets? What is chosen, and where
in the model is it?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from dualsft_point import (  # pyright: ignore[reportMissingImports]
    DATA,
    PARAMETERS,
    Point,
    Protocol,
    best_elements,
    predicted_gain,
    random_elements,
    random_trials,
    realised_gains,
)
from presets import PRESETS, Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.gradients.interactions import (
    curvature_along,
    drawn_by_score,
    flat,
    look,
    products,
    reselect,
    restricted,
    summed,
)
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.nll import Nll
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.numerics.rank_agreement import Interval, Regret, best, jaccard, pairwise_agreement, spearman, top_overlap
from curate.numerics.selection_profile import diversity, enrichment, place_of
from curate.pages.diagnosis import Panel, heat_map, lines
from curate.runs.scored_model import scored_model
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from curate.training.realised import Decreases, RealisedTrial

RATES = (1e-3, 1e-4, 1e-5)  # at which the trials train: the surrogate is local, and how far it reaches is the question

# --- fidelity --------------------------------------------------------------------------------------------


def protocols(preset: Preset, side: str) -> list[Protocol]:
    """How the trials train: how far (a learning rate, times steps), and what is varied at the nearest of these."""
    far, middle, near = RATES
    short = tuple(h for h in preset.horizons if h <= 10) or preset.horizons[:1]
    found = [Protocol(near, preset.horizons), Protocol(middle, short), Protocol(far, short)]
    found += [Protocol(near, short, start=start) for start in ("second", "all", "sgd")]
    if side == "data":
        return [*found, Protocol(near, short, clip=1.0), Protocol(near, short, reduction="token")]
    return [*found, Protocol(near, short, drawn="coordinates"), Protocol(near, short, drawn="modules")]


def fidelity(
    ws: Workspace, points: Sequence[Point], preset: Preset, sides: Sequence[str], all_protocols: bool = True
) -> list[Panel]:
    """Random subsets of samples, and masks of random parameters: how much their summed values predict that training on
    them, or of them, lowers the validation loss, against how much it does (F.10). Only the first point is held to all
    protocols."""
    panels = []
    for side in sides:
        curves: dict[str, list[Any]] = {}
        for point in points:
            for protocol in protocols(preset, side)[: None if all_protocols and point is points[0] else 1]:
                trials = random_trials(point, preset, side, protocol.drawn)
                gains = realised_gains(ws, point, preset, trials, protocol, f"fidelity, {side}")
                curves[f"{point.name}, {protocol}"] = _agreement(side, point, protocol, trials, gains)
        what = "learning rate times steps", "Spearman with what is realised"
        panels.append(Panel(f"score fidelity: {side}", *what, curves, True, 0.0))
    return panels


def _agreement(
    side: str, point: Point, protocol: Protocol, trials: Sequence[RealisedTrial], gains: Decreases
) -> list[tuple[float, float, tuple[float, float]]]:
    """For every horizon: lr times steps, Spearman's correlation and its interval, of the order that is scored with."""
    realised_terms = {"task": gains.task, "preserved": gains.preserved}
    points = []
    for k, steps in enumerate(protocol.horizons):
        told = []
        for what in (*point.orders, *(term for term in realised_terms if term in point.worths)):
            predicted = np.array([predicted_gain(point.worths[what], trial) for trial in trials])
            gain = realised_terms.get(what, gains.total)[:, k]
            rho = Interval.of(spearman, predicted, gain)
            told.append(f"{what} {rho}")
            if what == point.orders[-1]:
                points.append((protocol.lr * steps, rho.value, (rho.low, rho.high)))
                told[-1] += f", pairs {pairwise_agreement(predicted, gain):.2f}"
        total = gains.total[:, k]
        print(f"   {side:10} {point.name:8} {protocol}, {steps} steps: {'; '.join(told)}; realised {total.mean():+.2e} "
              f"± {total.std():.1e}", flush=True)  # fmt: skip
    return points


# --- regret, and choosing again --------------------------------------------------------------------------


def regret(point: Point) -> None:
    """What each side loses by not knowing what the other has chosen (F.7)."""
    rows, numbers = point.worths["first"]
    shares = (0.01, 0.05, 0.2)
    aware = look(point.way, point.samples, [restricted(point.v, best_elements(numbers, k)) for k in shares]).dot
    k = round(DATA * len(rows))
    for i, share in enumerate(shares):
        _tell("data", f"{share:.0%} of the parameters trained", Regret.of(aware[:, i], rows, k))
    for share in (0.02, 0.1, 0.3):
        chosen_rows = best(rows, round(share * len(rows)))
        (total,), _, _ = summed(point.way, [point.samples[i] for i in chosen_rows])
        flat_worth = flat(products(point.v, total))
        result = Regret.of(flat_worth, flat(numbers), round(PARAMETERS * len(flat_worth)))
        _tell("parameters", f"{share:.0%} of the samples trained on", result)


def _tell(side: str, condition: str, result: Regret) -> None:
    print(f"   {side}, {condition}: ratio {result.ratio:.3f}, regret {result.regret:.3f}, Jaccard {result.jaccard:.2f}")


def again(point: Point) -> None:
    """Both sides chosen again, each given the other's last choice (F.9)."""
    size = sum(value.size for value in point.v.values())
    rows, numbers = round(DATA * len(point.samples)), round(PARAMETERS * size)
    for r in reselect(point.way, point.samples, point.v, rows, numbers, 3).rounds:
        print(
            f"   round {r.number}, {r.what:10}: with the last Jaccard {r.jaccard:.2f}, Spearman {r.spearman:.2f}; "
            f"with the first {r.from_first:.2f}; {r.flops:.1e} FLOPs, {r.seconds:.1f} s"
        )


# --- curvature -------------------------------------------------------------------------------------------


def curvature(point: Point) -> None:
    """AdamW's scale against the Hessian on slices: layers early, in the middle and late (F.11)."""
    assert point.bent is not None
    worths = point.worths["first"][1]
    by_side = {side: [n for n in point.v if n.endswith(f"{side}.weight")] for side in ("o_proj", "down_proj")}
    chosen_names = [names[sixth * len(names) // 6] for names in by_side.values() if names for sixth in (1, 3, 5)]
    drawn_positions = drawn_by_score(worths, dict.fromkeys(chosen_names), 300, seed=0)
    n, s = len(point.samples), point.method.eta / len(point.samples)
    mean = {name: value / n for name, value in point.total.items()}
    bent = curvature_along(point.way, point.aim, restricted(mean, drawn_positions))
    if point.anchors:
        pre = curvature_along(
            point.way, point.anchors, restricted(mean, drawn_positions), point.method.distillation, "origin"
        )
        bent = {name: value + point.method.lam * pre[name] for name, value in bent.items()}
    for name, positions in drawn_positions.items():
        g, v, h, c = (a[name].ravel()[positions] for a in (point.total, point.v, bent, point.bent))
        full, diagonal = ((s * v - s**2 / 2 * n * x) * g for x in (h, c))
        size = np.abs(s**2 / 2 * n * h * g).sum() / np.abs(s * v * g).sum()
        print(
            f"   {name:44} values: Spearman {spearman(full, diagonal):.3f}, pairs "
            f"{pairwise_agreement(full, diagonal):.3f}, top 5 % {top_overlap(full, diagonal, 0.05):.2f}; second terms "
            f"alone, which are {size:.1e} of the first: Spearman {spearman(h * g, c * g):+.2f}"
        )


# --- sensitivity to the settings -------------------------------------------------------------------------


def anchors_enough(point: Point) -> Panel:
    """The gradient of L_pre, and the choices, with fewer anchors against those with all (F.6.1)."""
    n = len(point.anchors)
    sizes = [size for size in (16, 32, 64, 128, 256, 512, 1024, 2048) if size < n] + [n]
    group = np.searchsorted(sizes, np.arange(n), side="right")
    sums, counts, _ = summed(point.way, point.anchors, group, point.method.distillation, "origin")
    added, gradients = {name: np.zeros_like(v) for name, v in point.task.items()}, []
    for i, part in enumerate(sums):
        added = {name: value + part[name] for name, value in added.items()}
        gradients.append({name: value / counts[: i + 1].sum() for name, value in added.items()})
    v = [{name: t + point.method.lam * pre[name] for name, t in point.task.items()} for pre in gradients]
    dot = look(point.way, point.samples, v).dot
    rows, k = round(DATA * len(dot)), PARAMETERS
    full_gradient, all_numbers = flat(gradients[-1]), flat(products(v[-1], point.total))
    panel = Panel("anchors", "how many", "agreement with all of them", log=True)
    agreement: dict[str, list[Any]] = {"cosine of the gradient": [], "samples chosen": [], "numbers chosen": []}
    for i, size in enumerate(sizes):
        gradient = flat(gradients[i])
        cosine = float(gradient @ full_gradient / (np.linalg.norm(gradient) * np.linalg.norm(full_gradient)))
        samples = len(np.intersect1d(best(dot[:, i], rows), best(dot[:, -1], rows))) / rows
        numbers = top_overlap(flat(products(v[i], point.total)), all_numbers, k)
        print(f"   {size:5} anchors: cosine {cosine:.3f}, samples {samples:.2f}, parameters {numbers:.2f}")
        for key, value in zip(agreement, (cosine, samples, numbers), strict=True):
            agreement[key].append((size, value, None))
    return replace(panel, lines=agreement)


def sensitivity(point: Point) -> list[Panel]:
    """What is chosen with other lambda and tau, against the score's own (Figure 4; for other budgets, see
    `budgets`)."""
    method, taus, lams = point.method, (1.0, 2.0, 4.0), (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
    pre = [point.preserved(tau) for tau in taus]
    dot = look(point.way, point.samples, [point.task, *pre]).dot
    rows, size = round(DATA * len(dot)), sum(v.size for v in point.v.values())
    numbers = [flat(products(gradient, point.total)) for gradient in (point.task, *pre)]

    def chosen(lam: float, tau: float) -> tuple[np.ndarray, np.ndarray]:
        i = 1 + taus.index(tau)
        return best(dot[:, 0] + lam * dot[:, i], rows), best(numbers[0] + lam * numbers[i], round(PARAMETERS * size))

    default_choice = chosen(method.lam, method.tau)
    panels = []
    for name, grid, choose in (
        ("lambda", lams, lambda lam: chosen(lam, method.tau)),
        ("tau", taus, lambda tau: chosen(method.lam, tau)),
    ):
        curves: dict[str, list[Any]] = {"samples": [], "numbers": []}
        for value in grid:
            shared = [jaccard(a, b) for a, b in zip(choose(value), default_choice, strict=True)]
            print(
                f"   {name} {value:5g}: Jaccard with the default, samples {shared[0]:.2f}, parameters {shared[1]:.2f}"
            )
            for key, share in zip(curves, shared, strict=True):
                curves[key].append((value, share, None))
        panels.append(Panel(f"sensitivity to {name}", name, "Jaccard with the usual choice", curves, log=True))
    return panels


def budgets(ws: Workspace, point: Point, preset: Preset) -> list[Panel]:
    """What the best, the worst and equally many random ones realise after the last horizon (also F.8)."""
    rows, numbers = point.worths["first"]
    all_rows, rng = np.arange(len(rows)), np.random.default_rng(1)
    worst = {name: -value for name, value in numbers.items()}
    steps, panels = preset.horizons[-1], list[Panel]()
    protocol = Protocol(RATES[-1], (steps,))
    for side, shares in (("data", (0.02, 0.05, 0.1, 0.3)), ("parameters", (0.01, 0.05, 0.2, 0.5))):
        trials = []
        for share in shares:
            if side == "data":
                k = round(share * len(rows))
                trials += [
                    RealisedTrial(best(rows, k)),
                    RealisedTrial(rng.permutation(all_rows)[:k]),
                    RealisedTrial(best(-rows, k)),
                ]
            else:
                trio = (best_elements(numbers, share), random_elements(point, share, 7), best_elements(worst, share))
                trials += [RealisedTrial(all_rows, selected) for selected in trio]
        gains = realised_gains(ws, point, preset, trials, protocol, f"budgets, {side}").total[:, 0].reshape(-1, 3)
        for share, trio in zip(shares, gains, strict=True):
            print(f"   {share:4.0%} of the {side:10}: best {trio[0]:+.2e}, random {trio[1]:+.2e}, worst {trio[2]:+.2e}")
        curves = {
            name: [(share, float(gain), None) for share, gain in zip(shares, gains[:, i], strict=True)]
            for i, name in enumerate(("best", "by lot", "worst"))
        }
        panels.append(Panel(f"budget of {side}", "share chosen", f"loss taken off in {steps} steps", curves, True, 0.0))
    return panels


# --- what is chosen --------------------------------------------------------------------------------------


def composition(ws: Workspace, point: Point, rows: np.ndarray) -> None:
    """Alignment with the validation gradient, loss, diversity and sources, of the best, the worst, some random ones,
    and all."""
    looked = look(point.way, point.samples, [point.v])
    cosine = looked.dot[:, 0] / (looked.length * np.linalg.norm(flat(point.v)))
    samples = curate.sql(
        ws, "SELECT s.row, s.source, nll, vector FROM samples s JOIN embed_lm e USING (id) ORDER BY s.row"
    )
    by_row = {row["row"]: row for row in samples}
    loss = np.array([-by_row[row]["nll"] for row in rows])
    sources = np.array([by_row[row]["source"] for row in rows])
    vectors = np.array([by_row[row]["vector"] for row in rows], np.float64)
    k = round(DATA * len(rows))
    drawn_rows = np.random.default_rng(2).permutation(len(rows))[:k]
    worth = looked.dot[:, 0]
    selections = {"best": best(worth, k), "by lot": drawn_rows, "worst": best(-worth, k), "all": np.arange(len(rows))}
    for name, positions in selections.items():
        names, counts = np.unique(sources[positions], return_counts=True)
        shares = ", ".join(
            f"{source} {count / len(positions):.0%}" for source, count in zip(names, counts, strict=True)
        )
        print(
            f"   {name:7} alignment {cosine[positions].mean():+.3f}, loss {np.nanmean(loss[positions]):.2f}, "
            f"diversity {diversity(vectors[positions]):.3f}; {shares}"
        )


def places(point: Point) -> bytes:
    """Where in the model the chosen parameters are, and how large the values are there (Table 13, Figure 7)."""
    numbers = point.worths["first"][1]
    sizes = {name: value.size for name, value in numbers.items()}
    blocks = enrichment(sizes, best_elements(numbers, PARAMETERS))
    of_layer, of_module = ({}, {})
    for name, value in numbers.items():
        layer, module = place_of(name)
        for sums, key in ((of_layer, f"layer {layer}" if layer >= 0 else "outside"), (of_module, module)):
            sums[key] = sums.get(key, 0.0) + float(np.abs(value).sum())
    overall, chosen_in_all = sum(of_module.values()) / sum(sizes.values()), sum(block.chosen for block in blocks)
    for sums, of_block in (
        (of_module, lambda block: block.module),
        (of_layer, lambda block: f"layer {block.layer}" if block.layer >= 0 else "outside"),
    ):
        counts: dict[str, list[int]] = {}
        for block in blocks:
            its = counts.setdefault(of_block(block), [0, 0])
            its[0], its[1] = its[0] + block.chosen, its[1] + block.numbers
        for key, (chosen, total) in sorted(counts.items(), key=lambda item: -item[1][0] / item[1][1]):
            print(
                f"   {key:26} {chosen:8,} of {total:10,}: {chosen / total:6.2%}, {chosen / chosen_in_all:6.2%} of the "
                f"chosen; mean |value| {sums[key] / total / overall:.2f} of the mean of all"
            )
    return heat_map(blocks, f"DualSFT's {PARAMETERS:.0%} of the parameters")


def points_of(ws: Workspace, preset: Preset, base: ModelChoice, target: str) -> tuple[Point, Point, list[Any]]:
    """Where the scores of a target are taken (the end of the warm-up); the base model, with the warm-up's second
    moments, as it has none; and the rows that are scored."""
    (scored,) = curate.score(ws, preset.dual, target=target, models=base)
    print(f"{scored.name}: {scored.rows:,} samples, {scored.nulls:,} held out or without a gradient. {scored.note}")
    opened = scored_model(ws, scored.name, with_origin=True)
    scored_rows = curate.sql(ws, f"SELECT row, messages, text, {scored.name} AS worth, e.error AS why FROM samples "
                      f"JOIN {scored.name} e USING (id) ORDER BY row")  # fmt: skip
    scored_samples = [row for row in scored_rows if row["worth"] is not None]
    anchors = [row for row in scored_rows if "anchor" in (row["why"] or "")]
    target_samples = load_target(ws, target).text.frame.select("messages", "text").to_dicts()
    warm = Point("warm-up", GradientModel.of(opened.model), preset.dual, scored_samples, target_samples, anchors)
    way = GradientModel.of(Backward.of(LanguageModel(base)))
    init = Point("init", way, preset.dual, scored_samples, target_samples, [], opened.model.at.moments)
    return warm, init, scored_samples


def main(preset: Preset, folder: Path, named: str | None = None, only: str | None = None) -> None:
    base = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    target, other = preset.pairs[0]
    curate.score(ws, EmbedLm(), Nll(), models=base)
    warm, init, scored_samples = points_of(ws, preset, base, target)
    rows = np.array([row["row"] for row in scored_samples])
    computed = warm.worths["diagonal"][0]
    stored = np.array([row["worth"] for row in scored_samples])
    print(
        f"The values here are the score's: they differ by {np.abs(computed - stored).max() / np.abs(stored).max():.1e}."
    )

    pictures, sides = dict[str, bytes](), (only,) if only else ("data", "parameters")
    if only != "rest":
        print("\n1. Score fidelity: do summed values predict how much training lowers the validation loss?")
        panels = fidelity(ws, [warm, init], preset, sides)
        print(f"   and of the target {other}:")
        second, _, _ = points_of(ws, preset, base, other)
        panels += fidelity(ws, [replace(second, name=other)], preset, sides, all_protocols=False)
        pictures["fidelity"] = lines(panels)
    if not only or only == "rest":
        pictures |= apart_from_fidelity(ws, preset, warm, rows)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    print("\nPictures: " + ", ".join(str(folder / f"{name}.png") for name in pictures))


def apart_from_fidelity(ws: Workspace, preset: Preset, warm: Point, rows: np.ndarray) -> dict[str, bytes]:
    """All other diagnostics of a point; returns their pictures."""
    print("\n2. Regret: the value of a choice that ignores the other side, over one that does not.")
    regret(warm)
    print("\n3. Choosing again, each side for the other.")
    again(warm)
    print("\n4. AdamW's scale against the Hessian.")
    curvature(warm)
    print("\n5. How many anchors are enough.")
    panels = [anchors_enough(warm)]
    print("\n6. Sensitivity to lambda, tau and the budgets; and the choice of the lowest-ranked.")
    panels += sensitivity(warm)
    pictures = {"sensitivity": lines([*panels, *budgets(ws, warm, preset)])}
    print(f"\n7. What the best {DATA:.0%} are.")
    composition(ws, warm, rows)
    print(f"\n8. Where the best {PARAMETERS:.0%} of the parameters are.")
    return {**pictures, "places": places(warm)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dualsft"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    parser.add_argument("--only", choices=("data", "parameters", "rest"), help="fidelity of one side, or all but it")
    arguments = parser.parse_args()
    main(PRESETS[arguments.preset], arguments.folder, arguments.model, arguments.only)
