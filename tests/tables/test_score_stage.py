"""The score engine: units, resuming, appending, staleness, replacing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.length import Length
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables.state import score_state
from curate.tables.units import ROW_COST, shard_units, unit_ranges
from tests.conftest import SAMPLE, qa, run_and_kill, tree_bytes, write_jsonl


class Small(Bm25):
    """Bm25 in many units."""

    unit_bytes = 10_000


Small.name = "bm25"


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(pass, rows) of every batch that a method maps."""
    seen: list[tuple[str, int]] = []
    for cls, name in ((Bm25, "_count"), (Bm25, "_score"), (Length, "_count")):
        original = getattr(cls, name)

        def spy(self: Any, batch: Any, given: Any, original: Any = original, what: str = f"{cls.name}{name}") -> Any:
            seen.append((what, len(batch)))
            return original(self, batch, given)

        monkeypatch.setattr(cls, name, spy)
    return seen


def test_units_cover_a_shard_once_and_follow_its_bytes() -> None:
    rng = np.random.default_rng(1)
    for costs, size in (
        (np.ones(1), 5),
        (np.ones(10), 3),
        (np.full(1000, 7.3), 64),
        (rng.pareto(0.7, 3000) + 1, 300),
        (np.r_[np.ones(500), 1e6, np.ones(500)], 300),
        (np.ones(7), 100),
    ):
        ranges = unit_ranges(costs, size)
        assert [a for a, _ in ranges[1:]] == [b for _, b in ranges[:-1]]
        assert ranges[0][0] == 0 and ranges[-1][1] == len(costs) and all(a < b for a, b in ranges)
        taken = [costs[a:b].sum() for a, b in ranges]
        assert all(cost <= 2 * size or b - a == 1 for (a, b), cost in zip(ranges, taken, strict=True))
        # No two neighbours would fit into one: there are no more units than needed, but for the last's crumb.
        assert all(x + y > size / 2 for x, y in zip(taken, taken[1:], strict=False))


def test_units_are_whole_row_groups_unless_a_group_is_larger(ws: Workspace, tmp_path: Path) -> None:
    sizes = [100] * 40 + [5000] + [100] * 9
    rows = [{"text": f"{i:03d} ".ljust(n, "x")} for i, n in enumerate(sizes)]
    curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", rows)])
    (shard,) = ws.shards()
    table = read_table(shard.path)
    ws.pool.commit(shard.name, table, row_group=10, n_chars=shard.n_chars, files={}, beside={})
    (shard,) = ws.shards()
    cost = 10 * (100 + ROW_COST)
    found = [(u.start, u.stop) for u in shard_units(shard, 2.5 * cost, {})]
    assert found == [(0, 20), (20, 40), (40, 41), (41, 50)]  # the huge row of the last group stands alone


def test_scoring_again_computes_nothing(sample_ws: Workspace, spied: list) -> None:
    (first,) = curate.score(sample_ws, Small(), target="arithmetic")
    assert (first.computed, first.reused, first.rows) == (3000, 0, 3000)
    before = tree_bytes(sample_ws.path / "scores", "*")
    spied.clear()
    (second,) = curate.score(sample_ws, Small(), target="arithmetic")
    assert (second.computed, second.reused, spied) == (0, 3000, [])
    assert tree_bytes(sample_ws.path / "scores", "*") == before


def test_a_second_target_reuses_the_counts(sample_ws: Workspace, spied: list) -> None:
    curate.target(sample_ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    curate.score(sample_ws, Bm25(), target="arithmetic")
    spied.clear()
    curate.score(sample_ws, Bm25(), target="facts")
    curate.score(sample_ws, Bm25(variant="lucene"), target="facts", names={"bm25": "lucene"})
    assert {what for what, _ in spied} == {"bm25_score"}


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        (Bm25(), Bm25(lowercase=False)),
        (Bm25(), Bm25(pattern=r"[a-z]+")),
        (Dsir(min_tokens=1), Dsir(min_tokens=1, ngrams=1)),
        (Dsir(min_tokens=1), Dsir(min_tokens=1, buckets=100)),
    ],
)
def test_a_setting_that_shapes_the_counts_counts_again(sample_ws: Workspace, method: Any, changed: Any) -> None:
    curate.score(sample_ws, method, target="arithmetic", names={method.name: "one"})
    curate.score(sample_ws, changed, target="arithmetic", names={method.name: "two"})
    stored = curate.sql(sample_ws, "SELECT score FROM two")
    for shard in (sample_ws.path / "prepared").iterdir():
        shutil.rmtree(shard)
    curate.score(sample_ws, changed, target="arithmetic", names={method.name: "two"}, fresh=True)
    assert curate.sql(sample_ws, "SELECT score FROM two") == stored


def test_appending_fills_row_scores_and_makes_pool_scores_stale(
    sample_ws: Workspace, tmp_path: Path, spied: list
) -> None:
    curate.score(sample_ws, Length(), Bm25(), target="arithmetic")
    untouched = tree_bytes(sample_ws.path / "scores/length")
    curate.ingest(sample_ws, [write_jsonl(tmp_path / "more.jsonl", qa(500))])
    assert score_state(sample_ws, "length").problem() == "lacks 500 of 3500 samples"
    assert score_state(sample_ws, "bm25_arithmetic").problem() == "is stale (the pool has grown)"
    nulls = curate.sql(
        sample_ws, "SELECT count(*) - count(length) AS l, count(*) - count(bm25_arithmetic) AS b FROM samples"
    )
    assert nulls == [{"l": 500, "b": 500}]  # what is not scored yet is null, and in its place

    spied.clear()
    (length,) = curate.score(sample_ws, Length())
    assert (length.computed, length.reused) == (500, 3000)
    assert spied == [("length_count", 500)]
    assert untouched.items() <= tree_bytes(sample_ws.path / "scores/length").items()

    old = curate.sql(sample_ws, "SELECT * FROM bm25_arithmetic")
    spied.clear()
    (bm25,) = curate.score(sample_ws, Bm25(), target="arithmetic")
    assert bm25.computed == 3500 and score_state(sample_ws, "bm25_arithmetic").problem() is None
    assert sum(n for what, n in spied if what == "bm25_count") == 500  # the old shards' counts stand
    assert curate.sql(sample_ws, "SELECT * FROM bm25_arithmetic")[:3000] != old


def test_an_edited_target_makes_its_scores_stale_and_no_others(sample_ws: Workspace, tmp_path: Path) -> None:
    curate.score(sample_ws, Length(), Bm25(), target="arithmetic")
    curate.target(sample_ws, "arithmetic", write_jsonl(tmp_path / "t.jsonl", qa(3)))
    assert score_state(sample_ws, "bm25_arithmetic").problem() == "is stale (the target 'arithmetic' was edited)"
    assert score_state(sample_ws, "length").problem() is None
    curate.score(sample_ws, Bm25(), target="arithmetic")
    assert score_state(sample_ws, "bm25_arithmetic").problem() is None


def test_other_settings_under_the_same_name_are_refused_by_name_and_replaced_by_fresh(sample_ws: Workspace) -> None:
    curate.score(sample_ws, Bm25(), target="arithmetic")
    before = curate.sql(sample_ws, "SELECT sum(score) AS s FROM bm25_arithmetic")
    with pytest.raises(CurateError, match=r"made with k1=1.5, not k1=0.9.*--fresh"):
        curate.score(sample_ws, Bm25(k1=0.9), target="arithmetic")
    with pytest.raises(CurateError, match="made with method"):
        curate.score(sample_ws, Length(), names={"length": "bm25_arithmetic"})
    assert curate.sql(sample_ws, "SELECT sum(score) AS s FROM bm25_arithmetic") == before
    curate.score(sample_ws, Bm25(k1=0.9), target="arithmetic", fresh=True)
    assert curate.sql(sample_ws, "SELECT sum(score) AS s FROM bm25_arithmetic") != before
    assert score_state(sample_ws, "bm25_arithmetic").command() == "curate score bm25 --target arithmetic --set k1=0.9"
    assert [p.name for p in (sample_ws.path / "scores").iterdir()] == ["bm25_arithmetic"]


def test_a_swap_interrupted_between_its_renames_is_completed(sample_ws: Workspace) -> None:
    curate.score(sample_ws, Length())
    scores = sample_ws.path / "scores"
    want = tree_bytes(scores / "length")
    os.rename(scores / "length", scores / ".length.fresh")  # the state after the old table's rename
    (scores / ".length.fresh/complete").touch()
    (scores / ".length.dropped").mkdir()
    ws = curate.open_workspace(sample_ws.path)
    assert ws.score_names() == ["length"] and tree_bytes(scores / "length") == want
    assert [p.name for p in scores.iterdir()] == ["length"] and not (scores / "length/complete").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((Bm25(),), {}), "needs a target: add --target"),
        (((Bm25(),), {"target": "nope"}), "no target 'nope'.*there is arithmetic"),
        (((Length(),), {"target": "arithmetic"}), "no method of length uses a target"),
        (((Length(),), {"names": {"length": "Select"}}), "must match"),
        (((Length(),), {"names": {"length": "select"}}), "word of SQL"),
        (((Length(),), {"names": {"length": "n_chars"}}), "taken: it is a column of the pool"),
        (((Length(),), {"names": {"length": "pool"}}), "taken: it is a view"),
        (((Length(),), {"names": {"bm25": "x"}}), "not among the methods"),
        (((), {}), "at least one score method"),
    ],
)
def test_mistakes_are_told_in_a_sentence(sample_ws: Workspace, arguments: Any, sentence: str) -> None:
    methods, kwargs = arguments
    with pytest.raises(CurateError, match=sentence):
        curate.score(sample_ws, *methods, **kwargs)
    assert sample_ws.score_names() == []


def test_an_empty_pool_cannot_be_scored(ws: Workspace) -> None:
    with pytest.raises(CurateError, match="the pool is empty"):
        curate.score(ws, Length())


def test_an_ingest_while_scoring_cannot_mix_two_pools(sample_ws: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    """The first of two methods runs while samples are appended: the second is of the pool it was planned for."""
    more, original = write_jsonl(tmp_path / "more.jsonl", qa(200)), Length._count

    def appended(self: Any, batch: Any, given: Any) -> Any:
        curate.ingest(sample_ws, [more])
        return original(self, batch, given)

    monkeypatch.setattr(Length, "_count", appended)
    curate.score(sample_ws, Length(), Bm25(), target="arithmetic")
    monkeypatch.undo()
    assert score_state(sample_ws, "bm25_arithmetic").problem() == "is stale (the pool has grown)"
    curate.score(sample_ws, Bm25(), target="arithmetic")
    mixed = curate.sql(sample_ws, "SELECT score FROM bm25_arithmetic")
    curate.score(sample_ws, Bm25(), target="arithmetic", fresh=True)
    assert curate.sql(sample_ws, "SELECT score FROM bm25_arithmetic") == mixed


def test_a_name_that_would_hide_another_column_is_refused(sample_ws: Workspace) -> None:
    curate.score(sample_ws, Length())
    for name, what in (("length_words", "'length'"), ("n", "the pool")):
        with pytest.raises(CurateError, match=f"one of .*{what}"):
            curate.score(sample_ws, Length(), names={"length": name})
    curate.target(sample_ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
    with pytest.raises(CurateError, match="taken: it is a target"):
        curate.score(sample_ws, Length(), names={"length": "t"})


def test_a_target_that_lost_its_val_split_makes_its_scores_stale_and_nothing_fail(
    sample_ws: Workspace, tmp_path: Path
) -> None:
    curate.score(sample_ws, Bm25(), target="arithmetic")
    curate.drop(sample_ws, "arithmetic", force=True)
    curate.target(sample_ws, "arithmetic", write_jsonl(tmp_path / "t.jsonl", qa(2)), split="test")
    assert "no val split" in str(score_state(sample_ws, "bm25_arithmetic").problem())
    assert len(curate.sql(sample_ws, "SELECT * FROM samples LIMIT 3")) == 3
    assert curate.status(sample_ws).scores[0]["state"].startswith("is stale")


def test_a_dry_run_tells_the_work_and_does_none(sample_ws: Workspace) -> None:
    before = tree_bytes(sample_ws.path, "*")
    (plan,) = curate.score(sample_ws, Small(), target="arithmetic", dry_run=True)
    assert [p["pass"] for p in plan.planned] == ["count", "score"]
    assert plan.planned[0]["rows"] == 3000 and plan.planned[0]["units"] > plan.planned[0]["shards"]
    assert tree_bytes(sample_ws.path, "*") == before
    curate.score(sample_ws, Length())
    assert curate.score(sample_ws, Length(), dry_run=True)[0].planned[0]["rows"] == 0
    assert curate.score(sample_ws, Length(), dry_run=True, fresh=True)[0].planned[0]["rows"] == 3000
    with pytest.raises(CurateError, match="made with of=answer"):
        curate.score(sample_ws, Length(of="whole"), dry_run=True)


def test_commit_records_vouch_for_the_bytes(sample_ws: Workspace) -> None:
    import hashlib

    curate.score(sample_ws, Small(), target="arithmetic")
    folder = sample_ws.score_folder("bm25_arithmetic")
    from curate.store.commits import Parts

    records = Parts(folder).records()
    assert len(records) == len(sample_ws.shards()) > 1
    for name, record in records.items():
        data = (folder / f"{name}.parquet").read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        for word in (str(sample_ws.path), "bm25_arithmetic", os.uname().nodename):
            assert word.encode() not in data
    assert not (folder / "_units").exists() or not any((folder / "_units").iterdir())


def test_every_pass_is_in_the_ledger(sample_ws: Workspace) -> None:
    curate.score(sample_ws, Length(), Bm25(), target="arithmetic")
    rows = [(r["stage"], r["methods"], r["name"], r["phase"], r["samples"]) for r in curate.ledger(sample_ws)]
    assert rows == [
        ("ingest", "", "pool", "read", 3000),
        ("score", "length", "length", "count", 3000),
        ("score", "bm25", "bm25_arithmetic", "count", 3000),
        ("score", "bm25", "bm25_arithmetic", "score", 3000),
    ]


# --- under a real kill -----------------------------------------------------------------------------------

SCORE = """
    import curate
    from curate.methods.scores.bm25 import Bm25

    class Small(Bm25):
        unit_bytes = 10_000

    Small.name = "bm25"
    curate.score(curate.open_workspace(sys.argv[1]), Small(), target="arithmetic")
"""


def test_a_run_killed_again_and_again_repeats_no_unit_and_ends_with_the_same_bytes(
    sample_ws: Workspace, tmp_path: Path, spied: list
) -> None:
    calm = curate.open_workspace(shutil.copytree(sample_ws.path, tmp_path / "calm"))
    curate.score(calm, Small(), target="arithmetic")
    units = len(spied)
    assert units > 30
    spied.clear()
    done = 0
    for commits in (3, 9, 8, 7):
        run_and_kill(SCORE, str(sample_ws.path), die_at=commits + 1)
        done += commits
    (result,) = curate.score(sample_ws, Small(), target="arithmetic")
    # Of the commits before each kill all were units, but for one state and the parts they were merged into.
    merged = len(sample_ws.shards()) + 1
    assert units - done <= len(spied) <= units - done + merged
    assert result.rows == 3000
    assert tree_bytes(sample_ws.path / "scores") == tree_bytes(calm.path / "scores")
    assert not [p for p in (sample_ws.path / "scores").rglob("*") if "tmp" in p.name]


def test_a_living_writer_is_respected_and_a_dead_one_is_not(sample_ws: Workspace) -> None:
    holder = """
        import sys, time
        from pathlib import Path
        from curate.store.locks import lock
        with lock(Path(sys.argv[1]), "score length"):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(holder), str(sample_ws.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(CurateError, match=f"process {process.pid} on .* is writing the score length"):
        curate.score(sample_ws, Length())
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    curate.score(sample_ws, Length())
    assert sample_ws.score_names() == ["length"]
