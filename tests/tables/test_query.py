from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.verbs.sql import write_sql
from tests.conftest import copy_of, in_this_process, sample_in


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = sample_in(tmp_path_factory.mktemp("scored") / "ws")
    curate.score(ws, Bm25(keep_subtasks=True), Length(), target="arithmetic")
    return ws


@pytest.fixture
def scored(made: Workspace, tmp_path: Path) -> Workspace:
    return copy_of(Path(str(made.path)), tmp_path / "ws")


def test_samples_has_each_score_beside_its_own_sample(scored: Workspace) -> None:
    joined = """SELECT s.id, s.row, b.score AS want_b, l.words AS want_w, s.bm25_arithmetic AS b, s.length_words AS w
        FROM samples s JOIN bm25_arithmetic b USING (id) JOIN length l USING (id) ORDER BY s.row"""
    rows = curate.sql(scored, joined)
    assert [r["row"] for r in rows] == list(range(3000))
    assert all(r["b"] == r["want_b"] and r["w"] == r["want_w"] for r in rows)


def test_a_star_has_every_column_and_names_bound_the_work(scored: Workspace) -> None:
    (row,) = curate.sql(scored, "SELECT * FROM samples LIMIT 1")
    assert {"id", "meta", "row", "bm25_arithmetic", "bm25_arithmetic_subtasks", "length_turns", "length_error"} <= set(
        row
    )
    with sql.connect(scored, "SELECT length FROM samples") as connection:
        view = connection.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'samples'").fetchall()[0][0]
    assert "scores/length" in view and "bm25" not in view


def test_every_view_is_there_even_when_empty(ws: Workspace) -> None:
    for view in ("pool", "targets", "rejects", "ledger", "runs", "samples"):
        assert curate.sql(ws, f"SELECT * FROM {view}") == []


def test_json_and_maps_are_readable(scored: Workspace) -> None:
    rows = curate.sql(scored, "SELECT meta->>'skill' AS skill, count(*) AS n FROM pool GROUP BY skill ORDER BY n")
    assert sum(r["n"] for r in rows) == 3000 and len(rows) == 7
    text = write_sql(scored, "SELECT subtasks, sum(1) AS n, 'NaN'::DOUBLE AS x, 2.5::DECIMAL(4,1) AS d FROM "
                     "bm25_arithmetic GROUP BY ALL LIMIT 1", "json")  # fmt: skip
    (row,) = json.loads(text)
    assert set(row["subtasks"]) == {"add", "take", "times"} and type(row["n"]) is int
    assert row["x"] is None and row["d"] == 2.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("DROP VIEW pool", "give one SELECT"),
        ("COPY (SELECT 1) TO 'x.csv'", "give one SELECT"),
        ("ATTACH 'x.db'", "give one SELECT"),
        ("SELECT 1; SELECT 2", "give one SELECT"),
        ("", "give one SELECT"),
        ("SELEC 1", "not SQL"),
        ("SELECT * FROM bm25_arithmetik", "did you mean 'bm25_arithmetic'"),
        ("SELECT lenght FROM samples", "did you mean 'length'"),
        ("SELECT 1 / 'x'", "DuckDB refuses"),
    ],
)
def test_a_query_that_cannot_run_is_one_sentence(scored: Workspace, text: str, sentence: str) -> None:
    with pytest.raises(CurateError, match=sentence) as caught:
        curate.sql(scored, text)
    assert "\n" not in str(caught.value)


def test_a_common_table_expression_and_the_users_own_files_are_fine(scored: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": ["school"], "label": ["S"]}), tmp_path / "own.parquet")
    text = f"""WITH own AS (FROM '{tmp_path}/own.parquet')
        SELECT label, count(*) AS n FROM samples JOIN own USING (source) GROUP BY label"""
    assert curate.sql(scored, text, allow_files=[tmp_path / "own.parquet"])[0]["label"] == "S"


def test_results_are_written_as_files(scored: Workspace, tmp_path: Path) -> None:
    text = "SELECT id, length FROM samples ORDER BY row;"
    assert write_sql(scored, text, "parquet", str(tmp_path / "x.parquet")) == ""
    write_sql(scored, text, "csv", str(tmp_path / "x.csv"))
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 3000
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 3001
    with pytest.raises(CurateError, match="-o FILE"):
        write_sql(scored, text, "parquet")
    with pytest.raises(CurateError, match="no such folder"):
        write_sql(scored, text, "csv", str(tmp_path / "no" / "x.csv"))
    with pytest.raises(CurateError, match="did you mean 'json'"):
        write_sql(scored, text, "jsn")


@pytest.mark.parametrize("name", ["ids.csv", "ids.jsonl", "ids.json", "ids.parquet", "IDS.CSV", "ids.ndjson"])
def test_the_ending_of_a_file_says_how_it_is_written_and_all_rows_are(
    scored: Workspace, tmp_path: Path, name: str
) -> None:
    write_sql(scored, "SELECT id, length FROM samples ORDER BY row", output=str(tmp_path / name))
    read = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson, ".json": pl.read_json}
    ids = read.get(Path(name).suffix.lower(), pl.read_parquet)(tmp_path / name)["id"].cast(pl.String).to_list()
    assert len(ids) == 3000
    assert ids == [row["id"] for row in curate.sql(scored, "SELECT id FROM pool ORDER BY row")]


def test_a_format_wins_over_the_ending_and_an_unknown_ending_is_refused(scored: Workspace, tmp_path: Path) -> None:
    write_sql(scored, "SELECT 1 AS one", "json", str(tmp_path / "x.csv"))
    assert (tmp_path / "x.csv").read_text() == '[{"one": 1}]\n'
    with pytest.raises(CurateError, match="x.txt: an ending of .csv, .json, .jsonl, .ndjson, .parquet says"):
        write_sql(scored, "SELECT 1 AS one", output=str(tmp_path / "x.txt"))
    assert not (tmp_path / "x.txt").exists()


def test_a_table_is_drawn_on_a_terminal_only(scored: Workspace) -> None:
    words = ["sql", "-w", str(scored.path), "SELECT row FROM pool ORDER BY row"]
    assert "│" in in_this_process(words, terminal=True).stdout
    assert in_this_process(words).stdout.splitlines() == ["row", *map(str, range(3000))]


def test_samples_over_missing_shards_keeps_every_row_in_place(scored: Workspace) -> None:
    """A score whose second shard is gone gives nulls exactly there."""
    from curate.store.commits import Parts

    want = curate.sql(scored, "SELECT row, length FROM samples ORDER BY row")
    second = scored.shards()[1]
    Parts(scored.score_folder("length")).remove(second.name)
    got = curate.sql(scored, "SELECT row, length FROM samples ORDER BY row")
    lost = range(second.start, second.start + second.rows)
    assert all(g["length"] == (None if g["row"] in lost else w["length"]) for g, w in zip(got, want, strict=True))


def test_the_workspaces_own_path_is_no_data(tmp_path: Path) -> None:
    from curate.errors import CurateError
    from tests.conftest import qa, write_jsonl

    path = write_jsonl(tmp_path / "a.jsonl", qa(5))
    for name in ("source=web", "id=7", "it's ü"):
        ws = curate.open_workspace(tmp_path / name / "ws")
        curate.ingest(ws, [path])
        assert {r["source"] for r in curate.sql(ws, "SELECT source FROM samples")} == {"a"}
    with pytest.raises(CurateError, match="must not hold"):
        curate.open_workspace(tmp_path / "s*x")


def test_columns_of_one_name_are_told_apart(scored: Workspace) -> None:
    (row,) = curate.sql(scored, "SELECT a.score, b.score FROM length a JOIN bm25_arithmetic b USING (id) LIMIT 1")
    assert list(row) == ["score", "score_1"]


def test_a_variable_of_ours_is_no_table_and_a_lost_part_is_told(scored: Workspace) -> None:
    with pytest.raises(CurateError, match="no table 'ws'"):
        curate.sql(scored, "SELECT * FROM ws")
    next(scored.score_folder("length").glob("part-*.parquet")).unlink()
    with pytest.raises(CurateError, match="part-00002.parquet is not what was written there.*or is gone"):
        curate.sql(scored, "SELECT * FROM length")


def test_many_scores_cost_only_those_named(tmp_path: Path, ws: Workspace) -> None:
    """Of scores that a query does not name neither parts nor records are opened."""
    curate.ingest(ws, [_jsonl(tmp_path)])
    for i in range(5):
        curate.score(ws, Length(), names={"length": f"s{i}"})
    for i in range(4):
        for path in [*ws.score_folder(f"s{i}").glob("part-*.parquet"), *ws.score_folder(f"s{i}").glob("_commit/*")]:
            path.write_bytes(b"unreadable")
    rows = curate.sql(ws, "SELECT s4 FROM samples ORDER BY s4 DESC LIMIT 5")
    assert np.isfinite([r["s4"] for r in rows]).all()


def _jsonl(folder: Path) -> str:
    from tests.conftest import qa, write_jsonl

    return write_jsonl(folder / "a.jsonl", qa(50))


def test_a_result_is_rows_and_arrow_for_other_libraries(scored: Workspace) -> None:
    found = curate.sql(scored, "SELECT source, count(*) AS n FROM pool GROUP BY source ORDER BY source")
    assert found[0] == {"source": "atlas", "n": 539} and found[-2:][0]["source"] == "school" and len(found) == 4
    assert found == list(found) and found != [] and "atlas" in repr(found) and "<table" in found._repr_html_()
    assert pl.DataFrame(found).equals(found.to_polars()) and pa.table(found) == found.arrow
    assert found.to_pandas()["n"].sum() == 3000
    with_map = curate.sql(scored, "SELECT id, bm25_arithmetic_subtasks FROM samples LIMIT 2")
    assert repr(with_map) and with_map[0]["bm25_arithmetic_subtasks"]


@pytest.mark.parametrize(
    ("query", "tables"),
    [
        ("SELECT count(*) AS samples FROM (SELECT * FROM trained)", {"trained"}),  # a column of that name
        ("SELECT bm25_arithmetic FROM samples LIMIT 1", {"samples"}),  # a column of `samples`, and no table
        ("SELECT * FROM Samples JOIN Length USING (id) LIMIT 1", {"samples", "length"}),
        ("WITH a AS (SELECT * FROM pool) SELECT (SELECT max(words) FROM length) FROM a LIMIT 1", {"pool", "length"}),
        ("SELECT count(*) FROM query_table('pool')", {"pool"}),
        ("EXPLAIN SELECT bm25_arithmetic FROM samples", None),
    ],
)
def test_a_view_is_made_of_the_tables_that_a_query_names(
    scored: Workspace, query: str, tables: set[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, create = set[str](), sql._create
    monkeypatch.setattr(sql, "_create", lambda c, name, select: made.add(name) or create(c, name, select))
    assert len(curate.sql(scored, query)) == 1
    assert tables is None or made == tables
