"""Columns of other tools as scores: every format, every way to match, what is absent, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import curate
from curate.cli.main import cli
from curate.errors import CurateError
from curate.methods.scores.length import Length
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import run_and_kill, write_jsonl


def rows_of(ws: Workspace, columns: str = "id") -> list[dict[str, Any]]:
    return list(curate.sql(ws, f"SELECT {columns} FROM samples ORDER BY row"))


def values(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal(n)


def written(folder: Path, table: pa.Table, ending: str) -> Path:
    path = folder / f"theirs.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "arrow":
        feather.write_feather(table, path, compression="uncompressed")
    elif ending in ("csv", "csv.gz"):
        with pa.output_stream(path, compression="gzip" if ending.endswith("gz") else None) as out:
            pa_csv.write_csv(table, out)
    elif ending == "tsv":
        pa_csv.write_csv(table, path, pa_csv.WriteOptions(delimiter="\t"))
    else:
        write_jsonl(path, table.to_pylist())
    return path


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv", "csv.gz", "tsv", "jsonl"])
def test_every_format_gives_every_sample_its_own_value(ending: str, school_ws: Workspace, tmp_path: Path) -> None:
    ids = [row["id"] for row in rows_of(school_ws)]
    order = np.random.default_rng(0).permutation(len(ids))
    theirs = values(len(ids))
    table = pa.table({"id": [ids[i] for i in order], "n": order, "mine": theirs[order], "ok": order % 2 == 0})
    file = written(tmp_path, table, ending)
    result = curate.attach(school_ws, "other", file, score="mine", columns={"place": "n", "ok": "ok"})
    assert (result.matched, result.missing, result.nulls, result.by) == (200, 0, 0, "id")
    found = rows_of(school_ws, "other, other_place, other_ok, other_error")
    np.testing.assert_array_equal([r["other"] for r in found], theirs.astype(np.float32))
    assert [r["other_place"] for r in found] == list(range(200))
    assert [r["other_ok"] for r in found] == [i % 2 == 0 for i in range(200)]
    assert not any(r["other_error"] for r in found) and curate.verify(school_ws).damaged == []
    assert curate.attach(school_ws, "other", file, score="mine", columns={"place": "n", "ok": "ok"}).computed == 0


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_a_field_of_a_field_is_named_with_a_dot(ending: str, school_ws: Workspace, tmp_path: Path) -> None:
    ids = [row["id"] for row in rows_of(school_ws)]
    stats = [{"deep": {"a": float(i), "b": i}, "c.d": -float(i)} for i in range(200)]
    file = written(tmp_path, pa.table({"id": ids, "stats": stats}), ending)
    result = curate.attach(
        school_ws, "other", file, score="stats.deep.a", columns={"b": "stats.deep.b", "d": "stats.c.d"}
    )
    assert result.nulls == 0
    found = rows_of(school_ws, "other, other_b, other_d")
    assert [(r["other"], r["other_b"], r["other_d"]) for r in found] == [(i, i, -i) for i in range(200)]
    with pytest.raises(CurateError, match=r"no column 'stats.depp'"):
        curate.attach(school_ws, "third", file, score="stats.depp")


def test_what_data_juicer_wrote_is_attached(sample_ws: Workspace) -> None:
    """files/data_juicer.jsonl: the first rows of what data-juicer 1.6.1 wrote of the sample, as the guide has it."""
    file = Path(__file__).parent / "files" / "data_juicer.jsonl"
    further = {"length": "__dj__stats__.text_len", "repeated": "__dj__stats__.word_rep_ratio"}
    result = curate.attach(sample_ws, "dj", file, score="__dj__stats__.alnum_ratio", columns=further)
    assert (result.matched, result.by, result.unknown) == (25, "id", 0)
    (row,) = curate.sql(
        sample_ws,
        "SELECT count(*) n, bool_and(dj_length = length(whole)) same, min(dj) > 0 and max(dj) <= 1 AS shares FROM "
        "(SELECT *, coalesce(text, array_to_string(list_transform(messages, lambda m: m.content), chr(10))) whole "
        "FROM samples) WHERE dj IS NOT NULL",
    )
    assert row == {"n": 25, "same": True, "shares": True}


def test_ids_of_digits_alone_are_texts_in_csv_too(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", [{"text": f"text {i}"} for i in range(3000)])])
    ids = [row["id"] for row in rows_of(ws)]
    digits = [i for i, one in enumerate(ids) if one.isdigit()]
    assert digits  # of 3,000 about one has no letter
    (tmp_path / "a.csv").write_text("id,score\n" + "".join(f"{ids[i]},{i}\n" for i in digits))
    assert curate.attach(ws, "a", tmp_path / "a.csv").matched == len(digits)


def test_rows_are_matched_by_their_number_their_order_or_a_field_of_the_metadata(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    pool = [{"text": f"text {i}", "doc": f"d{i // 2}", "n": i} for i in range(10)]
    curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", pool)])
    write_jsonl(tmp_path / "order.jsonl", [{"q": 10.0 - i} for i in range(10)])
    curate.attach(ws, "by_order", tmp_path / "order.jsonl")
    write_jsonl(tmp_path / "rows2.jsonl", [{"row": i, "q": i * 1.5} for i in (9, 3)])
    curate.attach(ws, "by_row", tmp_path / "rows2.jsonl", score="q")
    write_jsonl(tmp_path / "docs.jsonl", [{"doc": f"d{i}", "q": float(i)} for i in range(4)])
    result = curate.attach(ws, "by_doc", tmp_path / "docs.jsonl", by="doc")
    assert (result.matched, result.missing) == (8, 2)
    write_jsonl(tmp_path / "numbers.jsonl", [{"n": i, "q": float(-i)} for i in range(10)])
    curate.attach(ws, "by_n", tmp_path / "numbers.jsonl", by="n", score="q")
    found = rows_of(ws, "by_order, by_row, by_doc, by_doc_error e, by_n")
    assert [r["by_order"] for r in found] == [10.0 - i for i in range(10)]
    assert [r["by_row"] for r in found] == [None] * 3 + [4.5] + [None] * 5 + [13.5]
    assert [r["by_doc"] for r in found] == [0, 0, 1, 1, 2, 2, 3, 3, None, None]
    assert [r["by_n"] for r in found] == [-i for i in range(10)]
    assert found[9]["e"] == "docs.jsonl has no row of it"


def test_what_is_absent_or_no_number_is_null_with_the_reason(school_ws: Workspace, tmp_path: Path) -> None:
    ids = [row["id"] for row in rows_of(school_ws)]
    table = pa.table({"id": ids[:4], "score": pa.array([1.0, float("nan"), None, float("inf")])})
    result = curate.attach(school_ws, "other", written(tmp_path, table, "parquet"))
    assert (result.missing, result.nulls) == (196, 199)
    assert "3 values are missing or not finite" in result.warnings[0]
    found = rows_of(school_ws, "other, other_error e")
    assert [r["e"] for r in found[:5]] == [
        None,
        "its score is not a finite number",
        "theirs.parquet has no value for it",
        "its score is not a finite number",
        "theirs.parquet has no row of it",
    ]
    assert [r["other"] for r in found[:4]] == [1.0, None, None, None]


def test_it_takes_part_like_any_other_score(school_ws: Workspace, tmp_path: Path) -> None:
    theirs = values(200)
    table = pa.table({"id": [r["id"] for r in rows_of(school_ws)], "score": theirs})
    curate.attach(school_ws, "other", written(tmp_path, table, "parquet"), flops=1e12)
    curate.select(school_ws, "best", by="other", top=10)
    chosen = {r["row"] for r in curate.sql(school_ws, "SELECT row FROM best JOIN samples USING (row)")}
    assert chosen == set(np.argsort(-theirs.astype(np.float32))[:10].tolist())
    (row,) = [r for r in curate.ledger(school_ws) if r["name"] == "other"]
    assert row["flops"] == 1e12 and row["phase"] == "attach" and row["samples"] == 200
    assert "SHA-256" in curate.show(school_ws, "other").about and "other" in str(curate.status(school_ws))
    assert [spread.method for spread in curate.report(school_ws).spreads] == ["attached"]
    back = tmp_path / "back.parquet"
    pq.write_table(curate.sql(school_ws, "SELECT id, other AS score FROM samples").arrow, back)
    curate.attach(school_ws, "again", back)
    (differ,) = curate.sql(school_ws, "SELECT count(*) n FROM samples WHERE other IS DISTINCT FROM again")
    assert differ["n"] == 0
    with pytest.raises(CurateError, match="the manifest best would be stale"):
        curate.drop(school_ws, "other")


def test_a_pool_that_has_grown_asks_for_a_file_of_all_of_it(school_ws: Workspace, tmp_path: Path) -> None:
    table = pa.table({"id": [r["id"] for r in rows_of(school_ws)], "score": values(200)})
    file = written(tmp_path, table, "parquet")
    curate.attach(school_ws, "other", file)
    curate.ingest(school_ws, [write_jsonl(tmp_path / "more.jsonl", [{"text": "one more"}])])
    with pytest.raises(CurateError, match=r"lacks 1 of 201 samples; run `curate attach other .*theirs.parquet"):
        curate.select(school_ws, "best", by="other", top=10)
    with pytest.raises(CurateError, match="200 rows and the pool has 201 samples"):
        curate.attach(school_ws, "ordered", written(tmp_path, table.drop_columns("id"), "arrow"))
    table = pa.table({"id": [r["id"] for r in rows_of(school_ws)], "score": values(201)})
    pq.write_table(table, file)
    with pytest.raises(CurateError, match="attached from other files or columns; choose another name, or --fresh"):
        curate.attach(school_ws, "other", file)
    curate.attach(school_ws, "other", file, fresh=True)
    found = [r["other"] for r in rows_of(school_ws, "other")]
    np.testing.assert_array_equal(found, values(201).astype(np.float32))


@pytest.mark.parametrize("fixed", [True, False])
def test_vectors_are_those_of_the_file_and_selectors_take_them(
    fixed: bool, school_ws: Workspace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((200, 8)).astype(np.float32)
    ids = [r["id"] for r in rows_of(school_ws)]
    lists = [None if i == 5 else theirs[i].tolist() for i in range(199)]
    file = written(
        tmp_path,
        pa.table({"id": ids[:199], "v": pa.array(lists, pa.list_(pa.float32(), 8 if fixed else -1))}),
        "parquet",
    )
    result = curate.attach(school_ws, "theirs", file, vector="v")
    assert result.kind == "vectors" and result.nulls == 2 and result.missing == 1
    found = list(curate.sql(school_ws, "SELECT vector, norm, error FROM theirs"))
    lengths = np.linalg.norm(theirs, axis=1)
    for i in (0, 7, 198):
        np.testing.assert_allclose(found[i]["vector"], theirs[i] / lengths[i], atol=1e-3)
        assert found[i]["norm"] == pytest.approx(lengths[i], rel=1e-6)
    assert found[5]["error"] == "theirs.parquet has no vector of finite numbers for it, or one of zeros"
    curate.select(school_ws, "spread", "kcenter", SelectionSpec(vectors="theirs", top=5))
    with pytest.raises(CurateError, match="how it was computed is not known here"):
        curate.neighbors(school_ws, vectors="theirs", text="a text")
    near = curate.neighbors(school_ws, vectors="theirs", sample_id=ids[0], k=3)
    cosine = (theirs / lengths[:, None]) @ (theirs[0] / lengths[0])
    cosine[[0, 5, 199]] = -2
    assert [r["id"] for r in near.found][:1] == [ids[int(cosine.argmax())]]


def test_a_damaged_part_is_told_with_the_command_that_makes_it_again(school_ws: Workspace, tmp_path: Path) -> None:
    table = pa.table({"id": [r["id"] for r in rows_of(school_ws)], "score": values(200)})
    file = written(tmp_path, table, "parquet")
    curate.attach(school_ws, "other", file)
    part = sorted(school_ws.score_folder("other").glob("part*.parquet"))[1]
    Path(str(part)).write_bytes(b"no parquet")
    (damage,) = curate.verify(school_ws, repair=True).damaged
    assert "curate attach other" in damage.remedy and not damage.repaired
    assert curate.attach(school_ws, "other", file).computed > 0
    assert curate.verify(school_ws).damaged == []
    np.testing.assert_array_equal([r["other"] for r in rows_of(school_ws, "other")], values(200).astype(np.float32))


def test_one_that_was_killed_is_gone_on_with(school_ws: Workspace, tmp_path: Path) -> None:
    table = pa.table({"id": [r["id"] for r in rows_of(school_ws)], "score": values(200)})
    file = written(tmp_path, table, "parquet")
    code = "import curate; curate.attach(sys.argv[1], 'other', sys.argv[2])"
    run_and_kill(code, str(school_ws.path), str(file), die_at=3)
    result = curate.attach(school_ws, "other", file)
    assert 0 < result.computed < 200
    np.testing.assert_array_equal([r["other"] for r in rows_of(school_ws, "other")], values(200).astype(np.float32))
    assert curate.verify(school_ws).damaged == []


Fault = tuple[pa.Table, dict[str, Any], str]


def _faulty(ids: list[str]) -> dict[str, Fault]:
    one, two, v = {"id": ids, "score": values(200)}, [*ids, ids[3]], values(200)
    strangers, dates = [f"{i:016x}" for i in range(200)], pa.array([0] * 200, pa.date32())
    return {
        "a duplicate id": (pa.table({"id": two, "score": values(201)}), {}, "twice, in its rows 4 and 201"),
        "a missing id": (pa.table({"id": [None, *ids[1:]], "score": v}), {}, "its row 1 has id None"),
        "no id": (pa.table({"id": ["x", *ids[1:]], "score": v}), {}, "has id 'x', not an id of 16 hexa"),
        "ids as numbers": (pa.table({"id": range(200), "score": v}), {}, "has id 0, not an id of 16 hexa"),
        "text": (pa.table({"id": ids, "score": ["a"] * 200}), {"score": "score"}, "is text, and a score is a number"),
        "dates": (pa.table({"id": ids, "d": dates}), {"score": "d"}, "is date32"),
        "no such column": (pa.table(one), {"score": "scroe"}, "did you mean 'score'"),
        "a stranger's pool": (pa.table({"id": strangers, "score": v}), {}, "another pool"),
        "one stranger": (pa.table({"id": [*ids, "0" * 16], "score": values(201)}), {}, "1 rows of .* of no sample"),
        "several columns": (pa.table({"id": ids, "a": v, "b": v}), {}, r"several columns .*\(a, b\)"),
        "no numbers": (pa.table({"id": ids, "a": ["x"] * 200}), {}, "no column of numbers"),
        "a row twice": (pa.table({"row": [0, 0], "score": [1.0, 2.0]}), {}, "the row 0 twice"),
        "too few rows": (pa.table({"score": [1.0, 2.0]}), {}, "2 rows and the pool has 200 samples"),
        "no such field": (pa.table({"doc": ["a"], "score": [1.0]}), {"by": "doc"}, "no sample has the field doc"),
        "no vectors": (pa.table(one), {"vector": "score"}, "vectors are lists of numbers"),
        "lengths": (
            pa.table({"id": ids[:2], "v": [[1.0], [1.0, 2.0]]}),
            {"vector": "v"},
            "has 1 numbers, others have 2",
        ),
        "two columns": (pa.table([ids, v, v], ["id", "a", "a"]), {"score": "a"}, "duplicate field names"),
    }


@pytest.mark.parametrize("fault", list(_faulty([""] * 200)))
def test_a_file_that_does_not_fit_is_refused_by_a_sentence_and_leaves_nothing(
    fault: str, school_ws: Workspace, tmp_path: Path
) -> None:
    table, options, said = _faulty([r["id"] for r in rows_of(school_ws)])[fault]
    with pytest.raises(CurateError, match=said):
        curate.attach(school_ws, "other", written(tmp_path, table, "parquet"), **options)
    assert "other" not in school_ws.score_names() and curate.status(school_ws).damaged == []


def test_files_that_are_no_tables_are_refused(school_ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "x", "score": 1}]')
    with pytest.raises(CurateError, match="a JSON array"):
        curate.attach(school_ws, "other", tmp_path / "a.json")
    whole = written(tmp_path, pa.table({"row": range(200), "score": values(200)}), "parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    with pytest.raises(CurateError, match="cannot be read as parquet"):
        curate.attach(school_ws, "other", tmp_path / "cut.parquet")
    with pytest.raises(CurateError, match="several formats"):
        write_jsonl(tmp_path / "b.jsonl", [{"row": 0, "score": 1.0}])
        curate.attach(school_ws, "other", [tmp_path / "theirs.parquet", tmp_path / "b.jsonl"])
    curate.score(school_ws, Length())
    with pytest.raises(CurateError, match="is there, made by length"):
        curate.attach(school_ws, "length", tmp_path / "theirs.parquet")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"score": "b"}, "every score has a column 'score' of its own"),
        ({"error": "b"}, "every score has a column 'error'"),
        ({"id": "b"}, "every score has a column 'id'"),
        ({'b "c': "b"}, "must match"),
        ({"a.b": "b"}, "'a_b' would do"),
        (["b", "B"], "two further columns would be called 'b'"),
    ],
)
def test_names_that_sql_cannot_tell_apart_are_refused(
    columns: Any, said: str, school_ws: Workspace, tmp_path: Path
) -> None:
    file = written(
        tmp_path, pa.table({"row": range(200), "a": values(200), "b": values(200), "B": values(200)}), "arrow"
    )
    with pytest.raises(CurateError, match=said):
        curate.attach(school_ws, "other", file, score="a", columns=columns)


def test_without_keys_the_order_of_files_counts(school_ws: Workspace, tmp_path: Path) -> None:
    for name, some in (("a", values(200)[:80]), ("b", values(200)[80:])):
        pq.write_table(pa.table({"q": some}), tmp_path / f"{name}.parquet")
    files = [tmp_path / "b.parquet", tmp_path / "a.parquet"]
    curate.attach(school_ws, "other", files)
    with pytest.raises(CurateError, match="attached from other files or columns"):
        curate.attach(school_ws, "other", files[::-1])
    curate.attach(school_ws, "other", files[::-1], fresh=True)
    np.testing.assert_array_equal([r["other"] for r in rows_of(school_ws, "other")], values(200).astype(np.float32))


def test_a_column_that_has_several_types_in_several_files_loses_nothing(school_ws: Workspace, tmp_path: Path) -> None:
    ids = [r["id"] for r in rows_of(school_ws)]
    (tmp_path / "a.csv").write_text("id,q,x\n" + "".join(f"{one},1,{i}\n" for i, one in enumerate(ids[:100])))
    (tmp_path / "b.csv").write_text("id,q,x\n" + "".join(f"{one},0.5,{i}.5\n" for i, one in enumerate(ids[100:150])))
    (tmp_path / "c.csv").write_text("id,q,x\n" + "".join(f"{one},,\n" for one in ids[150:]))
    result = curate.attach(school_ws, "other", sorted(tmp_path.glob("?.csv")), score="q", columns=["x"])
    assert result.nulls == 50 and result.missing == 0
    found = rows_of(school_ws, "other, other_x")
    assert [r["other"] for r in found] == [1.0] * 100 + [0.5] * 50 + [None] * 50
    assert [r["other_x"] for r in found] == [*range(100), *(i + 0.5 for i in range(50)), *[None] * 50]
    (tmp_path / "c.csv").write_text("id,q,x\n" + "".join(f"{one},good,\n" for one in ids[150:]))
    with pytest.raises(CurateError, match="is text, and a score is a number"):
        curate.attach(school_ws, "third", sorted(tmp_path.glob("?.csv")), score="q")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_rows_may_be_long_and_have_fields_of_all_kinds_that_are_not_wanted(
    ending: str, school_ws: Workspace, tmp_path: Path
) -> None:
    ids = [r["id"] for r in rows_of(school_ws)]
    table = pa.table({"id": ids, "text": ["long " * 600_000, *["x"] * 199], "q": values(200)})
    file = written(tmp_path, table, ending)
    if ending == "jsonl":
        with file.open("a") as out:
            out.write('{"id": "%s", "text": {"now": "an object"}, "q": 1.5}\n' % ("f" * 16))
    result = curate.attach(school_ws, "other", file, score="q", ignore_unknown=True)
    assert result.nulls == 0 and result.unknown == (ending == "jsonl")


def test_keys_of_other_types_are_matched_or_refused_by_a_sentence(school_ws: Workspace, tmp_path: Path) -> None:
    ids = [r["id"] for r in rows_of(school_ws)]
    coded = pa.table({"id": pa.array(ids).dictionary_encode(), "q": values(200)})
    assert curate.attach(school_ws, "coded", written(tmp_path, coded, "parquet")).matched == 200
    whole = pa.table({"row": [0.0, 3.0], "q": [1.0, 2.0]})
    assert curate.attach(school_ws, "whole", written(tmp_path, whole, "parquet"), score="q").matched == 2
    for rows, said in (([0.0, 1.5], "has row 1.5"), ([True, False], "is bool, and rows"), ([[0], [1]], "is list")):
        file = written(tmp_path, pa.table({"row": rows, "q": [1.0, 2.0]}), "parquet")
        with pytest.raises(CurateError, match=said):
            curate.attach(school_ws, "other", file, score="q", by="row")


def test_numbers_beyond_what_is_stored_are_null_or_refused(school_ws: Workspace, tmp_path: Path) -> None:
    large = pa.table({"row": [0, 1, 2], "q": [1e300, -1e39, 1.0]})
    result = curate.attach(school_ws, "other", written(tmp_path, large, "parquet"), score="q")
    assert result.nulls == 199
    found = rows_of(school_ws, "other, other_error e")
    assert [r["other"] for r in found[:3]] == [None, None, 1.0] and "not a finite number" in found[0]["e"]
    unsigned = pa.table({"row": [0], "q": [1.0], "u": pa.array([(1 << 63) + 5], pa.uint64())})
    with pytest.raises(CurateError, match="integers are stored up to 9223372036854775807"):
        curate.attach(school_ws, "third", written(tmp_path, unsigned, "parquet"), score="q", columns=["u"])
    edge = pa.table({"row": [0, 1], "q": [(1 << 63) - 1, 5]})
    assert (
        "1 values are integers"
        in curate.attach(school_ws, "edge", written(tmp_path, edge, "parquet"), score="q").warnings[0]
    )
    whole = pa.table({"row": [0], "v": [[(1 << 24) + 1, 2]]})
    assert curate.attach(school_ws, "vectors", written(tmp_path, whole, "parquet"), vector="v").matched == 1


def test_large_integers_are_said_to_be_rounded_and_kept_whole_beside(school_ws: Workspace, tmp_path: Path) -> None:
    large = (1 << 40) + np.arange(200)
    table = pa.table({"row": range(200), "n": large})
    result = curate.attach(school_ws, "other", written(tmp_path, table, "parquet"), score="n", columns=["n"])
    assert "199 values are integers that float32" in result.warnings[0]
    assert [r["other_n"] for r in rows_of(school_ws, "other_n")] == large.tolist()


def test_the_command_says_what_it_did_and_several_files_are_one_table(school_ws: Workspace, tmp_path: Path) -> None:
    ids = [r["id"] for r in rows_of(school_ws)]
    for part, some in enumerate((ids[:150], ids[150:190])):
        write_jsonl(tmp_path / f"part{part}.jsonl", [{"id": one, "q": 1.0, "w": 2} for one in some])
    words = ["attach", "-w", school_ws.path, "other", *sorted(tmp_path.glob("part*.jsonl")), "--score", "q"]
    said = CliRunner().invoke(cli, [str(word) for word in words]).output
    assert "Score other: q, matched by id, of 190 of 200 samples." in said
    assert "10 samples without a row are NULL" in said
