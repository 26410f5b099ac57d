"""What verbs return, as a terminal and a notebook show it."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.numerics.long_horizon.scorecard import LATER, NOW, Scorecard
from curate.numerics.statistics import Mean
from curate.results import Result
from curate.runs.account import Trained
from curate.store.workspace import Workspace
from curate.tables.engine import Scored
from curate.tables.run_costs import Cost
from curate.verbs.audit import Audited
from curate.verbs.compare import Arm, Compared
from curate.verbs.evaluate import Evaluated
from curate.verbs.explain import Explained
from curate.verbs.export import Exported
from curate.verbs.mask import MaskResult
from curate.verbs.mix import MixtureSpec
from curate.verbs.neighbors import Neighbors
from curate.verbs.prune import Pruned
from curate.verbs.select import SelectionSpec
from curate.verbs.verify import Damage, Verified

EVIL = "<script>alert(1)</script>"
HUNDRED = [
    {"rank": i, "similarity": 0.5, "id": f"{EVIL}{i}", "source": EVIL, "text": f"{EVIL}\n" * 99} for i in range(100)
]


def lines(result: Result) -> list[str]:
    """The lines of its repr, which are few and not wide, and whose HTML holds no markup of a user's data."""
    told = repr(result).splitlines()
    assert len(told) <= 25 and max(map(len, told)) <= 130
    assert "<script>" not in result._repr_html_()
    return told


@pytest.fixture
def found(sample_ws: Workspace) -> dict[str, Any]:
    """The results of a small job, by verb."""
    ws = sample_ws
    line = {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": "no"}]}
    path = Path(str(ws.path)).parent / "evil.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return {
        "ingest": curate.ingest(ws, [str(path)], source=EVIL),
        "score": curate.score(ws, Bm25(), target="arithmetic")[0],
        "length": curate.score(ws, Length())[0],
        "select": curate.select(ws, "best", Top(), SelectionSpec(by="bm25_arithmetic", top=300)),
        "weigh": curate.weigh(ws, "heavy", AdaptStatic(), "bm25_arithmetic", manifest="best"),
        "mix": curate.mix(ws, "even", Uniform(), MixtureSpec(rows=40, most_epochs=None)),
        "verify": curate.verify(ws),
        "status": curate.status(ws),
        "report": curate.report(ws),
    }


def test_the_results_of_a_job_are_told_by_their_main_figures(found: dict[str, Any]) -> None:
    expected = {
        "ingest": "Ingested: read 1, added 1",
        "score": "Scored bm25_arithmetic: method bm25, target arithmetic, rows 3,001, computed 3,001",
        "select": "Selected best: candidates 3,001, rows 300, tokens",
        "weigh": "Weighed heavy: rows 300",
        "mix": "MixtureResult even: rows 40",
        "verify": "Verified: parts",
        "status": "Status: path",
        "report": "Report: of",
    }
    for verb, start in expected.items():
        assert lines(found[verb])[0].startswith(start), repr(found[verb])


def test_a_table_of_a_few_rows_follows_the_figures(found: dict[str, Any]) -> None:
    told = lines(found["select"])
    at = told.index("  by source")
    assert told[at + 1].split() == "source candidates selected tokens mean value share".split()
    assert {line.split()[0] for line in told[at + 2 :]} == {"school", "workshop", "forum", "atlas", EVIL}
    html = found["select"]._repr_html_()
    assert "<caption>by source</caption>" in html and "<th>mean value</th>" in html and "<td>school</td>" in html
    assert "&lt;script&gt;" in html


def test_many_tables_are_a_line_each_in_a_terminal_and_tables_in_a_notebook(found: dict[str, Any]) -> None:
    status = found["status"]
    assert "  scores: bm25_arithmetic, length" in lines(status)
    assert status._repr_html_().count("<table>") == 4  # sources, targets, scores, manifests


def test_a_long_table_is_cut_and_says_so() -> None:
    neighbors = Neighbors("embed", HUNDRED, warnings=[f"warning {i}" for i in range(9)])
    told = lines(neighbors)
    assert told[0] == "Neighbors: vectors embed" and "  and 85 more" in told and told[-1] == "  note: and 6 more notes"
    html = neighbors._repr_html_()
    assert html.count("<tr>") == 51 and "(100; the first 50)" in html


def test_an_explanation_shows_what_is_for_and_against() -> None:
    explained = Explained("id1", "embed", "facts", "pool", EVIL * 99, 0.25, {"easy": 0.5}, HUNDRED, HUNDRED)
    told = lines(explained)
    assert "score 0.25" in " ".join(told) and "easy 0.5" in " ".join(told)
    assert "  for it" in told and "  against it" in told


def test_a_comparison_shows_its_arms() -> None:
    arm = Arm("full", ["full_s0", "full_s1"], 10.0, Cost(train=2.0e9), {"loss": Mean.of([1.0, 1.1])})
    told = lines(Compared([arm], [], {"loss": {"better": "lower", "in_domain": True}}, "full", []))
    assert told[0] == "Compared: against full, measures (loss)"
    assert told[-1].split() == "full 2 10 1.050 ± 0.050 2,000,000,000".split()


def test_an_audit_shows_its_scorecard() -> None:
    measures = {name: np.full((2, 1), 0.5) for name in (*NOW, *LATER)}
    card = Scorecard(["random", EVIL], [("one", "a")], 1, measures, np.zeros((2, 1, 2, 1)), {}, None, [])
    audited = Audited("two", [10], 3, 1, card)
    told = lines(audited)
    assert told[0] == "Audited two: sizes (10), cells 3, cells now 1"
    assert "  now" in told and "  later" in told and sum("random" in line for line in told) == 2


@pytest.mark.parametrize(
    ("result", "start"),
    [
        (Evaluated("run", 3, [{"target": "facts", "metric": "loss", "value": 0.5}]), "Evaluated: run run, step 3"),
        (
            Exported("best", "trl", "out", 300, files=["a"] * 99),
            "Exported: manifest best, format trl, folder out, rows 300",
        ),
        (
            MaskResult("few", 10, 1000, [{"kind": "mlp", "parameters": 9}]),
            "MaskResult few: selected 10, parameters 1,000",
        ),
        (
            Pruned("slim", "run", 3, 1000, 900, 90),
            "Pruned slim: run run, step 3, parameters 1,000, changed 900, kept 90",
        ),
        (Trained("run", "runs/run", 20, loss=1.25, left_out={"long": 3}), "Trained run: folder runs/run, steps 20"),
        (
            Verified(5, 9, [Damage("score", "x", "part-0", "is cut", "run it again")]),
            "Verified: parts 5, bytes 9, damaged 1",
        ),
        (
            Scored("less", "less", "facts", vectors=Scored("g", "less", None, rows=7)),
            "Scored less: method less, target",
        ),
    ],
)
def test_other_results_are_told_too(result: Result, start: str) -> None:
    assert lines(result)[0].startswith(start)


def test_every_result_of_a_verb_is_told_so_and_is_a_dataclass_as_before() -> None:
    verbs = [getattr(curate, name) for name in curate.__all__ if callable(getattr(curate, name))]
    returned = {str(verb.__annotations__.get("return")) for verb in verbs if hasattr(verb, "__annotations__")}
    kinds = {kind.__name__: kind for kind in Result.__subclasses__()}
    plain = {"None", "str", "Any", "dict[str, str]", "Workspace", "QueryResult"}
    returned = {one for name in returned for one in name.split(" | ")}
    assert {name.removeprefix("list[").removesuffix("]") for name in returned} - plain <= {*kinds, "dict[str, Any]"}
    assert all(is_dataclass(kind) for kind in kinds.values())
    assert asdict(Pruned("slim", "run"))["name"] == "slim" and Pruned("slim", "run") == Pruned("slim", "run")
