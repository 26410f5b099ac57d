"""Sub-tasks that a score keeps: a map in SQL, and on disk what everything that reads Parquet reads."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.embed_lm import EmbedLm
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables import score_table
from tests.conftest import qa, write_jsonl
from tests.support.narrow import NARROW


def as_earlier_versions(subtasks: dict[str, np.ndarray], valid: np.ndarray) -> pa.Array:
    """The column as a map, slowly."""
    rows = [[(k, float(v[i])) for k, v in sorted(subtasks.items())] if ok else None for i, ok in enumerate(valid)]
    return pa.array(rows, pa.map_(pa.string(), pa.float32()))


def test_datasets_reads_them_and_sql_has_a_map(handful_ws: Workspace, tmp_path: Path) -> None:
    curate.score(handful_ws, Bm25(keep_subtasks=True), target="facts")
    part = Parts(handful_ws.score_folder("bm25_facts")).path("part-00000")
    got = datasets.load_dataset("parquet", data_files=str(part), split="train", cache_dir=str(tmp_path / "cache"))
    shown = curate.sql(handful_ws, "SELECT bm25_facts_subtasks AS kept FROM samples ORDER BY row").to_polars()
    alone = curate.sql(handful_ws, "SELECT subtasks AS kept FROM bm25_facts").to_polars()
    assert shown.equals(alone)
    first = curate.sql(handful_ws, "SELECT bm25_facts_subtasks AS kept FROM samples ORDER BY row LIMIT 1")[0]["kept"]
    assert {pair["key"]: pair["value"] for pair in got[0]["subtasks"]} == dict(first) and len(first) > 1


def test_maps_of_an_earlier_version_are_read_beside_them(
    embedded_ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, name = EmbedLm(keep_subtasks=True), "embed_lm_sums_subtasks"
    query = f"SELECT map_keys({name}) AS keys, {name}['add'] AS one FROM samples ORDER BY row"
    with monkeypatch.context() as earlier:
        earlier.setattr(score_table, "_pairs_column", as_earlier_versions)
        curate.score(embedded_ws, method, target="sums", models=NARROW)
    before = curate.sql(embedded_ws, query).to_polars()
    curate.ingest(embedded_ws, [write_jsonl(tmp_path / "more.jsonl", qa(10))])
    half = curate.sql(embedded_ws, query).to_polars()
    assert half[:200].equals(before) and half[200:]["one"].is_null().all()
    curate.score(embedded_ws, method, target="sums", models=NARROW)
    parts = Parts(embedded_ws.score_folder("embed_lm_sums"))
    kinds = [str(read_table(parts.path(part)).schema.field("subtasks").type)[:4] for part in parts.names()]
    assert kinds[0] == "map<" and kinds[-1] == "list"
    after = curate.sql(embedded_ws, query).to_polars()
    curate.score(embedded_ws, method, target="sums", models=NARROW, fresh=True)
    assert after.equals(curate.sql(embedded_ws, query).to_polars()) and len(after) == 210
    assert not after["one"].is_null().any()
