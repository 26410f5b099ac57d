"""What was stored and is gone is said by every command that would go on without it, found by `verify`, and brought back
where something else still has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.errors import CurateError, DamagedError
from curate.methods.scores.length import Length
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.store import contents
from curate.store.commits import LIST, Parts
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import tree_bytes, write_jsonl
from tests.support.rich import HARMS, copied, cut, emptied, garbled


@pytest.fixture
def ws(rich: Workspace, tmp_path: Path) -> Workspace:
    return copied(rich, tmp_path)


USES: dict[str, Callable[[Workspace], Any]] = {
    "status": curate.status,
    "sql": lambda ws: curate.sql(ws, "SELECT count(*) FROM pool"),
    "select": lambda ws: curate.select(ws, "again", Top(), SelectionSpec(by="length", top=20)),
    "score": lambda ws: curate.score(ws, Length(of="whole"), names={"length": "whole"}),
    "ingest": lambda ws: curate.ingest(ws, [write_jsonl(Path(ws.path).parent / "new.jsonl", [{"text": "new"}])]),
}


@pytest.mark.parametrize("part", ["part-00002", "part-00004"])
def test_a_pool_that_has_lost_a_record_stops_every_command_and_gets_it_back(ws: Workspace, part: str) -> None:
    whole = tree_bytes(ws.pool.folder)  # type: ignore[arg-type]
    ws.pool.record_path(part).unlink()
    for use in USES.values():
        with pytest.raises(DamagedError, match=rf"pool: the part {part} was committed.*`curate verify` lists"):
            use(ws)
    (damage,) = curate.verify(ws).damaged
    assert (damage.kind, damage.part) == ("pool", part) and "is whole, but its commit record" in damage.what
    (damage,) = curate.verify(ws, repair=True).damaged
    assert damage.repaired and tree_bytes(ws.pool.folder) == whole  # type: ignore[arg-type]
    assert curate.ingest(ws, [write_jsonl(Path(ws.path).parent / "n.jsonl", [{"text": "n"}])]).pool_rows == 51


@pytest.mark.parametrize("harm", [emptied, cut, garbled])
def test_a_record_that_cannot_be_read_changes_nothing_while_the_list_has_it(ws: Workspace, harm: Any) -> None:
    harm(ws.pool.record_path("part-00002"))
    assert curate.status(ws).rows == 50 and next(iter(curate.sql(ws, "SELECT count(*) AS n FROM pool")))["n"] == 50
    (damage,) = curate.verify(ws, repair=True).damaged
    assert damage.part == "part-00002" and damage.repaired and curate.verify(ws).damaged == []


@pytest.mark.parametrize("harm", HARMS)
def test_without_a_list_a_gap_is_found_and_the_part_is_vouched_for_again(ws: Workspace, harm: Any) -> None:
    """A workspace of format 1 has no list."""
    (ws.path / "pool" / LIST).unlink()
    harm(ws.pool.record_path("part-00002"))
    for use in USES.values():
        with pytest.raises(DamagedError, match="part-00002"):
            use(ws)
    (damage,) = curate.verify(ws, repair=True).damaged
    assert not damage.repaired and "--adopt" in damage.remedy
    assert ws.pool.path("part-00002").exists()
    (damage,) = curate.verify(ws, adopt=True).damaged
    assert damage.repaired and curate.verify(ws).damaged == [] and curate.status(ws).rows == 50
    assert next(iter(curate.sql(ws, "SELECT count(length) AS n FROM samples")))["n"] == 50  # its scores stand


def test_a_part_is_not_vouched_for_if_a_row_is_not_what_its_id_says(ws: Workspace) -> None:
    from curate.store.encoding import read_table, write_table

    (ws.path / "pool" / LIST).unlink()
    ws.pool.record_path("part-00001").unlink()
    table = read_table(ws.pool.path("part-00001"))
    swapped = table["id"].combine_chunks().take(pa.array(range(9, -1, -1)))
    write_table(ws.pool.path("part-00001"), table.set_column(0, "id", swapped))
    (damage,) = curate.verify(ws, adopt=True).damaged
    assert not damage.repaired and "is not what its id says" in damage.remedy


def test_five_shards_that_lost_a_record_lose_nothing_more(ws: Workspace) -> None:
    """One was once swept as a leftover, and the next number overwrote another."""
    before = tree_bytes(ws.pool.folder)  # type: ignore[arg-type]
    ws.pool.record_path("part-00003").unlink()
    with pytest.raises(DamagedError, match="part-00003"):
        USES["ingest"](ws)
    after = tree_bytes(ws.pool.folder)  # type: ignore[arg-type]
    assert after == {name: data for name, data in before.items() if not name.endswith("_commit/part-00003.json")}


def test_a_table_that_lost_a_shard_is_damaged_and_computed_again(ws: Workspace) -> None:
    parts = Parts(ws.score_folder("length"))
    whole = tree_bytes(parts.folder)  # type: ignore[arg-type]
    for lost in (parts.record_path("part-00001"), parts.path("part-00001")):
        lost.unlink()
    with pytest.raises(DamagedError, match="part-00001"):
        curate.select(ws, "again", Top(), SelectionSpec(by="length", top=20))
    assert any("the score 'length' is damaged" in line for line in curate.status(ws).damaged)
    assert curate.sql(ws, "SELECT count(*) AS n FROM pool")[0]["n"] == 50  # which does not use it
    (damage,) = curate.verify(ws, repair=True).damaged
    assert damage.repaired and tree_bytes(parts.folder) == whole  # type: ignore[arg-type]


def test_a_repair_that_was_killed_is_gone_on_with(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(ws.score_folder("length"))
    whole = tree_bytes(parts.folder)  # type: ignore[arg-type]
    cut(Path(str(parts.path("part-00002"))))
    monkeypatch.setattr("curate.verbs.verify.score", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        curate.verify(ws, repair=True)
    monkeypatch.undo()
    assert not parts.path("part-00002").exists()
    assert [damage.part for damage in curate.verify(ws).damaged] == ["part-00002"]
    (damage,) = curate.verify(ws, repair=True).damaged
    assert damage.repaired and tree_bytes(parts.folder) == whole  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "file",
    [
        "manifests/best.json",
        "masks/sparse.safetensors",
        "runs/plain/run.json",
        "scores/length/score.json",
        "contents.json",
    ],
)
@pytest.mark.parametrize("harm", HARMS)
def test_one_broken_file_is_said_and_breaks_nothing_else(ws: Workspace, file: str, harm: Any, cli: Any) -> None:
    harm(Path(ws.path) / file)
    name = Path(file).stem if Path(file).stem not in ("run", "score") else Path(file).parent.name
    done = cli("verify", ws=ws)
    if file == "contents.json" and harm is Path.unlink:
        assert done.returncode == 0  # as before there was one; the next writer makes it
        return
    assert done.returncode == 1 and name in done.stdout and done.stderr == ""
    done = cli("status", ws=ws)
    assert "unexpected" not in done.stderr and (name in done.stdout + done.stderr)
    for query in ("SELECT count(*) AS n FROM pool", "SELECT name, state FROM runs"):
        assert curate.sql(ws, query) is not None
    if not file.startswith("scores"):
        curate.score(ws, Length(of="whole"), names={"length": "whole"}) if file != "contents.json" else None
        assert curate.sql(ws, "SELECT count(length) AS n FROM samples")[0]["n"] == 50


@pytest.mark.parametrize(
    ("file", "repaired"),
    [
        ("checkpoints/step-000002/model.safetensors", False),
        ("checkpoints/step-000002/tokenizer.json", False),
        ("checkpoints/step-000002/optimizer.safetensors", False),
        ("checkpoints/_commit/step-000002.json", True),
        ("metrics/part-000002.parquet", False),
        ("metrics/_commit/part-000002.json", True),
        ("evaluations/sums-test-loss-0shot-000002.parquet", True),
        ("evaluations/_commit/sums-test-loss-0shot-000002.json", True),
    ],
)
@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_what_a_run_has_stored_is_looked_at(ws: Workspace, file: str, repaired: bool, harm: Any) -> None:
    path = Path(ws.path) / "runs/plain" / file
    assert path.exists(), sorted(str(p) for p in path.parent.iterdir())
    harm(path)
    found = curate.verify(ws).damaged
    assert [d.kind for d in found] == ["run"] and found[0].remedy
    assert [d.repaired for d in curate.verify(ws, repair=True).damaged] == [repaired]
    assert (curate.verify(ws).damaged == []) is repaired


def test_lost_records_of_a_run_are_said_by_what_uses_it(ws: Workspace) -> None:
    (Path(ws.path) / "runs/plain/checkpoints/_commit/step-000002.json").unlink()
    assert any("plain" in line for line in curate.status(ws).damaged) or [
        row["state"] for row in curate.sql(ws, "SELECT state FROM runs")
    ] == ["damaged"]
    with pytest.raises(DamagedError, match="step-000002"):
        curate.train(
            ws, "plain", TrainingSpec(ModelChoice("tiny"), Uniform(), TrainSettings(steps=2, batch_size=2), "best")
        )
    (Path(ws.path) / "runs/plain/evaluations/_commit/sums-test-loss-0shot-000002.json").unlink()
    with pytest.raises(DamagedError, match="evaluations"):
        curate.sql(ws, "SELECT * FROM evaluations")


def test_a_workspace_without_lists_is_brought_to_them_by_its_first_writer(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(ws.path)
    made = [path for path in root.rglob(LIST) if path.parent.name != "ledger"]  # whose files say that it has one
    for path in [*made, root / "contents.json"]:
        path.unlink()
    marker = root / "workspace.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 1}))
    curate.status(ws)
    assert not any(path.exists() for path in made)  # a reader writes nothing
    rows = write_jsonl(root.parent / "n.jsonl", [{"text": "n"}])
    steps = 0
    while True:  # killed at every write of a list, or of the marker
        left = iter(range(steps))
        real = contents.write_json

        def dying(path: Any, value: Any, flush: bool = True, real: Any = real, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(path, value, flush)

        monkeypatch.setattr("curate.store.contents.write_json", dying)
        monkeypatch.setattr("curate.store.commits.write_json", dying)
        try:
            curate.ingest(ws, [rows])
            break
        except KeyboardInterrupt:
            steps += 1
            assert curate.status(ws).rows in (50, 51)
        finally:
            monkeypatch.undo()
    assert steps >= 5 and json.loads(marker.read_text())["format"] == 2
    assert curate.verify(ws).damaged == [] and curate.status(ws).rows == 51
    assert contents.entered(ws)["manifest"].keys() == {"best"} and len(list(root.rglob(LIST))) >= 5
    with pytest.raises(CurateError, match="part-00005"):
        ws.pool.record_path("part-00005").unlink()
        curate.status(ws)


def test_a_repair_makes_the_contents_first(ws: Workspace) -> None:
    """What it computes again is entered there."""
    garbled(Path(ws.path) / contents.CONTENTS)
    cut(Path(str(Parts(ws.score_folder("length")).path("part-00001"))))
    assert all(damage.repaired for damage in curate.verify(ws, repair=True).damaged)
    assert curate.verify(ws).damaged == []


def test_a_changed_record_of_partial_sums_certifies_nothing(tmp_path: Path) -> None:
    """No list has it: a number of it that was changed would be believed."""
    parts = Parts(tmp_path, suffix=".safetensors")
    parts.commit("state", {"a": np.arange(3)}, failed={"part-00000": {"17": "has no words"}})
    assert (parts.record("state") or {})["failed"] == {"part-00000": {"17": "has no words"}}
    path = Path(tmp_path) / "_commit/state.json"
    for old, new in ((b'"17"', b'"18"'), (b"failed", b"failet"), (b"no words", b"no wards")):
        data = path.read_bytes()
        path.write_bytes(data.replace(old, new))
        assert parts.record("state") is None and parts.read("state") is None
        path.write_bytes(data)
    assert parts.read("state") is not None
