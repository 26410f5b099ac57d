"""The index of vectors and its neighbours: as near as a look at every vector, stale, cut, asked in vain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.vectors import Vectors
from curate.methods.scores.embed_lm import EmbedLm
from curate.models.choice import TINY
from curate.numerics import faiss_index
from curate.store.workspace import Workspace
from curate.tables import index
from tests.conftest import write_jsonl
from tests.support.narrow import NARROW


def test_the_index_answers_as_a_look_at_every_vector_does(embedded_ws: Workspace) -> None:
    asked = np.concatenate([unit for _, unit in index._blocks(embedded_ws, "embed_lm")])[::20]
    at, near = index.search(embedded_ws, "embed_lm", asked, 10)
    want_at, want = index.nearest_exactly(embedded_ws, "embed_lm", asked, 10)
    assert np.abs(near - want).max() < 1e-5 and (at == want_at).mean() > 0.95  # but for equal neighbours


def test_lists_are_searched_until_nearly_all_neighbours_are_found(
    sample_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "EXACT_UP_TO", 1000)
    (made,) = curate.score(sample_ws, EmbedLm(), models=NARROW)
    record = index.record_of(sample_ws, "embed_lm")
    assert record and record.lists == 219 and 0 < record.probes < record.lists and record.recall >= 0.97
    assert f"in 219 lists, {record.probes} of them searched" in made.index
    vectors = np.concatenate([unit for _, unit in index._blocks(sample_ws, "embed_lm")])
    found = index.search(sample_ws, "embed_lm", vectors[::7], 10)[0]
    want = index.nearest_exactly(sample_ws, "embed_lm", vectors[::7], 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)]) > 0.95


@pytest.mark.parametrize("exact_up_to", [10, 100_000])
def test_wide_vectors_are_quantised(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_up_to: int
) -> None:
    rows = [{"text": f"text {i}"} for i in range(300)]
    curate.ingest(ws, [write_jsonl(tmp_path / "x.jsonl", rows)])
    raw = np.random.default_rng(0).normal(size=(300, 1500)).astype(np.float32)
    monkeypatch.setattr(EmbedLm, "_vector", lambda self, requests, _: {"vector": raw, "error": [""] * 300})
    monkeypatch.setattr(faiss_index, "EXACT_UP_TO", exact_up_to)
    curate.score(ws, EmbedLm(), models=NARROW)
    record = index.record_of(ws, "embed_lm")
    assert record and record.kind == ("exact, float16" if exact_up_to > 300 else "inverted lists, 8 bit")
    vectors, centres = 300 * 1500 * (2 if exact_up_to > 300 else 1), record.lists * 1500 * 4
    assert vectors < record.bytes < 1.1 * (vectors + centres)
    asked = Vectors.of(raw).unit[:20]
    at, near = index.search(ws, "embed_lm", asked, 1)
    assert at[:, 0].tolist() == list(range(20)) and np.abs(near - 1).max() < 0.02


@pytest.mark.slow
def test_an_index_older_than_its_vectors_is_noticed_and_built_again(
    embedded_ws: Workspace, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_ws.table_folder("vectors", "embed_lm")
    for name in ("index.faiss", "index.json"):
        shutil.copy(folder / name, tmp_path / name)
    more = [{"question": f"where is town {i}?", "answer": f"in land {i}"} for i in range(10)]
    curate.ingest(embedded_ws, [write_jsonl(tmp_path / "more.jsonl", more)])
    curate.score(embedded_ws, EmbedLm(), models=NARROW)
    for name in ("index.faiss", "index.json"):
        shutil.copy(tmp_path / name, folder / name)
    with pytest.raises(CurateError, match="has an index older than its vectors"):
        index.search(embedded_ws, "embed_lm", np.zeros((1, 32), np.float32), 1)
    assert "has an index older than its vectors" in cli("status", ws=embedded_ws).stdout
    done = cli("neighbors", "embed_lm", "--text", "where is town 3?", ws=embedded_ws)
    assert done.returncode == 0 and "had an index older than its vectors; built an exact index of 210" in done.stdout
    assert "where is town" in done.stdout.splitlines()[1]
    assert "note" not in cli("neighbors", "embed_lm", "--text", "where is town 3?", ws=embedded_ws).stdout


def test_an_index_that_is_cut_or_gone_is_built_again(embedded_ws: Workspace, cli: Any) -> None:
    path = embedded_ws.table_folder("vectors", "embed_lm") / "index.faiss"
    for harm in (lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        harm()
        assert "has an index that is cut or gone" in cli("status", ws=embedded_ws).stdout
        done = cli("neighbors", "embed_lm", "--text", "pears", ws=embedded_ws)
        assert done.returncode == 0 and "had an index that is cut or gone; built an exact index" in done.stdout


def test_neighbours_of_a_text_and_of_a_sample(embedded_ws: Workspace, cli: Any) -> None:
    (first,) = curate.sql(embedded_ws, "SELECT id, messages FROM pool WHERE row = 5")
    found = curate.neighbors(embedded_ws, "embed_lm", sample_id=first["id"], k=7).found
    cosines = [f["similarity"] for f in found]
    assert len(found) == 7 and first["id"] not in [f["id"] for f in found] and cosines == sorted(cosines, reverse=True)
    text = "\n".join(m["content"] for m in first["messages"])
    near = curate.neighbors(embedded_ws, "embed_lm", text=text, k=5).found
    assert len(near) == 5 and near[0]["similarity"] > 0.5
    done = cli("neighbors", "embed_lm", "--id", first["id"], "-k", "500000000000", "--json", ws=embedded_ws)
    assert len(json.loads(done.stdout)["found"]) == 199


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("embed_ml", "--text", "x"), "has no vectors 'embed_ml': did you mean 'embed_lm'?"),
        (("embed_lm",), "say what to be near to"),
        (("embed_lm", "--text", "x", "--id", "y"), "say what to be near to"),
        (("embed_lm", "--id", "y'"), "has no sample 'y''"),
        (("embed_lm", "--text", " "), "--text is empty"),
        (("embed_lm", "--text", "x", "-k", "0"), "1 or more"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_sentence(
    embedded_ws: Workspace, cli: Any, given: tuple[str, ...], said: str
) -> None:
    done = cli("neighbors", *given, ws=embedded_ws)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_model_that_has_changed_since_is_not_asked(school_ws: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    curate.score(school_ws, EmbedLm(), models=str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    with pytest.raises(CurateError, match=r"were made with other weights than .* --fresh"):
        curate.neighbors(school_ws, "embed_lm", text="x")


def test_without_faiss_there_are_vectors_and_no_index(school_ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    (made,) = curate.score(school_ws, EmbedLm(), target="sums", models=NARROW)
    assert made.computed == 200 and made.vectors.index.startswith("no index: FAISS is not installed")
    with pytest.raises(CurateError, match="has no index, and it cannot be built: FAISS is not installed"):
        curate.neighbors(school_ws, "embed_lm", text="x")
