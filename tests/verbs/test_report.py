"""`curate report`: figures that are true, and a page that a real browser shows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import curate
from curate.cli.main import cli
from curate.errors import CurateError
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.pages.report import page
from curate.store.workspace import Workspace
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.conftest import SHARED, write_jsonl

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")

EVIL = (
    "<script>window.hacked = 1; document.title = 'hacked'</script><img src=x onerror=\"window.hacked=2\"> </textarea>"
)


@pytest.fixture
def ready(sample_ws: Workspace, tmp_path: Path) -> Workspace:
    """Three scores, four manifests, a mixture; and samples that hold markup."""
    said = [{"role": "user", "content": f"{EVIL} ünïcode 🌍"}, {"role": "assistant", "content": f"</script> {EVIL}"}]
    curate.ingest(sample_ws, [write_jsonl(tmp_path / "evil.jsonl", [{"messages": said}])], source="<b>evil</b>")
    curate.score(sample_ws, Bm25(), Length(), Repetition(), target="arithmetic")
    curate.select(sample_ws, "best", Top(), SelectionSpec(by="bm25_arithmetic", top=300))
    curate.select(sample_ws, "lot", Random(), SelectionSpec(top=300))
    curate.select(sample_ws, "long", Top(), SelectionSpec(by="length", top=100))
    curate.weigh(sample_ws, "heavy", AdaptStatic(), "bm25_arithmetic", manifest="best")
    curate.mix(sample_ws, "even", Uniform(), MixtureSpec(rows=40, most_epochs=None))
    return sample_ws


def test_the_figures_are_those_of_the_workspace(ready: Workspace) -> None:
    from scipy.stats import spearmanr

    r = curate.report(ready)
    names = [spread.name for spread in r.spreads]
    assert names == ["bm25_arithmetic", "length", "repetition"]
    columns = ", ".join(names)
    rows = list(curate.sql(ready, f"SELECT row, id, source, n_chars, {columns} FROM samples ORDER BY row"))
    values = {name: np.array([row[name] for row in rows], float) for name in names}
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            assert r.correlation[i, j] == pytest.approx(spearmanr(values[a], values[b]).statistic)
    bm25 = r.spreads[0]
    assert sum(counts.sum() for counts in bm25.counts.values()) == len(rows) and bm25.nulls == 0
    atlas = values["bm25_arithmetic"][[row["source"] == "atlas" for row in rows]]
    assert bm25.quantiles["atlas"][2] == pytest.approx(np.median(atlas))

    chosen = {one.name: one for one in r.selections}
    assert list(chosen) == ["best", "heavy", "long", "lot"]
    best = [row["row"] for row in curate.sql(ready, "SELECT row FROM best")]
    its = chosen["best"]
    assert its.sources["school"][0] == pytest.approx(np.mean([rows[r_]["source"] == "school" for r_ in best]))
    ranks = np.argsort(np.argsort(values["length"], kind="stable"))
    assert chosen["long"].percentile["length"] > 85 and 45 < chosen["lot"].percentile["length"] < 55
    assert its.length == (np.median([rows[r_]["n_chars"] for r_ in best]), np.median([row["n_chars"] for row in rows]))
    assert its.effective == 300 and chosen["heavy"].effective < 300 and len(ranks) == len(rows)
    order = list(chosen)
    assert r.overlap[order.index("best"), order.index("heavy")] == 1.0
    lot = {row["row"] for row in curate.sql(ready, "SELECT row FROM lot")}
    both = len(lot & set(best)) / len(lot | set(best))
    assert r.overlap[order.index("best"), order.index("lot")] == pytest.approx(both)
    assert list(r.mixtures) == ["even"] and sum(d["rows"] for d in r.mixtures["even"]) == 40

    top = sorted(rows, key=lambda row: (-row["length"], row["id"]))[:10]
    assert r.best["length"].id == [row["id"] for row in top]
    assert min(r.worst["length"].scores["length"]) == values["length"].min()


def test_twins_are_samples_of_the_same_words(ws: Workspace, tmp_path: Path) -> None:
    texts = ["It is 3 o'clock.", "It is 4 o'clock!", "it IS o clock", "another", "Über 2", "über"]
    curate.ingest(ws, [write_jsonl(tmp_path / "t.jsonl", [{"text": t} for t in texts])])
    curate.select(ws, "every", Random(), SelectionSpec(frac=1.0))
    (its,) = curate.report(ws).selections
    assert its.twins == (pytest.approx(5 / 6), pytest.approx(5 / 6))


def packed(text: str) -> dict[str, Any]:
    (inside,) = re.findall(r'<script type="text/plain" id="samples-data">(.*?)</script>', text, re.S)
    return json.loads(gzip.decompress(base64.b64decode(inside)))


def test_the_page_holds_the_samples_and_no_markup_of_theirs(ready: Workspace) -> None:
    text = page(curate.report(ready), "A <b>title</b>")
    assert EVIL not in text and "<b>evil" not in text and "A &lt;b&gt;title" in text
    data = packed(text)
    assert len(data["id"]) == 3001 and EVIL[:20] in "".join(data["text"])
    (at,) = [i for i, s in enumerate(data["source"]) if data["sources"][s] == "<b>evil</b>"]
    assert data["text"][at].startswith(f"user: {EVIL} ünïcode 🌍")
    inside = [data["selections"][c] for c in data["chosen"][data["id"].index(best_id(ready))]]
    assert "best" in inside and "http" not in re.sub(r"Content-Security|http-equiv", "", text.split("samples-data")[0])


def best_id(ws: Workspace) -> str:
    return next(iter(curate.sql(ws, "SELECT id FROM best ORDER BY rank LIMIT 1")))["id"]


def test_few_samples_are_the_ends_and_others_by_lot(ready: Workspace) -> None:
    r = curate.report(ready, samples=200, cut=20)
    assert len(r.shown.id) == 200 and max(map(len, r.shown.text)) <= 20
    for ends in (r.best, r.worst):
        assert all(set(one.id) <= set(r.shown.id) for one in ends.values())
    assert r.shown.id == curate.report(ready, samples=200).shown.id
    assert curate.report(ready, samples=0).shown.id == []


def test_what_is_named_is_shown_and_mistakes_are_said(ready: Workspace, ws: Workspace, tmp_path: Path) -> None:
    r = curate.report(ready, scores=["length"], manifests=["best"])
    assert [s.name for s in r.spreads] == ["length"] and [s.name for s in r.selections] == ["best"]
    few = curate.report(ready, most=2)
    assert len(few.spreads) == 2 and "of 3 scores the first 2" in few.warnings[0]
    with pytest.raises(CurateError, match="no score 'lenth'"):
        curate.report(ready, scores=["lenth"])
    bare = curate.open_workspace(tmp_path / "bare")
    with pytest.raises(CurateError, match="the pool is empty"):
        curate.report(bare)
    result = CliRunner().invoke(cli, ["report", "-w", str(ready.path), "-o", str(tmp_path / "no/page.html")])
    assert isinstance(result.exception, CurateError) and "is no folder" in str(result.exception)
    result = CliRunner().invoke(cli, ["report", "-w", str(ready.path), "-o", str(tmp_path / "page.html"), "--json"])
    assert json.loads(result.output)["samples"] == 3001 and (tmp_path / "page.html").stat().st_size > 100_000


def test_a_pool_alone_is_a_page(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "t.jsonl", [{"text": "one"}, {"text": "two"}])])
    text = page(curate.report(ws), "alone")
    assert "2 samples" in text and 'id="scores"' not in text and packed(text)["text"] == ["one", "two"]


# --- in a real browser -----------------------------------------------------------------------------------


def chromium(path: Path, tmp_path: Path, *more: str, budget: int = 8000) -> subprocess.CompletedProcess[str]:
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0", f"--virtual-time-budget={budget}", *more]
    return subprocess.run([*words, path.as_uri()], capture_output=True, text=True, timeout=180)


def told_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What PROBE wrote into the page."""
    (text,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    return json.loads(html.unescape(text))


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


PROBE = """<script>
addEventListener("load", async () => {
  const later = (ms) => new Promise((go) => setTimeout(go, ms));
  // What unpacks the samples does not hold the browser's virtual clock up: real time passes, virtual hardly any.
  const busy = () => { let x = 1; for (let i = 0; i < 1e7; i++) x = (x * 48271) % 2147483647; return x; };
  const until = async (good) => { for (let i = 0; i < 2000 && !good(); i++) { busy(); await later(1); } };
  const form = document.getElementById("search"), told = {};
  await until(() => document.documentElement.dataset.ready);
  const ask = async (name, value) => {
    form[name].value = value;
    form.dispatchEvent(new Event("input", {bubbles: true}));
    await later(300);
    return document.getElementById("says").textContent;
  };
  told.all = document.getElementById("says").textContent;
  told.evil = await ask("words", "ünïcode");
  told.shown = document.querySelector("#found .said")?.textContent;
  told.marked = document.querySelector("#found mark")?.textContent;
  told.none = await ask("words", "no such words");
  await ask("words", "");
  told.best = await ask("chosen", "0");
  told.sorted = (await ask("order", "+0"), document.querySelector("#found .numbers").textContent);
  await ask("chosen", "");
  document.getElementById("on").click();
  told.second = document.getElementById("says").textContent;
  told.hacked = String(window.hacked);
  told.title = document.title;
  told.wide = document.documentElement.scrollWidth <= innerWidth;
  told.paint = performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1;
  told.fetched = performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length;
  const out = document.createElement("pre"); out.id = "told"; out.textContent = JSON.stringify(told);
  document.body.append(out);
});
</script></body>"""


def probed(text: str, before: str = "") -> str:
    """A page with PROBE, which its policy is made to allow, and something before it, which it is not."""
    own = base64.b64encode(hashlib.sha256(PROBE[len("<script>") : PROBE.index("</script>")].encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{own}' '", 1)
    return text.replace("</body>", f"{before}{PROBE}")


@browser
def test_a_real_browser_shows_searches_and_runs_nothing_of_a_sample(ready: Workspace, tmp_path: Path) -> None:
    text = page(curate.report(ready), "workspace")
    path = tmp_path / "page.html"
    assert text.count("script-src 'sha256-") == 1 and "script-src 'unsafe" not in text
    path.write_text(probed(text, "<script>window.hacked = 1</script>"), encoding="utf-8")
    for size in ("1280,900", "390,844"):  # a phone, too
        done = chromium(path, tmp_path, f"--window-size={size}", "--dump-dom")
        (refused,) = errors(done)  # a script that is not the page's own
        assert "inline script violates" in refused and "Content Security Policy" in refused
        told = told_of(done)
        assert told["all"] == "1 to 25 of 3,001" and told["second"] == "26 to 50 of 3,001"
        assert told["evil"] == "1 to 1 of 1" and EVIL in told["shown"] and told["marked"] == "ünïcode"
        assert told["none"] == "None is like that." and told["best"] == "1 to 25 of 300"
        query = "SELECT id FROM best JOIN bm25_arithmetic b USING (id) ORDER BY b.score, row LIMIT 1"
        assert told["sorted"].split(" ")[0] == next(iter(curate.sql(ready, query)))["id"]
        assert (told["hacked"], told["title"], told["fetched"]) == ("undefined", "workspace", 0)
        assert told["wide"], size


@browser
@pytest.mark.slow
def test_the_report_of_the_real_workspace(tmp_path: Path) -> None:
    """38,692 rows, five scores: at most 15 MB, and painted before anything is unpacked."""
    if not SHARED.exists():
        pytest.skip(f"no real data in {SHARED}")
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, sorted(map(str, (SHARED / "pool").iterdir())))
    ask = {"prompt": "question", "completion": "answer"}
    curate.target(ws, "gsm8k", str(SHARED / "targets/gsm8k_val.jsonl"), mapping=ask)
    curate.target(ws, "bbh", str(SHARED / "targets/bbh_val.jsonl"), subtask="subtask", mapping=ask)
    curate.score(ws, Bm25(), Length(), Repetition(), target="gsm8k")
    curate.score(ws, Bm25(), target="bbh")
    curate.score(ws, curate.find("score", "dsir")(), target="gsm8k")
    for name, by in (("maths", "bm25_gsm8k"), ("reasons", "bm25_bbh")):
        curate.select(ws, name, Top(), SelectionSpec(by=by, frac=0.05))
    curate.select(ws, "lot", Random(), SelectionSpec(frac=0.05))
    began = time.perf_counter()
    text = page(curate.report(ws), "real")
    took = time.perf_counter() - began
    path = tmp_path / "page.html"
    path.write_text(probed(text), encoding="utf-8")
    done = chromium(path, tmp_path, "--window-size=1280,900", "--dump-dom", budget=30_000)
    told = told_of(done)
    print(f"\n{took:.1f} s, {path.stat().st_size / 1e6:.1f} MB, first paint after {told['paint']:.0f} ms")
    assert path.stat().st_size <= 15e6 and not errors(done) and told["fetched"] == 0
    assert len(packed(text)["id"]) == ws.n_rows()
