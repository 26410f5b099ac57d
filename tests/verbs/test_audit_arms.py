"""What may compete in `curate audit`, and on what: weightings, replay, blurred borders, rows of the proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.runs.audit_checks import check, sum_up
from curate.runs.audit_pools import divided, replayed, stage_pool
from curate.runs.audit_toml import READY, plan_of
from curate.store.encoding import read_json
from curate.store.run_record import Run
from curate.store.schema import TARGET
from curate.store.workspace import Workspace, open_workspace
from curate.verbs import audit as stage
from tests.support.audits import PLAN, cells, workspace

LEAN = {**PLAN, "probe": {"steps": 0}, "measures": {"gradients": 4, "clusters": "meta->>'task'"}, "out_of_domain": []}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace(tmp_path_factory.mktemp("arms") / "ws")


def ids_of(ws: Workspace, table: str, where: str = "true") -> set[str]:
    return {row["id"] for row in curate.sql(ws, f"SELECT id FROM {table} WHERE {where}")}


# --- arms --------------------------------------------------------------------------------------------------


def test_weightings_and_replay_are_audited_beside_selectors_at_the_same_steps(ws: Workspace, monkeypatch: Any) -> None:
    monkeypatch.setattr(stage._Grid, "_forget", lambda *_: None)
    monkeypatch.setattr(stage.shutil, "rmtree", lambda *_, **__: None)
    arms = ["random", "greats", "uds_online", "replay"]
    train = {**PLAN["train"], "steps": 0, "epochs": 2, "lora_r": 2, "oversample": 2, "target_batch": 2}
    result = curate.audit(ws, "arms", plan_of({**LEAN, "selectors": arms, "train": train,
                                               "selector": {"greats": {"target": "future"}}}))  # fmt: skip
    assert result.warnings == [] and result.card is not None and result.card.ranked == arms
    found, folder = cells(ws, "arms"), Path(str(ws.path)) / "audits/arms"
    skills = {name: ids_of(ws, "pool", f"meta->>'skill' = '{name}'") for name in ("facts", "program")}
    for t, name in ((1, "facts"), (2, "program")):
        for arm in arms:
            cell = found[f"{arm}_s0-t{t}"]
            assert cell["steps"] == 4  # two epochs of 16 samples, 8 a step
            assert set(cell["ids"]) <= skills[name] and len(set(cell["ids"])) == sum(cell["clusters"].values())
            assert cell["tokens"] > 0 and 0 < cell["concentration"] <= 1
        online = [found[f"{arm}_s0-t{t}"] for arm in ("greats", "uds_online")]
        assert all(16 < len(cell["ids"]) <= 32 for cell in online) and online[0]["ids"] != online[1]["ids"]
    bench = open_workspace(folder / "work/greats_s0-t2")
    recipe = Run(bench, "greats_s0").require_recipe()
    assert (recipe.weighting.name, recipe.target, recipe.manifest, recipe.samples) == (
        "greats",
        "future",
        None,
        len(skills["program"]),
    )  # type: ignore[union-attr]
    drawn = found["replay_s0-t2"]
    assert len(drawn["ids"]) == 12 and len(drawn["replayed"]) == 4
    assert set(drawn["replayed"]) < set(found["replay_s0-t1"]["ids"]) and len(found["replay_s0-t1"]["ids"]) == 16
    mixed = open_workspace(folder / "work/replay_s0-t2-mixed")
    trained = "row IN (SELECT row FROM trained WHERE run = 'replay_s0')"
    assert ids_of(mixed, "pool", trained) == {*drawn["ids"], *drawn["replayed"]}
    flops = {arm: found_of(ws, arm) for arm in arms}
    assert flops["greats"] > 1.5 * flops["random"] > 0 and flops["replay"] > 0.5 * flops["random"]


def found_of(ws: Workspace, arm: str) -> float:
    its = curate.sql(ws, f"SELECT flops FROM ledger WHERE name = 'arms' AND list_contains(methods, '{arm}')")
    return sum(row["flops"] for row in its)


def test_a_branch_of_ones_own_choice_is_chosen_within_its_steps_too(ws: Workspace) -> None:
    probe = {**PLAN["probe"], "data": "own"}
    plan = {**LEAN, "selectors": ["random", "max"], "selector": {"max": {"weighting": "max_loss"}}, "probe": probe}
    result = curate.audit(ws, "own", plan_of(plan))
    assert result.warnings == []
    curves = {name: cells(ws, "own")[f"{name}_s0-t1"]["curve"] for name in ("random", "max")}
    assert all(curve["steps"] == [0, 1, 2] for curve in curves.values())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"weighting": "greats", "target": "past"},
            "the weighting 'greats' needs a target: give target = 'own' or 'future'",
        ),
        ({"weighting": "uds_online", "target": "own"}, "the weighting 'uds_online' uses no target"),
        ({"weighting": {"name": "inverse_copies"}}, "the weighting 'inverse_copies' needs a column"),
        (
            {"weighting": "greats", "replay": 0.5},
            "'greats' chooses among a stage's samples at every step, without repl",
        ),
        ({"method": "random", "replay": 1.0}, "replay is a share of the budget, 0 or more and below 1, not 1"),
        ({"method": "random", "replay": "much"}, "replay is a share, as in replay = 0.25, not 'much'"),
        ({"weighting": "greats", "by": "nll"}, "so it has no by; leave that out"),
        ({"weighting": 3}, "weighting is a name, or a table with one, not 3"),
        ({"weighting": "uds_online", "alfa": 1}, "has no setting 'alfa'"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(ws: Workspace, told: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        check(ws, plan_of({**LEAN, "selectors": ["mine"], "selector": {"mine": told}}))


def test_a_weighting_has_its_settings_of_the_selector_or_of_a_table() -> None:
    flat = {"weighting": "uds_online", "alpha": 0.5}
    table = {"weighting": {"name": "uds_online", "alpha": 0.5}}
    one, other = (plan_of({**LEAN, "selectors": ["a"], "selector": {"a": told}}) for told in (flat, table))
    assert one.contenders == other.contenders and one.contenders[0].recipe()["weighting"][1]["alpha"] == 0.5
    soft = {"method": "random", "weighting": {"name": "adapt", "target": "future"}}
    its = plan_of({**LEAN, "selectors": ["a"], "selector": {"a": soft}}).contenders[0]
    assert (its.online, its.weighting_target, its.selector.name) == (False, "future", "random")
    assert plan_of({**LEAN, "selectors": list(READY)}).contenders[-1].online


# --- borders and rows --------------------------------------------------------------------------------------


def with_three(**changes: Any) -> Any:
    stages = [*PLAN["stage"], {"name": "strings", "where": "meta->>'skill' = 'strings'", "target": "strings"}]
    return plan_of({**LEAN, "selectors": ["random"], "stage": stages, "budget": {"top": 2}, **changes})


def test_blurred_borders_give_a_share_of_each_stage_to_its_neighbours(ws: Workspace, tmp_path: Path) -> None:
    own = [ids_of(ws, "pool", f"meta->>'skill' = '{name}'") for name in ("facts", "program", "strings")]
    plan = with_three(blur=0.2)
    pools = [stage_pool(ws, plan, tmp_path / str(t), t) for t in (1, 2, 3)]
    found = [ids_of(open_workspace(pool), "pool") for pool in pools]
    assert check(ws, plan).sizes == [len(ids) for ids in found]
    assert sum(map(len, found)) == len(set.union(*found)) and set.union(*found) == set.union(*own)
    moved = [[len(here & there) for there in own] for here in found]
    give = [[int(0.2 * len(own[0]))], [int(0.1 * len(own[1]))] * 2, [int(0.2 * len(own[2]))]]
    assert (moved[1][0], moved[0][1], moved[2][1], moved[1][2]) == (give[0][0], *give[1], give[2][0])
    assert moved[0][2] == moved[2][0] == 0 and min(give[0] + give[1] + give[2]) > 0
    plain = check(ws, with_three())
    assert plain.sizes == [len(ids) for ids in own] and plain.stamps != check(ws, plan).stamps
    with pytest.raises(CurateError, match="blur is the share of a stage's samples that its neighbours have, 0 to 0.5"):
        check(ws, with_three(blur=0.6))


def test_the_future_proxy_and_the_branch_share_no_row_unless_that_is_asked_for(ws: Workspace, tmp_path: Path) -> None:
    probed = with_three(probe={"steps": 2})
    one, two = (open_workspace(stage_pool(ws, probed, tmp_path / f"d{t}", t)) for t in (1, 2))
    val = ids_of(ws, "targets", "target = 'program' AND split = 'val'")
    future, probe = ids_of(one, "targets", "target = 'future'"), ids_of(two, "targets", "target = 'probe'")
    assert probe and probe == val - future and 0 <= len(val & future) - len(probe) <= 4  # of each sub-task half
    assert future - val <= ids_of(ws, "targets", "target = 'strings' AND split = 'val'")
    assert ids_of(two, "targets", "target = 'own'") == val  # which the branch's samples at random do not depend on
    chosen = with_three(probe={"steps": 2, "data": "own"})
    assert not probe & ids_of(open_workspace(stage_pool(ws, chosen, tmp_path / "own", 2)), "targets", "target = 'own'")
    same = with_three(probe={"steps": 2, "rows": "same"})
    alike = open_workspace(stage_pool(ws, same, tmp_path / "same", 1))
    assert val < ids_of(alike, "targets", "target = 'future'")
    beside = with_three(probe={"steps": 2}, proxy="facts")  # a proxy of its own: all others are the branch's
    kept = open_workspace(stage_pool(ws, beside, tmp_path / "proxy", 2))
    assert ids_of(kept, "targets", "target = 'probe'") == val
    with pytest.raises(CurateError, match="val samples of the target 'program' .* cannot be divided"):
        check(ws, with_three(probe={"steps": 2}, proxy="program"))


def test_a_proxy_of_the_branchs_rows_is_told_with_the_scorecard(ws: Workspace, tmp_path: Path) -> None:
    probe = {"steps": 1, "every": 1, "limit": 2, "rows": "same"}
    plan = {**LEAN, "selectors": ["random", "future"], "probe": probe, "measures": {"gradients": 0}, "limit": 2}
    plan["selector"] = {"future": {"method": "top", "scores": ["bm25>future"], "by": "bm25_future"}}
    result = curate.audit(ws, "seen", plan_of(plan))
    assert [w for w in result.warnings if w.startswith("probe.rows=same: the samples by which a selector sees")]
    blind = curate.audit(ws, "seen", plan_of({**plan, "selectors": ["random"]}))
    assert blind.warnings == []
    for changes, told in (
        ({"proxy": "strings"}, False),  # of no stage
        ({"proxy": "program"}, True),
        ({"probe": {**probe, "rows": "disjoint"}}, False),
        ({"selectors": ["greats"]}, False),  # by the stage's own target
        ({"selectors": ["greats"], "probe": {**probe, "data": "own"}}, True),
        ({"selectors": ["greats"], "selector": {"greats": {"target": "future"}}}, True),
    ):
        sum_up(tmp_path, plan_of({**plan, **changes}))
        assert bool(read_json(tmp_path / "summed.json")["notes"]) == told, changes


def test_what_is_replayed_keeps_to_its_budget_and_differs_by_seed_and_stage(ws: Workspace, tmp_path: Path) -> None:
    plan = with_three()
    pools = [stage_pool(ws, plan, tmp_path / str(t), t) for t in (1, 2)]
    learnt = [(pool, sorted(ids_of(open_workspace(pool), "pool"))[:20]) for pool in pools]
    both = {sample_id for _, ids in learnt for sample_id in ids}
    drawn = [set(replayed(its, {"top": 8}, seed)["id"].to_pylist()) for its, seed in ((learnt, 0), (learnt, 1))]
    assert all(len(ids) == 8 and ids < both for ids in drawn) and drawn[0] != drawn[1]
    first = replayed(learnt[:1], {"top": 20}, 0)["id"].to_pylist()
    again = [sample_id for sample_id in replayed(learnt, {"top": 40}, 0)["id"].to_pylist() if sample_id in first]
    assert sorted(first) == sorted(again) and first != again
    tokens = np.sum(replayed(learnt, {"tokens": 100.0}, 0)["n_chars"].to_numpy()) / 4
    assert 50 < tokens <= 100


def test_the_halves_of_a_target_are_of_every_sub_task() -> None:
    ids = [f"{i:016x}" for i in range(9)]
    columns = {name: [None] * 9 for name in TARGET.names} | {"id": ids, "subtask": ["a"] * 4 + ["b"] * 5}
    import pyarrow as pa

    shown, kept = divided(pa.table(columns, schema=TARGET), "t")
    assert sorted([*shown["id"].to_pylist(), *kept["id"].to_pylist()]) == ids
    counts = [[part["subtask"].to_pylist().count(name) for name in "ab"] for part in (shown, kept)]
    assert np.abs(np.subtract(*counts)).max() <= 1 and min(map(min, counts)) >= 2
    with pytest.raises(CurateError, match=r"of the target 't' \(1\) cannot be divided"):
        divided(pa.table(columns, schema=TARGET).slice(0, 1), "t")


def test_an_audit_is_the_same_only_with_the_same_arms(ws: Workspace) -> None:
    """A selector that had no weighting has the recipe that it always had."""
    contender = plan_of({**LEAN, "selectors": ["lhas"]}).contenders[0]
    assert json.loads(json.dumps(contender.recipe())).keys() == {"selector", "scores", "by", "vectors", "target",
                                                                 "history"}  # fmt: skip
