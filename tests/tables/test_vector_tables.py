"""Vectors of samples in a workspace: stored once for all targets, interrupted, edited, damaged, repaired."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables.state import table_state
from curate.tables.vector_table import load_vectors, vectors_of
from curate.verbs.select import SelectionSpec
from tests.conftest import run_and_kill, tree_bytes, write_jsonl
from tests.support.narrow import NARROW


def test_vectors_share_the_pass_and_serve_every_target(school_ws: Workspace, seen: list[int]) -> None:
    results = curate.score(school_ws, Nll(), Entropy(), EmbedLm(), models=NARROW)
    assert sum(seen) == 200 and [(r.name, r.kind) for r in results][2] == ("embed_lm", "vectors")
    assert school_ws.score_names() == ["entropy", "nll"] and school_ws.vectors_names() == ["embed_lm"]
    (row,) = [r for r in curate.ledger(school_ws) if r["stage"] == "score"]
    assert row["name"] == "nll, entropy, embed_lm" and row["samples"] == 200
    parts = tree_bytes(school_ws.table_folder("vectors", "embed_lm"), "part-*.parquet")

    for name, size in (("sums", 24), ("facts", 24)):
        seen.clear()
        (scored,) = curate.score(school_ws, EmbedLm(), target=name, models=NARROW)
        assert scored.name == f"embed_lm_{name}" and scored.computed == 200 and sum(seen) == size
        assert scored.vectors is not None and scored.vectors.computed == 0
        seen.clear()
        (again,) = curate.score(school_ws, EmbedLm(), target=name, models=NARROW)
        assert again.computed == 0 and seen == []
    assert tree_bytes(school_ws.table_folder("vectors", "embed_lm"), "part-*.parquet") == parts
    spent = {r["name"]: r for r in curate.ledger(school_ws) if r["stage"] == "score"}
    width = 32
    assert spent["embed_lm_facts"]["flops"] == 2.0 * width * 200 and spent["embed_lm"]["samples"] == 48


def test_the_stored_score_is_the_mean_cosine_of_the_stored_vectors(school_ws: Workspace) -> None:
    curate.score(school_ws, EmbedLm(aggregate="subtask_max", keep_subtasks=True), target="sums", models=NARROW)
    folder = school_ws.table_folder("vectors", "embed_lm")
    pool = [v for s in school_ws.require_pool() for v in vectors_of(read_table(Parts(folder).path(s.name))).unit]
    target = load_vectors(school_ws, "embed_lm", "sums")
    rows = curate.sql(school_ws, "SELECT embed_lm_sums AS s, embed_lm_sums_subtasks AS kept FROM samples ORDER BY row")
    for vector, row in zip(pool, rows, strict=True):
        each = target.unit.astype(float) @ vector.astype(float)
        by_task = {t: each[[s == t for s in target.subtasks]].mean() for t in set(target.subtasks)}
        assert row["s"] == pytest.approx(max(by_task.values()), abs=1e-6)
        assert dict(row["kept"]) == pytest.approx(by_task, abs=1e-6)
    chosen = curate.select(school_ws, "each", Top(), SelectionSpec(by="embed_lm_sums", top=20, per="subtask"))
    assert chosen.rows == 20 * len(set(target.subtasks))


def test_new_samples_an_edited_target_and_another_model(school_ws: Workspace, tmp_path: Path) -> None:
    curate.score(school_ws, EmbedLm(), target="facts", models=NARROW)
    more = [{"question": f"where is town {i}?", "answer": f"in land {i}"} for i in range(10)]
    curate.ingest(school_ws, [write_jsonl(tmp_path / "more.jsonl", more)])
    assert table_state(school_ws, "vectors", "embed_lm").problem() == "lack 10 of 210 samples"
    command = f"curate score embed_lm --target facts --model base={NARROW}"
    state = table_state(school_ws, "score", "embed_lm_facts")
    assert state.problem() == "lacks 10 of 210 samples" and state.command() == command
    (scored,) = curate.score(school_ws, EmbedLm(), target="facts", models=NARROW)
    assert (scored.computed, scored.reused) == (10, 200) and scored.vectors.index.startswith("an exact index of 210")

    curate.target(school_ws, "facts", write_jsonl(tmp_path / "facts.jsonl", more[:2]))
    assert "was edited" in str(table_state(school_ws, "score", "embed_lm_facts").problem())
    with pytest.raises(CurateError, match=f"the target 'facts' was edited since; run `{command}`"):
        load_vectors(school_ws, "embed_lm", "facts")
    (scored,) = curate.score(school_ws, EmbedLm(), target="facts", models=NARROW)
    assert scored.computed == 210 and scored.vectors.computed == 0

    other = ModelChoice(NARROW, context=100)
    with pytest.raises(CurateError, match=r"vectors 'embed_lm' were made with .* context .* --vectors, or --fresh"):
        curate.score(school_ws, EmbedLm(), target="sums", models=other)
    (scored,) = curate.score(school_ws, EmbedLm(), target="sums", models=other, vectors={"embed_lm": "short"})
    assert scored.name == "short_sums" and school_ws.vectors_names() == ["embed_lm", "short"]
    again = f"curate score embed_lm --target sums --model base={NARROW} --set model.context=100 --vectors short"
    assert table_state(school_ws, "score", "short_sums").command() == again
    (scored,) = curate.score(school_ws, EmbedLm(), target="sums", models=other, fresh=True)
    assert scored.name == "embed_lm_sums" and scored.vectors.computed == 210


def test_a_killed_encoding_goes_on_where_it_stood(school_ws: Workspace, tmp_path: Path, seen: list[int]) -> None:
    code = """
        import curate
        from curate.methods.scores.embed_lm import EmbedLm
        from tests.support.narrow import NARROW
        curate.score(curate.open_workspace(sys.argv[1]), EmbedLm(), target="sums", models=NARROW)
    """
    calm = curate.open_workspace(shutil.copytree(school_ws.path, tmp_path / "calm"))
    curate.score(calm, EmbedLm(), target="sums", models=NARROW)
    seen.clear()
    for die_at in (1, 3, len(school_ws.shards()), 2):  # the target is first, then the shards; then the score's
        run_and_kill(code, str(school_ws.path), die_at=die_at)
    curate.score(school_ws, EmbedLm(), target="sums", models=NARROW)
    assert 0 <= sum(seen) < 200
    rows = [curate.sql(w, "SELECT embed_lm_sums AS s FROM samples ORDER BY row") for w in (calm, school_ws)]
    assert [r["s"] for r in rows[0]] == pytest.approx([r["s"] for r in rows[1]], abs=1e-4)
    assert curate.verify(school_ws).damaged == []
    left = [p for p in school_ws.path.rglob("*") if ".tmp" in p.name or p.name == "_units"]
    assert left == []


@pytest.mark.usefixtures("forked_workers")
def test_more_workers_write_the_same_vectors(school_ws: Workspace, tmp_path: Path) -> None:
    from curate.methods.executors.local import Local

    other = curate.open_workspace(shutil.copytree(school_ws.path, tmp_path / "other"))
    curate.score(school_ws, EmbedLm(), target="sums", models=NARROW)
    curate.score(other, EmbedLm(), target="sums", models=NARROW, executor=Local(workers=2))
    rows = [curate.sql(w, "SELECT embed_lm_sums AS s FROM samples ORDER BY row") for w in (school_ws, other)]
    assert [r["s"] for r in rows[0]] == pytest.approx([r["s"] for r in rows[1]], abs=1e-4)


def test_what_is_damaged_among_vectors_is_made_again(near_sums_ws: Workspace) -> None:
    folder = near_sums_ws.table_folder("vectors", "embed_lm")
    before = vectors_of(read_table(folder / "part-00001.parquet")).unit
    for path in (folder / "part-00001.parquet", folder / "targets/sums.parquet", folder / "index.faiss"):
        path.write_bytes(path.read_bytes()[:-9])
    damaged = {d.part for d in curate.verify(near_sums_ws).damaged}
    assert damaged == {"part-00001", "targets/sums", "index.faiss"}
    assert all(d.repaired for d in curate.verify(near_sums_ws, repair=True).damaged)
    assert curate.verify(near_sums_ws).damaged == []
    assert np.abs(vectors_of(read_table(folder / "part-00001.parquet")).unit - before).max() < 1e-3
    (scored,) = curate.score(near_sums_ws, EmbedLm(), target="sums", models=NARROW)
    assert scored.computed == 0 and len(load_vectors(near_sums_ws, "embed_lm", "sums")) == 24


@pytest.mark.parametrize("harm", ["cut", "gone"])
@pytest.mark.parametrize("part", ["part-00001.parquet", "targets/sums.parquet"])
def test_a_part_that_is_cut_or_gone_is_noticed_by_score_itself(near_sums_ws: Workspace, harm: str, part: str) -> None:
    curate.drop(near_sums_ws, "embed_lm_sums")
    path = near_sums_ws.table_folder("vectors", "embed_lm") / part
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    (scored,) = curate.score(near_sums_ws, EmbedLm(), target="sums", models=NARROW)
    assert scored.computed == 200 and scored.nulls == 0 and curate.verify(near_sums_ws).damaged == []
    assert scored.vectors is not None
    rows = Parts(near_sums_ws.table_folder("vectors", "embed_lm")).record("part-00001")
    assert rows and scored.vectors.computed == (rows["rows"] if part.startswith("part") else 0)


def test_a_model_scores_part_that_is_cut_is_noticed_by_score_itself(school_ws: Workspace) -> None:
    curate.score(school_ws, Nll(), models=NARROW)
    path = school_ws.score_folder("nll") / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    (scored,) = curate.score(school_ws, Nll(), models=NARROW)
    assert 0 < scored.computed < 200 and curate.verify(school_ws).damaged == []


def test_two_tables_of_one_command_do_not_bear_one_name(school_ws: Workspace, cli: Any) -> None:
    for words in (("embed_lm", "--name", "embed_lm"), ("embed_lm", "--vectors", "v", "--name", "v")):
        done = cli("score", *words, "--target", "sums", "--model", NARROW, ws=school_ws)
        assert done.returncode == 2 and "would be the name of the vectors that embed_lm makes and of" in done.stderr
    done = cli("score", "embed_lm", "--vectors", "v", "--name", "n", "--model", NARROW, ws=school_ws)
    assert done.returncode == 2 and "leave out --name n" in done.stderr
    assert school_ws.vectors_names() == [] == school_ws.score_names()


def test_a_role_that_nothing_has_is_said(school_ws: Workspace, cli: Any) -> None:
    done = cli("score", "embed", "--model", "encodr=minilm", ws=school_ws)
    assert done.returncode == 2 and "did you mean 'encoder'?" in done.stderr
    done = cli("score", "length", "--model", "base=tiny", ws=school_ws)
    assert done.returncode == 2 and "they use no model" in done.stderr


def test_vectors_that_are_replaced_while_a_score_is_made_of_them_are_not_mixed(
    school_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the vectors anew between the two steps of a command."""
    from curate.verbs import score as stage

    run, other = stage.run_group, ModelChoice(NARROW, context=100)

    def interrupted(jobs: Any, fresh: bool, workers: Any) -> Any:
        if jobs[0].kind == "score":
            monkeypatch.setattr(stage, "run_group", run)
            curate.score(school_ws, EmbedLm(), models=other, fresh=True)
        return run(jobs, fresh, workers)

    monkeypatch.setattr(stage, "run_group", interrupted)
    with pytest.raises(CurateError, match="were changed by another process; run the command again"):
        curate.score(school_ws, EmbedLm(), target="sums", models=NARROW)


def test_a_models_template_goes_with_its_vectors(school_ws: Workspace, tmp_path: Path, cli: Any) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    given = ("--model", NARROW, "--set", f"model.chat_template={template}")
    assert cli("score", "embed_lm", *given, ws=school_ws).returncode == 0
    assert f"--set model.chat_template={template}" in table_state(school_ws, "vectors", "embed_lm").command()
    assert cli("neighbors", "embed_lm", "--text", "pears", ws=school_ws).returncode == 0


def test_what_repair_cannot_compute_is_told_and_the_rest_goes_on(near_sums_ws: Workspace) -> None:
    curate.score(near_sums_ws, EmbedLm(), models=ModelChoice(NARROW, context=100), fresh=True)
    curate.score(near_sums_ws, Nll(), models=NARROW)
    for name in ("embed_lm_sums", "nll"):
        path = near_sums_ws.score_folder(name) / "part-00001.parquet"
        path.write_bytes(path.read_bytes()[:-9])
    told = {d.name: d for d in curate.verify(near_sums_ws, repair=True).damaged}
    assert told["nll"].repaired and not told["embed_lm_sums"].repaired
    assert "it is stale (the vectors 'embed_lm' were recomputed since)" in told["embed_lm_sums"].remedy
    with pytest.raises(CurateError, match="were made with another base model or another context of it"):
        curate.score(near_sums_ws, EmbedLm(), target="sums", models=NARROW)


def test_vectors_are_a_name_like_others(embedded_ws: Workspace, cli: Any) -> None:
    done = cli("score", "length", "--name", "embed_lm", ws=embedded_ws)
    assert done.returncode == 2 and "is taken: it is vectors" in done.stderr
    told = curate.sql(embedded_ws, "SELECT count(*) AS n, min(norm) > 0 AS long FROM embed_lm")
    assert told == [{"n": 200, "long": True}]
    done = cli("status", ws=embedded_ws)
    assert "an exact index of 200 vectors" in done.stdout and "complete" in done.stdout
    assert cli("drop", "embed_lm", ws=embedded_ws).stdout == "Removed the vectors embed_lm.\n"
    assert embedded_ws.vectors_names() == []
    done = cli("score", "nll", "--model", NARROW, "--vectors", "x", ws=embedded_ws)
    assert done.returncode == 2 and "is not made of vectors" in done.stderr
