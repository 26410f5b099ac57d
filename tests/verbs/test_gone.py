"""What is shown as all there is of a kind is all there is, or a sentence; what is read is what was written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import CurateError, DamagedError
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.length import Length
from curate.store.recipes import write_recipe
from curate.store.workspace import Workspace
from curate.tables.index import index_path
from tests.conftest import tree_bytes, write_jsonl
from tests.support.narrow import NARROW

ROWS: list[dict[str, Any]] = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A pool, a target, a score, vectors with an index, and two runs."""
    folder = tmp_path_factory.mktemp("made")
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [write_jsonl(folder / "pool.jsonl", ROWS)])
    curate.target(ws, "sums", write_jsonl(folder / "t.jsonl", ROWS[:3]), split="test")
    curate.target(ws, "near", write_jsonl(folder / "near.jsonl", ROWS[:3]))
    curate.score(ws, Length())
    curate.score(ws, EmbedLm(), models=NARROW)
    curate.select(ws, "best", "top", by="length", top=4)
    for seed in range(2):
        model = curate.ModelChoice(NARROW, device="cpu")
        curate.train(ws, f"run{seed}", model=model, manifest="best", steps=1, batch_size=2, seed=seed, evals=["sums"])
    return ws


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(made.path, tmp_path / "ws")  # type: ignore[arg-type]
    return curate.open_workspace(tmp_path / "ws")


def asked(query: str) -> Callable[[Workspace], Any]:
    return lambda ws: curate.sql(ws, query)


@pytest.mark.parametrize(
    "use", [curate.compare, *(asked(f"SELECT * FROM {name}") for name in ("evaluations", "metrics", "trained"))]
)
def test_runs_are_not_shown_without_one_that_is_gone(ws: Workspace, use: Callable[[Workspace], Any]) -> None:
    (Path(ws.path) / "runs/run1/run.json").unlink()
    with pytest.raises(DamagedError, match="the run 'run1' is gone.*curate drop run1 --force"):
        use(ws)
    states = {row["name"]: row["state"] for row in curate.sql(ws, "SELECT name, state FROM runs")}
    assert states == {"run0": "complete", "run1": "damaged"}
    assert [line.run for line in curate.compare(ws, ["run0"]).lines] == ["run0"]
    assert len([line for line in curate.status(ws).damaged if "run1" in line]) == 1
    assert any("run1" in warning for warning in curate.report(ws).warnings)


def test_a_query_for_a_score_that_is_gone_says_so_and_others_go_on(ws: Workspace) -> None:
    (Path(ws.path) / "scores/length/score.json").unlink()
    for query in ("SELECT * FROM samples", "SELECT length FROM samples", "SELECT length_words FROM samples"):
        with pytest.raises(DamagedError, match="the score 'length' is gone"):
            curate.sql(ws, query)
    assert len(curate.sql(ws, "SELECT id, n_chars FROM samples")) == 20


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_a_target_that_is_not_what_was_written_is_not_read(ws: Workspace, harm: str) -> None:
    path = Path(str(ws.target_path("sums")))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if harm == "gone" else path.write_bytes(data)
    for use in (
        asked("SELECT * FROM targets"),
        lambda ws: curate.evaluate(ws, "run0", ["sums"], metrics=["perplexity"]),
    ):
        with pytest.raises(DamagedError, match=r"sums\.parquet is not what was written there.*, or is gone"):
            use(ws)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 90, b"{}", b'{"format": 2, "special_tokens": "tezt"}', b'{"format": 2, "x": 1}']
)
def test_a_damaged_marker_is_a_sentence(ws: Workspace, data: bytes) -> None:
    (Path(ws.path) / "workspace.json").write_bytes(data)
    with pytest.raises(CurateError, match=r"workspace\.json (is damaged|names no format)"):
        curate.open_workspace(ws.path)  # type: ignore[arg-type]


def test_an_index_of_other_bytes_is_not_searched_and_a_killed_repair_of_it_is_gone_on_with(ws: Workspace) -> None:
    path = Path(str(index_path(ws, "embed_lm")))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamagedError, match="index.faiss is not what was written there"):
        curate.neighbors(ws, "embed_lm", sample_id=curate.sql(ws, "SELECT id FROM pool")[0]["id"])
    path.with_suffix(".json").unlink()  # as a repair does first
    assert [damage.part for damage in curate.verify(ws).damaged] == ["index.faiss"]
    assert [damage.repaired for damage in curate.verify(ws, repair=True).damaged] == [True]
    assert path.read_bytes() == whole and curate.verify(ws).damaged == []


def test_a_checkpoint_without_its_last_file_is_damaged_and_one_without_its_folder_is_none(ws: Workspace) -> None:
    folder = Path(ws.path) / "runs/run0/checkpoints/step-000001"
    (folder / "trainer.json").unlink()
    assert curate.sql(ws, "SELECT state FROM runs WHERE name = 'run0'")[0]["state"] == "damaged"
    with pytest.raises(DamagedError, match=r"step-000001 has lost its trainer\.json"):
        curate.evaluate(ws, "run0", ["sums"])
    shutil.rmtree(folder)
    assert curate.sql(ws, "SELECT state FROM runs WHERE name = 'run0'")[0]["state"] == "0 of 1 steps"


def test_an_evaluation_that_a_killed_one_stored_is_listed_by_the_next(ws: Workspace) -> None:
    parts = Path(ws.path) / "runs/run0/evaluations"
    whole = tree_bytes(parts, "*.json")
    (parts / "_parts.json").unlink()
    curate.evaluate(ws, "run0", ["sums"])
    assert tree_bytes(parts, "*.json") == whole


@pytest.mark.parametrize("end", ["replaced", "dropped"])
def test_a_manifest_whose_replacement_was_killed_is_kept_as_it_was(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The table is then the new one, and its recipe still the old one."""
    monkeypatch.setattr("curate.store.manifests.write_recipe", dying_at_the_second())
    with pytest.raises(KeyboardInterrupt):
        curate.select(ws, "best", "top", by="length", top=7, fresh=True)
    monkeypatch.undo()
    if end == "replaced":
        curate.select(ws, "best", "top", by="length", top=7, fresh=True)
    else:
        curate.drop(ws, "best", force=True)
    (kept,) = (Path(ws.path) / "manifests/replaced").glob("*.parquet")
    assert pq.read_table(kept).num_rows == 4 and curate.verify(ws).damaged == []


def dying_at_the_second() -> Callable[..., None]:
    """`write_recipe`, of which the first call keeps the old manifest, and the second one would write the new one."""
    left = iter(range(1))

    def write(*given: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write_recipe(*given)

    return write


@pytest.mark.parametrize("query", ["SELECT * FROM best", "SELECT count(*) FROM best", "SELECT * FROM heavy", "vectors"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_bit_that_is_flipped_in_what_sql_reads_is_said(ws: Workspace, query: str, where: float) -> None:
    curate.weigh(ws, "heavy", "adapt_static", "length", manifest="best")
    file = "vectors/embed_lm/part-00000" if query == "vectors" else f"manifests/{query.split()[-1]}"
    flipped(Path(ws.path) / f"{file}.parquet", where)
    with pytest.raises(CurateError, match=r"is not what (was written there|its JSON vouches for)"):
        curate.sql(ws, "SELECT * FROM embed_lm" if query == "vectors" else query)
    assert len(curate.sql(ws, "SELECT * FROM pool")) == 20


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_targets_vectors_of_other_bytes_are_not_scored_by(ws: Workspace, where: float) -> None:
    from curate.tables.vector_table import load_vectors, vectors_of_target

    curate.score(ws, EmbedLm(), target="near", models=NARROW)
    folder = Path(ws.path) / "vectors/embed_lm"
    whole = vectors_of_target(folder, "near").unit
    flipped(folder / "targets/near.parquet", where)
    for use in (lambda: vectors_of_target(folder, "near"), lambda: load_vectors(ws, "embed_lm", "near")):
        with pytest.raises(DamagedError, match=r"targets/near.parquet is not what was written.*verify --repair"):
            use()
    curate.score(ws, EmbedLm(), target="near", models=NARROW, names={"embed_lm": "again"})  # it makes them again
    assert (vectors_of_target(folder, "near").unit == whole).all() and curate.verify(ws).damaged == []


def flipped(path: Path, where: float) -> None:
    """Flip one bit at a share of a file."""
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
