"""Scores by a model in a workspace: one pass for all, killed, damaged, two models, counted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.length import Length
from curate.methods.scores.nll import Nll
from curate.models.choice import TINY, ModelChoice
from curate.models.language_model import LanguageModel
from curate.store.workspace import Workspace
from tests.conftest import ROOT, qa, run_and_kill, write_jsonl
from tests.support.models import METHODS
from tests.support.narrow import NARROW


def test_scores_that_share_a_pass_go_through_the_model_once(
    school_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    batch = LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, p: seen.append(len(e)) or batch(s, e, p))
    results = curate.score(school_ws, *METHODS, models=NARROW)
    assert [r.rows for r in results] == [200] * 3 and sum(seen) == 200
    (row,) = [r for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert row["name"] == "nll, entropy, el2n" and row["samples"] == 200 and row["flops"] > 0
    (whole,) = curate.sql(school_ws, "SELECT * FROM ledger WHERE stage = 'score'")
    assert whole["tokens"] <= whole["padded_tokens"] < 1.2 * whole["tokens"] and whole["model"] == NARROW
    assert whole["flops_paper"] == 2.0 * whole["n_params"] * whole["samples"] * 2048 and whole["device"] == "cpu"
    together = curate.sql(school_ws, "SELECT nll, entropy, el2n FROM samples ORDER BY row")
    for method in METHODS:
        curate.score(school_ws, method, names={method.name: f"{method.name}_alone"}, models=NARROW)
    alone = curate.sql(
        school_ws, "SELECT nll_alone nll, entropy_alone entropy, el2n_alone el2n FROM samples ORDER BY row"
    )
    assert together == alone


def test_text_and_model_scores_go_in_one_command_each_its_own_way(school_ws: Workspace, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "val.jsonl", [{"question": "How many plums?", "answer": "4 plums."}])
    curate.target(school_ws, "plums", str(tmp_path / "val.jsonl"))
    methods = (Length(), Nll(), Bm25(), Entropy())
    results = curate.score(school_ws, *methods, target="plums", models=NARROW)
    assert [(r.name, r.computed) for r in results] == [(n, 200) for n in ("length", "nll", "bm25_plums", "entropy")]
    told = [(r["name"], r["phase"]) for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert ("nll, entropy", "forward") in told and ("length", "count") in told
    with pytest.raises(CurateError, match="the method nll is named twice"):
        curate.score(school_ws, Nll(), Nll(), models=NARROW)


def test_a_score_that_was_there_is_not_computed_again_beside_a_new_one(school_ws: Workspace) -> None:
    curate.score(school_ws, Nll(), models=NARROW)
    first, second = curate.score(school_ws, Nll(), Entropy(), models=NARROW)
    assert (first.computed, first.reused, second.computed) == (0, 200, 200)
    with pytest.raises(CurateError, match="another base model or another dtype of it"):
        curate.score(school_ws, Nll(), models=ModelChoice(NARROW, dtype="bfloat16"))
    assert curate.verify(school_ws).damaged == []


def test_a_killed_pass_through_a_model_goes_on_where_it_stood(
    school_ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import curate
        from curate.methods.scores.entropy import Entropy
        from curate.methods.scores.nll import Nll
        from curate.tables import spec
        from tests.support.narrow import NARROW
        spec.unit_size = lambda models: 3000.0
        curate.score(curate.open_workspace(sys.argv[1]), Nll(), Entropy(), models=NARROW)
    """
    query = "SELECT nll, entropy FROM samples ORDER BY row"
    monkeypatch.setattr("curate.tables.spec.unit_size", lambda models: 3000.0)
    calm = curate.open_workspace(shutil.copytree(school_ws.path, tmp_path / "calm"))
    curate.score(calm, Nll(), Entropy(), models=NARROW)
    run_and_kill(code, str(school_ws.path), die_at=6)  # the second score's table of the third unit is not committed
    seen, batch = [], LanguageModel._batch
    monkeypatch.setattr(LanguageModel, "_batch", lambda s, e, requests: seen.append(len(e)) or batch(s, e, requests))
    results = curate.score(school_ws, Nll(), Entropy(), models=NARROW)
    assert [r.rows for r in results] == [200, 200] and 0 < sum(seen) < 200
    for want, got in zip(curate.sql(calm, query), curate.sql(school_ws, query), strict=True):
        assert got == pytest.approx(want, abs=1e-5)
    opened = curate.open_workspace(school_ws.path)  # which enters the killed run's account
    (n,) = curate.sql(opened, "SELECT count(*) AS runs, sum(samples) >= 200 AS whole FROM ledger WHERE stage = 'score'")
    assert n == {"runs": 2, "whole": True}
    assert not list(school_ws.path.rglob("_units")) and not list(school_ws.path.rglob("*.tmp"))


def test_a_damaged_part_of_a_models_score_is_repaired(school_ws: Workspace) -> None:
    curate.score(school_ws, Nll(), models=NARROW)
    before = curate.sql(school_ws, "SELECT nll FROM samples ORDER BY row")
    part = school_ws.score_folder("nll") / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-7])
    assert len(curate.verify(school_ws, repair=True).damaged) == 1
    assert curate.sql(school_ws, "SELECT nll FROM samples ORDER BY row") == before


def test_rho_takes_two_models_and_names_the_one_that_is_missing(school_ws: Workspace, tmp_path: Path, cli: Any) -> None:
    copy = shutil.copytree(NARROW, tmp_path / "model")
    done = cli("score", "rho", "--model", NARROW, ws=school_ws)
    assert done.returncode == 2 and "needs a model: add --model reference=MODEL" in done.stderr
    done = cli("score", "rho", "nll", "--model", f"base={NARROW}", "--model", f"reference={copy}", ws=school_ws)
    assert done.returncode == 0, done.stderr
    assert curate.sql(school_ws, "SELECT max(abs(score)) AS most FROM rho") == [{"most": 0.0}]  # equal models


def test_the_command_line_takes_models_by_name_and_says_what_is_missing(school_ws: Workspace, cli: Any) -> None:
    done = cli("score", "nll", ws=school_ws)
    assert done.returncode == 2 and "needs a model: add --model MODEL" in done.stderr
    done = cli("score", "nll", "entropy", "--model", NARROW, "--set", "model.batch_tokens=500", ws=school_ws)
    assert done.returncode == 0 and "entropy: 200 scored, " in done.stdout, done.stderr
    assert done.stderr == ""
    done = cli("score", "el2n", "--model", NARROW, "--set", "model.batch=500", ws=school_ws)
    assert done.returncode == 2 and "the model has no setting 'batch'" in done.stderr


def test_models_and_their_scores_need_no_arrow_polars_duckdb_or_faiss() -> None:
    code = f"""
import sys
for name in ("pyarrow", "polars", "duckdb", "faiss", "orjson", "datasets", "cloudpickle"):
    sys.modules[name] = None
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.choice import ModelChoice
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.nll import Nll
from curate.methods.scores.rho import Rho
model = LanguageModel(ModelChoice({str(TINY)!r}))
passes = {{"nll": Nll().passes(None)[0]}}
columns, _ = score_samples({{"base": model}}, [{{"text": "a river", "messages": None}}], passes)
assert columns["nll"]["score"][0] < 0
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_flops_are_counted_beside_where_that_is_asked_for(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", qa(30))])
    curate.score(ws, Nll(), models=ModelChoice(NARROW, count_flops=True))
    (row,) = curate.sql(ws, "SELECT flops, flops_counted, flops_paper FROM ledger WHERE stage = 'score'")
    assert row["flops_counted"] == pytest.approx(row["flops"], rel=0.05) and row["flops_paper"] > row["flops"]
