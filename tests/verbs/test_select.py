from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.scores.nll import Nll
from curate.methods.selectors.dsir import Dsir
from curate.methods.selectors.quota import Quota
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice
from curate.store.encoding import read_json, write_json
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import qa, tree_bytes, write_jsonl
from tests.support.narrow import NARROW


@pytest.fixture
def scored(sample_ws: Workspace) -> Workspace:
    curate.score(sample_ws, Bm25(keep_subtasks=True), Length(), target="arithmetic")
    return sample_ws


def rows(ws: Workspace, name: str) -> list[dict[str, Any]]:
    return curate.sql(ws, f"SELECT * FROM {name} ORDER BY rank")


def test_top_of_an_expression_equals_sql(scored: Workspace) -> None:
    by = "bm25_arithmetic - 0.1 * length"
    result = curate.select(scored, "best", Top(), SelectionSpec(by=by, where="source <> 'forum'", top=100))
    want = curate.sql(
        scored,
        f"SELECT id, row, source FROM samples WHERE source <> 'forum' ORDER BY ({by})::DOUBLE DESC, id LIMIT 100",
    )
    got = rows(scored, "best")
    assert [(r["id"], r["row"], r["source"]) for r in got] == [(r["id"], r["row"], r["source"]) for r in want]
    assert {(r["weight"], r["repeats"]) for r in got} == {(1.0, 1)}
    assert [r["rank"] for r in got] == list(range(100))
    assert result.rows == 100 and sum(s["selected"] for s in result.by_source) == 100


def test_budgets_in_rows_fractions_and_tokens(scored: Workspace) -> None:
    assert curate.select(scored, "a", Top(), SelectionSpec(by="length", frac=0.05)).rows == 150
    assert curate.select(scored, "b", Top(), SelectionSpec(by="length", where="length > 3", frac=0.5)).rows > 150
    result = curate.select(scored, "c", Random(), SelectionSpec(tokens=2000, token_count="length_words"))
    assert 1900 < result.tokens <= 2000
    total = curate.sql(scored, "SELECT sum(length_words)::DOUBLE AS n FROM c JOIN samples USING (row)")
    assert total == [{"n": result.tokens}]
    result = curate.select(scored, "d", Top(), SelectionSpec(by="length", top=10_000))
    assert result.rows == 3000 and "more than the 3,000 candidates" in result.warnings[0]
    all_of_it = curate.select(scored, "whole", Random(), SelectionSpec(tokens=1e9, token_count="length_words"))
    assert all_of_it.warnings[0].startswith("the budget of 1,000,000,000 tokens is more than the ")
    assert len(all_of_it.warnings) == 1 and all_of_it.rows == all_of_it.candidates


def test_per_source_gives_each_its_budget(scored: Workspace) -> None:
    result = curate.select(scored, "each", Top(), SelectionSpec(by="bm25_arithmetic", top=7, per="source"))
    assert {(s["source"], s["selected"]) for s in result.by_source} == {
        (s, 7) for s in ("school", "workshop", "atlas", "forum")
    }


def test_per_subtask_gives_each_its_best_and_none_twice(scored: Workspace) -> None:
    curate.select(scored, "each", Top(), SelectionSpec(by="bm25_arithmetic", top=20, per="subtask"))
    got = rows(scored, "each")
    assert len({r["id"] for r in got}) == 60
    best_add = curate.sql(scored, "SELECT id FROM bm25_arithmetic ORDER BY subtasks['add']::DOUBLE DESC, id LIMIT 20")
    assert [r["id"] for r in got[:20]] == [r["id"] for r in best_add]
    with pytest.raises(CurateError, match="kept no sub-tasks"):
        curate.select(scored, "x", Top(), SelectionSpec(by="length", top=1, per="subtask"))


def test_groups_draw_with_noise_of_their_own() -> None:
    """What the first group left over is as likely as any other in the second."""
    from curate.tables.candidates import group_seed

    pool, second = Candidates.of([0.0, 0.0, 0.0]), 0
    for seed in range(3000):
        first = Dsir().select(Candidates.of([0.0, 0.0, -50.0]), Budget("rows", 1), group_seed(seed, "one"))[0]
        order = Dsir().select(pool, Budget("rows", 3), group_seed(seed, "two"))
        second += next(i for i in order if i != first) == 2
    assert abs(second / 3000 - 0.5) < 0.04


def test_samples_without_a_value_are_never_chosen(scored: Workspace) -> None:
    by = "CASE WHEN source = 'forum' THEN NULL WHEN source = 'atlas' THEN 'nan'::DOUBLE ELSE 1 END"
    result = curate.select(scored, "valued", Top(), SelectionSpec(by=by, top=3000))
    assert {r["source"] for r in rows(scored, "valued")} == {"school", "workshop"}
    assert result.without_value == 3000 - result.rows


def test_a_replay_writes_the_same_bytes(scored: Workspace) -> None:
    choice = SelectionSpec(by="bm25_arithmetic", where="length > 2", top=50, seed=3)
    curate.select(scored, "one", Quota(shares="school:1,forum:2"), choice)
    again = curate.replay(scored, "two", str(scored.manifest_path("one").with_suffix(".json")))
    assert again.warnings == []
    one, two = scored.manifest_path("one"), scored.manifest_path("two")
    assert one.read_bytes() == two.read_bytes()


def test_a_replay_says_what_has_changed(scored: Workspace, tmp_path: Path) -> None:
    curate.select(scored, "one", Top(), SelectionSpec(by="length", top=50))
    curate.ingest(scored, [write_jsonl(tmp_path / "m.jsonl", [{"question": "q", "answer": "long " * 500}])])
    curate.score(scored, Length())
    again = curate.replay(scored, "two", str(scored.manifest_path("one").with_suffix(".json")))
    assert again.warnings == ["the rows differ from the replayed manifest's: the pool has changed since"]
    with pytest.raises(CurateError, match="no manifest's JSON"):
        curate.replay(scored, "x", str(scored.path / "workspace.json"))


def test_the_command_in_the_lineage_makes_the_same_selection(scored: Workspace, cli: Any) -> None:
    choice = SelectionSpec(
        by="bm25_arithmetic", where="source = 'it''s' OR length > 2", frac=0.02, per="source", seed=9
    )
    curate.select(scored, "one", Top(), choice)
    lineage = read_json(scored.manifest_path("one").with_suffix(".json"))
    words = shlex.split(lineage["command"])
    assert words[:3] == ["curate", "select", "one"]
    done = cli(words[1], "two", *words[3:], ws=scored)
    assert done.returncode == 0, done.stderr
    assert scored.manifest_path("two").read_bytes() == scored.manifest_path("one").read_bytes()
    assert set(lineage["scores"]) == {"bm25_arithmetic", "length"}


def test_stale_and_incomplete_scores_are_refused_unless_allowed(scored: Workspace, tmp_path: Path) -> None:
    curate.ingest(scored, [write_jsonl(tmp_path / "more.jsonl", qa(5))])
    for name, why in (("bm25_arithmetic", "is stale"), ("length", "lacks 5 of 3005")):
        with pytest.raises(CurateError, match=f"{why}.*run `curate score .*--allow-stale"):
            curate.select(scored, "x", Top(), SelectionSpec(by=name, top=5))
        result = curate.select(scored, f"with_{name}", Top(), SelectionSpec(by=name, top=5, allow_stale=True))
        assert result.rows == 5 and why in result.warnings[0]


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({}, "exactly one budget"),
        ({"top": 1, "frac": 0.5}, "exactly one budget"),
        ({"top": 0}, "above 0"),
        ({"frac": float("nan")}, "above 0"),
        ({"tokens": float("inf")}, "above 0"),
        ({"top": 10**30}, "above 0"),
        ({"top": 1, "seed": 2**70}, "62 bits"),
        ({"frac": 1.5}, "more than the whole"),
        ({"top": 1, "per": "domain"}, "source or subtask"),
    ],
)
def test_an_ill_choice_is_refused(choice: dict, sentence: str) -> None:
    with pytest.raises(CurateError, match=sentence):
        SelectionSpec(**choice)


@pytest.mark.parametrize(
    ("name", "choice", "sentence"),
    [
        ("x", {"by": "no_such", "top": 1}, "there is no column 'no_such'"),
        ("x", {"by": "length +", "top": 1}, "not SQL"),
        ("x", {"by": "source", "top": 1}, "DuckDB refuses"),
        ("x", {"where": "source = 'none'", "top": 1}, "no sample passes"),
        ("x", {"by": "NULL", "top": 1}, "nothing was selected"),
        ("Bad-Name", {"top": 1}, "'bad_name' would do"),
        ("length", {"top": 1}, "taken: it is a score"),
        ("table", {"top": 1}, "word of SQL"),
    ],
)
def test_a_selection_that_cannot_be_is_one_sentence_and_leaves_nothing(
    scored: Workspace, name: str, choice: dict, sentence: str
) -> None:
    before = tree_bytes(scored.path)
    with pytest.raises(CurateError, match=sentence) as caught:
        curate.select(scored, name, Top() if "by" in choice else Random(), SelectionSpec(**choice))
    assert "\n" not in str(caught.value)
    after = {k: v for k, v in tree_bytes(scored.path).items() if not k.startswith("ledger")}
    assert after == {k: v for k, v in before.items() if not k.startswith("ledger")}


def test_a_failed_selection_leaves_the_manifest_it_would_have_replaced(scored: Workspace, monkeypatch: Any) -> None:
    curate.select(scored, "best", Top(), SelectionSpec(by="length", top=5))
    before = rows(scored, "best")

    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curate.store.manifests.write_table", full)
    with pytest.raises(OSError, match="No space"):
        curate.select(scored, "best", Top(), SelectionSpec(by="length", top=7), fresh=True)
    assert rows(scored, "best") == before


def test_a_manifest_that_its_json_does_not_vouch_for_is_not_exported(scored: Workspace) -> None:
    from curate.methods.exports.jsonl import Jsonl

    curate.select(scored, "best", Top(), SelectionSpec(by="length", top=5))
    curate.select(scored, "other", Top(), SelectionSpec(by="length", top=6))
    scored.manifest_path("best").write_bytes(scored.manifest_path("other").read_bytes())
    with pytest.raises(CurateError, match="vouches"):
        curate.preview(scored, "best", Jsonl(), 1)


def test_conditions_with_comments_and_chance_are_fine(scored: Workspace) -> None:
    assert (
        curate.select(scored, "a", Top(), SelectionSpec(by="length -- words", where="length > 3 -- more", top=5)).rows
        == 5
    )
    choice = SelectionSpec(by="bm25_arithmetic", where="random() < 0.5 AND length > 1", top=5, per="subtask")
    assert curate.select(scored, "b", Top(), choice).rows == 15


def test_a_dry_run_tells_and_writes_nothing(scored: Workspace) -> None:
    assert curate.select(scored, "x", Top(), SelectionSpec(by="length", top=5), dry_run=True).rows == 5
    assert scored.manifest_names() == []


def test_a_fraction_is_of_all_candidates_or_of_those_with_a_value(scored: Workspace, cli: Any) -> None:
    valued = "CASE WHEN source = 'forum' THEN length END"
    (n,) = [row["n"] for row in curate.sql(scored, "SELECT count(*) AS n FROM pool WHERE source = 'forum'")]
    found = curate.select(scored, "of_all", Top(), SelectionSpec(by=valued, frac=0.1))
    assert found.rows == 300 and found.without_value == 3000 - n
    assert (
        curate.select(scored, "of_valued", Top(), SelectionSpec(by=valued, frac=0.1, frac_of="valued")).rows == n // 10
    )
    per = SelectionSpec(by="length", where="source IN ('forum', 'school')", frac=0.5, per="source")
    assert curate.select(scored, "each", Top(), per).rows == n // 2 + 926 // 2
    most = curate.select(scored, "most", Top(), SelectionSpec(by=valued, frac=0.5))
    assert most.rows == n and "the budget of 1,500 rows is more than" in most.warnings[0]
    for name in ("of_all", "of_valued"):  # the command that is recorded makes the same
        words = shlex.split(read_json(scored.manifest_path(name).with_suffix(".json"))["command"])
        assert ("--frac-of" in words) == (name == "of_valued")
        assert cli(*words[1:2], "again", *words[3:], "--fresh", ws=scored).returncode == 0
        assert rows(scored, "again") == rows(scored, name)


RULES: dict[str, Any] = {
    "first": lambda row: row["row"],
    "longest": lambda row: -row["n_chars"],
    "shortest": lambda row: row["n_chars"],
    "best:length_chars % 7": lambda row: -(row["length_chars"] % 7),
    "source:school, atlas": lambda row: ["school", "atlas"].index(row["source"]) if row["source"] in (
        "school", "atlas") else 2,
}  # fmt: skip


@pytest.mark.parametrize("keep", RULES)
def test_one_of_a_group_is_a_candidate_by_a_rule(scored: Workspace, keep: str) -> None:
    group = "CASE WHEN n_chars % 5 > 0 THEN n_chars // 9 END"  # a fifth are in no group
    spec = SelectionSpec(frac=1.0, where="source <> 'forum'", one_per=group, keep=keep)
    found = curate.select(scored, "some_of_it", Random(), spec)
    columns = "id, row, source, n_chars, length_chars"
    samples = list(curate.sql(scored, f"SELECT {columns} FROM samples WHERE source <> 'forum' ORDER BY id"))
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in samples:
        groups.setdefault(row["n_chars"] // 9 if row["n_chars"] % 5 else row["id"], []).append(row)
    want = {min(rows, key=lambda row: (RULES[keep](row), row["id"]))["id"] for rows in groups.values()}
    assert {row["id"] for row in rows(scored, "some_of_it")} == want and found.candidates == len(want)
    (told,) = found.warnings
    assert told.startswith(f"{len(samples) - len(want):,} samples were left out for another one of the same CASE")
    words = shlex.split(read_json(scored.manifest_path("some_of_it").with_suffix(".json"))["command"])
    assert ("--keep" in words) == (keep != "first") and words[words.index("--one-per") + 1] == group


def test_a_group_whose_score_is_stale_is_refused(scored: Workspace, tmp_path: Path) -> None:
    spec = SelectionSpec(top=5, one_per="bm25_arithmetic", keep="best:length")
    curate.select(scored, "few", Random(), spec)
    curate.ingest(scored, [write_jsonl(tmp_path / "more.jsonl", qa(3))])
    with pytest.raises(CurateError, match="bm25_arithmetic' is stale"):
        curate.select(scored, "few", Random(), spec)
    for wrong in ({"keep": "longest"}, {"one_per": "source", "keep": "best"}, {"one_per": "source", "keep": "source:"}):
        with pytest.raises(CurateError, match="--keep"):
            SelectionSpec(top=5, **wrong)  # type: ignore[arg-type]


def test_a_share_that_an_earlier_version_recorded_is_of_those_with_a_value(scored: Workspace, tmp_path: Path) -> None:
    curate.select(scored, "old", Top(), SelectionSpec(by="nullif(length, 5)", frac=0.1, frac_of="valued"))
    path = Path(str(scored.manifest_path("old").with_suffix(".json")))
    recipe = read_json(path)
    del recipe["choice"]["frac_of"]
    write_json(tmp_path / "old.json", recipe)
    curate.replay(scored, "again", str(tmp_path / "old.json"))
    assert rows(scored, "again") == rows(scored, "old")


def test_a_budget_in_tokens_is_counted_by_a_model_s_tokenizer_where_it_counted_all(handful_ws: Workspace) -> None:
    spec = SelectionSpec(tokens=300)
    assert curate.select(handful_ws, "a", Random(), spec).counted_by == "n_chars / 4.0"
    curate.score(handful_ws, Nll(), models=ModelChoice(NARROW))
    found = curate.select(handful_ws, "b", Random(), spec)
    (n,) = curate.sql(handful_ws, "SELECT sum(nll_tokens)::INT AS n FROM b JOIN samples USING (row)")
    assert found.counted_by == "nll_tokens" and found.tokens == n["n"] <= 300
    assert curate.select(handful_ws, "c", Random(), SelectionSpec(top=3)).counted_by == "n_chars / 4.0"
    recipe = read_json(handful_ws.manifest_path("b").with_suffix(".json"))
    assert recipe["choice"]["token_count"] == "nll_tokens" and list(recipe["scores"]) == ["nll"]
