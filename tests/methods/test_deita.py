"""deita: against one comparison at a time, and through `curate select`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.length import Length
from curate.methods.selectors import deita
from curate.methods.selectors.deita import Deita
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.oracles.deita import deita as slow
from tests.support.candidates import pool, unit
from tests.support.narrow import NARROW


@pytest.mark.parametrize("at_once", [1, 7, 4096])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
def test_it_takes_what_nothing_before_it_resembles(
    threshold: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deita, "_AT_ONCE", at_once)
    for seed in range(5):
        given = pool(n=90, seed=seed, repeats=20)
        got = Deita(threshold).select(given, Budget("rows", 30), seed).tolist()
        assert got == slow(np.asarray(given.values), unit(given), threshold, 30)


def test_it_keeps_to_tokens_and_needs_a_value() -> None:
    given = Candidates.of([3.0, 2.0, 1.0], sizes=[5, 9, 1], vectors=[[1, 0], [0, 1], [-1, 0]])
    assert Deita().select(given, Budget("tokens", 13), 0).tolist() == [0]  # the longest beginning that fits
    with pytest.raises(CurateError, match="ranks by a value"):
        Deita().select(Candidates.of(vectors=[[1, 0]]), Budget("rows", 1), 0)
    with pytest.raises(CurateError, match="a cosine"):
        Deita(2.0)


def test_a_threshold_of_1_keeps_what_is_equal() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(1, 37)), 4, axis=0)
    given = Candidates.of([4.0, 3.0, 2.0, 1.0], vectors=vectors)
    assert Deita(1.0).select(given, Budget("rows", 4), 0).tolist() == [0, 1, 2, 3]


COUNTED = SelectionSpec(by="length", tokens=5000, token_count="n_chars / 4", vectors="embed_lm")


def test_complexity_times_quality_is_an_expression_of_columns(small_ws: Workspace) -> None:
    curate.score(small_ws, Length(), EmbedLm(), models=NARROW)
    found = curate.select(
        small_ws, "best", Deita(0.99), SelectionSpec(by="length * sqrt(length)", top=20, vectors="embed_lm")
    )
    assert found.rows == 20 and not found.warnings
    strict = curate.select(small_ws, "few", Deita(0.2), SelectionSpec(by="length", top=20, vectors="embed_lm"))
    assert 0 < strict.rows < 20 and strict.warnings == [f"'deita' takes {strict.rows} of the 20 rows it may"]
    half = curate.select(small_ws, "half", Deita(0.2), COUNTED)
    assert half.warnings == [f"'deita' takes {half.tokens:,.0f} of the 5,000 tokens it may"] and half.tokens < 5000


def test_one_long_sample_hides_no_unspent_tokens(ws: Workspace, tmp_path: Path) -> None:
    alike = [json.dumps({"text": "one and the same " * 4 + str(i)}) for i in range(30)]
    (tmp_path / "pool.jsonl").write_text("\n".join([json.dumps({"text": "long " * 4000}), *alike]))
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    curate.score(ws, Length(), EmbedLm(), models=NARROW)
    choice = SelectionSpec(by="length", tokens=5400, token_count="n_chars / 4", vectors="embed_lm")
    found = curate.select(ws, "few", Deita(0.5), choice)
    assert found.rows < 10 and found.warnings == [f"'deita' takes {found.tokens:,.0f} of the 5,400 tokens it may"]
