"""`curate audit`: selectors through stages on a real workspace; killed, joined, refused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import curate
from curate.cli.main import cli
from curate.errors import CurateError, CurateFailure
from curate.methods.metrics.choice import Choice
from curate.methods.metrics.loss import Loss
from curate.models.choice import ModelChoice
from curate.pages.audit import page, rows
from curate.runs.audit_grid import expanded
from curate.runs.audit_spec import Audit
from curate.runs.audit_toml import READY, plan_of, read_plan
from curate.runs.evaluation import EvalSpec
from curate.store.encoding import read_json
from curate.store.workspace import Workspace
from curate.verbs import audit as stage
from tests.conftest import ROOT, SAMPLE
from tests.support import forks
from tests.support.audits import PLAN, cells, workspace
from tests.support.narrow import NARROW


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, stage.Audited]:
    ws = workspace(tmp_path_factory.mktemp("audit") / "ws")
    return ws, curate.audit(ws, "two", plan_of(PLAN))


# --- the protocol ------------------------------------------------------------------------------------------


def test_every_selector_goes_its_way_and_is_judged_on_all_stages_and_elsewhere(audited: Any) -> None:
    ws, result = audited
    found = cells(ws)
    ways = [f"{name}_s0-t{t}" for name in ("lhas", "random") for t in (1, 2)]
    assert sorted(found) == ["base_s0-t0", *ways] or sorted(found) == ["base-t0", *ways]
    assert (result.cells, result.cells_now, result.warnings) == (5, 5, [])
    skill = {row["id"]: row["skill"] for row in curate.sql(ws, "SELECT id, meta->>'skill' AS skill FROM pool")}
    for cell in found.values():
        assert cell["performance"].keys() == {"facts", "program", "strings"}
        if cell["stage"]:
            assert len(set(cell["ids"])) == 16 == sum(cell["clusters"].values())
            assert {skill[one] for one in cell["ids"]} == {("facts", "program")[cell["stage"] - 1]}
            assert 1 / 8 <= cell["concentration"] <= 1 and cell["steps"] == 2
        assert (cell.get("drift") is None) == (cell["stage"] < 2)
        assert ("curve" in cell) == (cell["stage"] == 1)
    curve = found["random_s0-t1"]["curve"]
    assert curve["steps"] == [0, 1, 2] and curve["tokens"][0] == 0 < curve["tokens"][1] < curve["tokens"][2]
    assert not (ws.path / "audits/two/work").exists()
    assert [p.name for p in (ws.path / "audits/two/models").iterdir()] == ["base"]


def test_the_model_before_is_the_model_as_it_is(audited: Any) -> None:
    ws, result = audited
    evals = [EvalSpec(name, Loss(), limit=6) for name in ("facts", "program")]
    found = curate.evaluate(ws, "as_it_is", evals, model=ModelChoice(NARROW, device="cpu")).evaluations
    assert result.card.matrices[:, 0, 0] == pytest.approx(-np.array([[row["value"] for row in found]] * 2), rel=1e-5)


def test_the_ledger_has_a_row_for_every_cell(audited: Any) -> None:
    ws, result = audited
    its = curate.sql(ws, "SELECT phase, methods, flops FROM ledger WHERE stage = 'audit' AND name = 'two'")
    assert sorted(row["phase"] for row in its) == ["stage 0", "stage 1", "stage 1", "stage 2", "stage 2"]
    flops = {(row["methods"][0], row["phase"]): row["flops"] for row in its}
    for phase in ("stage 1", "stage 2"):  # lhas sends all samples of the stage through the model before it chooses
        assert flops["lhas", phase] > 2 * flops["random", phase] > 0
    assert result.card.measures["flops"][0, 0] == pytest.approx(flops["random", "stage 1"] + flops["random", "stage 2"])


def test_a_stage_is_chosen_by_the_model_after_the_one_before_and_its_past(tmp_path: Path, monkeypatch: Any) -> None:
    """Its past is what the way has chosen, in order; its scores are of the model that has learnt."""
    ws = workspace(tmp_path / "ws")
    monkeypatch.setattr(stage._Grid, "_forget", lambda *_: None)
    monkeypatch.setattr(stage.shutil, "rmtree", lambda *_, **__: None)
    curate.audit(ws, "kept", plan_of({**PLAN, "selectors": ["lhas"], "probe": {"steps": 0}}))
    folder = ws.path / "audits/kept"
    bench = curate.open_workspace(folder / "work/lhas_s0-t2")
    past = curate.sql(bench, "SELECT id FROM targets WHERE target = 'past'")
    assert [row["id"] for row in past] == read_json(folder / "cells/lhas_s0-t1.json")["ids"]
    for name, score in (("nuclear", "score"), ("embed_lm", "vectors")):
        recipe = read_json(bench.table_folder(score, name) / f"{score}.json")
        assert recipe["models"]["base"]["name"].endswith("lhas_s0-t1")
    lineage = read_json(bench.manifest_path("lhas_s0_data").with_suffix(".json"))
    assert lineage["choice"]["history"] == "past" and lineage["choice"]["target"] == "future"


def test_what_is_done_is_not_done_again_and_further_seeds_and_selectors_join(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    one = plan_of({**PLAN, "selectors": ["random"], "probe": {"steps": 0}, "measures": {"gradients": 0}})
    first = curate.audit(ws, "grows", one)
    before = cells(ws, "grows")
    again = curate.audit(ws, "grows", one)
    assert (first.cells_now, again.cells_now) == (3, 0) and cells(ws, "grows") == before
    more = plan_of({**PLAN, "selectors": ["random", "quality"], "seeds": 2, "probe": {"steps": 0},
                    "measures": {"gradients": 0}})  # fmt: skip
    joined = curate.audit(ws, "grows", more)
    assert joined.cells_now == 6 and cells(ws, "grows").items() >= before.items()
    assert joined.card.measures["gain"].shape == (2, 2) and np.isfinite(joined.card.measures["gain"]).all()  # type: ignore[union-attr]
    measures = joined.card.measures  # type: ignore[union-attr]
    assert np.isnan(measures["adaptation"]).all() and np.isfinite(measures["utility"]).all()


@pytest.mark.slow
def test_an_audit_killed_three_times_ends_with_the_same_table(audited: Any, tmp_path: Path) -> None:
    whole, _ = audited
    ws = workspace(tmp_path / "ws")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    call = "curate.audit(curate.open_workspace(sys.argv[1]), 'two', plan_of(json.load(open(sys.argv[2]))))"
    code = f"import json, sys, curate; from curate.runs.audit_toml import plan_of, read_plan; {call}"
    lot = random.Random(0)
    for wanted in (1, 2, 4):  # cells that are there when it is killed, in the midst of the next
        process = forks.start(code, str(ws.path), str(plan))
        while len(list((ws.path / "audits").glob("two/cells/*.json"))) < wanted:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(lot.random())
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    result = curate.audit(ws, "two", plan_of(PLAN))
    assert result.cells_now < 5 and cells(ws) == cells(whole)


# --- what fails, and what is refused -----------------------------------------------------------------------


def diverging(name: str) -> Any:
    """A training that fails in the run of that name."""
    train = stage.train

    def failing(bench: Workspace, run: str, *rest: Any, **more: Any) -> Any:
        if run == name:
            raise CurateFailure("the loss is not a finite number at step 2.")
        return train(bench, run, *rest, **more)

    return failing


def test_a_cell_that_fails_ends_its_way_is_told_and_leaves_the_others(tmp_path: Path, monkeypatch: Any) -> None:
    ws = workspace(tmp_path / "ws")
    train = stage.train
    monkeypatch.setattr(stage, "train", diverging("quality_s0"))
    plan = {**PLAN, "selectors": ["random", "quality", "loss"], "probe": {"steps": 0}, "measures": {"gradients": 0}}
    result = curate.audit(ws, "holed", plan_of(plan))
    assert result.warnings == ["quality, seed 0, stage 1 (facts): the loss is not a finite number at step 2."]
    card = result.card
    assert card is not None and card.ranked == ["random", "loss"] and card.missing == result.warnings
    assert np.isnan(card.measures["utility"][1]).all() and np.isfinite(card.measures["utility"][[0, 2]]).all()
    assert rows(card, "later")[1]["utility"] == "-" and "quality, seed 0, stage 1" in page(card, "t")
    monkeypatch.setattr(stage, "train", train)
    again = curate.audit(ws, "holed", plan_of(plan))  # what failed is tried again
    assert (again.cells_now, again.warnings) == (2, []) and again.card.ranked == ["random", "quality", "loss"]  # type: ignore[union-attr]


def test_a_branch_that_fails_leaves_what_was_learnt(tmp_path: Path, monkeypatch: Any) -> None:
    ws = workspace(tmp_path / "ws")
    monkeypatch.setattr(stage, "train", diverging("random_s0_branch"))
    result = curate.audit(ws, "branchless", plan_of({**PLAN, "selectors": ["random", "quality"]}))
    (said,) = result.warnings
    assert said == (
        "random, seed 0, stage 1 (facts): its branch is not known: the loss is not a finite number at step 2."
    )
    measures = result.card.measures  # type: ignore[union-attr]
    assert np.isfinite(measures["gain"]).all() and np.isnan(measures["adaptation"][0]).all()


@pytest.mark.slow
def test_all_parameters_a_metric_that_is_better_high_own_branches_a_proxy_and_fresh(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    plan = {
        **PLAN,
        "selectors": ["random", "uds"],
        "metric": "choice",
        "train": {**PLAN["train"], "lora_r": 0},
        "probe": {**PLAN["probe"], "data": "own"},
        "proxy": "strings",
    }
    first = curate.audit(ws, "whole", plan_of(plan))
    found = cells(ws, "whole")
    assert first.cells_now == 5 and not first.warnings
    judged = curate.evaluate(
        ws, "itself", [EvalSpec("facts", Choice(), limit=6)], model=ModelChoice(NARROW, device="cpu")
    ).evaluations
    assert found["base-t0"]["performance"]["facts"] == judged[0]["value"] > 0  # higher is better: as it is
    assert found["uds_s0-t1"]["curve"]["steps"] == [0, 1, 2]
    again = curate.audit(ws, "whole", plan_of(plan), fresh=True)
    assert again.cells_now == 5 and cells(ws, "whole") == found
    assert [p.name for p in (ws.path / "audits").iterdir()] == ["whole"]
    joined = curate.audit(ws, "whole", plan_of({**plan, "seeds": 2}))  # in the folder that it was moved to
    assert joined.cells_now == 4 and cells(ws, "whole").items() >= found.items()
    curate.target(ws, "program", str(SAMPLE / "targets/table_test.jsonl"), split="test")
    with pytest.raises(CurateError, match="exists, with other data: the target 'program' changed since"):
        curate.audit(ws, "whole", plan_of(plan))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["stage"].append({**p["stage"][0], "name": "more"}), "the stages 'facts' and 'more' share"),
        (
            lambda p: p.update(budget={"top": 5000}),
            r"the stage 'facts' has \d+ samples, fewer than the budget of 5,000",
        ),
        (lambda p: p.update(budget={"tokens": 1e9}), r"the stage 'facts' has about [\d,]+ tokens, fewer than"),
        (lambda p: p["stage"].pop(), "give two stages or more"),
        (lambda p: p["stage"][1].update(target="nothing"), "has no target 'nothing'"),
        (lambda p: p["stage"][1].update(where="false"), "the stage 'program' has no samples"),
        (lambda p: p.update(proxy="nothing"), "has no target 'nothing'"),
        (lambda p: p["stage"][1].update(name="facts"), "two stages are called 'facts'"),
        (lambda p: p.update(out_of_domain=["facts"]), "'facts' is a stage's target, so it is not out of domain"),
        (lambda p: p.update(budget={"frac": 2.0}), "a budget is one of frac"),
        (lambda p: p.update(weighting="adapt"), "the weighting 'adapt' needs a target or a column"),
        (lambda p: p["measures"].update(clusters="no_such"), "there is no column 'no_such'"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_done(audited: Any, change: Any, said: str) -> None:
    ws, _ = audited
    plan = json.loads(json.dumps(PLAN))
    change(plan)
    with pytest.raises(CurateError, match=said):
        curate.audit(ws, "refused", plan_of(plan))
    assert not (ws.path / "audits/refused").exists()


def test_an_audit_of_other_settings_is_refused_by_what_differs(audited: Any) -> None:
    ws, _ = audited
    for change, said in (
        ({"budget": {"top": 17}}, r"another budget \(top=16, not 17\)"),
        ({"train": {**PLAN["train"], "lr": 1e-4}}, r"another training \(lr=0.001, not 0.0001\)"),
        ({"selector": {"lhas": {"lam": 2.0}}}, "another selector 'lhas'"),
        ({"probe": {**PLAN["probe"], "rows": "same"}}, r"another probe \(rows=disjoint, not same\)"),
        ({"adapter": "fresh"}, "adapter=carried, not fresh"),
        ({"blur": 0.25}, "another blur"),
    ):
        with pytest.raises(CurateError, match=f"the audit 'two' exists, with {said}; .*--fresh"):
            curate.audit(ws, "two", plan_of({**PLAN, **change}))
    other = plan_of({**PLAN, "measures": {**PLAN["measures"], "alpha": 0.0, "beta": 0.0}})
    again = curate.audit(ws, "two", other)  # how what was found is summed up may change
    assert again.cells_now == 0 and again.card is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"selectors": ["lhsa"]}, "there is no ready selector 'lhsa': did you mean 'lhas'"),
        ({"budgets": {}}, "the plan has no 'budgets': did you mean 'budget'"),
        ({"budget": {"frac": 0.1, "top": 3}}, "the plan's budget is one of frac, top and tokens"),
        ({"selector": {"lhas": {"scores": ["nll>then"]}}}, "the score 'nll>then' of the selector 'lhas': write METHOD"),
        ({"selector": {"lhas": {"lamb": 2}}}, "has no setting 'lamb'"),
        ({"probe": {"every": 0}}, "a probe has steps and limit of 0 or more"),
        ({"stage": [{"name": "a", "where": "true"}]}, r"a \[\[stage\]\] lacks 'target'"),
        ({"out_of_domain": "strings"}, "the plan's 'out_of_domain' is a list, not 'strings'"),
        ({"seeds": 2.5}, "the plan's 'seeds' is a whole number, not 2.5"),
        ({"budget": 0.25}, "the plan's 'budget' is a table, not 0.25"),
        ({"budget": {"top": "5"}}, "the plan's budget is one of frac, top and tokens"),
        ({"selectors": ["m"], "selector": {"m": {"method": "top", "by": "-nll_past"}}}, "the first stage has no past"),
    ],
)
def test_a_plan_is_refused_by_its_words(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        plan_of({**PLAN, **change})


def test_the_plans_that_come_with_the_pipelines_are_read() -> None:
    for path in sorted((ROOT / "pipelines/plans").glob("*.toml")):
        plan = read_plan(path)
        assert len(plan.stages) >= 2 and len(plan.contenders) == 8 and plan.budget == {"frac": 0.25}


def test_the_plan_in_the_readme_is_one() -> None:
    (block,) = re.findall(r"```toml\n(model = .*?)```", (ROOT / "docs/audit.md").read_text(), re.S)
    with pytest.raises(CurateError, match="no such"):
        read_plan(ROOT / "no-such-plan.toml")
    plan = plan_of({**tomllib.loads(block)})
    mine = plan.contenders[-1]
    assert (mine.name, mine.by, [s.target for s in mine.scores]) == ("mine", "bm25_own + nll", ["own", None])
    assert plan.contenders[-2].selector.settings()["rho"] == 2.0


def test_what_else_the_page_shows_of_a_plan_is_one_too() -> None:
    page = (ROOT / "docs/audit.md").read_text()
    first, *others = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.S))
    arms, grid = others
    names = [*first["selectors"], *arms["selector"]]
    plan = plan_of({**first, "selectors": names, "selector": {**first["selector"], **arms["selector"]}})
    assert [(c.name, c.online, c.weighting_target) for c in plan.contenders[-3:]] == [
        ("greats", True, "future"), ("foresight", True, "future"), ("gated", False, "own")
    ]  # fmt: skip
    points = expanded({**first, **grid, "stage": [*first["stage"], {**first["stage"][0], "name": "more"}]})
    assert len(points) == 3 * 2 * 2 and "frac_0_25_lora_r_16_order_2" in points
    ready = page.partition("## What may compete")[2].partition("##")[0]
    assert all(f"`{name}`" in ready for name in READY)


# --- the command line --------------------------------------------------------------------------------------


def test_the_command_line_audits_and_writes_its_page(audited: Any, tmp_path: Path) -> None:
    ws, _ = audited
    plan = tmp_path / "plan.toml"
    stages = "".join(
        "[[stage]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in one.items()) for one in PLAN["stage"]
    )
    tables = {k: v for k, v in PLAN.items() if isinstance(v, dict)}
    plain = {k: v for k, v in PLAN.items() if k not in tables and k != "stage"}
    text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in plain.items()) + stages
    text += "".join(f"[{k}]\n" + "".join(f"{a} = {json.dumps(b)}\n" for a, b in v.items()) for k, v in tables.items())
    plan.write_text(text)
    arguments = ["audit", "two", "-w", str(ws.path), "--plan", str(plan)]
    done = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "0 of 5 cells done now" in done.output and "Myopia gap" in done.output and "ranks" in done.output
    html = (tmp_path / "page.html").read_text()
    assert html.count("<img") == 5 and "Rank now against rank in the end" in html
    told = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert told["selectors"] == ["random", "lhas"] and len(told["measures"]["utility"]) == 2
    planned = CliRunner().invoke(cli, ["audit", "other", "-w", str(ws.path), "--plan", str(plan), "--dry-run"])
    assert "Would audit 2 selectors with 1 seeds: 6 trainings." in planned.output
    (tmp_path / "bad.toml").write_text("model = ")
    bad = CliRunner().invoke(cli, ["audit", "x", "-w", str(ws.path), "--plan", str(tmp_path / "bad.toml")])
    assert isinstance(bad.exception, CurateError) and "is no TOML" in str(bad.exception)


def test_a_workspace_s_audit_is_one_at_a_time_and_named_as_others_are(audited: Any) -> None:
    ws, _ = audited
    with pytest.raises(CurateError, match="must match"):
        curate.audit(ws, "Two", plan_of(PLAN))
    bad: Audit = replace(plan_of(PLAN), seeds=0)
    with pytest.raises(CurateError, match="at least one selector, and 1 to 1,000 seeds"):
        curate.audit(ws, "nobody", bad)
