"""The exact derivative of a training, as a score: against trainings with other weights, in a workspace, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.hashing import ids_as_integers
from curate.methods.scores.metagradient import Metagradient
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import encode
from curate.store.workspace import Workspace
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings
from curate.training.subsets import SubsetTrainer
from curate.training.trainable import trainable
from tests.conftest import SAMPLE
from tests.support.narrow import NARROW
from tests.support.threads import single_thread

SETTINGS = {"epochs": 2.0, "batch_size": 8, "lr": 1e-3, "warmup": 0.1, "eps": 1e-4}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Thirty samples, one of which has no answer, and a target."""
    lines = [line for path in sorted((SAMPLE / "pool").glob("*.jsonl")) for line in path.read_text().splitlines()[:10]]
    lines.insert(7, '{"messages": [{"role": "user", "content": "is anybody there?"}]}')
    (tmp_path / "pool.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    curate.target(ws, "facts", str(SAMPLE / "targets/facts_val.jsonl"))
    return ws


def scores(ws: Workspace) -> list[dict[str, object]]:
    return curate.sql(ws, "SELECT id, score, m.error FROM samples JOIN metagradient_facts m USING (id) ORDER BY row")


def loss_after(ws: Workspace, weights: np.ndarray) -> float:
    """The target's loss after the same training with other weights, by the trainer, from the pool's files."""
    rows = curate.sql(ws, "SELECT messages, text, template_kwargs FROM samples ORDER BY row")
    aim = [s for s in curate.sql(ws, "SELECT messages, text, template_kwargs FROM targets")]
    settings = TrainSettings(**SETTINGS)  # type: ignore[arg-type]
    model = trainable(ModelChoice(NARROW), settings)
    found = encode(model.model.tokenizer, rows, model.model.context)
    kept = [i for i, one in enumerate(found) if not one.error and one.supervised.any()]
    data = replace(Data.of(Examples.of([found[i] for i in kept])), weights=weights)
    trainer = Trainer(model.model, data, settings, Uniform(), Alone())
    for _ in trainer.run():
        pass
    asked = Examples.of(encode(model.model.tokenizer, aim, model.model.context))
    return float(SubsetTrainer(model, data, settings, Uniform(), asked)._measured(trainer)[0].mean())


def test_it_is_the_change_of_the_target_s_loss_by_a_sample_s_weight(ws: Workspace) -> None:
    with single_thread():
        curate.score(ws, Metagradient(**SETTINGS), target="facts", models=NARROW)  # type: ignore[arg-type]
        table = scores(ws)
        scored = [row for row in table if row["score"] is not None]
        values = np.array([row["score"] for row in scored])
        toward = np.sign(values)
        up, down = (loss_after(ws, 1 + step * toward) for step in (0.02, -0.02))
    assert len(scored) == 30 and len({row["id"] for row in scored}) == 30
    assert table[7]["score"] is None and "not in the training" in str(table[7]["error"])
    assert (down - up) / 0.04 == pytest.approx(np.abs(values).sum(), rel=0.03)  # float32, and a finite step


def test_the_state_is_used_again_and_the_ledger_has_every_phase(ws: Workspace) -> None:
    with single_thread():
        (first,) = curate.score(ws, Metagradient(**SETTINGS), target="facts", models=NARROW)  # type: ignore[arg-type]
        curate.drop(ws, "metagradient_facts")
        before = phases_of(ws)
        (again,) = curate.score(ws, Metagradient(**SETTINGS), target="facts", models=NARROW)  # type: ignore[arg-type]
    assert first.note == again.note and "after the training of 8 steps" in first.note
    phases = curate.sql(ws, "SELECT phase, flops FROM ledger WHERE stage = 'score' AND flops > 0")
    flops = {row["phase"]: row["flops"] for row in phases}
    assert list(flops) == ["train", "replay", "target", "undo"] == before
    assert flops["undo"] == pytest.approx(3 * flops["train"], rel=1e-6) and flops["replay"] < flops["train"]


def phases_of(ws: Workspace) -> list[str]:
    return [row["phase"] for row in curate.sql(ws, "SELECT phase FROM ledger WHERE flops > 0")]


def test_what_cannot_be_replayed_is_refused_and_leaves_nothing(ws: Workspace) -> None:
    half = ModelChoice(NARROW, dtype="bfloat16")
    with pytest.raises(CurateError, match=r"replayed backwards by exact derivatives, but .* weights in torch.bfloat16"):
        curate.score(ws, Metagradient(**SETTINGS), target="facts", models=half)  # type: ignore[arg-type]
    assert ws.score_names() == []


def test_values_are_found_by_the_samples_ids() -> None:
    ids = ids_as_integers(["00000000000000ff", "0000000000000001"])
    state = Metagradient()._by_id([{"ids": ids, "values": np.array([1.0, 2.0]), "loss": np.zeros(1)}])
    assert state["ids"].tolist() == [1, 255] and state["values"].tolist() == [2.0, 1.0] and len(state["loss"]) == 1
