"""The selectors on vectors through `curate select`: replayed, told in the ledger, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.kinds.selector import Selector
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.round_robin import RoundRobin
from curate.methods.selectors.top import Top
from curate.store.encoding import read_json, read_table
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import sample_in, write_jsonl
from tests.methods.test_vector_selectors import EVERY
from tests.support.narrow import NARROW


@pytest.fixture(scope="module")
def embedded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ws = sample_in(tmp_path_factory.mktemp("embedded") / "ws")
    curate.score(ws, EmbedLm(), target="arithmetic", models=NARROW)
    return Path(str(ws.path))


@pytest.fixture
def embedded(embedded_once: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return curate.open_workspace(shutil.copytree(embedded_once, tmp_path / "ws"))


@pytest.mark.parametrize("kind", EVERY)
def test_each_makes_a_manifest_that_its_command_and_a_replay_make_again(
    embedded: Workspace, kind: type[Selector], cli: Any
) -> None:
    target = "arithmetic" if kind.uses_target else None
    chosen = SelectionSpec(top=200, vectors="embed_lm", target=target, where="meta->>'skill' <> 'chat'")
    first = curate.select(embedded, "first", kind(), chosen)
    assert first.rows == 200
    manifest = read_table(embedded.manifest_path("first")).to_pylist()
    assert len({row["id"] for row in manifest}) == 200
    rows = curate.sql(embedded, "SELECT meta->>'skill' AS s FROM first JOIN pool USING (id)")
    assert "chat" not in {row["s"] for row in rows}
    words = first.command.split()
    assert "--vectors" in words
    again = embedded.manifest_path("again")
    import shlex

    made = shlex.split(first.command.replace("select first", "select again", 1))[1:]
    assert cli(*made, ws=embedded).returncode == 0
    assert again.read_bytes() == embedded.manifest_path("first").read_bytes()
    lineage = str(embedded.manifest_path("first").with_suffix(".json"))
    assert curate.replay(embedded, "again", lineage).warnings == []
    assert read_json(embedded.manifest_path("first").with_suffix(".json"))["scores"]["embed_lm"]["method"] == "embed_lm"


def test_round_robin_finds_the_targets_skill(embedded: Workspace) -> None:
    curate.select(embedded, "rds", RoundRobin(), SelectionSpec(top=100, vectors="embed_lm", target="arithmetic"))
    (found,) = curate.sql(
        embedded, "SELECT avg((meta->>'skill' = 'arithmetic')::INT) AS share FROM rds JOIN pool USING (id)"
    )
    assert found["share"] > 0.8  # of 20 %, by a model that knows nothing


def test_what_a_selector_spends_is_in_the_ledger(embedded: Workspace) -> None:
    for kind in EVERY:
        target = "arithmetic" if kind.uses_target else None
        curate.select(embedded, "x", kind(), SelectionSpec(top=50, vectors="embed_lm", target=target), fresh=True)
    spent = {r["methods"]: r["flops"] for r in curate.ledger(embedded) if r["stage"] == "select"}
    assert spent["round_robin"] == 2.0 * 3000 * 32 * 24  # every sample with every example
    assert all(flops > 2.0 * 3000 * 32 for flops in spent.values()) and len(spent) == len(EVERY)


def test_each_source_has_its_own_choice(embedded: Workspace) -> None:
    r = curate.select(embedded, "each", Kcenter(), SelectionSpec(top=10, per="source", vectors="embed_lm"))
    assert {row["selected"] for row in r.by_source} == {10}


def test_what_does_not_stand_is_not_selected_by(embedded: Workspace, tmp_path: Path) -> None:
    def refused(selector: Selector, **given: Any) -> str:
        with pytest.raises(CurateError) as caught:
            curate.select(embedded, "x", selector, SelectionSpec(top=10, **given))
        return str(caught.value)

    assert "needs vectors: add --vectors NAME" in refused(Kcenter())
    assert "uses no vectors; leave out --vectors embed_lm" in refused(Top(), by="n_chars", vectors="embed_lm")
    assert "needs target: add --target NAME" in refused(RoundRobin(), vectors="embed_lm")
    assert "did you mean 'embed_lm'" in refused(Kcenter(), vectors="embed_l")
    val = write_jsonl(tmp_path / "v.jsonl", [{"question": "Where?", "answer": "There."}])
    curate.target(embedded, "places", val)
    command = f"curate score embed_lm --target places --model base={NARROW}"
    said = refused(RoundRobin(), vectors="embed_lm", target="places")
    assert f"the target 'places' is not among them yet; run `{command}`" in said
    curate.ingest(embedded, [write_jsonl(tmp_path / "more.jsonl", [{"question": "New?", "answer": "Yes."}])])
    said = refused(Kcenter(), vectors="embed_lm")
    assert f"the vectors 'embed_lm' lack 1 of 3001 samples; run `curate score embed_lm --model base={NARROW}`" in said
    r = curate.select(embedded, "x", Kcenter(), SelectionSpec(top=10, vectors="embed_lm", allow_stale=True))
    assert r.without_value == 1 and "lack 1 of 3001" in r.warnings[0]
