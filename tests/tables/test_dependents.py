"""What was made from what is known before something is replaced or removed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.methods.masks.random import Random as RandomMask
from curate.methods.metrics.loss import Loss
from curate.methods.mixers.given import Given
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.store.workspace import Workspace
from curate.tables.dependents import dependents, named
from curate.training.settings import TrainSettings
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.conftest import SAMPLE, qa, write_jsonl
from tests.support.narrow import NARROW

SPEC = SelectionSpec(by="bm25_arithmetic", top=20)
PLAIN = TrainingSpec(
    ModelChoice(NARROW, device="cpu"), Uniform(), TrainSettings(batch_size=4, steps=1), manifest="best"
)


@pytest.fixture
def made(handful_ws: Workspace) -> Workspace:
    """A target, a score of it, a selection by that, weights of this, and a run and its evaluation."""
    ws = handful_ws
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"))
    curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_test.jsonl"), split="test")
    curate.score(ws, Bm25(), Length(), target="arithmetic")
    curate.select(ws, "best", Top(), SPEC)
    curate.weigh(ws, "heavy", AdaptStatic(), "length", manifest="best")
    curate.train(ws, "first", PLAIN, evals=[EvalSpec("arithmetic", Loss(), limit=2)])
    return ws


def ids(ws: Workspace, name: str) -> list[str]:
    return [row["id"] for row in curate.sql(ws, f"SELECT id FROM {name} ORDER BY rank")]


def test_all_that_was_made_from_an_object_is_found(made: Workspace) -> None:
    after_score = {"manifest": ["best", "heavy"], "run": ["first"]}
    assert dependents(made, "score", "bm25_arithmetic") == after_score
    assert dependents(made, "target", "arithmetic") == {"score": ["bm25_arithmetic"], **after_score}
    assert dependents(made, "manifest", "best") == {"manifest": ["heavy"], "run": ["first"]}
    assert dependents(made, "score", "length") == {"manifest": ["heavy"]}
    assert dependents(made, "run", "first") == {}
    model = ModelChoice(str(made.run_folder("first") / "checkpoints/step-000001"))
    curate.train(made, "second", replace(PLAIN, model=model))
    assert dependents(made, "run", "first") == {"run": ["second"]}
    assert (
        named({"score": ["a", "b"], "vectors": ["v"], "run": ["r"]}) == "the scores a, b, the vectors v and the run r"
    )


def test_what_something_was_made_from_is_dropped_only_by_force(made: Workspace, cli: Any) -> None:
    for name in ("arithmetic", "bm25_arithmetic", "best"):
        with pytest.raises(CurateError, match="the run first would be stale or could not be repeated; .* --force"):
            curate.drop(made, name)
    assert "arithmetic" in made.target_names() and "best" in made.manifest_names()
    shown = cli("drop", "arithmetic", "--dry-run", ws=made).stdout
    assert shown == (
        "Would remove the target arithmetic. Made from it: the score bm25_arithmetic, the manifests best, heavy and "
        "the run first.\n"
    )
    done = curate.drop(made, "bm25_arithmetic", force=True)
    assert done.dependents["run"] == ["first"] and "bm25_arithmetic" not in made.score_names()
    curate.drop(made, "first")  # nothing was made from it
    assert made.run_names() == []


def test_a_manifest_made_otherwise_is_replaced_only_when_asked(made: Workspace, cli: Any) -> None:
    before = ids(made, "best")
    curate.select(made, "best", Top(), SPEC)  # the same again
    with pytest.raises(CurateError, match=r"'best' exists, made by `curate select best .*`; made from it: the manifest "
                                          r"heavy and the run first; choose another name, or --fresh"):  # fmt: skip
        curate.select(made, "best", Top(), replace(SPEC, top=10))
    with pytest.raises(CurateError, match="'heavy' exists, made by `curate weigh heavy"):
        curate.weigh(made, "heavy", AdaptStatic(tau=2.0), "length", manifest="best")
    with pytest.raises(CurateError, match="'heavy' exists"):
        curate.mix(made, "heavy", Given("handful=1"), MixtureSpec(rows=10, most_epochs=None))
    assert ids(made, "best") == before
    curate.select(made, "best", Top(), replace(SPEC, top=10), dry_run=True)  # writes nothing
    done = cli("select", "best", "--by", "length", "--top", "5", ws=made)
    assert done.returncode == 2 and "--fresh" in done.stderr
    done = cli("select", "best", "--by", "length", "--top", "5", "--fresh", ws=made)
    assert done.returncode == 0 and len(ids(made, "best")) == 5


def test_a_manifest_that_a_run_stands_on_is_kept_while_it_does(made: Workspace, cli: Any) -> None:
    before = ids(made, "best")
    assert [run["note"] for run in curate.status(made).runs] == [""]
    curate.select(made, "best", Random(), SelectionSpec(top=7), fresh=True)
    (note,) = [run["note"] for run in curate.status(made).runs]
    assert note.startswith("run first: its manifest best was replaced since; `curate select NEW")
    assert note in cli("status", ws=made).stdout
    (kept,) = (made.path / "manifests/replaced").glob("*.json")  # type: ignore[union-attr]
    curate.replay(made, "again", str(kept))
    assert ids(made, "again") == before
    curate.drop(made, "best", force=True)
    assert "its manifest best was removed" in curate.status(made).runs[0]["note"]
    assert curate.verify(made).damaged == [] and kept.exists()
    kept.with_suffix(".parquet").write_bytes(b"torn")
    assert [damage.part for damage in curate.verify(made).damaged] == [f"replaced/{kept.stem}"]
    for name in ("heavy", "first"):
        curate.drop(made, name, force=True)
    assert not list(kept.parent.iterdir())


def test_the_same_selection_of_a_grown_pool_replaces_what_nothing_stands_on(made: Workspace, tmp_path: Any) -> None:
    curate.select(made, "whole", Random(), SelectionSpec(frac=1.0))
    n = len(ids(made, "whole"))
    curate.ingest(made, [write_jsonl(tmp_path / "more.jsonl", qa(5))])
    curate.score(made, Bm25(), target="arithmetic")
    curate.select(made, "whole", Random(), SelectionSpec(frac=1.0))
    assert len(ids(made, "whole")) == n + 5
    wide = replace(SPEC, top=10_000)
    curate.select(made, "best", Top(), wide, fresh=True)
    curate.train(made, "second", replace(PLAIN, settings=TrainSettings(batch_size=2, steps=1)))
    curate.ingest(made, [write_jsonl(tmp_path / "other.jsonl", [{"text": "A text of another kind."}])])
    curate.score(made, Bm25(), target="arithmetic")
    with pytest.raises(CurateError, match="'best' would get other samples, as its scores or the pool have changed"):
        curate.select(made, "best", Top(), wide)
    curate.select(made, "best", Top(), wide, fresh=True)


def test_a_mask_made_otherwise_is_replaced_only_when_asked(handful_ws: Workspace) -> None:
    curate.mask(handful_ws, "few", RandomMask(), 0.1, model=NARROW)
    curate.mask(handful_ws, "few", RandomMask(), 0.1, model=NARROW)
    with pytest.raises(CurateError, match="the mask 'few' exists, made by `curate mask` with the method random"):
        curate.mask(handful_ws, "few", RandomMask(), 0.2, model=NARROW)
    assert curate.mask(handful_ws, "few", RandomMask(), 0.2, model=NARROW, fresh=True).selected


def test_a_damaged_manifest_is_replaced_when_asked(made: Workspace) -> None:
    path = made.manifest_path("heavy").with_suffix(".json")
    path.write_bytes(json.dumps({"name": "heavy"}).encode())
    with pytest.raises(CurateError, match="is damaged or was edited"):
        curate.weigh(made, "heavy", AdaptStatic(), "length")
    curate.weigh(made, "heavy", AdaptStatic(), "length", fresh=True)
    assert curate.verify(made).damaged == []
