"""The HTML pages: nothing of a user's data is markup in them, and a mistake in a template is an error."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

import curate
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.numerics.long_horizon.myopia import myopia
from curate.numerics.long_horizon.scorecard import LATER, NOW, Scorecard
from curate.numerics.statistics import Mean
from curate.pages import audit, comparison, report
from curate.pages._html import embedded, render, script_hash
from curate.store.workspace import Workspace
from curate.tables.run_costs import Cost
from curate.verbs.compare import Arm, Compared
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec

# A figure's legend is too small for such names.
pytestmark = pytest.mark.filterwarnings("ignore:constrained_layout not applied")

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)"> \' onload=\'alert(3)\' " onload="alert(4)" </svg>&lt;'


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def skeleton(self) -> list[tuple[str, list[str]]]:
        """Tags with the names of their attributes."""
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


NAMED = "quality against beyond_null curves percentile counts quantiles mixtures best worst".split()
"""Fields with dictionaries whose keys are names that a user gave."""


def hostile(value: Any, named: bool = False) -> Any:
    """The same value with EVIL at the end of every text, and of the keys of a dictionary if those are `named`."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, list | tuple):
        return type(value)(hostile(one) for one in value)
    if isinstance(value, dict):
        return {hostile(key) if named else key: hostile(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type | Mean | Cost):
        return replace(value, **{f.name: hostile_field(value, f.name) for f in fields(value)})
    return value


def hostile_field(of: Any, name: str) -> Any:
    of_samples_or_runs = (type(of).__name__, name) in {
        ("Chosen", "sources"), ("Shown", "scores"), ("Compared", "measures"), ("Report", "audits"),
    }  # fmt: skip
    return hostile(getattr(of, name), named=name in NAMED or of_samples_or_runs)


def scorecard() -> Scorecard:
    lot = np.random.default_rng(0)
    names, stages = ["random", "greedy", "steady"], [("one", "a"), ("two", "b")]
    measures = {name: lot.normal(size=(3, 2)) for name in (*NOW, *LATER)}
    curves: dict[str, Any] = {name: [(np.array([0.0, 9.0]), lot.normal(size=2))] for name in names}
    ranks = myopia(measures["gain"], measures["utility"])
    return Scorecard(names, stages, 2, measures, lot.normal(size=(3, 2, 3, 2)), curves, ranks, names, ["a hole"])


def compared() -> Compared:
    measures = {"loss": {"better": "lower", "in_domain": True}, "recall": {"better": "higher", "in_domain": False}}
    some, other = Mean.of([1.0, 1.1]), Mean.of([2.0, 2.2])
    quality = {"loss": some, "recall": other}
    arms = [
        Arm("full", ["full_s0", "full_s1"], 10.0, Cost(train=1e9), quality),
        Arm("best", ["best_s0", "best_s1"], 5.0, Cost(train=5e8, counted=1e8), quality, {"loss": some}, {"loss": some}),
        Arm("dealt", ["dealt_s0"], 5.0, Cost(train=5e8), quality, {"recall": other}, null_of="best"),
    ]
    return Compared(arms, [], measures, "full", ["a warning"])


@pytest.fixture
def told(sample_ws: Workspace) -> report.Report:
    """A report with something in every section."""
    curate.score(sample_ws, Bm25(), Length(), target="arithmetic")
    curate.select(sample_ws, "best", Top(), SelectionSpec(by="length", top=300))
    curate.select(sample_ws, "lot", Random(), SelectionSpec(top=300))
    curate.mix(sample_ws, "even", Uniform(), MixtureSpec(rows=40, most_epochs=None))
    found = curate.report(sample_ws)
    run = {"name": "run", "model": "tiny", "manifest": "best", "weighting": "uniform", "mask": None, "seed": 0}
    found.status.runs.append({**run, "steps": 3, "state": "complete"})
    found.runs, found.audits, found.warnings = compared(), {"skills": scorecard()}, ["a warning"]
    return found


def has_nothing_of_evil(plain: str, evil: str) -> None:
    """The page with hostile data has the elements of the one without, and shows the hostile text as text."""
    expected, found = Elements(plain), Elements(evil)
    assert found.skeleton() == expected.skeleton()
    assert "<script>alert(1)" not in evil and EVIL in found.text


def test_a_report_holds_no_markup_of_a_users_data(told: report.Report) -> None:
    evil = report.page(hostile(told), f"title{EVIL}")
    has_nothing_of_evil(report.page(told, "title"), evil)
    sections = [attributes["id"] for tag, attributes in Elements(evil).elements if tag == "section"]
    assert sections == ["pool", "scores", "selections", "best-and-worst", "samples", "runs", "audits", "cost"]


def test_a_comparison_holds_no_markup_of_a_users_data() -> None:
    has_nothing_of_evil(comparison.page(compared(), "title"), comparison.page(hostile(compared()), f"title{EVIL}"))


def test_an_audit_holds_no_markup_of_a_users_data() -> None:
    has_nothing_of_evil(audit.page(scorecard(), "title"), audit.page(hostile(scorecard()), f"title{EVIL}"))


def test_an_interval_that_excludes_zero_is_coloured() -> None:
    cells = [attributes for tag, attributes in Elements(comparison.page(compared(), "t")).elements if tag == "td"]
    assert [cell["class"] for cell in cells if "class" in cell] == ["bad", "good", "bad"]


def test_a_name_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("simple_page.html", reading=[], notes=[])


def test_what_is_not_escaped_ends_no_element() -> None:
    folder = Path(report.__file__).parent
    files = [path.name for path in folder.iterdir() if path.suffix in (".css", ".js")]
    assert sorted(files) == ["page.css", "report.css", "report.js"]
    assert not any("</" in embedded(name) or "<!--" in embedded(name) for name in files)


@pytest.mark.parametrize("name", ["report.html", "simple_page.html"])
def test_a_page_runs_no_script_but_its_own(name: str) -> None:
    source = (Path(embedded.__code__.co_filename).parent / "templates" / name).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)">', source)
    assert "default-src 'none'" in policy and "base-uri 'none'" in policy and "form-action 'none'" in policy
    assert "script-src 'unsafe" not in policy and "eval" not in policy and "http" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", source)
    assert [f'{{{{ embedded("{n}") }}}}' for n in re.findall(r'script_hash\("(.*?)"\)', policy)] == scripts
    assert script_hash("report.js").startswith("sha256-")
