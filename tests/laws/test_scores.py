"""What holds for every score, whoever wrote it. A new file gets these laws for nothing."""

from __future__ import annotations

import atexit
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.kinds.registry import find
from curate.kinds.text import Text
from curate.tables.score_table import score_table
from tests.conftest import SAMPLE, copy_of, tree_bytes
from tests.support.laws import (
    SCORES,
    TEXTS,
    TOLERANCE,
    as_pair,
    computed,
    examples,
    given_to,
    lenient,
    said,
    same,
    scored,
    whole,
)  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("sizes", [[1] * 8, [2, 5, 1]])
def test_a_score_does_not_depend_on_batches_or_order(name: str, sizes: list[int]) -> None:
    for text, row in zip(TEXTS, whole(name), strict=True):
        assert row["score"] is not None or isinstance(text, str) and "raw text" in row["error"]
    order = random.Random(sum(sizes)).sample(range(8), 8)
    assert same(scored(name, order, sizes), whole(name), find("score", name))


@functools.cache
def pool_in_shards(rows: int | None, shard_bytes: int, pairs: bool = False) -> Path:
    """A workspace of two of the sample's files, or of the first rows of one, with a target. pairs: as pairs."""
    folder = Path(tempfile.mkdtemp(prefix="curate-laws-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = [SAMPLE / "pool/atlas.jsonl", SAMPLE / "pool/school.jsonl"]
    if rows is not None:
        lines = files[0].read_text().splitlines()[:rows]
        if pairs:
            lines = [json.dumps({"prompt": line[:40], "chosen": line, "rejected": "no"}) for line in lines]
        files = [folder / files[0].name]
        files[0].write_text("\n".join(lines))
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [str(file) for file in files], shard_bytes=shard_bytes)
    curate.target(ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
    assert (len(ws.shards()) > 3) == (shard_bytes < 1_000_000)
    return folder / "ws"


def half_done(ws: Any) -> list[Path]:
    return [p for p in ws.path.rglob("*") if ".tmp" in p.name or p.name == "_units" and any(p.iterdir())]


@pytest.mark.parametrize("name", SCORES)
def test_shards_and_units_change_no_score_and_leave_nothing_half_done(
    name: str, tmp_path: Any, monkeypatch: Any
) -> None:
    tables, by_model = [], bool(find("score", name).models)
    cut = (2_700, 1_000) if by_model else (60_000, 10_000)
    for shard_bytes, unit in (cut, (10_000_000, 10_000_000)):
        ws = copy_of(
            pool_in_shards(54 if by_model else None, shard_bytes, find("score", name).of_pairs),
            tmp_path / str(shard_bytes),
        )
        method = lenient(name)
        object.__setattr__(method, "unit_bytes", unit)
        monkeypatch.setattr("curate.tables.spec.unit_size", lambda model, unit=unit: unit)
        target = "t" if method.uses_target else None
        curate.score(ws, method, target=target, names={name: "x"}, **given_to(method))
        assert tree_bytes(ws.path / "scores") and half_done(ws) == []
        tables.append(curate.sql(ws, "SELECT * FROM x"))
    aside = ("it was in the warm-up", "it is one of the anchors") if method.anchors() else ()
    assert same(*tables, method) and all(row["score"] is not None or row["error"] in aside for row in tables[0])


@pytest.mark.parametrize("name", SCORES)
def test_what_cannot_be_scored_is_null_with_a_reason_and_the_others_stand(name: str) -> None:
    method = lenient(name)
    target = examples(name, 1) if method.uses_target else None
    texts: list[Any] = [said("a green apple " * 60), "", said("an apple a day " * 60)]
    texts += [f"another text, number {i}" for i in range(9)] if name == "ngram_classifier" else []
    if method.of_pairs:
        texts = [texts[1] if text == "" else as_pair(text) for text in texts]
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
    method = lenient(name)
    target = examples(name, 1) if method.uses_target else None
    (columns,) = computed(method, [Text.of([])], target)
    assert score_table(pa.array([], pa.string()), columns, method).num_rows == 0


@pytest.mark.parametrize("name", SCORES)
def test_the_declared_columns_are_the_ones_written(name: str) -> None:
    method = find("score", name)()
    row = whole(name)[0]
    assert set(row) == {"score", "error", *method.columns}
