"""DualSFT against enumeration, and against whole gradients one sample at a time."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.gradients.optimizer_state import Moments
from curate.kinds.score import Target
from curate.methods.scores.dualsft import Dualsft
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode
from curate.store.encoding import read_arrays
from curate.store.mask_file import read_mask
from curate.tables.state import score_state
from tests.conftest import SAMPLE, write_jsonl
from tests.oracles import dualsft as slow
from tests.oracles.gradients import flat, gradient
from tests.support.checkpoints import AIM, POOL, SUBTASKS, said
from tests.support.narrow import NARROW

ANCHORS = [said("who are you?", "nobody"), said("where is the mill?", "by the red river"), said("what is 3?", "odd")]
TARGET = Target("t", None, SUBTASKS, "")  # type: ignore[arg-type]


# --- the game --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["first", "diagonal", "full"])
@pytest.mark.parametrize("step", ["mean", "sum"])
def test_scores_are_shapley_values(order: Any, step: Any) -> None:
    rng, n, d = np.random.default_rng(3), 5, 6
    g, v, half = rng.normal(size=(n, d)), rng.normal(size=d), rng.normal(size=(d, d))
    square, hessian = rng.random(d), half + half.T
    method = Dualsft(order=order, eta=0.7, step=step, curvature_scale=3.0, preserve="none")
    h = 3 * (np.sqrt(square / (1 - 0.999**4)) + 1e-8)
    bends = {"first": np.zeros((d, d)), "diagonal": np.diag(h), "full": hessian}[order]
    s = 0.7 / n if step == "mean" else 0.7

    state = {"pool.0/samples": np.array([n]), "pool.0/w": g.mean(0)[None], "task.0/w": v[None]}
    state["task.hessian0/w"] = (hessian @ g.mean(0))[None]
    ours_v, bent = method.dual(state, "w")
    c = method.curvature(square, 4) * bent if order == "diagonal" else bent
    first, second = method._terms(g @ np.stack([ours_v, c], axis=1)[:, : 1 if order == "first" else 2], n)
    rows = first - second
    columns = np.subtract(*method.of_parameter(state, "w", square, 4))

    of_samples = slow.shapley(lambda some: slow.gain(v, bends, -s * g[list(some)].sum(0)), n)
    keep = np.eye(d)
    of_parameters = slow.shapley(lambda some: slow.gain(v, bends, -s * keep[list(some)].sum(0) * g.sum(0)), d)
    assert np.abs(rows - of_samples).max() < 1e-12
    assert np.abs(columns - of_parameters).max() < 1e-12
    assert abs(rows.sum() - columns.sum()) < 1e-12


# --- through a model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Backward:
    return moved(NARROW)


def moved(name: str) -> Backward:
    """A model a little way from where it was, with moments, in float64."""
    origin = LanguageModel(ModelChoice(name, device="cpu"))
    origin.model.double()
    lm = LanguageModel(ModelChoice(name, device="cpu"), (copy.deepcopy(origin.model), origin.tokenizer))
    torch.manual_seed(0)
    for parameter in lm.model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    found = Backward.of(lm, {"origin": origin})
    square = {name: torch.rand_like(p) * 0.3 for name, p in found.parameters.items()}
    found.at = replace(found.at, moments=Moments({}, square, 5))
    return found


def passed(model: Backward, method: Dualsft) -> tuple[dict[str, np.ndarray], Any]:
    """The states of the counting passes, and the columns."""
    ways = {"base": GradientModel.of(model), "origin": model.others["origin"]}
    state: dict[str, np.ndarray] = {}
    *counting, last = method.passes(TARGET)
    for step in counting:
        over = {"target": AIM, "anchors": ANCHORS, "pool": POOL}[step.over]
        given = step.open(state) if step.open else state
        pairs = [over[i : i + 2] for i in range(0, len(over), 2)] if step.over == "pool" else [over]
        partials = [score_samples(ways, some, {"x": step}, {"x": given})[0]["x"] for some in pairs]
        assert step.reduce
        state |= step.state([{k: v for k, v in p.items() if k != "error"} for p in partials], state)
    assert last.open
    return state, score_samples(ways, POOL, {"x": last}, {"x": last.open(state)})[0]["x"]


def tokens(model: Backward, samples: list[Any]) -> list[tuple[list[int], list[bool]]]:
    return [(one.ids.tolist(), one.supervised.tolist()) for one in encode(model.lm.tokenizer, samples, 512)]


def mean_gradient(model: Backward, samples: list[Any]) -> torch.Tensor:
    each = [flat(gradient(model.lm.model, one, model.parameters)) for one in tokens(model, samples)]
    return torch.stack(each).mean(0)


def distilled(model: Backward, method: Dualsft, at: Any = None) -> torch.Tensor:
    """The gradient of CWSD, by autograd of the written loss."""
    teacher, parameters = model.others["origin"].model, list(model.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    each = [
        slow.distillation(model.lm.model, teacher, *one, method.tau, method.confidence, method.squared_tau)
        for one in tokens(model, ANCHORS)
    ]
    whole = torch.stack(each).sum() / len(ANCHORS)
    found = torch.autograd.grad(whole, parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.cat([g.flatten() for g in found])


def stored(model: Backward, state: dict[str, np.ndarray], key: str) -> torch.Tensor:
    return torch.cat([torch.from_numpy(state[key + name][0]).flatten().double() for name in model.parameters])


def near(found: Any, wanted: Any, tolerance: float) -> bool:
    found, wanted = np.asarray(found), np.asarray(wanted)
    return bool(np.abs(found - wanted).max() < tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("confidence", ["entropy_inv", "max_prob", "uniform"])
@pytest.mark.parametrize("squared", [True, False])
def test_distillation_s_gradient_is_that_of_the_written_loss(model: Backward, confidence: Any, squared: bool) -> None:
    method = Dualsft(confidence=confidence, squared_tau=squared, tau=1.7)
    state, _ = passed(model, method)
    assert near(stored(model, state, "pre.0/"), distilled(model, method), 1e-6)


def test_distillation_s_gradient_is_zero_where_training_began(model: Backward) -> None:
    origin = model.others["origin"]
    there = Backward.of(
        LanguageModel(ModelChoice(NARROW, device="cpu"), (copy.deepcopy(origin.model), origin.tokenizer)),
        {"origin": origin},
    )
    there.at = replace(there.at, moments=model.at.moments)
    state, _ = passed(there, Dualsft())
    assert float(stored(there, state, "pre.0/").abs().max()) < 1e-15


@pytest.mark.parametrize("preserve", ["cwsd", "l2", "fisher", "none"])
def test_first_and_diagonal_are_products_of_whole_gradients(model: Backward, preserve: Any) -> None:
    method = Dualsft(preserve=preserve, lam=0.6, eta=0.3, curvature_scale=40.0, normalize="anchors")
    _, found = passed(model, method)
    v, names = mean_gradient(model, AIM), list(model.parameters)
    moved = torch.cat([(model.parameters[n] - model.at.others["origin"][n]).flatten() for n in names]).detach()
    if preserve == "cwsd":
        v = v + 0.6 * distilled(model, method)
    elif preserve == "l2":
        v = v + 0.6 * moved
    elif preserve == "fisher":
        each = [flat(gradient(model.lm.model, one, model.parameters)) for one in tokens(model, ANCHORS)]
        v = v + 0.6 * torch.stack([g**2 for g in each]).mean(0) * moved
    assert model.at.moments
    square = torch.cat([model.at.moments.square[n].flatten() for n in names])
    h = 40.0 * ((square / (1 - 0.999**5)).sqrt() + 1e-8)
    g = [flat(gradient(model.lm.model, one, model.parameters)) for one in tokens(model, POOL)]
    first, second = slow.scores(g, v, lambda whole: h * whole, 0.3, True)
    assert near(found["first"], first, 1e-5) and near(found["second"], second, 1e-5)
    assert np.abs(np.array(second) / first).max() > 1e-3  # large enough to matter
    assert near(found["score"], np.subtract(first, second), 1e-5)


@pytest.mark.parametrize("order", ["first", "diagonal", "full"])
def test_by_differences_the_columns_are_nearly_the_same(model: Backward, order: Any) -> None:
    settings = Dualsft(preserve="none", order=order, eta=0.3, curvature_scale=40.0)
    _, exact = passed(model, settings)
    _, found = passed(model, replace(settings, by="difference"))
    assert near(found["first"], exact["first"], 1e-3)
    if order == "first":
        assert not found["second"].any()
    else:
        assert near(found["second"], exact["second"], 1e-2)  # from one side


def test_full_applies_the_hessian_of_the_validation_loss() -> None:
    model = moved("tiny")  # of which differences of gradients are exact to four digits
    method = Dualsft(order="full", lam=0.5, eta=2.0)
    _, found = passed(model, method)
    g = [flat(gradient(model.lm.model, one, model.parameters)) for one in tokens(model, POOL)]
    whole = torch.stack(g).sum(0)

    def v_at(shift: torch.Tensor) -> torch.Tensor:
        there, at = copy.copy(model), 0
        there.lm = LanguageModel(model.lm.choice, (copy.deepcopy(model.lm.model), model.lm.tokenizer))
        there.parameters = {n: p for n, p in there.lm.model.named_parameters() if n in model.parameters}
        for parameter in there.parameters.values():
            parameter.data += shift[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        return mean_gradient(there, AIM) + 0.5 * distilled(there, method)

    step = 1e-3 / float(whole.norm())
    bent = (v_at(step * whole) - v_at(-step * whole)) / (2 * step)
    first, second = slow.scores(g, v_at(0 * whole), lambda _: bent, 2.0, True)
    assert near(found["first"], first, 1e-5) and near(found["second"], second, 1e-4)


def test_over_the_sum_of_the_weights(model: Backward) -> None:
    state, _ = passed(model, Dualsft(normalize="confidence"))
    weight = float(state["pre.weight/mean"][0])
    assert 0 < weight < 1
    name = next(iter(model.parameters))
    whole, _ = Dualsft(normalize="confidence", lam=1.0).dual(state, name)
    wanted = state[f"task.0/{name}"][0] + state[f"pre.0/{name}"][0] / weight
    assert near(whole, wanted, 1e-6)


def test_the_second_term_is_told(model: Backward) -> None:
    small = Dualsft(preserve="none", eta=1e-8)
    said = small.note(passed(model, small)[1])
    assert "of the first; so the order of the samples is that of order=first" in said
    large = Dualsft(preserve="none", eta=0.3, curvature_scale=40.0)
    assert "so the order" not in large.note(passed(model, large)[1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eta": 0.0}, "eta=0 of dualsft is a number above 0"),
        ({"lam": -1.0}, "lam=-1 of dualsft is a number of 0 or more"),
        ({"anchors_share": 0.0}, "anchors_share=0 of dualsft is a share of the pool"),
        ({"warmup": 1.5}, "warmup=1.5 of dualsft is a share of the pool"),
        ({"warmup": 0.0}, "order=diagonal of dualsft takes AdamW's second moments.*; take order=first"),
        ({"warmup": 0.0, "order": "first"}, "preserve=cwsd of dualsft is about what a training changes.*preserve=none"),
        ({"lora_r": 8, "preserve": "l2"}, "take preserve=cwsd"),
    ],
)
def test_settings_out_of_range_are_refused(given: Any, said: str) -> None:
    with pytest.raises(CurateError, match=said):
        Dualsft(**given)


# --- the stage -------------------------------------------------------------------------------------------


SHORT = {"warmup": 0.1, "batch_size": 16, "lr": 1e-3, "anchors_share": 0.1}


def phases(ws: Any) -> list[tuple[str, str, int]]:
    rows = curate.sql(ws, "SELECT * FROM ledger WHERE phase IN ('warm-up', 'forward') ORDER BY \"at\"")
    return [(r["name"], r["phase"], r["samples"]) for r in rows]


def test_the_warm_up_and_the_anchors_are_left_out_and_a_second_target_costs_itself(handful_ws: Any) -> None:
    (first,) = curate.score(handful_ws, Dualsft(**SHORT, eta=1e-6), target="facts", models=NARROW)
    assert first.nulls == first.left_out == 20 and "so the order of the samples is that of order=first" in first.note
    why = "SELECT dualsft_facts_error AS why, count(*)::INT AS n FROM samples GROUP BY 1 ORDER BY 1 NULLS LAST"
    assert [tuple(r.values()) for r in curate.sql(handful_ws, why)] == [
        ("it is one of the anchors", 10),
        ("it was in the warm-up", 10),
        (None, 80),
    ]
    warmed = [
        r["row"] for r in curate.sql(handful_ws, "SELECT row FROM samples WHERE dualsft_facts_error LIKE '%warm%'")
    ]
    place = json.loads((handful_ws.score_folder("dualsft_facts") / "score.json").read_text())["warmup"]["place"]
    trained = curate.sql(handful_ws, f"SELECT DISTINCT row FROM '{handful_ws.path}/prepared/{place}/trained/*.parquet'")
    assert sorted(warmed) == sorted(r["row"] for r in trained)
    assert phases(handful_ws) == [
        ("dualsft", "warm-up", 10),
        ("dualsft_facts", "forward", 100),
        ("dualsft_facts", "forward", 10),
        ("dualsft_facts", "forward", 24),
        ("dualsft_facts", "forward", 100),
    ]
    curate.score(handful_ws, Dualsft(**SHORT, eta=1.0), target="words", models=NARROW)
    assert phases(handful_ws)[5:] == [("dualsft_words", "forward", 24), ("dualsft_words", "forward", 100)]


def test_columns_are_kept_apart_in_float64(handful_ws: Any) -> None:
    curate.score(handful_ws, Dualsft(**SHORT), target="facts", models=NARROW)
    rows = curate.sql(handful_ws, "SELECT score, first, second FROM dualsft_facts WHERE score IS NOT NULL")
    first, second = (np.array([r[name] for r in rows]) for name in ("first", "second"))
    assert (second != 0).all() and len(np.unique(second)) == len(second)
    assert (first - second).astype(np.float32).tolist() == [np.float32(r["score"]) for r in rows]


def test_what_judges_must_not_be_learnt_from_nor_kept(handful_ws: Any, tmp_path: Path) -> None:
    curate.score(handful_ws, Dualsft(**SHORT), target="facts", models=NARROW)
    for why, setting in (("it was in the warm-up", "warmup_seed"), ("it is one of the anchors", "anchors_seed")):
        (row, *_) = curate.sql(
            handful_ws, f"SELECT id, messages FROM samples WHERE dualsft_facts_error = '{why}' ORDER BY row"
        )
        turns = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        curate.target(handful_ws, setting, write_jsonl(tmp_path / f"{setting}.jsonl", [{"messages": turns}]))
        with pytest.raises(CurateError, match=f"the sample {row['id']} .* {why} .* --set {setting}="):
            curate.score(handful_ws, Dualsft(**SHORT), target=setting, models=NARROW)


def test_a_run_says_what_it_began_with_and_a_folder_does_not(handful_ws: Any, cli: Any) -> None:
    done = cli("train", "r", "--model", NARROW, "--set", "steps=4", "--set", "lr=1e-3", ws=handful_ws)
    assert done.returncode == 0, done.stderr
    given = ["dualsft", "--target", "facts", "--set", "anchors_share=0.1"]
    done = cli("score", *given, "--checkpoints", "r", ws=handful_ws)
    assert done.returncode == 0, done.stderr
    assert ", 10 of " in done.stdout and "The second-order term is" in done.stdout
    recipe = json.loads((handful_ws.score_folder("dualsft_facts") / "score.json").read_text())
    assert recipe["models"]["origin"]["name"] == NARROW
    folder = str(next((handful_ws.path / "runs/r/checkpoints").glob("step-*")))
    done = cli("score", *given, "--checkpoints", f"{folder}@1e-3", "--name", "x", ws=handful_ws)
    assert done.returncode == 2 and "add --model origin=MODEL" in done.stderr


def test_without_a_warm_up_or_anything_to_preserve_a_plain_folder_is_enough(handful_ws: Any, cli: Any) -> None:
    """The paper's Init, and any checkpoint of another trainer: scores and masks, by the command line."""
    plain = str(Path(load(ModelChoice(NARROW))[0].name_or_path).resolve())
    plain_settings = ["--set", "preserve=none", "--set", "order=first"]
    done = cli(
        *("score", "dualsft", "--target", "facts", "--model", plain, "--set", "warmup=0", *plain_settings),
        ws=handful_ws,
    )
    assert done.returncode == 0, done.stderr
    assert curate.sql(handful_ws, "SELECT count(*) AS n FROM dualsft_facts WHERE score IS NULL")[0]["n"] == 0
    phase = curate.sql(handful_ws, "SELECT count(*) AS n FROM ledger WHERE phase = 'warm-up'")
    assert phase[0]["n"] == 0
    done = cli("mask", "init", "--mask", "dualsft", "--score", "dualsft_facts", "--frac", "0.01", ws=handful_ws)
    assert done.returncode == 0, done.stderr
    done = cli(
        *("score", "dualsft", "--target", "facts", "--checkpoints", f"{plain}@1e-3", "--name", "x", *plain_settings),
        ws=handful_ws,
    )
    assert done.returncode == 0, done.stderr
    same = curate.sql(handful_ws, "SELECT max(abs(a.score - b.score)) AS d FROM dualsft_facts a JOIN x b USING (id)")
    assert same[0]["d"] == 0
    done = cli("mask", "other", "--mask", "dualsft", "--score", "x", "--frac", "0.01", ws=handful_ws)
    assert done.returncode == 0, done.stderr
    masks = [read_mask(handful_ws, name).selected for name in ("init", "other")]
    assert masks[0].keys() == masks[1].keys() and all((masks[0][n] == masks[1][n]).all() for n in masks[0])
    state = score_state(handful_ws, "dualsft_facts").recipe
    sums = {}
    for path in state.states:
        sums |= read_arrays(handful_ws.path / f"prepared/{path}.safetensors")
    names = [key.removeprefix("task.0/") for key in sums if key.startswith("task.0/") and not key.endswith("samples")]
    worth = np.concatenate([(sums[f"task.0/{n}"][0].astype(float) * sums[f"pool.0/{n}"][0]).ravel() for n in names])
    least = np.sort(worth)[-sum(map(len, masks[0].values()))]
    starts = dict(zip(names, np.cumsum([0, *(sums[f"task.0/{n}"][0].size for n in names)]), strict=False))
    assert min(worth[starts[name] + places].min() for name, places in masks[0].items() if len(places)) >= least


def test_a_unit_of_which_nothing_can_be_learnt_takes_nothing_from_the_sum(ws: Any, tmp_path: Path) -> None:
    """The first shard has only samples without an answer."""
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}]} for i in range(40)]
    lines = (SAMPLE / "pool/atlas.jsonl").read_text().splitlines()[:60]
    curate.ingest(ws, [write_jsonl(tmp_path / "empty.jsonl", rows)])
    (tmp_path / "full.jsonl").write_text("\n".join(lines))
    curate.ingest(ws, [str(tmp_path / "full.jsonl")])
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    (found,) = curate.score(ws, curate.find("score", "gradsim")(), models=NARROW)
    assert found.nulls == 40
    (mean,) = curate.sql(ws, "SELECT avg(gradsim) AS m, count(gradsim)::INT AS n FROM samples")
    assert mean["n"] == len(lines) and mean["m"] > 0
