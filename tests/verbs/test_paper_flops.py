"""FLOPs by the papers' count (ADAPT, Appendix C): LESS at 1.53 training steps a sample, packed texts by tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import curate
from curate.methods.scores.less import Less
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, few_lines
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")
LESS = Less(warmup=0.5, epochs=2, batch_size=8, lora_r=2, dim=16, lora_targets="all-linear")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "pool.jsonl").write_text("\n".join(few_lines()[:24]))
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    return ws


def test_less_is_counted_as_published_and_ours_as_it_is(ws: Workspace) -> None:
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    curate.score(ws, LESS, target="facts", models=MODEL)
    rows = curate.sql(ws, "SELECT phase, samples, flops, flops_paper, n_params FROM ledger WHERE stage = 'score'")
    (n_params,) = {row["n_params"] for row in rows if row["phase"] == "backward"}
    step = 6.0 * n_params * 2048
    assert sum(row["flops_paper"] or 0.0 for row in rows) == pytest.approx(1.53 * step * 24, rel=1e-9)
    by_phase = {row["phase"]: row for row in rows}
    assert by_phase["warm-up"]["flops_paper"] == 0.0 and by_phase["warm-up"]["flops"] > 0
    curate.select(ws, "half", Top(), SelectionSpec(by="less_facts", frac=0.5))
    curate.train(ws, "run", TrainingSpec(MODEL, Uniform(), TrainSettings(batch_size=4, epochs=2), manifest="half"))
    (arm,) = curate.compare(ws, ["run"]).arms
    (trained,) = curate.sql(ws, "SELECT n_params FROM ledger WHERE phase = 'train'")  # without LoRA's matrices
    training = 6.0 * trained["n_params"] * 2048 * 12 * 2
    assert arm.cost.paper == pytest.approx(1.53 * step * 24 + training, rel=1e-9)


@pytest.mark.parametrize("settings", [{"packing": True}, {"split": True}, {"packing": True, "split": True}])
def test_rows_that_are_no_samples_are_counted_by_tokens(tmp_path: Path, settings: dict[str, bool]) -> None:
    lines = [{"text": " ".join(f"word{n} of {i}" for n in range(90))} for i in range(6)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    model = ModelChoice(NARROW, device="cpu", context=128)
    curate.train(ws, "run", TrainingSpec(model, Uniform(), TrainSettings(batch_size=4, **settings)))  # type: ignore[arg-type]
    (row,) = curate.sql(ws, "SELECT * FROM ledger WHERE phase = 'train'")
    assert row["flops_paper"] == pytest.approx(6.0 * row["n_params"] * row["tokens"], rel=1e-12)
    assert row["tokens"] > 500
