"""The page of `curate explore` in a real browser: keys, marks, sizes, and content that stays content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import curate
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.store.marks import read_marks
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import copy_of, small_in, write_jsonl
from tests.support.browser import Browser, chromium
from tests.support.serving import serving

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><a href='javascript:window.hacked=3'>"
HOSTILE = {
    "messages": [
        {"role": f"user {EVIL}", "content": f"{EVIL}\x00\x1b[2J\u202egnirts"},
        {
            "role": "assistant",
            "content": "x" * 200_000,
            "reasoning_content": EVIL,
            "tool_calls": [{"type": "function", "function": {"name": EVIL, "arguments": json.dumps({"a": EVIL})}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": EVIL, "description": EVIL, "parameters": {"p": EVIL}}}],
    EVIL: {"deep": EVIL},
    "big": 123456789012345678901234567890,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("ready")
    ws = small_in(folder / "ws")
    curate.ingest(ws, [write_jsonl(folder / "evil.jsonl", [HOSTILE])], source=f"<b>{EVIL}</b>")
    curate.score(ws, Bm25(), Length(), target="facts")
    curate.select(ws, "best", Top(), SelectionSpec(by="bm25_facts", top=60))
    curate.select(ws, "lot", Random(), SelectionSpec(top=90))
    return ws


@pytest.fixture
def ready(made: Workspace, tmp_path: Path) -> Workspace:
    """300 samples, one that is hostile, two scores, two selections."""
    return copy_of(Path(str(made.path)), tmp_path / "ws")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(str(CHROMIUM), tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def browser(opened: Browser) -> Browser:
    """The one browser, which has shown other pages of other addresses, and complained of none yet."""
    opened.command("Page.navigate", url="about:blank")
    opened.complaints.clear()
    return opened


def text(browser: Browser, selector: str) -> str:
    return browser.told(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")


def filtered(browser: Browser, where: str) -> str:
    """What the page says of a condition."""
    browser.told(f"(() => {{ const f = document.getElementById('choice'); f.where.value = {json.dumps(where)}; "
                 "document.getElementById('said').textContent = 'One moment.'; f.requestSubmit(); })()")  # fmt: skip
    browser.until("document.getElementById('said').textContent !== 'One moment.'")
    return text(browser, "#said")


OPEN = "document.documentElement.dataset.ready && document.querySelector('#list .line')"


def test_keys_marks_filters_and_sorting(ready: Workspace, browser: Browser) -> None:
    with serving(ready) as site:
        browser.open(site.address)
        browser.until(f"{OPEN} && document.getElementById('detail').dataset.id")
        ids = [row["id"] for row in curate.sql(ready, "SELECT id FROM pool ORDER BY row LIMIT 25")]
        assert site.token not in browser.told("location.href") and "of 301 samples" in text(browser, "#said")
        for key, i in (("j", 1), ("ArrowDown", 2), ("k", 1)):
            browser.key(key)
            browser.until(f"document.getElementById('detail').dataset.id === '{ids[i]}'")
        for key in ("g", "b", "g"):  # each goes on to the next
            before = browser.told("document.getElementById('detail').dataset.id")
            browser.key(key)
            browser.until(f"document.getElementById('detail').dataset.id !== '{before}'")
        assert read_marks(ready) == {ids[1]: "good", ids[2]: "bad", ids[3]: "good"}
        assert "2 good · 1 bad" in text(browser, "#counts")
        browser.key("k")
        browser.key("u")
        browser.until("document.getElementById('counts').textContent.includes('1 good')")
        assert list(read_marks(ready)) == ids[1:3]
        browser.key("n")
        browser.until(f"document.getElementById('detail').dataset.id === '{ids[20]}'")

        browser.key("/")
        browser.key("g")  # typed, and no mark
        assert (
            browser.told("document.activeElement.id") == "where" and browser.told("document.activeElement.value") == "g"
        )
        browser.key("Escape")
        (there,) = curate.sql(ready, "SELECT count(*) AS n FROM pool WHERE source = 'pool' AND n_chars > 60")
        assert filtered(browser, "source = 'pool' AND n_chars > 60").startswith(f"{there['n']} of 301 samples")
        assert filtered(browser, "lenth > 2") == "there is no column 'lenth': did you mean 'length'?"
        assert "wrong" in browser.told("document.getElementById('said').className")
        assert "syntax error" in filtered(browser, "((") and "0 of 301" in filtered(browser, "false")
        assert text(browser, "#list .empty") == "No sample is like that."
        filtered(browser, "")
        browser.told("(() => { const f = document.getElementById('choice'); f.by.value = 'bm25_facts'; "
                     "f.by.dispatchEvent(new Event('change')); })()")  # fmt: skip
        best = next(iter(curate.sql(ready, "SELECT id FROM samples ORDER BY bm25_facts DESC, row LIMIT 1")))["id"]
        browser.until(f"document.getElementById('detail').dataset.id === '{best}'")
        assert "bm25_facts" in text(browser, "#list li .numbers")
        assert not browser.complaints or all("400" in line for line in browser.complaints), browser.complaints


def test_two_selections_and_keeping_marks(ready: Workspace, browser: Browser) -> None:
    with serving(ready) as site:
        browser.open(site.address)
        browser.until(OPEN)
        browser.key("g")
        browser.until("document.getElementById('counts').textContent.includes('1 good')")
        browser.told("document.getElementById('open-keep').click()")
        browser.told("(() => { const f = document.getElementById('keep-form'); f.elements.name.value = 'liked'; "
                     "f.requestSubmit(); })()")  # fmt: skip
        browser.until("document.getElementById('keep-said').textContent")
        assert text(browser, "#keep-said") == "Manifest liked: 1 samples."
        browser.key("Escape")
        browser.key("c")
        browser.until("document.querySelector('#only-b .line')")
        r = curate.diff(ready, "best", "lot")
        assert text(browser, "#only-a h2") == f"only in best ({r.only_a})"
        assert text(browser, "#only-b h2") == f"only in lot ({r.only_b})"
        assert text(browser, "#both h2") == f"in both ({r.both})" and f"{r.both} samples in both" in text(
            browser, ".big"
        )
        browser.told("(() => { const f = document.getElementById('pair'); f.b.value = 'liked'; f.requestSubmit(); })()")
        r = curate.diff(ready, "best", "liked")
        browser.until(f"document.querySelector('#only-b h2').textContent === 'only in liked ({r.only_b})'")
        browser.until("document.querySelector('#only-a .line')")
        browser.told("document.querySelector('#only-a li').click()")
        browser.until("document.getElementById('sheet').open")
        browser.key("Escape")
        browser.until("!document.getElementById('sheet').open")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_hostile_content_is_shown_and_inert(ready: Workspace, browser: Browser, width: int, dark: bool) -> None:
    with serving(ready) as site:
        browser.open(site.address, width=width, dark=dark)
        browser.until(OPEN)
        ground = browser.told("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")
        filtered(browser, "n_chars > 10000")
        browser.key("Enter")
        place = "#sheet" if width < 600 else "#detail"
        browser.until(f"document.querySelector('{place}').textContent.includes('x'.repeat(200000))")
        shown = text(browser, place)
        assert shown.count(EVIL) >= 6 and "\\u0000\\u001b[2J\\u202egnirts" in shown and "x" * 200_000 in shown
        assert "123456789012345678901234567890" in shown and EVIL in text(browser, "#list .tag")
        assert browser.told("document.querySelectorAll('main script, main img, main a, main b b').length") == 0
        assert browser.told("document.querySelectorAll('dialog script, dialog img, dialog a').length") == 0
        assert browser.told("String(window.hacked)") == "undefined"
        assert browser.told("document.documentElement.scrollWidth <= innerWidth")
        loaded = browser.told("performance.getEntriesByType('resource').map((one) => new URL(one.name).host)")
        assert {host for host in loaded if host} == {f"127.0.0.1:{site.port}"} and not browser.complaints


def test_on_a_phone_a_sample_is_a_sheet_with_large_buttons(ready: Workspace, browser: Browser) -> None:
    with serving(ready) as site:
        browser.open(site.address, width=390, height=844)
        browser.until(OPEN)
        assert browser.told(
            "document.documentElement.scrollWidth <= innerWidth && !document.getElementById('sheet').open"
        )
        browser.told("document.querySelector('#list li').click()")
        browser.until("document.getElementById('sheet').open")
        assert browser.told("document.querySelector('#sheet .bar button').getBoundingClientRect().height") >= 40
        browser.told("document.querySelector('#sheet .bar button').click()")
        browser.until("document.querySelector('#sheet .bar button.set.good')")
        assert list(read_marks(ready).values()) == ["good"]
        browser.told(
            "[...document.querySelectorAll('#sheet .bar button')].find((one) => one.textContent === 'next').click()"
        )
        browser.until(
            "document.querySelector('#sheet .bar button:not(.set)') && !document.querySelector('#sheet .set')"
        )
        assert browser.told("document.documentElement.scrollWidth <= innerWidth")


def test_an_empty_workspace_and_a_missing_token_are_sentences(ws: Workspace, browser: Browser) -> None:
    with serving(ws) as site:
        browser.open(site.address)
        browser.until("document.querySelector('#list .empty')")
        assert "The pool is empty" in text(browser, "#list .empty")
        browser.told("sessionStorage.clear()")
        browser.open(site.address.split("#")[0])
        browser.until("document.getElementById('said').classList.contains('wrong')")
        assert "open the address that `curate explore` has printed" in text(browser, "#said")
