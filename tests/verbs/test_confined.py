"""Damage is confined to what uses it; readers keep to one moment; what the killed left is swept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError, CurateFailure, DamagedError
from curate.methods.metrics.loss import Loss
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.recorder import Recorder
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl
from tests.support.rich import PLAIN, copied, cut


@pytest.fixture
def ws(rich: Workspace, tmp_path: Path) -> Workspace:
    return copied(rich, tmp_path)


def test_damage_of_one_run_stops_no_other(ws: Workspace) -> None:
    curate.train(ws, "other", PLAIN, evals=[EvalSpec("sums", Loss())])
    metrics = Path(ws.path) / "runs/plain/metrics/part-000002.parquet"
    evaluation = Path(ws.path) / "runs/plain/evaluations/_commit/sums-test-loss-0shot-000002.json"
    cut(metrics)
    evaluation.unlink()
    assert curate.train(ws, "third", PLAIN).steps == 2
    assert [line.run for line in curate.compare(ws, ["other"]).lines] == ["other"]
    found = curate.compare(ws)
    assert [line.run for line in found.lines] == ["other", "third"] and "damaged, so left out: plain" in str(
        found.warnings
    )
    assert len(curate.sql(ws, "SELECT * FROM samples")) == 50
    for table in ("metrics", "evaluations"):
        with pytest.raises(DamagedError, match="plain"):
            curate.sql(ws, f"SELECT * FROM {table}")


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("targets/sums.parquet", lambda ws: curate.sql(ws, "SELECT * FROM targets")),
        ("targets/sums.parquet", lambda ws: curate.evaluate(ws, "plain", [EvalSpec("sums", Loss())])),
        ("scores/length/part-00001.parquet", lambda ws: curate.sql(ws, "SELECT avg(length) FROM samples")),
        ("manifests/best.parquet", lambda ws: curate.export(ws, "best", "jsonl", Path(ws.path).parent / "out")),
    ],
)
def test_a_single_flipped_bit_is_not_read_as_data(ws: Workspace, file: str, use: Callable[[Workspace], Any]) -> None:
    path = Path(ws.path) / file
    data = bytearray(path.read_bytes())
    for place in (40, len(data) // 3, len(data) // 2):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CurateError, match=path.name):
            use(ws)


@pytest.mark.parametrize(
    ("file", "uses"),
    [
        (
            "scores/length/score.json",
            [
                lambda ws: curate.score(ws, Length()),
                lambda ws: curate.sql(ws, "SELECT avg(length) FROM samples"),
                lambda ws: curate.select(ws, "again", Top(), SelectionSpec(by="length", top=20)),
            ],
        ),
        ("manifests/best.json", [lambda ws: curate.train(ws, "other", PLAIN), lambda ws: curate.head(ws, "best")]),
        ("runs/plain/run.json", [lambda ws: curate.train(ws, "plain", PLAIN), lambda ws: curate.drop(ws, "sums")]),
        ("masks/sparse.safetensors", [lambda ws: curate.show(ws, "sparse")]),
    ],
)
def test_an_edited_recipe_that_still_parses_is_not_read(
    ws: Workspace, file: str, uses: list[Callable[[Workspace], Any]]
) -> None:
    """One digit of a setting: a score by another setting would be taken for this one."""
    path = Path(ws.path) / file
    data = path.read_bytes()
    place = next(i for i in range(len(data) // 3, len(data)) if data[i : i + 1].isdigit())
    path.write_bytes(data[:place] + (b"3" if data[place : place + 1] == b"2" else b"2") + data[place + 1 :])
    for use in uses:
        with pytest.raises(DamagedError, match=rf"{path.name} has other bytes than were written .*curate drop"):
            use(ws)
    name = path.stem if path.suffix != ".json" or "manifests" in file else path.parent.name
    assert [line for line in curate.status(ws).damaged if f"'{name}'" in line]
    curate.select(ws, "beside", Random(), SelectionSpec(top=20))
    curate.drop(ws, "beside", force=True)
    curate.drop(ws, name, force=True)
    assert curate.status(ws).damaged == []


def test_a_table_that_a_killed_drop_left_is_counted_and_removed_and_one_whose_recipe_was_lost_is_not(
    ws: Workspace,
) -> None:
    table = Path(ws.path) / "manifests/best.parquet"
    copy, recipe = table.read_bytes(), table.with_suffix(".json")
    kept = recipe.read_bytes()
    recipe.unlink()
    assert curate.status(ws).leftovers == 0 and curate.status(ws).damaged
    curate.verify(ws)
    assert table.exists()
    recipe.write_bytes(kept)
    curate.drop(ws, "best", force=True)
    table.write_bytes(copy)
    assert curate.status(ws).leftovers == 1
    assert str(table) in curate.verify(ws).leftovers and not table.exists()


def test_a_flipped_bit_of_the_pool_changes_no_score_unnoticed(ws: Workspace) -> None:
    """Compressed pages have no checksum of their own, and most flips decompress to other text."""
    path, names = ws.pool.path("part-00001"), {"length": "whole"}
    data = path.read_bytes()
    curate.score(ws, Length(of="whole"), names=names)
    scored = "SELECT id, score FROM whole"
    true, said = curate.sql(ws, scored), 0
    for place in range(5, len(data), len(data) // 40):
        Path(str(path)).write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            curate.score(ws, Length(of="whole"), names=names, fresh=True)
        except CurateError:
            said += 1
        else:
            assert curate.sql(ws, scored) == true
    assert said > 10


def test_who_reads_keeps_to_the_pool_as_it_was(ws: Workspace, tmp_path: Path) -> None:
    """A report during an ingest once ended in a KeyError."""
    uses: list[Callable[[Workspace], Any]] = [
        lambda ws: curate.status(ws).rows,
        lambda ws: curate.sql(ws, "SELECT count(*) AS n, max(row) AS last, count(length) AS scored FROM samples"),
        lambda ws: curate.select(ws, "again", Top(), SelectionSpec(by="length", top=20)).rows,
        lambda ws: str(curate.compare(ws).lines),
        lambda ws: curate.head(ws, "length"),
        lambda ws: curate.report(ws).status.rows,
    ]
    pinned = ws.with_pinned_pool()
    before = [use(pinned) for use in uses]
    curate.ingest(ws, [write_jsonl(tmp_path / "more.jsonl", [{"text": f"more {n}"} for n in range(9)])])
    assert [use(pinned) for use in uses] == before
    assert curate.status(ws).rows == 59


def test_what_killed_commands_left_is_counted_and_removed(ws: Workspace, tmp_path: Path, cli: Any) -> None:
    import subprocess
    import sys

    from curate.machine import machine

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mark, mine = f"{machine()}.{dead.pid}.tmp", f"{machine()}.1.tmp"  # process 1 lives
    for place in ("runs/plain/.trainer.json", "scores/.x", "runs/plain/evaluations/.part"):
        (Path(ws.path) / f"{place}.{mark}").write_text("torn")
    (Path(ws.path) / f"pool/.part.{mine}").write_text("being written")
    (tmp_path / f".out.{mark}").mkdir()
    assert curate.status(ws).leftovers == 3 and "3 files of killed commands" in cli("status", ws=ws).stdout
    assert len(curate.verify(ws).leftovers) == 3 and curate.status(ws).leftovers == 0
    assert (Path(ws.path) / f"pool/.part.{mine}").exists()
    curate.export(ws, "best", "jsonl", tmp_path / "out")
    assert not (tmp_path / f".out.{mark}").exists()


@pytest.mark.parametrize("killed", ["as it was dropped", "as the last copy went", "as it was replaced"])
def test_half_a_kept_manifest_is_a_leftover(ws: Workspace, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """A table in manifests/replaced without its recipe, which a kill leaves."""

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = Path(ws.path) / "manifests/replaced"
    if killed == "as the last copy went":
        curate.drop(ws, "best", force=True)
        (kept,) = folder.glob("*.json")
        curate.drop(ws, "plain", force=True)
        (folder / f"{kept.stem}.parquet").write_bytes(b"as it was")
    else:
        monkeypatch.setattr("curate.store.manifests.write_recipe", dying)
        with pytest.raises(KeyboardInterrupt):
            if killed == "as it was dropped":
                curate.drop(ws, "best", force=True)
            else:
                curate.select(ws, "best", Top(), SelectionSpec(by="length", top=7), fresh=True)
        monkeypatch.undo()
    (left,) = folder.glob("*")
    assert curate.status(ws).leftovers == 1 and curate.verify(ws).leftovers == [str(left)]
    assert not left.exists() and curate.status(ws).leftovers == 0 and curate.verify(ws).damaged == []


def test_half_a_kept_manifest_that_a_run_was_trained_on_is_damage(ws: Workspace) -> None:
    curate.drop(ws, "best", force=True)
    (kept,) = (Path(ws.path) / "manifests/replaced").glob("*.json")
    kept.unlink()
    assert curate.status(ws).leftovers == 0 and kept.with_suffix(".parquet").exists()
    (damage,) = curate.verify(ws).damaged
    assert damage.what == "has lost its recipe" and kept.with_suffix(".parquet").exists()


@pytest.mark.parametrize("bad", ["", "{", "[]", '{"format": "x"}', '{"format": 99}'])
def test_a_marker_that_cannot_be_read_is_one_sentence(ws: Workspace, bad: str, cli: Any) -> None:
    (Path(ws.path) / "workspace.json").write_text(bad)
    done = cli("status", ws=ws)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "workspace" in done.stderr
    assert "unexpected" not in done.stderr


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("runs/mid", "the run 'mid' was dropped while it was trained: .*run.json is gone"),
        ("manifests/best.json", "the manifest 'best' was dropped while the run 'mid' was trained .* step 2 is kept"),
        (".claims/run-mid", "claim on the run mid is gone: .* was removed"),
    ],
    ids=["run", "manifest", "claim"],
)
def test_what_is_dropped_in_mid_training_ends_it_with_a_sentence(
    ws: Workspace, monkeypatch: Any, gone: str, said: str
) -> None:
    monkeypatch.setattr("curate.store.locks.HEARTBEAT", 0.01)
    commit = Recorder.commit

    def dropping(self: Recorder, *given: Any) -> None:
        path = Path(str(ws.path / gone))
        if self.trainer.step == 2:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            time.sleep(0.1)
        commit(self, *given)

    monkeypatch.setattr(Recorder, "commit", dropping)
    settings = TrainSettings(steps=3, batch_size=2, checkpoint_every=1)
    with pytest.raises(CurateFailure, match=said):
        curate.train(ws, "mid", TrainingSpec(ModelChoice("tiny"), Uniform(), settings, "best"))
    last = 0 if gone == "runs/mid" else 2 if gone.startswith("manifests") else 1
    assert (Run(ws, "mid").checkpoints() or [None])[-1] == (Run(ws, "mid").latest() if last else None)
    assert not last or Run(ws, "mid").latest().step == last


def test_a_lost_file_of_the_ledger_stops_no_command_but_those_that_show_it(ws: Workspace) -> None:
    lost = sorted((ws.path / "ledger").glob("part-*.parquet"))[-1]
    lost.unlink()
    curate.train(ws, "more", model="tiny", manifest="best", steps=1, batch_size=2)
    assert any(f"({lost.stem})" in warning for warning in curate.compare(ws).warnings)
    assert len(curate.sql(ws, "SELECT * FROM samples")) == 50
    assert any(f"({lost.stem})" in warning for warning in curate.report(ws).warnings)
    with pytest.raises(DamagedError, match=lost.stem):
        curate.ledger(ws)
    curate.verify(ws, repair=True)
    assert not any("ledger" in warning for warning in curate.compare(ws).warnings) and curate.ledger(ws)
