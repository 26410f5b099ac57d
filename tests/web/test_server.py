"""The server of `curate explore`: what it answers, what it refuses, and that no mark is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.store.marks import read_marks
from curate.store.workspace import Workspace
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from curate.verbs.target import target_from_pool
from curate.web import lists
from curate.web.lists import Choice, Lists
from tests.conftest import ROOT, copy_of, small_in, write_jsonl
from tests.support.serving import Served, serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = small_in(tmp_path_factory.mktemp("ready") / "ws")
    curate.score(ws, Length())
    curate.select(ws, "best", Top(), SelectionSpec(by="length", top=40))
    curate.select(ws, "lot", Random(), SelectionSpec(top=90, seed=2))
    curate.mix(ws, "even", Uniform(), MixtureSpec(rows=40, most_epochs=None))
    return ws


@pytest.fixture
def ready(made: Workspace, tmp_path: Path) -> Workspace:
    """300 samples with a score, two selections and a mixture."""
    return copy_of(Path(str(made.path)), tmp_path / "ws")


@pytest.fixture
def site(ready: Workspace) -> Iterator[Served]:
    with serving(ready) as served:
        yield served


def rows_of(ws: Workspace, query: str) -> list[int]:
    return [row["row"] for row in curate.sql(ws, query)]


# --- lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "query"),
    [
        (Choice(), "SELECT row FROM pool ORDER BY row"),
        (Choice("n_chars > 90 -- long ones"), "SELECT row FROM pool WHERE n_chars > 90 ORDER BY row"),
        (
            Choice(words="Rivers' "),
            "SELECT row FROM pool WHERE contains(lower(messages::VARCHAR), 'rivers'' ') ORDER BY row",
        ),
        (
            Choice("n_chars > 50", words="ASKS: "),
            "SELECT row FROM pool WHERE n_chars > 50 AND contains(lower(messages::VARCHAR), 'asks: ') ORDER BY row",
        ),
        (Choice(by="length"), "SELECT row FROM samples ORDER BY length DESC, row"),
        (Choice(by="length_words", descending=False), "SELECT row FROM samples ORDER BY length_words, row"),
        (Choice(inside="lot"), "SELECT row FROM lot ORDER BY rank"),
        (
            Choice("n_chars > 60", inside="best", outside="lot", by="n_chars"),
            "SELECT row FROM pool WHERE n_chars > 60 AND row IN (SELECT row FROM best) "
            "AND row NOT IN (SELECT row FROM lot) "
            "ORDER BY n_chars DESC, (SELECT rank FROM best b WHERE b.row = pool.row)",
        ),
        (
            Choice(inside="best", within="lot"),
            "SELECT b.row FROM best b JOIN lot USING (row) ORDER BY b.rank",
        ),
        (Choice("row NOT IN (SELECT row FROM best)"), "SELECT row FROM pool WHERE row NOT IN (SELECT row FROM best)"),
    ],
)
def test_a_list_is_what_sql_says(ready: Workspace, choice: Choice, query: str) -> None:
    its = Lists(ready)
    assert its.listed(choice).rows.tolist() == rows_of(ready, query)
    assert its.listed(choice) is its.listed(choice)  # and is kept


def test_a_list_is_made_anew_when_what_it_is_of_has_changed(ready: Workspace, tmp_path: Path) -> None:
    its = Lists(ready)
    by_best, by_length = Choice("row IN (SELECT row FROM best)"), Choice(by="length")
    unscored, marked = Choice("target = 'facts'"), Choice(marked="good")
    before = its.listed(by_best).rows
    curate.select(ready, "best", Top(), SelectionSpec(by="length", top=5), fresh=True)
    assert len(its.listed(by_best).rows) == 5 < len(before) and not len(its.listed(marked).rows)
    curate.ingest(ready, [write_jsonl(tmp_path / "more.jsonl", [{"text": "one more"}])])
    listed = its.listed(by_length)
    assert len(listed.rows) == 301 and listed.rows[-1] == 300 and np.isnan(listed.values[-1])  # not scored: last
    some = its.contents([300, 0])
    assert [s["text"] for s in some][0] == "one more" and its.contents([300])[0] is some[0]
    with pytest.raises(CurateError, match="target"):
        its.listed(unscored)


def test_a_query_that_takes_too_long_is_given_up(ready: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "PATIENCE", 0.3)
    endless = "(SELECT count(*) FROM range(100000000) a, range(100000) b WHERE hash(a.range + b.range) = n_chars) > 0"
    with pytest.raises(CurateError, match=r"given up after 0\.3 s"):
        Lists(ready).listed(Choice(endless))


# --- answers ---------------------------------------------------------------------------------------------


def test_the_page_gets_lists_samples_and_differences(site: Served, ready: Workspace) -> None:
    its = site.get("workspace")
    assert (its["rows"], its["manifests"], its["targets"]) == (300, ["best", "lot"], ["facts", "words"])
    assert its["columns"] == ["n_chars", "copies", "length", "length_words", "length_chars", "length_turns"]
    found = site.get("list", by="length", descending="1", start=20, count=10)
    assert found["rows"] == rows_of(ready, "SELECT row FROM samples ORDER BY length DESC, row LIMIT 10 OFFSET 20")
    assert found["total"] == 300 and found["values"] == sorted(found["values"], reverse=True)
    samples = site.get("samples", rows=",".join(map(str, found["rows"])))["samples"]
    assert [s["row"] for s in samples] == found["rows"] and samples[0]["mark"] == "" and samples[0]["turns"]
    whole = site.get("sample", id=samples[0]["id"][:9])
    assert whole["id"] == samples[0]["id"] and whole["scores"][0]["score"] == "length"
    assert ["n", str(json.loads(whole["meta"][0][1]))] == whole["meta"][0]
    assert site.get("diff", a="best", b="lot")["jaccard"] == curate.diff(ready, "best", "lot").jaccard


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("list", {"where": "lenght > 3"}, "there is no column 'lenght': did you mean 'length'?"),
        ("list", {"where": "n_chars >"}, "syntax error"),
        ("list", {"where": "true); DROP TABLE pool; SELECT (1"}, "this query is SELECT, DROP, SELECT: give one SELECT"),
        ("list", {"where": "true); COPY pool TO 'x.csv'; SELECT (1"}, "this query is SELECT, COPY, SELECT"),
        ("list", {"by": "source"}, "no numeric column 'source'"),
        ("list", {"inside": "bets"}, "did you mean 'best'"),
        ("list", {"marked": "well"}, "good, bad, any or none"),
        ("list", {"start": "-1"}, "start is a number of 0 or more, not '-1'"),
        ("sample", {"id": "no"}, "no sample whose id begins with 'no'"),
        ("sample", {"id": "best"}, "is no sample, but a manifest"),
        ("diff", {"a": "best", "b": "even"}, "is a mixture"),
        ("nothing", {}, "GET /api/nothing: Not Found"),
    ],
)
def test_a_mistake_is_one_sentence(site: Served, path: str, fields: dict[str, str], said: str) -> None:
    told = site.get(path, **fields)
    assert isinstance(told, str) and said in told and "\n" not in told and "Traceback" not in told


def test_an_empty_workspace_is_served(ws: Workspace) -> None:
    with serving(ws) as site:
        assert site.get("workspace")["rows"] == 0 and site.get("list") == {
            **{"total": 0, "start": 0, "rows": [], "values": []},
        }
        assert site.get("samples", rows="1,2") == {"samples": []} and "no sample" in site.get("sample", id="ab")


# --- refusals --------------------------------------------------------------------------------------------


def test_requests_of_others_are_refused(site: Served) -> None:
    token = {"X_Curate_Token": site.token}
    assert site.raw("GET", "/api/workspace", **token)[0] == 200
    assert site.raw("GET", "/api/workspace", Host="localhost:9999", **token)[0] == 200  # through a tunnel
    for headers in (
        {},
        {"X_Curate_Token": site.token[:-1]},
        {"X_Curate_Token": "ü"},
        {**token, "Host": "evil.example"},
        {**token, "Host": f"evil.example:{site.port}"},
        {**token, "Host": "127.0.0.1.evil.example"},
        {**token, "Origin": "http://evil.example"},
        {**token, "Origin": "null"},
        {**token, "Sec_Fetch_Site": "cross-site"},
    ):
        status, told, _ = site.raw("GET", "/api/workspace", **headers)
        assert status == 403 and told["error"].endswith("."), headers
    assert site.raw("GET", "/", Host="evil.example")[0] == 403
    for path in ("/api/mark", "/api/keep"):
        assert site.raw("POST", path, {"ids": []}, Content_Type="application/json")[0] == 403
        assert site.raw("POST", path, {"ids": []}, Content_Type="text/plain", **token)[0] == 400
        assert site.raw("GET", path, **token)[0] == 405
    assert site.raw("GET", "/../server.py", **token)[0] == 404


def test_the_page_is_whole_and_may_load_nothing_from_elsewhere(site: Served) -> None:
    status, page, headers = site.raw("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and site.token not in page
    for name in re.findall(r'(?:src|href)="([\w.]+)"', page):
        status, text, headers = site.raw("GET", f"/{name}")
        assert status == 200 and "http" not in text and headers["Content-Security-Policy"] == policy
        assert "innerHTML" not in text and "insertAdjacent" not in text
    assert not re.search(r"<script(?! type=\"module\" src)|\son\w+=|style=", page)


# --- marks -----------------------------------------------------------------------------------------------


def test_marks_of_many_at_once_are_all_kept(site: Served, ready: Workspace) -> None:
    ids = [row["id"] for row in curate.sql(ready, "SELECT id FROM pool ORDER BY row LIMIT 40")]
    threads = [
        threading.Thread(target=site.post, args=("mark",), kwargs={"ids": [i], "mark": mark})
        for i, mark in zip(ids, ["good", "bad"] * 20, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_marks(ready) == dict(zip(ids, ["good", "bad"] * 20, strict=True))
    assert site.get("list", marked="good")["total"] == 20 and site.get("list", marked="none")["total"] == 260
    assert site.post("mark", ids=ids[:2], mark=None) == {"good": 19, "bad": 19}
    assert "good or bad" in site.post("mark", ids=ids, mark="fine") and "16 hex" in site.post("mark", ids="x")
    assert "JSON object" in site.raw("POST", "/api/mark", [1], X_Curate_Token=site.token,
                                     Content_Type="application/json")[1]["error"]  # fmt: skip


def test_marks_are_kept_as_a_manifest_that_repeats_itself_and_as_a_target(site: Served, ready: Workspace) -> None:
    ids = [row["id"] for row in curate.sql(ready, "SELECT id FROM pool ORDER BY row DESC LIMIT 7")]
    assert "no sample is marked good yet" in site.post("keep", name="liked", kind="manifest", mark="good")
    site.post("mark", ids=ids, mark="good")
    assert site.post("keep", name="liked", kind="manifest", mark="good") == {"said": "Manifest liked: 7 samples."}
    assert {row["id"] for row in curate.sql(ready, "SELECT id FROM liked")} == set(ids)
    path = Path(str(ready.path)) / "manifests" / "liked.json"
    assert curate.replay(ready, "again", str(path)).warnings == []
    assert "already" in site.post("keep", name="liked", kind="manifest", mark="good")
    site.post("mark", ids=ids[:1], mark=None)
    again = site.post("keep", name="liked", kind="manifest", mark="good", replace=True)
    assert again == {"said": "Manifest liked: 6 samples."}

    said = site.post("keep", name="wanted_ones", kind="target", mark="good", split="val")
    assert said == {"said": "Target wanted_ones, split val: 6 samples."}
    columns = "id, source, messages, meta, n_chars, rejected, wanted, template_kwargs"
    stored = list(curate.sql(ready, f"SELECT {columns} FROM targets WHERE target = 'wanted_ones' ORDER BY id"))
    of_pool = list(curate.sql(ready, f"SELECT {columns} FROM pool WHERE id IN (SELECT id FROM liked) ORDER BY id"))
    assert stored == of_pool and len(stored) == 6
    assert site.post("keep", name="wanted_ones", kind="target", mark="good", split="test")["said"].endswith(
        "6 samples."
    )
    assert curate.status(ready).targets[1] == {"target": "wanted_ones", "val": 6, "test": 6, "subtasks": 0}
    for wrong, told in (({"name": "Bad Name"}, "must match"), ({"name": "length"}, "is taken"),
                        ({"kind": "run"}, "a manifest or a target"), 
                        ({"split": "dev", "kind": "target"}, "neither val"),
                        ({"mark": "fine"}, "good or bad")):  # fmt: skip
        given = {"name": "x", "kind": "manifest", "mark": "good", "split": "val", **wrong}
        assert told in site.post("keep", **given), wrong
    with pytest.raises(CurateError, match="the pool has none of these 1 samples"):
        target_from_pool(ready, "nobody", ["f" * 16])


def test_a_killed_server_loses_no_mark_and_an_interrupted_one_ends_quietly(ready: Workspace) -> None:
    ids = [row["id"] for row in curate.sql(ready, "SELECT id FROM pool ORDER BY row LIMIT 3")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "curate.cli", "explore", "-w", str(ready.path), "--no-browser"]
    for marked, how, status in ((ids[0], signal.SIGKILL, -9), (ids[1], signal.SIGINT, 0), (ids[2], signal.SIGTERM, 0)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#[\w-]{32}", address)
        assert "good" in Served(address).post("mark", ids=[marked], mark="good")
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (status, "")
    assert list(read_marks(ready)) == ids


def test_a_port_that_is_taken_is_a_sentence(site: Served, ready: Workspace, cli: Any) -> None:
    done = cli("explore", "--no-browser", "--port", site.port, ws=ready)
    assert done.returncode == 2 and f"--port {site.port}: 127.0.0.1 does not have it free" in done.stderr
    assert len(done.stderr.splitlines()) == 1
