"""Trials of random subsets, and what foretells them: against trainings by themselves, kills, workers, and bad input."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError, CurateFailure
from curate.methods.executors.local import Local
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.pages.foretelling import on_front
from curate.runs.trial import TrialSpec, TrialWorker, drawn
from curate.store.workspace import Workspace, open_workspace
from curate.tables.trials import require_trial
from curate.training.settings import TrainSettings
from curate.verbs.foretell import Foretelling, Foretold
from curate.verbs.show import Described
from tests.conftest import SAMPLE, run_and_kill, tree_bytes, write_jsonl
from tests.support.narrow import NARROW
from tests.verbs.test_verify import flip

SETTINGS = TrainSettings(epochs=1, batch_size=8, lr=3e-3, schedule="constant", warmup=0.0)
SPEC = TrialSpec(ModelChoice(str(NARROW), device="cpu"), "sums", Uniform(), SETTINGS, subsets=4, repeats=2, repeated=2)


@pytest.fixture
def aimed(sums_ws: Workspace) -> Workspace:
    curate.target(sums_ws, "sums", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    return sums_ws


def losses(ws: Workspace) -> list[Any]:
    rows = curate.sql(ws, "SELECT trial, subset, repeat, seed, id, loss FROM trials ORDER BY ALL")
    return [list(row.values()) for row in rows]


def test_each_training_is_that_of_curate_train_on_the_subset(aimed: Workspace) -> None:
    result = curate.trial(aimed, "one", SPEC)
    assert (result.trainings, result.trainings_now, result.subsets) == (6, 6, 4) and result.samples == aimed.n_rows()
    stored = require_trial(aimed, "one")
    assert stored.members.sum(1).tolist() == [round(0.5 * aimed.n_rows())] * 4
    rows = ", ".join(map(str, stored.rows[stored.members[2]]))
    spec = curate.SelectionSpec(by="-row", where=f"row IN ({rows})", frac=1.0)  # in the order of the pool
    curate.select(aimed, "subset", Top(), spec)
    settings = replace(SETTINGS, order="shuffle")
    training = curate.TrainingSpec(SPEC.model, Uniform(), settings, manifest="subset", seed=stored.seeds[2])
    curate.train(aimed, "alone", training)
    evaluated = curate.evaluate(aimed, "alone", ["sums"], split="val", allow_val=True).evaluations[0]["value"]
    (row,) = curate.sql(aimed, "SELECT avg(loss) AS loss, any_value(samples) AS n FROM trials WHERE subset = 2")
    assert row["loss"] == pytest.approx(evaluated, rel=1e-5) and row["n"] == round(0.5 * aimed.n_rows())
    phases = {r["phase"] for r in curate.sql(aimed, "SELECT phase FROM ledger WHERE stage = 'trial' AND flops > 0")}
    assert phases == {"train", "evaluate"}


def test_killed_it_goes_on_to_the_same_table(aimed: Workspace, tmp_path: Path) -> None:
    whole = open_workspace(tmp_path / "whole")
    _copied(aimed, whole)
    curate.trial(whole, "one", SPEC)
    code = """
        from curate.store.workspace import open_workspace
        from tests.verbs.test_trial import SPEC
        import curate
        curate.trial(open_workspace(sys.argv[1]), "one", SPEC)
    """
    run_and_kill(code, str(aimed.path), die_at=12)  # tokens, what is drawn, and some of the losses
    ended = len(require_trial(aimed, "one").losses.names())
    resumed = curate.trial(aimed, "one", SPEC)
    assert 0 < resumed.trainings_now < 6
    assert trained_on(aimed) >= 7 * aimed.n_rows() // 2 > trained_on(whole)  # the one that was lost is charged, too
    assert resumed.trainings_now == 6 - ended
    assert losses(aimed) == losses(whole) and len({tuple(row[:3]) for row in losses(whole)}) == 6
    assert curate.trial(aimed, "one", SPEC).trainings_now == 0


def _copied(ws: Workspace, other: Workspace) -> None:
    import shutil

    shutil.copytree(str(ws.path), str(other.path), dirs_exist_ok=True)


def test_several_workers_write_the_same_table(aimed: Workspace, tmp_path: Path) -> None:
    other = open_workspace(tmp_path / "other")
    _copied(aimed, other)
    curate.trial(aimed, "one", SPEC)
    curate.trial(other, "one", SPEC, executor=Local(workers=2))
    ours, theirs = losses(aimed), losses(other)
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs]
    assert [row[-1] for row in ours] == pytest.approx([row[-1] for row in theirs], rel=1e-5)


@pytest.mark.parametrize("lora", [0, 2])
def test_another_target_is_measured_on_what_was_trained(aimed: Workspace, cli: Any, lora: int) -> None:
    curate.target(aimed, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    spec = replace(SPEC, settings=replace(SETTINGS, lora_r=lora), subsets=3, repeats=1)
    curate.trial(aimed, "kept", replace(spec, keep_checkpoints=True))
    curate.trial(aimed, "alone", replace(spec, target="facts"))
    done = curate.trial(aimed, "measured", of="kept", target="facts")
    assert done.trainings_now == 3 and curate.trial(aimed, "measured", of="kept", target="facts").trainings_now == 0
    by_trial = {name: [row[1:] for row in losses(aimed) if row[0] == name] for name in ("alone", "measured")}
    assert [row[:-1] for row in by_trial["measured"]] == [row[:-1] for row in by_trial["alone"]]
    ours, theirs = ([row[-1] for row in by_trial[name]] for name in ("measured", "alone"))
    assert ours == pytest.approx(theirs, rel=1e-6) and len(ours) > 20
    flops = curate.sql(aimed, "SELECT phase FROM ledger WHERE name = 'measured' AND flops > 0")
    assert {row["phase"] for row in flops} == {"evaluate"}
    refused = cli("trial", "again", "--of", "kept", "--target", "facts", "--subsets", "9", ws=aimed)
    assert "--of kept: what that trial has trained has its model" in refused.stderr
    assert "leave out --subsets" in refused.stderr
    with pytest.raises(CurateError, match="the trial 'alone' has kept no checkpoints"):
        curate.trial(aimed, "other", of="alone", target="sums")
    with pytest.raises(CurateError, match="give --target, and --split if it is not val, and nothing else"):
        curate.trial(aimed, "other", of="kept", target="sums", subsets=9)
    (aimed.path / "trials/kept/checkpoints/_commit/00001-0.json").unlink()
    with pytest.raises(CurateError, match="1 of the 3 trainings of the trial 'kept' have not ended"):
        curate.trial(aimed, "other", of="kept", target="facts")


def test_subsets_are_drawn_by_seed_number_and_source() -> None:
    sources = np.repeat([0, 1, 2], [60, 30, 10])
    members = drawn(100, sources, replace(SPEC, subsets=6, share=0.3, seed=1))
    assert [np.bincount(sources[row]).tolist() for row in members] == [[18, 9, 3]] * 6
    assert len({row.tobytes() for row in members}) == 6
    more = drawn(100, sources, replace(SPEC, subsets=9, share=0.3, seed=1))
    assert (more[:6] == members).all()
    plain = drawn(101, None, replace(SPEC, subsets=200, share=0.5))
    assert (plain.sum(1) == 50).all() and abs(plain.mean(0) - 50 / 101).max() < 0.15


def test_what_is_drawn_may_be_some_of_the_pool_and_the_pool_may_grow(aimed: Workspace, tmp_path: Path) -> None:
    spec = replace(SPEC, where="row < 20", repeats=1)
    curate.trial(aimed, "part", spec)
    before = losses(aimed)
    assert require_trial(aimed, "part").rows.max() < 20
    curate.ingest(aimed, [write_jsonl(tmp_path / "more.jsonl", [{"prompt": "1 and 1?", "completion": "2"}])])
    assert curate.trial(aimed, "part", spec).trainings_now == 0 and losses(aimed) == before


def test_scores_are_compared_by_what_they_foretell(aimed: Workspace, monkeypatch: Any) -> None:
    curate.trial(aimed, "one", replace(SPEC, subsets=12, repeats=1))
    stored = require_trial(aimed, "one")
    true = np.random.default_rng(0).normal(size=len(stored.rows))
    made = (-(stored.members @ true)[:, None] + [[0.0, 0.5]]).astype(np.float64)
    monkeypatch.setattr("curate.verbs.foretell.gains_of", lambda _: (-made, np.zeros((1, 0))))
    listed = ", ".join(f"({row}, {value})" for row, value in zip(stored.rows, true, strict=True))
    known = f"(SELECT v FROM (VALUES {listed}) t(r, v) WHERE r = row)"
    curate.score(aimed, curate.method("score", "length"))
    found = curate.foretell(aimed, "one", "length", known, f"CASE WHEN row < 9 THEN {known} END", draws=200)
    first = found.rows[0]
    assert first.score == known and first.lds == pytest.approx(1) and first.best == 1 and (first.adjusted or 1) < 0.05
    assert first.flops is None and [row.flops for row in found.rows if row.score == "length"] == [0.0]
    assert "foretells best: 1.00" in found.reading and "9 of" not in found.reading
    assert any("has no value for" in warning for warning in found.warnings)
    nothing = curate.foretell(aimed, "one", "length", "row % 7", draws=200)
    assert "None foretells more than chance" in nothing.reading


def test_a_selection_foretells_by_its_weights(aimed: Workspace) -> None:
    curate.trial(aimed, "one", SPEC)
    curate.select(aimed, "firsts", Top(), curate.SelectionSpec(by="-row", top=10))
    by_weights, by_sql = (
        curate.foretell(aimed, "one", what, draws=20).rows[0] for what in ("firsts", "(row < 10)::INT")
    )
    assert by_weights.lds == by_sql.lds and by_weights.samples == aimed.n_rows()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 1.0}, "--share 1 is a share of the samples"),
        ({"subsets": 1}, "a trial has --subsets of 2 or more"),
        ({"split": "train"}, "the split 'train' is neither val nor test"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        replace(SPEC, **change)


def test_bad_input_gets_a_sentence(aimed: Workspace) -> None:
    for spec, said in (
        (replace(SPEC, where="row < 0"), "no sample satisfies --where row < 0"),
        (replace(SPEC, where="row < 2", share=0.1), "--share 0.1 of 2 samples is none"),
        (replace(SPEC, target="nothing"), "has no target 'nothing'"),
        (replace(SPEC, split="test"), "split"),
    ):
        with pytest.raises(CurateError, match=said):
            curate.trial(aimed, "one", spec)
    with pytest.raises(CurateError, match="a trial needs --model"):
        curate.trial(aimed, "one", target="sums")
    with pytest.raises(CurateError, match="has no trial 'one'"):
        curate.foretell(aimed, "one", "length")
    few = curate.trial(aimed, "one", replace(SPEC, repeats=1))
    assert any("none can be told from chance" in warning for warning in few.warnings)
    with pytest.raises(CurateError, match=r"the trial 'one' is another one \(share 0.5, not 0.4\)"):
        curate.trial(aimed, "one", replace(SPEC, repeats=1, share=0.4))
    with pytest.raises(CurateError, match="name what is to foretell it"):
        curate.foretell(aimed, "one")
    with pytest.raises(CurateError, match="has no value for any of the"):
        curate.foretell(aimed, "one", "NULL")
    (aimed.path / "trials/one/losses/_commit/00003-0.json").unlink()
    (aimed.path / "trials/one/losses/_parts.json").unlink()
    with pytest.raises(CurateError, match="1 of the 4 subsets of the trial 'one' are not trained on yet"):
        curate.foretell(aimed, "one", "row")


def test_the_best_samples_are_left_out_and_trained_on_alone(aimed: Workspace, cli: Any) -> None:
    """Against the same trainings by themselves; what has been trained is not trained again, and random draws are
    shared by all scores."""
    curate.trial(aimed, "one", replace(SPEC, subsets=3, repeats=1))
    curate.score(aimed, curate.method("score", "length"))
    found = curate.foretell(aimed, "one", "length", "-row", draws=50, counterfactual=0.25, seeds=2)
    stored = require_trial(aimed, "one")
    count = round(0.25 * len(stored.rows))
    assert len(list((stored.folder / "counterfactuals").glob("*.parquet"))) == 2 * 2 * 2 + 2 * 2
    values = np.array([row["score"] for row in curate.sql(aimed, "SELECT length AS score FROM samples ORDER BY row")])
    top = np.zeros(len(values), bool)
    top[np.argsort(-values, kind="stable")[:count]] = True
    trainer = TrialWorker(str(aimed.path), "one", replace(SPEC, subsets=3, repeats=1)).loaded
    alone = [float(trainer.train(top, seed).loss.mean()) for seed in (0, 1)]
    drawn_alone = []
    for i in (0, 1):
        members = np.zeros(len(values), bool)
        members[np.random.default_rng([0, i, count]).choice(len(values), count, replace=False)] = True
        drawn_alone.append(float(trainer.train(members, i).loss.mean()))
    (row,) = [row for row in found.rows if row.score == "length"]
    assert row.help is not None and row.harm is not None
    assert row.help[0] == pytest.approx(np.mean(np.subtract(drawn_alone, alone)), abs=1e-5)
    assert row.help[1] < row.help[0] < row.help[2] and found.seeds == 2
    before = spent_on(aimed)
    shown = cli("foretell", "one", "length", "--draws", 50, "--counterfactual", 0.25, "--seeds", 2, ws=aimed)
    assert "harm" in shown.stdout and f"{row.help[0]:+.3f}" in shown.stdout and spent_on(aimed) == before > 0
    with pytest.raises(CurateError, match="--counterfactual 1.5 is a share of the samples"):
        curate.foretell(aimed, "one", "length", counterfactual=1.5)


def spent_on(ws: Workspace) -> float:
    (row,) = curate.sql(ws, "SELECT sum(flops) AS flops FROM ledger WHERE stage = 'trial'")
    return row["flops"]


def trained_on(ws: Workspace) -> int:
    (row,) = curate.sql(ws, "SELECT sum(samples) AS n FROM ledger WHERE stage = 'trial' AND phase = 'train'")
    return row["n"]


def test_a_trial_is_an_object_that_is_listed_shown_and_dropped(aimed: Workspace, cli: Any) -> None:
    curate.trial(aimed, "kept", replace(SPEC, subsets=3, repeats=1, keep_checkpoints=True, where="row >= 0"))
    curate.trial(aimed, "again", of="kept", target="sums")
    (again, kept) = curate.status(aimed).trials
    assert kept["state"] == again["state"] == "complete" and kept["trainings"] == 3
    shown = curate.show(aimed, "kept")
    assert isinstance(shown, Described) and "3 random subsets of 0.5" in shown.about
    assert [row["subset"] for row in shown.rows] == [0, 1, 2]
    assert shown.command is not None
    words = shlex.split(shown.command)
    assert cli(*words[1:], ws=aimed).stdout.startswith("Trial kept: 0 of 3 trainings done now")  # it is the same trial
    with pytest.raises(CurateError, match="the score name 'kept' is taken: it is a trial"):
        curate.score(aimed, curate.method("score", "length"), names={"length": "kept"})
    with pytest.raises(CurateError, match="without the trial 'kept', the trial again would be stale"):
        curate.drop(aimed, "kept")
    with pytest.raises(CurateError, match="without the target 'sums', the trials again, kept would be stale"):
        curate.drop(aimed, "sums")
    curate.drop(aimed, "again")
    curate.drop(aimed, "kept")
    assert curate.status(aimed).trials == [] and not (aimed.path / "trials/kept").exists()


@pytest.mark.parametrize("part", ["losses/00001-0.parquet", "checkpoints/00001-0.safetensors"])
def test_what_a_trial_lost_is_found_and_trained_again(aimed: Workspace, part: str) -> None:
    spec = replace(SPEC, subsets=3, repeats=1, keep_checkpoints=True)
    curate.trial(aimed, "kept", spec)
    curate.foretell(aimed, "kept", "row", draws=20, counterfactual=0.25, seeds=2)
    assert curate.verify(aimed).damaged == []
    before = tree_bytes(aimed.path / "trials")
    flip(aimed.path / "trials/kept" / part)
    (damage,) = curate.verify(aimed).damaged
    assert (damage.kind, damage.name, damage.part) == ("trial", "kept", part.partition(".")[0])
    assert "curate trial kept --model" in damage.remedy and not damage.repaired
    (damage,) = curate.verify(aimed, repair=True).damaged
    assert damage.repaired and curate.trial(aimed, "kept", spec).trainings_now == 1
    assert tree_bytes(aimed.path / "trials") == before and curate.verify(aimed).damaged == []
    flip(aimed.path / "trials/kept/drawn/members.parquet")
    (damage,) = curate.verify(aimed, repair=True).damaged
    assert not damage.repaired and "make the trial under another name" in damage.remedy
    with pytest.raises(CurateFailure, match=r"members\.parquet"):
        curate.trial(aimed, "kept", spec)


def test_a_trial_whose_recipe_was_changed_is_not_believed(aimed: Workspace) -> None:
    curate.trial(aimed, "one", replace(SPEC, subsets=3, repeats=1))
    recipe = aimed.path / "trials/one/trial.json"
    recipe.write_text(recipe.read_text().replace('"share":0.5', '"share":0.6').replace('"share": 0.5', '"share": 0.6'))
    with pytest.raises(CurateError, match="it is damaged or was edited"):
        curate.foretell(aimed, "one", "row")
    assert {damage.part for damage in curate.verify(aimed).damaged} == {"trial.json"}
    assert any("trial" in line for line in curate.status(aimed).damaged)


def test_the_page_has_the_table_and_the_figure(aimed: Workspace, cli: Any, tmp_path: Path) -> None:
    curate.trial(aimed, "one", replace(SPEC, subsets=8, repeats=1))
    curate.score(aimed, curate.method("score", "length"))
    shown = cli("foretell", "one", "length", "(-row)", "hash(id) % 97", "-o", tmp_path / "page", ws=aimed)
    assert f"Written: {tmp_path / 'page.html'}" in shown.stdout
    found = curate.foretell(aimed, "one", "length", "(-row)", "hash(id) % 97")
    page = (tmp_path / "page.html").read_text()
    assert found.reading.split(":")[0] in page and "hash(id) % 97" in page and "data:image/png" in page
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
    refused = cli("foretell", "one", "length", "-o", tmp_path / "nowhere/page", ws=aimed)
    assert "there is no such folder to write page.html into" in refused.stderr


def test_the_front_has_what_none_is_cheaper_and_better_than() -> None:
    rows = [Foretelling(str(i), lds, None, None, None, None, None, 0.0, 9, flops, 1.0) for i, (lds, flops) in
            enumerate([(0.5, 10.0), (0.4, 20.0), (0.7, 30.0), (0.1, 0.0), (0.9, None), (None, 0.0)])]  # fmt: skip
    found = Foretold("one", 8, 9, 0.3, None, None, rows)
    assert [row.score for row in on_front(found)] == ["3", "0", "2"]
