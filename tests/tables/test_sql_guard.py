"""SQL of users reads, and of files those of the workspace alone: each forbidden thing is tried."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError
from curate.store.workspace import Workspace
from curate.tables.sql_guard import TABLE_FUNCTIONS
from curate.verbs.select import SelectionSpec
from curate.verbs.sql import write_sql
from tests.conftest import tree_bytes

ENDLESS = "SELECT count(*) FROM range(1000000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3"
COPIES = "WITH x AS (COPY (SELECT 1) TO '{ws}/pool/x.parquet')"
WRITES = [
    "COPY (SELECT 1) TO '{ws}/x.parquet'",
    "COPY pool TO '{ws}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{ws}/x.parquet'",
    "explain /* a */ analyze -- b\n COPY (SELECT 1) TO '{ws}/x.parquet'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{ws}/x.parquet'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{ws}/x.parquet'",
    f"{COPIES} SELECT 1",
    f"EXPLAIN ANALYZE {COPIES} SELECT 1",
    f"EXPLAIN ({COPIES} SELECT 1) SELECT 1",
    f"DESCRIBE {COPIES} SELECT 1",
    f"SELECT ({COPIES} SELECT 1)",
    f"SELECT * FROM ({COPIES} SELECT 1)",
    f"SELECT 1 UNION ALL ({COPIES} SELECT 1)",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM main.JSON_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM query('SELECT 1')",
    "WITH x AS (INSERT INTO pool VALUES (1) RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM pool RETURNING *) SELECT * FROM x",
    "INSERT INTO pool VALUES (1)",
    "UPDATE pool SET id = 1",
    "DELETE FROM pool",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW pool",
    "EXPORT DATABASE '{ws}/x'",
    "IMPORT DATABASE '{ws}/x'",
    "ATTACH '{ws}/x.db'",
    "ATTACH ':memory:' AS y",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "FORCE INSTALL httpfs FROM community",
    "SET threads = 1",
    "SET lock_configuration = false",
    "SET enable_external_access = true",
    "RESET threads",
    "PRAGMA threads = 1",
    "PRAGMA database_list",
    "CALL range(2)",
    "PREPARE p AS SELECT 1",
    "CREATE SECRET (TYPE s3)",
    "CHECKPOINT",
    "BEGIN",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{ws}/x.csv'",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM checkpoint()",
    "SELECT getenv('HOME')",
]
READS = [
    "FROM read_csv('{out}/a.csv')",
    "FROM read_parquet('{out}/a.parquet')",
    "FROM read_parquet(['{out}/a.parquet'])",
    "FROM parquet_metadata('{out}/a.parquet')",
    "FROM read_text('{out}/a.csv')",
    "FROM read_blob('{out}/*')",
    "FROM read_json('{out}/a.csv')",
    "FROM glob('{out}/*')",
    "FROM sniff_csv('{out}/a.csv')",
    "FROM '{out}/a.parquet'",
    "FROM '{out}/a.csv'",
    "FROM '{ws}/../out/a.parquet'",
    "FROM query_table('{out}/a.parquet')",
    "SELECT (SELECT a FROM '{out}/a.parquet')",
    "EXPLAIN ANALYZE FROM '{out}/a.parquet'",
    "FROM read_text('file://{out}/a.csv')",
    "FROM read_csv('http://127.0.0.1:9/a.csv')",
    "FROM 's3://bucket/a.parquet'",
]
FINE = [
    "SELECT 1",
    "WITH x AS (SELECT 1 AS a) SELECT * FROM x",
    "WITH RECURSIVE x AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM x WHERE a < 3) SELECT * FROM x",
    "WITH x AS MATERIALIZED (SELECT 1 AS a) SELECT * FROM x",
    "VALUES (1)",
    "FROM pool SELECT id",
    "TABLE pool",
    "DESCRIBE pool",
    "DESCRIBE SELECT 1",
    "SUMMARIZE SELECT id FROM pool",
    "SHOW TABLES",
    "EXPLAIN SELECT id FROM pool",
    "EXPLAIN ANALYZE SELECT id FROM pool",
    "explain /* a */ analyze -- b\n SELECT 1",
    "EXPLAIN (FORMAT json) SELECT 1",
    "EXPLAIN (ANALYZE, FORMAT json) (SELECT 1)",
    "SELECT 1 UNION SELECT 2",
    "SELECT 'COPY (SELECT 1) TO x' AS a -- ; DROP VIEW pool",
    "FROM range(3)",
    "FROM (SELECT unnest([1, 2]))",
    "SELECT file FROM glob('{ws}/*.json')",
    "SELECT current_setting('TimeZone')",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Path]]:
    """A workspace with two samples, and a folder beside it with files that nobody allowed."""
    folder = tmp_path_factory.mktemp("guarded")
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [{"text": "one"}, {"text": "two"}])
    (folder / "out").mkdir()
    pq.write_table(pa.table({"a": [1]}), folder / "out" / "a.parquet")
    (folder / "out" / "a.csv").write_text("a\n1\n")
    before = tree_bytes(folder)
    yield ws, folder / "out"
    assert tree_bytes(folder) == before, "no query wrote anything"


def _refusal(ws: Workspace, query: str) -> str:
    with pytest.raises(CurateError) as caught:
        curate.sql(ws, query, timeout=20)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("query", WRITES)
def test_what_is_not_a_select_is_refused(place: tuple[Workspace, Path], query: str) -> None:
    ws, out = place
    sentence = _refusal(ws, query.format(ws=ws.path, out=out))
    assert any(part in sentence for part in ("give one SELECT", "calls no function", "not SQL", "getenv")), sentence


@pytest.mark.parametrize("query", READS)
def test_files_outside_the_workspace_are_not_read(place: tuple[Workspace, Path], query: str) -> None:
    ws, out = place
    assert "--allow-files" in _refusal(ws, query.format(ws=ws.path, out=out))


@pytest.mark.parametrize("query", FINE)
def test_what_only_reads_is_run(place: tuple[Workspace, Path], query: str) -> None:
    ws, out = place
    assert curate.sql(ws, query.format(ws=ws.path, out=out)).arrow.column_names


def test_settings_are_final_and_no_extension_is_looked_for(place: tuple[Workspace, Path]) -> None:
    names = (
        "lock_configuration",
        "enable_external_access",
        "autoinstall_known_extensions",
        "autoload_known_extensions",
    )
    asked = ", ".join(f"current_setting('{name}')" for name in names)
    (row,) = curate.sql(place[0], f"SELECT {asked}")
    assert list(row.values()) == [True, False, False, False]


def test_every_function_that_may_stand_for_a_table_is_one_that_reads() -> None:
    assert not TABLE_FUNCTIONS & {"query", "json_execute_serialized_sql", "enable_logging", "checkpoint", "arrow_scan"}


def test_what_the_one_who_asks_allows_is_read(place: tuple[Workspace, Path]) -> None:
    ws, out = place
    query = f"SELECT a FROM '{out}/a.parquet'"
    assert curate.sql(ws, query, allow_files=[out]) == [{"a": 1}]
    assert curate.sql(curate.open_workspace(ws.path, allow_files=[out / "a.parquet"]), query) == [{"a": 1}]
    with pytest.raises(CurateError, match="--allow-files"):
        curate.sql(ws, f"FROM '{out}/a.csv'", allow_files=[out / "a.parquet"])
    with pytest.raises(CurateError, match="no such folder or file"):
        curate.sql(ws, query, allow_files=[out / "none"])
    with pytest.raises(CurateError, match="give one SELECT"):
        curate.sql(ws, f"WITH x AS (COPY (SELECT 1) TO '{out}/b.csv') SELECT 1", allow_files=[out])


def test_conditions_and_written_results_are_guarded_as_queries_are(
    place: tuple[Workspace, Path], tmp_path: Path
) -> None:
    ws, out = place
    condition = f"id IN (SELECT a::VARCHAR FROM '{out}/a.parquet')"
    with pytest.raises(CurateError, match="--allow-files"):
        curate.head(ws, where=condition)
    with pytest.raises(CurateError, match="--allow-files"):
        curate.select(ws, "x", "top", SelectionSpec(by="n_chars", where=condition, frac=0.5))
    with pytest.raises(CurateError, match="--allow-files"):
        write_sql(ws, f"FROM '{out}/a.parquet'", output=str(tmp_path / "x.parquet"))
    with pytest.raises(CurateError, match="COPY"):
        write_sql(ws, COPIES.format(ws=ws.path) + " SELECT 1", output=str(tmp_path / "x.csv"))
    assert list(tmp_path.iterdir()) == []
    write_sql(ws, "SELECT id FROM pool", output=str(tmp_path / "x.csv"))
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("output", ["", "x.csv"])
def test_a_query_is_given_up_after_its_time(place: tuple[Workspace, Path], tmp_path: Path, output: str) -> None:
    started = time.monotonic()
    with pytest.raises(CurateError, match=r"given up after 0.2 s"):
        write_sql(place[0], ENDLESS, output=str(tmp_path / output) if output else None, timeout=0.2)
    assert time.monotonic() - started < 10 and list(tmp_path.iterdir()) == []
    with pytest.raises(CurateError, match="above 0"):
        curate.sql(place[0], "SELECT 1", timeout=0)


STOPPED = "curate: stopped; committed work is kept, and the same command resumes from there."
INTERRUPTED = """
import os, signal, sys, threading
import curate.verbs.sql
from curate.cli.main import main
for fmt in ("table", "csv"):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        main(["sql", "-w", sys.argv[1], sys.argv[2], "--format", fmt])
    except SystemExit as ended:
        print(fmt, ended.code)
"""


def test_an_interrupt_ends_a_query_in_one_sentence(place: tuple[Workspace, Path]) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(place[0].path), ENDLESS]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.stdout == "table 130\ncsv 130\n"
    assert said.stderr.split() == 2 * STOPPED.split()
