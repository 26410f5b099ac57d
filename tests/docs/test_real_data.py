"""The promises on real data, read from beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

import curate
from curate.methods.scores.bm25 import Bm25
from curate.store.workspace import Workspace


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = curate.open_workspace(tmp_path_factory.mktemp("real") / "ws")
    curate.ingest(ws, sorted(map(str, (shared / "pool").iterdir())), shard_bytes=6 << 20)
    for name in ("gsm8k", "code"):
        curate.target(ws, name, str(shared / f"targets/{name}_val.jsonl"))
    mapping = {"prompt": "question", "completion": "answer"}
    curate.target(ws, "bbh", str(shared / "targets/bbh_val.jsonl"), subtask="subtask", mapping=mapping)
    return ws


def test_every_row_is_in_the_pool_in_copies_or_in_rejects(real: Workspace) -> None:
    (pool,) = curate.sql(real, "SELECT sum(copies)::BIGINT AS n FROM pool")
    (rejects,) = curate.sql(real, "SELECT count(*) AS n FROM rejects")
    assert pool["n"] + rejects["n"] == 38_692


@pytest.mark.parametrize(
    ("target", "source", "share"), [("gsm8k", "gsm8k", 81), ("code", "gpteacher_code", 100), ("bbh", "p3", 98)]
)
def test_the_top_of_bm25_is_where_an_independent_count_found_it(
    real: Workspace, target: str, source: str, share: int
) -> None:
    curate.score(real, Bm25(), target=target)
    query = f"""WITH top AS (SELECT source, bm25_{target} FROM samples ORDER BY 2 DESC LIMIT (SELECT
        (0.05 * count(*))::INT FROM pool)) SELECT 100.0 * avg((source = '{source}')::INT)::DOUBLE AS percent FROM top"""
    assert abs(curate.sql(real, query)[0]["percent"] - share) <= 2
