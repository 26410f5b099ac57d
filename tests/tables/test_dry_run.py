"""What `--dry-run` says, against what the ledger then has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.kinds.score import Score
from curate.methods.scores.davir import Davir
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.gradsim import Gradsim
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.influence import Influence
from curate.methods.scores.length import Length
from curate.methods.scores.less import Less
from curate.methods.scores.metagradient import Metagradient
from curate.methods.scores.nll import Nll
from curate.methods.scores.tracin import Tracin
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.rho_online import RhoOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from tests.conftest import tree_bytes
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW)
LESS = Less(warmup=0.2, epochs=2, batch_size=8, lora_r=4, lora_alpha=8, dim=128, lora_targets="q_proj,v_proj")


def spent(ws: Workspace, stage: str) -> float:
    return sum(r["flops"] for r in curate.sql(ws, f"SELECT flops FROM ledger WHERE stage = '{stage}'"))


def foreseen(ws: Workspace, *methods: Score, **options: Any) -> list[dict[str, Any]]:
    target = "facts" if any(method.uses_target for method in methods) else None
    results = curate.score(ws, *methods, target=target, dry_run=True, **options)
    return [row for r in results for part in (r.vectors, r) if part for row in part.planned]


@pytest.mark.parametrize(
    ("methods", "exact"),
    [
        ((Nll(),), True),
        ((Ifd(),), True),
        ((Nll(), El2n()), True),
        ((EmbedLm(),), True),
        ((Davir(),), True),
        ((Graddot(),), True),
        ((Graddot(aggregate="subtask_max"),), True),
        ((Graddot(by="jvp"),), True),
        ((Graddot(by="difference"),), True),
        ((Influence(),), False),
        ((Metagradient(batch_size=8, epochs=2.0),), False),
        ((Influence(curvature="kfac", layer_groups=2),), False),
        ((Influence(curvature="cg", iterations=2, factors_share=0.5),), False),
        ((Gradsim(),), False),  # what is kept of unsupervised samples' gradients is not foreseen
        ((Gradnorm(),), False),
        ((LESS,), False),  # Adam's warm-up has other batches of what is exact otherwise
        ((Dualsft(warmup=0.1, batch_size=8),), False),
    ],
    ids=lambda value: "+".join(m.name for m in value) if isinstance(value, tuple) else str(value),
)
def test_flops_are_those_that_the_ledger_then_has(
    methods: tuple[Score, ...], exact: bool, handful_ws: Workspace
) -> None:
    """In a pool so small that every sample is tokenised."""
    models = {"": MODEL, "reference": ModelChoice(NARROW, batch_tokens=300)} if "davir" in methods[0].name else MODEL
    before = tree_bytes(handful_ws.path, "*")
    rows = foreseen(handful_ws, *methods, models=models)
    assert tree_bytes(handful_ws.path, "*") == before
    target = "facts" if any(method.uses_target for method in methods) else None
    curate.score(handful_ws, *methods, target=target, models=models)
    told, ledger = sum(row["flops"] for row in rows), spent(handful_ws, "score")
    assert told == pytest.approx(ledger, rel=1e-6 if exact else 0.1)
    assert all(row["bytes"] >= 0 and row["device"] == "cpu" for row in rows)


def test_of_a_larger_pool_some_samples_are_tokenised(sample_ws: Workspace) -> None:
    (row,) = foreseen(sample_ws, Nll(), models=MODEL)
    curate.score(sample_ws, Nll(), models=MODEL)
    assert row["rows"] == 3000 and row["flops"] == pytest.approx(spent(sample_ws, "score"), rel=0.05)


def test_what_samples_share_is_computed_once_so_that_flops_are_an_upper_bound(tmp_path: Path, cli: Any) -> None:
    ws, rows = curate.open_workspace(tmp_path / "ws"), tmp_path / "rows.jsonl"
    examples = "What is 2 + 3? It is 5. What is 4 + 4? It is 8. " * 4
    rows.write_text(
        "".join(json.dumps({"text": f"{examples}What is {i} + {i}? It is {2 * i}."}) + "\n" for i in range(20))
    )
    curate.ingest(ws, rows)
    (row,) = foreseen(ws, Nll(), models=MODEL)
    assert "upper bounds" in cli("score", "nll", "--model", NARROW, "--dry-run", ws=ws).stdout
    curate.score(ws, Nll(), models=MODEL)
    assert 0 < spent(ws, "score") < 0.6 * row["flops"]  # but the head, which every token goes through


def test_of_a_score_half_done_the_rest_is_foreseen(handful_ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = foreseen(handful_ws, Nll(), models=MODEL)
    curate.score(handful_ws, Nll(), models=MODEL)
    folder = handful_ws.score_folder("nll")
    (folder / "_commit/part-00000.json").unlink()
    (row,) = foreseen(handful_ws, Nll(), models=MODEL)
    assert row["shards"] == 1 and 0 < row["flops"] < whole["flops"]
    (row,) = foreseen(handful_ws, Nll(), models=MODEL, fresh=True)
    assert row["flops"] == whole["flops"]


def test_seconds_come_from_the_ledger_and_are_unknown_before(handful_ws: Workspace, cli: Any) -> None:
    first = foreseen(handful_ws, Nll(), models=MODEL)
    assert [row["seconds"] for row in first] == [None]
    shown = cli("score", "nll", "--model", NARROW, "--dry-run", ws=handful_ws).stdout
    assert "unknown: nothing like it is in the ledger" in shown
    curate.score(handful_ws, Nll(), models=MODEL)
    seconds = curate.sql(handful_ws, "SELECT seconds FROM ledger WHERE stage = 'score'")[0]["seconds"]
    (again,) = foreseen(handful_ws, Nll(), models=MODEL, fresh=True)
    assert again["seconds"] == pytest.approx(seconds, rel=1e-6)
    (other,) = foreseen(handful_ws, Ifd(), models=MODEL)  # of the same model: by its FLOPs
    assert other["seconds"] == pytest.approx(seconds * other["flops"] / again["flops"], rel=1e-6)
    (text,) = foreseen(handful_ws, Length())
    assert text["seconds"] is None and text["flops"] == 0
    (done,) = foreseen(handful_ws, Nll(), models=MODEL)
    assert done["seconds"] == 0 and "about 0 s" in cli("score", "nll", "--model", NARROW, "--dry-run",
                                                        ws=handful_ws).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("weighting", "settings", "rel"),
    [
        (Uniform(), TrainSettings(steps=6, batch_size=8), 1e-6),
        (Uniform(), TrainSettings(epochs=1.5, batch_size=16, micro_batch_size=4, lora_r=4, loss="all"), 1e-6),
        (Uniform(), TrainSettings(batch_size=4, packing=True, gradient_checkpointing=True), 1e-6),
        (RhoOnline(), TrainSettings(steps=4, batch_size=4), 0.1),
        (Uniform(), TrainSettings(epochs=2.5, batch_tokens=300), 1e-6),
        (Linupper(), TrainSettings(epochs=2, batch_tokens=700, packing=True, micro_batch_size=1), 1e-6),
    ],
)
def test_a_training_costs_what_was_foreseen(
    weighting: Any, settings: TrainSettings, rel: float, handful_ws: Workspace
) -> None:
    spec = TrainingSpec(MODEL, weighting, settings)
    planned = curate.train(handful_ws, "r", spec, dry_run=True).planned or {}
    done = curate.train(handful_ws, "r", spec)
    assert planned["flops"] == pytest.approx(spent(handful_ws, "train"), rel=rel)
    assert (planned["steps"], planned["samples"]) == (done.steps, done.samples)


def test_tracin_is_foreseen_at_each_checkpoint_of_an_adapter(handful_ws: Workspace) -> None:
    settings = TrainSettings(steps=4, batch_size=8, checkpoint_every=2, keep_checkpoints=0, lora_r=2, lr=1e-3)
    curate.train(handful_ws, "r", TrainingSpec(MODEL, Uniform(), settings))
    rows = foreseen(handful_ws, Tracin(), checkpoints=["r"])
    curate.score(handful_ws, Tracin(), target="facts", checkpoints=["r"])
    assert sum(row["flops"] for row in rows) == pytest.approx(spent(handful_ws, "score"), rel=1e-6)


def test_greats_is_not_far_off(handful_ws: Workspace) -> None:
    spec = TrainingSpec(MODEL, Greats(), TrainSettings(steps=3, batch_size=4), target="facts")
    planned = curate.train(handful_ws, "r", spec, dry_run=True).planned or {}
    curate.train(handful_ws, "r", spec)
    # Of matrices that are thin beside a sample's tokens each sample's gradient is formed in the pass: not foreseen.
    assert planned["flops"] == pytest.approx(spent(handful_ws, "train"), rel=0.15)
