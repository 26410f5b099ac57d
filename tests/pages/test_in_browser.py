"""Pages of hostile data in a real browser: nothing of it runs, even where the page's policy is switched off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import curate
from curate.pages import audit, comparison, report
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.pages.test_pages import compared, hostile, scorecard
from tests.support.browser import Browser, chromium
from tests.support.serving import serving

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore:constrained_layout not applied"),
]
EVIL = (
    "</script></textarea></title></svg><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
    "\"' onload='window.hacked=3' <svg onload=window.hacked=4></svg><iframe srcdoc='<script>parent.hacked=5</script>'>"
    "</iframe><a href=javascript:window.hacked=6>${window.hacked=7}{{window.hacked=8}}"
)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Whatever is free has EVIL in it: sources, texts, roles, names and values of fields, subtasks."""
    folder = tmp_path_factory.mktemp("hostile")
    ws = curate.open_workspace(folder / "ws")
    said = [{"role": f"user{EVIL}", "content": f"{EVIL} 1"}, {"role": "assistant", "content": EVIL}]
    rows = [{"messages": said, EVIL: EVIL, "kind": EVIL}, {"text": EVIL, "n": {EVIL: [EVIL]}}, {"text": "calm words"}]
    curate.ingest(ws, [write_jsonl(folder / "pool.jsonl", rows)], source=EVIL)
    curate.target(ws, "aim", write_jsonl(folder / "t.jsonl", [rows[0], rows[0] | {"kind": "b"}]), subtask="kind")
    curate.score(ws, "bm25", "length", target="aim")
    curate.select(ws, "best", "top", by="length", top=2)
    return ws


@pytest.fixture(scope="module")
def pages(ws: Workspace) -> dict[str, str]:
    """Each page of hostile data."""
    return {
        "report": report.page(curate.report(ws), f"title{EVIL}"),
        "compare": comparison.page(hostile(compared()), f"title{EVIL}"),
        "audit": audit.page(hostile(scorecard()), f"title{EVIL}"),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with chromium(CHROMIUM, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def quiet(browser: Browser) -> None:
    """Nothing ran, and no element is of the data."""
    assert browser.told("String(window.hacked)") == "undefined"
    made = "document.querySelectorAll('iframe, a[href^=\"javascript\"], [onload], [onerror], img[src=x]').length"
    assert browser.told(made) == 0


@pytest.fixture(params=[False, True], ids=["its policy", "no policy"])
def without_policy(request: pytest.FixtureRequest, browser: Browser) -> bool:
    browser.command("Page.setBypassCSP", enabled=request.param)
    return request.param


@pytest.mark.parametrize("name", ["report", "compare", "audit"])
def test_a_page_runs_nothing_of_its_data(
    pages: dict[str, str], browser: Browser, without_policy: bool, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(pages[name], encoding="utf-8")
    browser.open(path.as_uri())
    browser.until("document.readyState === 'complete' && document.title.includes('title')")
    if name == "report":
        browser.until("document.documentElement.dataset.ready")
        assert "window.hacked=1" in browser.told("document.querySelector('#found').innerText")
    quiet(browser)


def test_what_is_put_into_a_page_is_refused_by_its_policy(
    pages: dict[str, str], browser: Browser, without_policy: bool, tmp_path: Path
) -> None:
    """As if something had not been escaped: which runs, where there is no policy."""
    for made in pages.values():
        path = tmp_path / "page.html"
        path.write_text(made + EVIL, encoding="utf-8")
        browser.open(path.as_uri())
        browser.until("document.readyState === 'complete' && document.querySelector('img[src=x]')")
        browser.told("new Promise((go) => setTimeout(go, 100))")
        assert (browser.told("String(window.hacked)") != "undefined") is without_policy


def test_explore_runs_nothing_of_what_it_shows(ws: Workspace, browser: Browser, without_policy: bool) -> None:
    with serving(ws) as served:
        browser.open(served.address)
        browser.until("document.querySelectorAll('#list .tag').length")
        browser.told("document.querySelector('#list li').click()")
        browser.until("document.body.innerText.split('window.hacked=1').length > 4")
        quiet(browser)
        for where in ("", EVIL, f"source = {json.dumps(EVIL)}", f'n_chars AS "{EVIL.replace(chr(34), "")}"'):
            browser.told(
                f"(() => {{ const it = document.querySelector('#where'); it.value = {json.dumps(where)};"
                "for (const type of ['input', 'change']) it.dispatchEvent(new Event(type, {bubbles: true})); })()"
            )
            browser.told("new Promise((go) => setTimeout(go, 300))")
            quiet(browser)
        browser.told("document.querySelector('#where').value = ''")


def test_names_of_columns_that_a_query_makes_are_text(ws: Workspace) -> None:
    """An alias is free: it is a key of rows, and no page takes it as markup."""
    alias = EVIL.replace('"', "")
    (row,) = curate.sql(ws, f'SELECT count(*) AS "{alias}" FROM pool')
    assert row == {alias: 3}
    shown = repr(curate.sql(ws, f'SELECT count(*) AS "{alias}" FROM pool'))
    html = getattr(curate.sql(ws, f'SELECT count(*) AS "{alias}" FROM pool'), "_repr_html_", lambda: "")()
    assert shown and "<script>" not in html and "<img" not in html
