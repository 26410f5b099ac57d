"""Samples that are read again with other fields: what is kept, replaced, merged; and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.exports.jsonl import Jsonl
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import tree_bytes, write_jsonl

BIG = 2**70


def line(i: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {i}", "completion": f"answer {i}", **fields}


@pytest.fixture
def known(ws: Workspace, tmp_path: Path) -> Workspace:
    rows = [line(i, n=i, origin={"page": i, "big": BIG}) for i in range(20)]
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", rows)], source="a", shard_bytes=100)
    assert len(ws.shards()) > 3
    curate.score(ws, Length())
    return ws


AGAIN = [line(3, n=3, origin={"big": BIG, "page": 3}), line(4, n=44, label="good"), line(5, n=5)]


def metas(ws: Workspace) -> dict[str, Any]:
    rows = curate.sql(ws, "SELECT messages[1].content AS q, meta FROM pool ORDER BY row")
    assert [row["q"] for row in rows] == [f"question {i}" for i in range(len(rows))]
    shown = curate.sql(ws, "SELECT messages[1].content AS q, meta FROM samples ORDER BY row")
    assert list(shown) == list(rows)
    return {row["q"].removeprefix("question "): json.loads(row["meta"]) for row in rows}


OLD = {"n": 4, "origin": {"page": 4, "big": BIG}}
RULES: dict[Any, Any] = {
    "keep": (OLD, {"n": 5, "origin": {"page": 5, "big": BIG}}),
    "replace": ({"n": 44, "label": "good"}, {"n": 5}),
    "merge": ({"n": 44, "origin": OLD["origin"], "label": "good"}, {"n": 5, "origin": {"page": 5, "big": BIG}}),
}


@pytest.mark.parametrize("rule", RULES)
def test_other_fields_of_known_samples_are_kept_replaced_or_merged_and_told(
    known: Workspace, tmp_path: Path, rule: Any
) -> None:
    before = {i: meta for i, meta in metas(known).items() if i not in ("4", "5")}
    shards = {name: data for name, data in tree_bytes(known.path / "pool").items() if name.endswith("0.parquet")}
    # of 3 the same fields, of 5 fewer
    done = curate.ingest(known, [write_jsonl(tmp_path / "b.jsonl", [*AGAIN, line(20, n=20)])], meta=rule)
    assert (done.added, done.copies, done.other_meta) == (
        1,
        3,
        2 if rule == "replace" else 1,
    )
    (told,) = [w for w in done.warnings if "other fields" in w]
    assert told.startswith("2 known" if rule == "replace" else "1 known") and ("--meta" in told) == (rule == "keep")
    after = metas(known)
    assert (after.pop("4"), after.pop("5")) == RULES[rule] and after.pop("20") == {"n": 20}
    assert after == before
    now = tree_bytes(known.path / "pool")
    assert all(now[name] == data for name, data in shards.items())  # and scores of them stand
    assert curate.score(known, Length())[0].computed == 1
    assert [row["copies"] for row in curate.sql(known, "SELECT copies FROM pool WHERE row IN (3, 4, 5)")] == [2] * 3
    assert curate.verify(known).damaged == []

    curate.select(known, "whole", Random(), SelectionSpec(frac=1.0))
    out = curate.export(known, "whole", Jsonl(), str(tmp_path / "out"))
    written = [json.loads(text) for text in Path(out.files[0]).read_text().splitlines()]
    assert [row["meta"] for row in written] == list(metas(known).values())


def test_the_last_one_holds_also_within_a_file(known: Workspace, tmp_path: Path) -> None:
    rows = [line(4, n=1), line(4, n=2), line(30, n=0), line(30, n=1)]
    done = curate.ingest(known, [write_jsonl(tmp_path / "b.jsonl", rows)], meta="replace")
    assert done.other_meta == 3
    found = curate.sql(
        known, "SELECT meta->>'n' AS n FROM pool WHERE messages[1].content IN ('question 4', 'question 30')"
    )
    assert [row["n"] for row in found] == ["2", "1"]
    curate.ingest(known, [write_jsonl(tmp_path / "c.jsonl", [line(4, n=3)])], meta="replace")
    assert metas_of_4(known) == {"n": 3}
    curate.ingest(known, [write_jsonl(tmp_path / "d.jsonl", [line(4, more=1)])], meta="merge")
    assert metas_of_4(known) == {"n": 3, "more": 1}


def metas_of_4(ws: Workspace) -> Any:
    (row,) = curate.sql(ws, "SELECT meta FROM samples WHERE messages[1].content = 'question 4'")
    return json.loads(row["meta"])


def test_a_file_that_was_read_keeping_the_old_is_read_again_to_replace_them(
    known: Workspace, tmp_path: Path, cli: Any
) -> None:
    file = write_jsonl(tmp_path / "b.jsonl", AGAIN)
    assert "1 known samples came with other fields; those in the pool were kept" in cli("ingest", file, ws=known).stdout
    copies = "SELECT sum(copies)::INT AS n FROM pool"
    before = list(curate.sql(known, copies))
    assert "1 file skipped" in cli("ingest", file, ws=known).stdout
    done = cli("ingest", file, "--meta", "replace", ws=known)
    assert "those in the pool were replaced" in done.stdout and metas_of_4(known) == {"n": 44, "label": "good"}
    assert list(curate.sql(known, copies)) == before  # they are counted once


def test_what_is_damaged_beside_the_pool_is_found_and_a_wrong_rule_is_refused(known: Workspace, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "b.jsonl", AGAIN)
    with pytest.raises(CurateError, match="--meta must be one of keep, replace, merge"):
        curate.ingest(known, [file], meta="both")  # type: ignore[arg-type]
    curate.ingest(known, [file], meta="replace")
    (beside,) = (known.path / "pool/meta").glob("*.parquet")  # type: ignore[union-attr]
    beside.write_bytes(beside.read_bytes()[:-5])
    assert [damage.kind for damage in curate.verify(known).damaged] == ["meta"]
