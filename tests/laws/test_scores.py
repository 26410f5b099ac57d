"""What holds for every score, whoever wrote it. A new file gets these laws for nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.kinds.registry import find
from curate.kinds.score import Target
from curate.kinds.text import Text
from curate.tables.score_table import score_table
from tests.conftest import SAMPLE, tree_bytes
from tests.laws.test_selectors import SCORES
from tests.support.laws import TEXTS, TOLERANCE, computed, given_to, lenient, said, same, scored


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [7, 1], [2, 2, 2, 2]])
def test_a_score_does_not_depend_on_batches_or_order(name: str, sizes: list[int]) -> None:
    whole = scored(name, list(range(8)), [8])
    for text, row in zip(TEXTS, whole, strict=True):
        assert row["score"] is not None or isinstance(text, str) and "raw text" in row["error"]
    assert same(scored(name, list(range(8)), sizes), whole, find("score", name))
    order = random.Random(sum(sizes)).sample(range(8), 8)
    assert same(scored(name, order, sizes), whole, find("score", name))


@pytest.mark.parametrize("name", SCORES)
def test_a_score_does_not_depend_on_shards_and_units(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    tables, by_model = [], bool(find("score", name).models)
    sample = sorted(map(str, (SAMPLE / "pool").iterdir()))[: 1 if by_model else None]
    for shard_bytes, unit in ((20_000 if by_model else 60_000, 10_000), (10_000_000, 10_000_000)):
        ws = curate.open_workspace(tmp_path / str(shard_bytes))
        curate.ingest(ws, sample, shard_bytes=shard_bytes)
        curate.target(ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
        method = lenient(name)
        object.__setattr__(method, "unit_bytes", unit)
        monkeypatch.setattr("curate.tables.spec.unit_size", lambda model, unit=unit: unit)
        target = "t" if method.uses_target else None
        curate.score(ws, method, target=target, names={name: "x"}, **given_to(method))
        tables.append(curate.sql(ws, "SELECT * FROM x"))
    aside = ("it was in the warm-up", "it is one of the anchors") if method.anchors() else ()
    assert same(*tables, method) and all(row["score"] is not None or row["error"] in aside for row in tables[0])


@pytest.mark.parametrize("name", SCORES)
def test_what_cannot_be_scored_is_null_with_a_reason_and_the_others_stand(name: str) -> None:
    method = lenient(name)
    target = Target.of(["which apple is green?"]) if method.uses_target else None
    texts = [said("a green apple " * 60), "", said("an apple a day " * 60)]
    (columns,) = computed(method, [batch := Text.of(texts)], target)
    rows = score_table(batch.frame["id"].to_arrow(), columns, method).to_pylist()
    assert (rows[1]["score"] is None) == bool(rows[1]["error"])
    for row in (rows[0], rows[2]):
        assert row["error"] is None
        assert np.isfinite(row["score"])
    # An empty neighbour changes nothing for a row score; a pool score counts it as a sample.
    if method.scope == "row":
        (alone,) = computed(method, [Text.of([texts[0], texts[2]])], target)
        tolerance = TOLERANCE if method.models else 0.0
        assert np.abs(alone["score"] - np.asarray(columns["score"])[[0, 2]]).max() <= tolerance


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_nothing_is_an_empty_column(name: str) -> None:
    method = find("score", name)()
    target = Target.of(["apple"]) if method.uses_target else None
    (columns,) = computed(method, [Text.of([])], target)
    assert score_table(pa.array([], pa.string()), columns, method).num_rows == 0


@pytest.mark.parametrize("name", SCORES)
def test_the_declared_columns_are_the_ones_written(name: str) -> None:
    method = find("score", name)()
    row = scored(name, list(range(8)), [8])[0]
    assert set(row) == {"score", "error", *method.columns}


def test_the_scores_leave_nothing_half_done_behind(ws: Any) -> None:
    curate.ingest(ws, [str(SAMPLE / "pool/atlas.jsonl")], shard_bytes=20_000)
    curate.target(ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
    for name in SCORES:
        method = lenient(name)
        target = "t" if method.uses_target else None
        curate.score(ws, method, target=target, **given_to(method))
    left = [p for p in ws.path.rglob("*") if ".tmp" in p.name or p.name == "_units" and any(p.iterdir())]
    assert left == []
    assert tree_bytes(ws.path / "scores")
