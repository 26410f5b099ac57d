"""`curate explore` over a million made-up chats with three scores: what its pages and filters take, by HTTP.

    python -m tests.bench.explore [ROWS]

Limit: of a list, reading the named columns and sorting numbers; of a page, unpacking the texts that its samples lie in,
which are one after another in the pool's order and anywhere by a score. The naive way, one SELECT with texts, ORDER BY,
LIMIT and OFFSET, stands beside it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import curate
from curate.methods.scores.length import Length
from curate.store.encoding import write_table
from curate.store.schema import POOL
from curate.store.workspace import Workspace
from curate.tables import sql
from curate.tables.chats import contents_at
from curate.web.lists import Choice, Lists
from tests.bench.timing import figure, machine, ratio, spread, timed, told
from tests.support.browser import chromium
from tests.support.serving import Served, serving

SCORES, SHARDS, PAGE, FIRST = 3, 16, 20, 6  # FIRST: what a window shows, which the page asks for first
COLUMNS = "row, id, source, n_chars, messages, text, rejected, template_kwargs, meta"


def build(folder: Path, rows: int) -> Workspace:
    """Chats of 60 words on average, of seven sources; the scores' values are made up, since a real one's have ties."""
    ws, rng = curate.open_workspace(folder), np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(20_000)], object)
    for s in range(SHARDS):
        n = rows // SHARDS
        lengths = rng.integers(10, 110, n)
        words, ends = vocabulary[rng.integers(0, len(vocabulary), lengths.sum())], np.cumsum(lengths)
        texts = [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
        turns = [[("user", f"Please answer question {i} of {s}."), ("assistant", t)] for i, t in enumerate(texts)]
        columns: dict[str, Any] = {
            "id": [f"{x:016x}" for x in rng.integers(0, 2**62, n)],
            "source": [f"source{i % 7}" for i in range(n)],
            "messages": [[{"role": role, "content": content} for role, content in chat] for chat in turns],
            "copies": [1] * n,
            "n_chars": [len(text) + 30 for text in texts],
            "meta": ['{"skill": "maths"}' if i % 3 else '{"skill": "words"}' for i in range(n)],
        }
        columns |= {name: [None] * n for name in POOL.names if name not in columns}
        ws.pool.commit(f"part-{s:05d}", pa.table(columns, schema=POOL), n_chars=1, files={}, beside={})
    for k in range(SCORES):
        curate.score(ws, Length(), names={"length": f"s{k}"})
        for path in sorted(Path(str(ws.score_folder(f"s{k}"))).glob("*.parquet")):
            table = pq.read_table(path)
            made_up = pa.array(rng.normal(size=table.num_rows), table.schema.field("score").type)
            write_table(path, table.set_column(table.schema.get_field_index("score"), "score", made_up))
    return ws


def page(site: Served, count: int = FIRST, **choice: Any) -> Callable[[], None]:
    """What the browser asks for before it shows the first samples of a list."""

    def ask() -> None:
        found = site.get("list", count=PAGE, **choice)
        assert found["rows"], found
        samples = site.get("samples", rows=",".join(map(str, found["rows"][:count])))["samples"]
        assert [sample["row"] for sample in samples] == found["rows"][:count], (found, samples)

    return ask


def once(ws: Workspace, what: str, choice: dict[str, Any], count: int = FIRST, wanted: float | None = 1.0) -> None:
    """Seconds of a page by a server that has seen nothing yet; the median and the slowest of five."""
    seconds = []
    for _ in range(5):
        with serving(ws) as site:  # a server of its own has kept nothing
            site.get("workspace")
            seconds.append(timed(page(site, count, **choice)))
    bound, good = ("", None) if wanted is None else (f"<= {wanted:g} s", max(seconds) <= wanted)
    figure(what, spread(seconds), "s", bound, good)


def in_a_browser(ws: Workspace, folder: Path) -> None:
    """From the address to the samples on the screen, and from a condition or an order to them, by a real browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        print("no chromium is installed, so nothing was measured in a browser")
        return
    shown = "document.querySelector('#list li:nth-child(6) .line')"
    whole = (
        "document.querySelectorAll('#list li .head + .line').length === 20 && document.querySelector('#detail .turn')"
    )
    with serving(ws) as site, chromium(program, folder) as browser:
        took = [timed(lambda: (browser.open(site.address), browser.until(shown)))]
        for field, value in (("where", "s0 > 1 AND s2 < 0"), ("by", "s1"), ("where", "s0 > 1 AND source = 'source3'")):
            set_it = f"""(() => {{ const form = document.getElementById('choice');
                form.{field}.value = {value!r}; document.getElementById('list').replaceChildren();
                form.requestSubmit(); }})()"""
            browser.until(whole)  # as a reader would, who looks at a list before asking for another
            took.append(timed(lambda set_it=set_it: (browser.told(set_it), browser.until(shown))))
    steps = ("opened", "a filter by scores", "the same, by a score", "another filter, by a score")
    print("in Chromium, until 6 samples are on the screen (looked at every 0.05 s):")
    for step, seconds in zip(steps, took, strict=True):
        figure(f"in Chromium: {step}", seconds, "s", "<= 1 s", seconds <= 1)
    print()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    machine("duckdb", "pyarrow", "aiohttp")
    with tempfile.TemporaryDirectory() as folder:
        ws = build(Path(folder) / "ws", rows)
        size = sum(Path(str(shard.path)).stat().st_size for shard in ws.shards())
        print(f"{rows:,} chats in {SHARDS} shards, {size / 2**20:,.0f} MiB\n")
        once(ws, "first page, the pool's order", {})
        once(ws, "first page by a score, the 6 that a window shows", {"by": "s1"})
        once(ws, "first page by a score, all 20 samples", {"by": "s1"}, PAGE, None)
        once(ws, "filter by scores and source", {"where": "s0 > 1 AND s2 < 0 AND source = 'source3'"})
        once(ws, "the same, by a score", {"where": "s0 > 1 AND s2 < 0 AND source = 'source3'", "by": "s1"})
        once(ws, "filter by a field of meta", {"where": "meta->>'skill' = 'words'"})
        once(ws, "filter by the words of all texts", {"words": "word777 "}, FIRST, None)
        with serving(ws) as site:
            page(site, by="s1")()
            deep = [timed(page(site, by="s1", start=start)) for start in range(500_000, 500_100, PAGE)]
            figure("a page amid a list that is kept, its first 6", spread(deep), "s")
            seconds = [timed(lambda: site.get("list", by="s1", start=rows // 2)) for _ in range(5)]
            figure("of that: which samples it has", spread(seconds), "s")
            print()
        in_a_browser(ws, Path(folder))
        naive = f"SELECT {COLUMNS}, s1 FROM samples ORDER BY s1 DESC NULLS LAST, row LIMIT {PAGE}"
        fresh = lambda: Lists(ws)  # noqa: E731
        ours = lambda: (lists := fresh(), lists.contents(lists.listed(Choice(by="s1")).rows[:PAGE].tolist()))  # noqa: E731
        found = ratio(lambda: sql.fetch(ws, naive), ours, pairs=3)
        told("SELECT with texts, by a score, 20 / a list and contents", found, "> 1x", found[0] > 1)
        some = fresh().listed(Choice(by="s1")).rows[rows // 2 : rows // 2 + PAGE].tolist()
        by_row = f"SELECT {COLUMNS} FROM pool WHERE row IN ({', '.join(map(str, some))})"
        found = ratio(lambda: sql.fetch(ws, by_row), lambda: contents_at(ws, some), pairs=3)
        told("20 scattered samples by row of the view / by file", found, "> 1x", found[0] > 1)
        whole = lambda: sql.fetch(ws, "SELECT sum(len(messages[2].content)) FROM pool")  # noqa: E731
        figure("the limit of reading everywhere: unpacking all texts", min(timed(whole) for _ in range(3)), "s")


if __name__ == "__main__":
    main()
