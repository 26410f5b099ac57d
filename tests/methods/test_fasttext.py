"""fastText's classifiers as a score: its own numbers, exactly; and files and labels that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import fasttext
import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.fasttext import Fasttext
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.support.fasttext_file import texts, trained


def test_it_is_what_fasttext_predicts_of_every_sample(sample_ws: Workspace) -> None:
    curate.score(sample_ws, Fasttext(str(trained()), "hq"))
    theirs = fasttext.load_model(str(trained()))
    rows = list(curate.sql(sample_ws, "SELECT messages, text, fasttext, fasttext_best best FROM samples ORDER BY row"))
    assert len(rows) > 500
    for row in rows:
        said = row["text"] if row["messages"] is None else "\n".join(m["content"] for m in row["messages"])
        labels, p = theirs.predict([" ".join(said.strip().splitlines())], k=-1)
        assert row["fasttext"] == p[0][labels[0].index("__label__hq")] and row["best"] == p[0][0]


def test_it_finds_what_it_was_trained_for_on_samples_that_it_has_not_seen(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    held_out = texts(1)
    rows = [{"text": text, "kind": label} for label, text in held_out]
    curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", rows)])
    curate.score(ws, Fasttext(str(trained()), "__label__hq"))
    found = list(curate.sql(ws, "SELECT fasttext p, meta->>'kind' = 'hq' AS is_hq FROM samples"))
    ranks = np.argsort(np.argsort([row["p"] for row in found])) + 1.0
    good = np.array([row["is_hq"] for row in found])
    auroc = (ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / (good.sum() * (~good).sum())
    assert auroc > 0.95


def test_the_part_that_is_asked_for_is_read_and_what_has_no_text_is_null(school_ws: Workspace, tmp_path: Path) -> None:
    raw, asks = {"text": "raw 1"}, {"messages": [{"role": "user", "content": "1?"}]}
    curate.ingest(school_ws, [write_jsonl(tmp_path / "rows.jsonl", [raw, asks])])
    for part, name in (("prompt", "prompts"), ("answer", "answers")):
        curate.score(school_ws, Fasttext(str(trained()), "hq", of=part), names={"fasttext": name})  # type: ignore[arg-type]
    found = list(
        curate.sql(school_ws, "SELECT prompts_error p, answers_error a FROM samples ORDER BY row DESC LIMIT 3")
    )
    assert [(row["p"], row["a"]) for row in found] == [
        (None, "has no text"),
        ("has no prompt: it is raw text", None),
        (None, None),
    ]


def test_a_label_that_a_tree_of_labels_does_not_reach_has_no_probability(school_ws: Workspace, tmp_path: Path) -> None:
    lines = [f"__label__l{i % 20} " + " ".join([f"word{i % 20}"] * 9) + "\n" for i in range(4000)]
    (tmp_path / "train.txt").write_text("".join(lines))
    options = {"dim": 8, "epoch": 8, "lr": 1.0, "thread": 1, "seed": 1, "verbose": 0, "bucket": 100}
    model = fasttext.train_supervised(input=str(tmp_path / "train.txt"), loss="hs", **options)
    model.save_model(str(tmp_path / "tree.bin"))
    texts = [{"text": "word3 word3 word3 word3"}, {"text": "word7 word7 word7 word7"}]
    ws = curate.open_workspace(tmp_path / "own")
    curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", texts)])
    assert len(model.predict(["word3 word3 word3 word3"], k=-1)[0][0]) < 20
    curate.score(ws, Fasttext(str(tmp_path / "tree.bin"), "l7"))
    found = [row["fasttext"] for row in curate.sql(ws, "SELECT fasttext FROM samples ORDER BY row")]
    assert found[0] < 1e-3 and found[1] > 0.9


def test_another_file_under_the_name_is_another_score(school_ws: Workspace, tmp_path: Path) -> None:
    file = Path(shutil.copy(trained(), tmp_path / "a.bin"))
    curate.score(school_ws, Fasttext(str(file), "hq"))
    assert curate.score(school_ws, Fasttext(str(file), "hq"))[0].computed == 0
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CurateError, match="was made with sha256="):
        curate.score(school_ws, Fasttext(str(file), "hq"))


def test_what_does_not_fit_is_refused_by_a_sentence(school_ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "no.bin").write_text("no model at all")
    with pytest.raises(CurateError, match="no model that fastText wrote"):
        curate.score(school_ws, Fasttext(str(tmp_path / "no.bin"), "hq"))
    with pytest.raises(CurateError, match="cannot be read"):
        curate.score(school_ws, Fasttext(str(tmp_path / "gone.bin"), "hq"))
    with pytest.raises(CurateError, match="has no label 'hqq': did you mean 'hq'"):
        curate.score(school_ws, Fasttext(str(trained()), "hqq"))
    with pytest.raises(CurateError, match="needs a classifier and a label"):
        curate.score(school_ws, Fasttext())
    assert not school_ws.score_names()
