"""Scores combined by a trial: the expression is the fitted sum, and goes wherever SQL goes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.length import Length
from curate.numerics.combination import fitted
from curate.store.workspace import Workspace
from curate.tables.trials import require_trial
from tests.conftest import SAMPLE
from tests.verbs.test_trial import SPEC


@pytest.fixture
def tried(sums_ws: Workspace) -> Workspace:
    curate.target(sums_ws, "sums", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    curate.trial(sums_ws, "one", replace(SPEC, subsets=12, repeats=1))
    curate.score(sums_ws, Length())
    return sums_ws


def columns(ws: Workspace, *expressions: str) -> np.ndarray:
    listed = ", ".join(f"({e})::DOUBLE AS c{i}" for i, e in enumerate(expressions))
    rows = list(curate.sql(ws, f"SELECT {listed} FROM samples ORDER BY row"))
    return np.array([[row[f"c{i}"] for row in rows] for i in range(len(expressions))], float)


def plant(monkeypatch: pytest.MonkeyPatch, ws: Workspace) -> np.ndarray:
    """Gains that two columns make, in place of what was trained."""
    members = require_trial(ws, "one").members
    values = columns(ws, "length", "n_chars")
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    gains = members @ (z[0] - 2 * z[1]) / members.sum(1)
    monkeypatch.setattr("curate.verbs.combine.gains_of", lambda stored: (gains[:, None], np.zeros((1, 0))))
    return gains


def test_the_expression_is_the_fitted_sum(tried: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = plant(monkeypatch, tried)
    found = curate.combine(tried, "one", "length", "-n_chars", draws=50)
    values = columns(tried, "length", "-n_chars")
    wanted = fitted(values, require_trial(tried, "one").members, gains, draws=50)
    z = (values - wanted.center[:, None]) / wanted.scale[:, None]
    np.testing.assert_allclose(columns(tried, found.expression)[0], wanted.weights @ z, rtol=1e-8, atol=1e-10)
    assert found.held_out > 0.9 > found.best_lds or found.held_out >= found.best_lds
    assert {row.score for row in found.rows} == {"length", "-n_chars"}
    curate.select(tried, "best", by=found.expression, top=5)
    chosen = {r["row"] for r in curate.sql(tried, "SELECT row FROM best")}
    assert chosen == set(np.argsort(-(wanted.weights @ z), kind="stable")[:5].tolist())
    assert curate.foretell(tried, "one", found.expression, draws=20).rows[0].lds is not None


def test_on_real_trainings_it_says_what_it_found(tried: Workspace, cli: Any) -> None:
    done = cli("combine", "-w", tried.path, "one", "length", "n_chars", "(-row)", "--draws", 20)
    assert "Of subsets left out it foretells" in done.stdout and "isfinite((length)::DOUBLE)" in done.stdout
    told = json.loads(cli("combine", "-w", tried.path, "one", "length", "n_chars", "--draws", 20, "--json").stdout)
    assert told["subsets"] == 12 and len(told["rows"]) == 2 and told["flops"] == 0


def test_a_value_that_is_not_finite_counts_as_the_mean(tried: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, tried)
    odd = "CASE row WHEN 0 THEN 'inf'::DOUBLE WHEN 1 THEN 'nan'::DOUBLE WHEN 2 THEN NULL ELSE length END"
    found = curate.combine(tried, "one", odd, "n_chars", draws=5)
    values = columns(tried, found.expression, "n_chars")
    (w,) = [row.weight for row in found.rows if row.score == "n_chars"]
    chars = columns(tried, "n_chars")[0][require_trial(tried, "one").rows]
    np.testing.assert_allclose(values[0][:3], w * (values[1][:3] - chars.mean()) / chars.std(), rtol=1e-8)
    with pytest.raises(CurateError, match="--draws 0"):
        curate.combine(tried, "one", "length", "n_chars", draws=0)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "at least two scores"),
        (["length", "length"], "at least two scores"),
        (["length", "1"], "1 says the same of all samples"),
        (["length", "lenght"], "lenght"),
        (["length", "few"], "'few' is a manifest"),
    ],
)
def test_what_cannot_be_combined_is_refused(scores: list[str], said: str, tried: Workspace) -> None:
    curate.select(tried, "few", by="length", top=3)
    with pytest.raises(CurateError, match=said):
        curate.combine(tried, "one", *scores)
