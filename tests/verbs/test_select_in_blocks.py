"""A selection of candidates that are read in blocks is the one of all of them at once, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.selector import Budget, highest
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.store.encoding import read_json
from curate.store.workspace import Workspace
from curate.tables import candidates, leaders, sql
from curate.verbs.select import SelectionSpec
from tests.conftest import copy_of, qa, sample_in, write_jsonl

FEW_VALUES = "CASE WHEN source = 'atlas' THEN NULL WHEN source = 'forum' THEN 'nan'::DOUBLE ELSE n_chars % 7 END"
SPECS = {
    "a share, ties": {"by": "n_chars % 5", "frac": 0.1},
    "of each source, by an expression": {"by": "bm25_arithmetic - ln(1 + length)", "frac": 0.05, "per": "source"},
    "sources without a value": {"by": FEW_VALUES, "top": 40, "per": "source"},
    "a share of those with a value": {"by": FEW_VALUES, "frac": 0.3, "frac_of": "valued", "per": "source"},
    "tokens": {"by": "length % 4", "tokens": 3000, "where": "source <> 'forum'"},
    "tokens of each source": {"by": "length", "tokens": 700, "per": "source", "token_count": "length * 0.7"},
    "samples without tokens, or with none": {"by": "length % 3", "tokens": 50, "token_count": "nullif(length, 4) % 3"},
    "more than there are": {"by": "length", "tokens": 1e9},
    "all": {"by": "length", "frac": 1.0},
    "nothing of a small source": {"by": "length", "frac": 0.002, "per": "source", "where": "row < 1000"},
    "one of a group": {"by": "length", "top": 50, "one_per": "n_chars // 9", "keep": "longest"},
    "by a rank among all": {"by": "rank() OVER (ORDER BY length DESC) % 100", "top": 50},
    "a score that lacks samples": {"by": "length", "top": 50, "allow_stale": True},
    "dsir": {"by": "length % 4", "frac": 0.1, "seed": 7},
    "dsir, tokens of each source": {"by": "length % 4", "tokens": 900, "per": "source", "seed": 8},
    "no value": {"frac": 0.1, "seed": 5},
    "no value, of each source": {"tokens": 900, "per": "source", "seed": 6},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample pool with two scores, which lack its last five samples."""
    folder = tmp_path_factory.mktemp("scored")
    ws = sample_in(folder / "ws")
    curate.score(ws, Bm25(), Length(), target="arithmetic")
    curate.ingest(ws, [write_jsonl(folder / "more.jsonl", qa(5))])
    return Path(str(ws.path))


@pytest.fixture
def ws(stored: Path, tmp_path: Path) -> Workspace:
    return copy_of(stored, tmp_path / "ws")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 37 samples, of which few are held; and a database for many samples."""

    def sliced(*args: Any) -> Iterator[pa.RecordBatch]:
        for batch in batches(*args):
            yield from (batch.slice(start, 37) for start in range(0, batch.num_rows, 37))

    batches = sql.batches
    monkeypatch.setattr(sql, "batches", sliced)
    monkeypatch.setattr(leaders, "_SLACK", (5, 20))
    monkeypatch.setattr(candidates, "_MANY", 10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("what", SPECS)
def test_blocks_give_what_all_at_once_gives(ws: Workspace, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    spec = SelectionSpec(**{"allow_stale": True, **SPECS[what]})
    selector = "dsir" if "dsir" in what else "top" if spec.by else "random"
    curate.select(ws, "a", selector, spec)
    monkeypatch.setattr("curate.verbs.select.in_blocks", lambda spec: False)
    curate.select(ws, "b", selector, spec)
    in_blocks, at_once = (ws.manifest_path(name) for name in "ab")
    assert in_blocks.read_bytes() == at_once.read_bytes()
    results = [read_json(path.with_suffix(".json"))["result"] for path in (in_blocks, at_once)]
    by_source = [result.pop("by_source") for result in results]
    for one, other in zip(*by_source, strict=True):  # polars adds up in an order that differs from run to run
        assert one == {k: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for k, v in other.items()}
    assert results[0] == results[1]


@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("seed", range(20))
def test_leaders_are_the_longest_prefix_of_each_ranking(monkeypatch: pytest.MonkeyPatch, unit: Any, seed: int) -> None:
    monkeypatch.setattr(leaders, "_SLACK", (3, 17))
    rng = np.random.default_rng(seed)
    n, amounts = int(rng.integers(1, 400)), rng.choice([0.5, 1, 7, 40, 1000], 3)
    budgets = [Budget(unit, amount) for amount in amounts.tolist()]
    pool = {
        "keys": np.where(rng.random(n) < 0.1, rng.choice([np.inf, -np.inf, -0.0], n), rng.integers(0, 9, n) * 1.0),
        "ids": rng.integers(0, 2**64 - 1, n, np.uint64),
        "groups": rng.integers(0, 3, n).astype(np.int32),
        "sizes": np.ones(n) if unit == "rows" else rng.choice([0.0, 0.1, 0.7], n) * rng.integers(1, 50, n),
        "row": np.arange(n),
    }
    held = leaders.Leaders(budgets.__getitem__)
    for start, stop in zip([0, *(cuts := sorted(rng.integers(0, n, 9).tolist()))], [*cuts, n], strict=True):
        held.add({name: column[start:stop] for name, column in pool.items()}, 3)
    for group, (chosen, tally) in enumerate(held.best()):
        own = np.flatnonzero(pool["groups"] == group)
        own = own[np.argsort(pool["ids"][own])]
        sizes = pool["sizes"][own]
        want = highest(pool["keys"][own], sizes, budgets[group])
        assert chosen["row"].tolist() == own[want].tolist()
        assert (tally.count, tally.spent) == (len(own), sizes[want].sum())
        assert np.isclose(tally.size, sizes.sum())
        assert tally.largest_left == np.delete(sizes, want).max(initial=-np.inf)


def test_what_does_not_fit_in_memory_is_refused_in_a_sentence(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "free_memory", lambda: 300_000.0)
    whole: list[tuple[str, dict[str, Any], str]] = [
        ("quota", {}, "the selector 'quota' holds all 3,005 candidates in memory, about 0.0 GiB"),
        ("top", {"null": True}, "--null holds all 3,005"),
    ]
    for selector, fields, sentence in whole:
        with pytest.raises(CurateError, match=sentence) as caught:
            curate.select(ws, "x", selector, by="n_chars", top=5, **fields)
        assert "\n" not in str(caught.value)
    assert curate.select(ws, "x", "quota", by="n_chars", top=5, where="row < 1000").rows == 5
    assert curate.select(ws, "y", "top", by="n_chars", top=5).rows == 5
    with pytest.raises(CurateError, match="3,005 chosen samples take about 0.0 GiB"):
        curate.select(ws, "z", "top", by="n_chars", frac=1.0)


@pytest.mark.usefixtures("small_blocks")
def test_an_error_amid_the_blocks_is_a_sentence(ws: Workspace) -> None:
    for fields, sentence in (
        ({"by": "CASE WHEN row > 2500 THEN source ELSE '1' END"}, "DuckDB refuses the query: Conversion Error: Could"),
        ({"by": "no_such"}, "no column 'no_such'"),
        ({"by": "n_chars", "where": "false"}, "no sample passes"),
    ):
        with pytest.raises(CurateError, match=sentence) as caught:
            curate.select(ws, "x", "top", top=3, **fields)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("selector", ["top", "quota"])
def test_a_negative_number_of_tokens_is_refused(ws: Workspace, selector: str) -> None:
    with pytest.raises(CurateError, match="--token-count gives -"):
        curate.select(ws, "x", selector, by="n_chars", tokens=100, token_count="n_chars - 100")
    assert curate.select(ws, "x", selector, by="n_chars", top=3, token_count="n_chars - 100").rows == 3
