"""`curate compare`: arms, costs from the ledger, differences and nulls, the page and its picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.random import Random as RandomMask
from curate.methods.metrics.loss import Loss
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.nll import Nll
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.numerics.statistics import Mean, paired, pareto
from curate.pages.comparison import page, plot, reading
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.mask_file import read_mask
from curate.store.workspace import Workspace
from curate.tables.run_costs import Cost
from curate.training.settings import TrainSettings
from curate.verbs.compare import Arm, Compared
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, few_lines
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")
SETTINGS = TrainSettings(batch_size=16, lr=1e-3, steps=2)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Seven arms of two seeds: chosen by likelihood, its null, at random, all data, ADAPT, its null; and the base."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "pool.jsonl").write_text("\n".join([*few_lines()[:50], *few_lines()[-50:]]))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(folder / "pool.jsonl")])
    for split in ("val", "test"):
        curate.target(ws, "arithmetic", str(SAMPLE / f"targets/arithmetic_{split}.jsonl"), split=split)
        curate.target(ws, "facts", str(SAMPLE / f"targets/facts_{split}.jsonl"), split=split)
    curate.score(ws, Nll(), Bm25(), target="arithmetic", models=MODEL)
    evals = [EvalSpec("arithmetic", Loss(), limit=6), EvalSpec("facts", Loss(), limit=6)]
    curate.evaluate(ws, "base", evals, model=MODEL)
    curate.select(ws, "likely", Top(), SelectionSpec(by="nll", top=40))
    curate.select(ws, "near", Top(), SelectionSpec(by="bm25_arithmetic + nll", top=40))
    for seed in range(2):
        curate.select(ws, f"null_{seed}", Top(), SelectionSpec(by="nll", top=40, seed=seed, null=True))
        curate.select(ws, f"chance_{seed}", Random(), SelectionSpec(top=40, seed=seed))
        plain = TrainingSpec(MODEL, Uniform(), SETTINGS, seed=seed)
        online = replace(plain, weighting=Adapt(), target="arithmetic")
        for name, training in {
            "ppl": replace(plain, manifest="likely"),
            "both": replace(plain, manifest="near"),
            "ppl_null": replace(plain, manifest=f"null_{seed}"),
            "random": replace(plain, manifest=f"chance_{seed}"),
            "full": plain,
            "adapt": online,
            "adapt_null": replace(online, settings=replace(SETTINGS, shuffle_weights=True)),
        }.items():
            curate.train(ws, f"{name}_s{seed}", training, evals=evals)
    return ws


def test_runs_that_differ_in_their_seed_are_one_arm_and_all_costs_are_the_ledger_s(
    grid: Workspace, tmp_path: Path
) -> None:
    names = ["base"] + [
        f"{a}_s{s}" for a in ("full", "random", "ppl", "ppl_null", "both", "adapt", "adapt_null") for s in (0, 1)
    ]
    found = curate.compare(grid, names, against="full_s0")
    arms = {arm.name: arm for arm in found.arms}
    assert set(arms) == {"base", "full", "random", "ppl", "ppl_null", "both", "adapt", "adapt_null"}
    assert all(len(arm.runs) == 2 for name, arm in arms.items() if name != "base") and found.against == "full"
    ledger = curate.sql(grid, "SELECT * FROM ledger")

    def flops(**wanted: Any) -> float:
        return sum(r["flops"] or 0.0 for r in ledger if all(r[k] == v for k, v in wanted.items()))

    assert arms["full"].cost.train == pytest.approx(np.mean([flops(run=f"full_s{s}", phase="train") for s in (0, 1)]))
    assert arms["full"].cost.prep == 0 == arms["base"].cost.total
    assert arms["ppl"].cost.prep == flops(stage="score", name="nll") > 0
    assert arms["ppl"].cost.prep_marginal == arms["ppl"].cost.prep  # the first arm that uses a score pays for it
    assert arms["both"].cost.prep == pytest.approx(arms["ppl"].cost.prep) and arms["both"].cost.prep_marginal == 0
    checkpoint_set = np.mean([flops(run=f"adapt_s{s}", phase="anchors") for s in (0, 1)])
    assert arms["adapt"].cost.online == pytest.approx(checkpoint_set) and checkpoint_set > 0
    assert arms["adapt"].cost.total == arms["adapt"].cost.train + arms["adapt"].cost.online
    assert arms["full"].cost.samples_seen == 32 and 0 < arms["full"].cost.padding < 0.6
    assert arms["full"].effective == 1 and arms["base"].effective is None
    weights = curate.sql(grid, "SELECT weight, step FROM trained WHERE run = 'adapt_s0'").to_polars()
    shares = []
    for step in weights["step"].unique():
        w = weights.filter(weights["step"] == step)["weight"].to_numpy().astype(np.float64)
        shares.append(w.sum() ** 2 / (len(w) * (w**2).sum()))
    line = next(line for line in found.lines if line.run == "adapt_s0")
    assert line.effective == pytest.approx(np.mean(shares)) and 0.9 < np.mean(shares) < 1
    n = next(r["n_params"] for r in ledger if r["run"] == "full_s0")
    assert arms["full"].cost.paper == 6.0 * n * 32 * 2048
    assert arms["ppl"].cost.paper == pytest.approx(6.0 * n * 32 * 2048 + 2.0 * n * 100 * 2048)

    assert list(found.measures) == ["arithmetic loss [limit=6]", "facts loss [limit=6]"]
    assert [m["in_domain"] for m in found.measures.values()] == [True, False]
    values = {line.run: line.quality["facts loss [limit=6]"] for line in found.lines}
    mean = arms["ppl"].quality["facts loss [limit=6]"]
    assert mean.mean == pytest.approx((values["ppl_s0"] + values["ppl_s1"]) / 2)
    assert mean.error == pytest.approx(abs(values["ppl_s0"] - values["ppl_s1"]) / 2)
    difference = arms["ppl"].against["facts loss [limit=6]"]
    assert difference.mean == pytest.approx(np.mean([values[f"ppl_s{s}"] - values[f"full_s{s}"] for s in (0, 1)]))
    assert arms["ppl_null"].null_of == "ppl" and arms["adapt_null"].null_of == "adapt" and arms["ppl"].null_of is None
    beyond = arms["adapt"].beyond_null["facts loss [limit=6]"]
    assert beyond.mean == pytest.approx(np.mean([values[f"adapt_s{s}"] - values[f"adapt_null_s{s}"] for s in (0, 1)]))
    assert not arms["random"].beyond_null

    text = page(found, "side by side")
    assert all(arm in text for arm in arms) and "data:image/png;base64" in text and "in domain" in text
    assert "<th>effective share</th>" in text
    assert plot(found)[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(reading(found)) == 2 and "Against full, " in reading(found)[0]


def test_masks_make_arms_of_their_own_and_what_several_scores_stand_on_is_paid_by_each(
    handful_ws: Workspace,
) -> None:
    dual = Dualsft(warmup=0.1, batch_size=8, lr=1e-3, anchors_share=0.1)
    curate.score(handful_ws, dual, target="facts", models=MODEL)
    curate.score(handful_ws, dual, target="words", models=MODEL)  # its warm-up, pool and anchors are those of the first
    curate.select(handful_ws, "best", Top(), SelectionSpec(by="dualsft_words", top=32))
    curate.mask(handful_ws, "dual", DualsftMask(), 0.05, score="dualsft_facts")
    curate.mask(handful_ws, "blocks", GradientBlock(block=32, steps=2, batch_size=8), 0.05, model=MODEL)
    plain = TrainingSpec(MODEL, Uniform(), SETTINGS)
    for name, manifest, mask in (("whole", None, None), ("data", "best", None), ("pushed", None, "blocks"),
                                 ("parameters", None, "dual")):  # fmt: skip
        curate.train(handful_ws, name, replace(plain, manifest=manifest, mask=mask and read_mask(handful_ws, mask)))
    for seed in range(2):
        curate.mask(handful_ws, f"lot_{seed}", RandomMask(seed=seed), 0.05, model=MODEL)
        drawn = replace(plain, mask=read_mask(handful_ws, f"lot_{seed}"), seed=seed)
        curate.train(handful_ws, f"drawn_s{seed}", drawn)
    arms = {arm.name: arm for arm in curate.compare(handful_ws, [], against="whole").arms}
    assert set(arms) == {"whole", "data", "pushed", "parameters", "drawn"} and len(arms["drawn"].runs) == 2
    ledger = curate.sql(handful_ws, "SELECT * FROM ledger")
    mine = [r for r in ledger if r["stage"] == "score" and r["name"] != "dualsft_facts"]
    both = [r for r in ledger if r["name"] == "dualsft_facts"]
    states = json.loads((handful_ws.score_folder("dualsft_words") / "score.json").read_text())["states"]
    shared = [r for r in both if r["prepared"] in states]
    assert 0 < len(shared) < len(both) and sum(r["phase"] == "warm-up" for r in mine) == 1
    assert arms["data"].cost.prep == pytest.approx(sum(r["flops"] or 0.0 for r in [*mine, *shared]), rel=1e-9)
    warm_up = [r["flops"] for r in mine if r["phase"] == "warm-up"]
    first = sum(r["flops"] or 0.0 for r in both) + sum(warm_up)
    assert arms["parameters"].cost.prep == pytest.approx(first, rel=1e-9)
    (pushed,) = [r["flops"] for r in ledger if r["stage"] == "mask" and r["phase"] == "warm-up"]
    assert arms["pushed"].cost.prep == pytest.approx(pushed, rel=1e-9) and arms["whole"].cost.prep == 0.0


def test_the_command_line_compares(grid: Workspace, cli: Any, tmp_path: Path) -> None:
    done = cli("compare", "full_s0", "ppl_s0", "base", "-o", tmp_path / "side", ws=grid)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "side.html").exists() and (tmp_path / "side.png").exists()
    assert "ppl" in done.stdout and "lower is better" in done.stdout
    assert "did you mean 'ppl_s1'" in cli("compare", "ppl_s9", ws=grid).stderr
    assert "none of the runs" in cli("compare", "base", "--against", "full_s0", ws=grid).stderr
    assert "no such folder" in cli("compare", "base", "-o", tmp_path / "no/such.html", ws=grid).stderr


def test_nothing_to_compare_is_said(sample_ws: Workspace) -> None:
    with pytest.raises(CurateError, match="has no finished runs to compare"):
        curate.compare(sample_ws, [])


def test_a_null_needs_something_to_deal_out(sample_ws: Workspace) -> None:
    with pytest.raises(CurateError, match="--null shuffles the values of --by"):
        SelectionSpec(top=3, null=True)
    curate.select(sample_ws, "a", Top(), SelectionSpec(by="n_chars", top=300))
    dealt = curate.select(sample_ws, "b", Top(), SelectionSpec(by="n_chars", top=300, null=True))
    (row,) = curate.sql(sample_ws, "SELECT avg((row IN (SELECT row FROM a))::INT) AS same FROM b")
    assert dealt.rows == 300 and 0.03 < row["same"] < 0.2


@pytest.mark.parametrize(("values", "told"), [
    ([0.05, 0.05, 0.05], "0.05 ± 0"), ([0.1, 0.12, 0.11], "0.1100 ± 0.0058"), ([1000.0, 3000.0], "2000 ± 1000"),
    ([0.5], "0.5"), ([1.0, float("nan")], "nan ± nan"), ([1e-9, 3e-9], "2e-09 ± 1e-09"),
])  # fmt: skip
def test_a_mean_is_told_to_the_places_of_its_error(values: list[float], told: str) -> None:
    assert str(Mean.of(values)) == told


def test_means_intervals_and_fronts() -> None:
    mean = Mean.of([1.0, 2.0, 4.0])
    from scipy import stats

    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (
        mean.interval() == pytest.approx((low, high))
        and str(Mean.of([2.0])) == "2"
        and Mean.of([2.0]).interval() is None
    )
    assert paired({0: 3.0, 1: 5.0}, {1: 4.0, 2: 9.0}) == Mean(1, 1.0, None) and paired({0: 1.0}, {1: 1.0}) is None
    assert pareto([1, 2, 3, 1], [5.0, 4.0, 4.5, 6.0], "lower") == [0, 1]
    assert pareto([1, 2, 3], [0.1, 0.1, 0.3], "higher") == [0, 2]


def test_an_arm_with_a_measure_that_others_lack_is_in_the_legend_and_says_over_how_many_runs() -> None:
    import matplotlib.figure

    loss, accuracy = {"a loss": Mean.of([1.0, 2.0])}, {"b accuracy": Mean.of([0.5])}
    arms = [
        Arm("arm_first", ["first_0", "first_1"], 10, Cost(train=1e9), loss),
        Arm("arm_second", ["second_0", "second_1"], 10, Cost(train=2e9), accuracy),
    ]
    measures = {name: {"better": "lower", "in_domain": True, "target": "t"} for name in ("a loss", "b accuracy")}
    found = Compared(arms, [], measures, "arm_first")
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
        plot(found)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]
    assert arms[1].shown("b accuracy") == "0.5 (1 of 2 runs)" and arms[0].shown("a loss") == "1.50 ± 0.50"
    assert arms[0].shown("b accuracy") == "" and "0.5 (1 of 2 runs)" in page(found, "Runs")
