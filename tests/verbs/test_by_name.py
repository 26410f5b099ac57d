"""Verbs of workspaces by path, methods by name and specifications by their fields: the same as with objects."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import curate
from curate.arguments.trainings import proxy_of
from curate.errors import CurateError
from curate.methods.exports.trl import Trl
from curate.methods.metrics.exact_match import ExactMatch
from curate.methods.metrics.loss import Loss
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.uniform import Uniform as Plain
from curate.runs.proxies import Proxy
from curate.store.manifests import manifest_recipe, read_manifest
from curate.store.run_record import require_run
from curate.store.workspace import Workspace

QUESTIONS = "SELECT messages[1].content AS question, messages[2].content AS answer FROM pool LIMIT 5"
NOT_OF_A_WORKSPACE = {"open_workspace", "find", "method", "list_methods", "doctor"}


def verbs() -> list[str]:
    functions = [name for name in curate.__all__ if inspect.isfunction(getattr(curate, name))]
    return [name for name in functions if name not in NOT_OF_A_WORKSPACE]


def test_every_verb_takes_a_workspace_by_its_path_and_says_so() -> None:
    assert len(verbs()) > 25
    for name in verbs():
        first, *_ = inspect.signature(getattr(curate, name)).parameters.values()
        assert (first.name, first.annotation) == ("ws", "AnyWorkspace"), name


def arguments(verb: str) -> list[Any]:
    """Something for every parameter that has no default."""
    _, *others = inspect.signature(getattr(curate, verb)).parameters.values()
    positional = [p for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    by_kind = {"weighting": "uniform", "mixer": "uniform", "exporter": "trl", "method": "magnitude", "evals": ["a"]}
    return [by_kind.get(p.name, 0.5 if p.name in ("frac", "sparsity") else "some") for p in positional]


@pytest.mark.parametrize("verb", verbs())
def test_a_verb_refuses_a_folder_without_a_workspace_as_the_command_does(tmp_path: Path, verb: str) -> None:
    if verb in ("ingest", "target"):
        curate.target(tmp_path / "new", "maths", [{"text": "a"}])
        assert curate.ingest(str(tmp_path / "newer"), [{"text": "a"}]).added == 1
        return
    for folder in (tmp_path / "absent", str(tmp_path / "absent")):
        with pytest.raises(CurateError, match=r"is no workspace .it has no workspace.json.; make one"):
            getattr(curate, verb)(folder, *arguments(verb))
    assert not (tmp_path / "absent").exists()
    with pytest.raises(
        CurateError, match="a workspace is its folder's path, or what curate.open_workspace gives, not 3"
    ):
        getattr(curate, verb)(3, *arguments(verb))


def test_a_job_of_names_is_that_of_objects(sample_ws: Workspace, tmp_path: Path) -> None:
    path, ws = str(sample_ws.path), sample_ws
    named = curate.score(path, curate.method("score", "bm25", k1=1.2), "length", target="arithmetic")
    assert [s.name for s in named] == ["bm25_arithmetic", "length"] and named[0].computed == 3000
    assert curate.score(ws, Bm25(k1=1.2), target="arithmetic")[0].reused == 3000
    with_executor = curate.score(Path(path), "bm25", target="arithmetic", names={"bm25": "other"}, executor="local")
    assert with_executor[0].name == "other"

    curate.select(path, "best", by="bm25_arithmetic", frac=0.05)
    curate.select(ws, "same", Top(), curate.SelectionSpec(by="bm25_arithmetic", frac=0.05))
    assert read_manifest(ws, "best")[0].equals(read_manifest(ws, "same")[0])
    curate.select(path, "chance", top=20)
    assert manifest_recipe(ws, "chance").selector.name == "random"  # type: ignore[union-attr]

    curate.weigh(path, "heavy", "adapt_static", by="length", manifest="best")
    curate.weigh(ws, "heavier", AdaptStatic(), "length", manifest="best")
    assert read_manifest(ws, "heavy")[0].equals(read_manifest(ws, "heavier")[0])
    curate.mix(path, "even", "uniform", rows=40, most_epochs=None)
    curate.mix(ws, "level", Uniform(), curate.MixtureSpec(rows=40, most_epochs=None))
    assert curate.sql(path, "SELECT * FROM even") == curate.sql(ws, "SELECT * FROM level")

    curate.export(path, "best", "trl", tmp_path / "out")
    curate.export(ws, "best", Trl(), str(tmp_path / "again"))
    assert (tmp_path / "out/best.jsonl").read_bytes() == (tmp_path / "again/best.jsonl").read_bytes()
    assert curate.preview(path, "best", "trl", 2) == curate.preview(ws, "best", Trl(), 2)
    assert curate.replay(path, "third", ws.path / "manifests" / "best.json").rows == 150  # type: ignore[arg-type]
    assert curate.status(path).rows == 3000 and curate.verify(path, executor="local").damaged == []


def test_a_training_of_names_is_that_of_objects(sums_ws: Workspace) -> None:
    path = str(sums_ws.path)
    curate.select(path, "best", top=12)
    curate.target(path, "sums", curate.sql(path, QUESTIONS), split="test")
    settings = {"lr": 1e-3, "steps": 2, "batch_size": 4}
    named = curate.train(path, "named", model="tiny", manifest="best", evals=["sums"], **settings)
    spec = curate.TrainingSpec(
        curate.ModelChoice("tiny"),
        Plain(),
        curate.TrainSettings(**settings),
        manifest="best",  # type: ignore[arg-type]
    )
    given = curate.train(sums_ws, "given", spec, evals=[curate.EvalSpec("sums", Loss())])
    assert named.loss == given.loss and named.evaluations[0]["value"] == given.evaluations[0]["value"]
    assert (
        require_run(sums_ws, "named").require_recipe().settings
        == require_run(sums_ws, "given").require_recipe().settings
    )
    theirs = {"learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 4}
    by_hugging_face = curate.train(path, "hf", model="tiny", manifest="best", dry_run=True, **theirs)
    assert (by_hugging_face.planned or {})["steps"] == 2
    curate.mask(path, "few", "magnitude_small", 0.1, model="tiny")
    assert curate.train(path, "masked", model="tiny", mask="few", manifest="best", **settings).steps == 2
    rows = ({"question": f"what is {i}?", "answer": f"{i}"} for i in range(40))
    assert curate.train(path, "streamed", model="tiny", stream=rows, **settings).steps == 2
    one = curate.evaluate(path, "named", ["sums"], metrics=["exact_match"], limit=2)
    other = curate.evaluate(sums_ws, "named", [curate.EvalSpec("sums", ExactMatch(), limit=2)])
    assert one.evaluations[0]["value"] == other.evaluations[0]["value"]
    assert curate.prune(path, "named", "magnitude", 0.5).kept > 0
    assert len(curate.compare(path).arms) >= 2


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("score", ("bm2",), {"target": "arithmetic"}, "there is no score 'bm2': did you mean 'bm25'?"),
    ("score", (Bm25,), {}, "not as the class Bm25; `curate methods score` lists the names."),
    ("score", (Top(),), {}, "a score is given by its name, or as an object such as curate.method('score', NAME)"),
    ("select", ("best",), {"byy": "n_chars", "top": 3}, "curate.select has no argument 'byy': did you mean 'by'?"),
    ("select", ("best", "top", curate.SelectionSpec(top=3)), {"by": "n_chars"}, "put these into the SelectionSpec"),
    ("select", ("best", "top", {"top": 3}), {}, "a SelectionSpec, or its fields by name, not {'top': 3} (dict)."),
    ("select", ("best",), {}, "give exactly one budget"),
    ("select", ("best", "topp"), {"top": 3}, "there is no selector 'topp': did you mean 'top'?"),
    ("mix", ("even", "uniform"), {"row": 3}, "curate.mix has no argument 'row': did you mean 'rows'?"),
    ("mix", ("even", "uniform"), {"evals": ["arithmetic"]}, "name the model that these start from"),
    ("train", ("run",), {}, "curate.train needs a model: model='tiny'"),
    ("train", ("run",), {"model": "tiny", "stepz": 3}, "the training has no setting 'stepz': did you mean 'steps'?"),
    ("train", ("run",), {"model": "tiny", "manifst": "a"}, "no argument 'manifst': did you mean 'manifest'?"),
    ("train", ("run",), {"model": "tiny", "lr": "fast"}, "the setting lr of the training is a float, not 'fast'."),
    ("train", ("run", "tiny"), {}, "either a TrainingSpec or options by name"),
    ("train", ("run",), {"model": 3}, "or as curate.ModelChoice(NAME, …), not as 3 (int)."),
    ("evaluate", ("run", [3]), {}, "an evaluation is a target's name, or a curate.EvalSpec, not 3 (int)."),
    ("audit", ("long", "absent.toml"), {}, "absent.toml: there is no such plan."),
    ("export", ("best", "trll", "out"), {}, "there is no export 'trll': did you mean 'trl'?"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "given", "named", "sentence"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_wrong_is_said_in_a_sentence(
    small_ws: Workspace, verb: str, given: tuple[Any, ...], named: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CurateError) as refused:
        getattr(curate, verb)(str(small_ws.path), *given, **named)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "settings", "sentence"),
    [
        (("scoer", "bm25"), {}, "there is no kind of method 'scoer': did you mean 'score'?"),
        (("score", "bm25"), {"k": 1.2}, "the score 'bm25' has no setting 'k'"),
        (("score", "bm25"), {"k1": [1]}, "the setting k1 of the score 'bm25' is a float, not '[1]'."),
        (("score", "bm25"), {"k1": "much"}, "the setting k1 of the score 'bm25' is a float, not 'much'."),
        (("export", "trl"), {"style": "prose"}, "is one of"),
    ],
)
def test_a_method_s_settings_are_checked_as_on_the_command_line(
    given: tuple[str, str], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CurateError) as refused:
        curate.method(*given, **settings)
    assert sentence in str(refused.value)
    assert curate.method("score", "bm25", k1=1) == curate.method("score", "bm25", k1="1") == Bm25(k1=1.0)


@pytest.mark.parametrize(("text", "value"), [(".05", 0.05), ("1.", 1.0), ("1.5e0", 1.5), ("+.5", 0.5), ("2e0", 2.0)])
def test_a_number_is_read_however_people_write_it(text: str, value: float) -> None:
    assert curate.method("score", "bm25", k1=text) == Bm25(k1=value)


@pytest.mark.parametrize("text", [".", "1.2.3", "1e", "٣.٥", "1_0.5"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(CurateError, match="is a float, not"):
        curate.method("score", "bm25", k1=text)


def test_a_query_s_result_goes_to_whatever_reads_arrow(sample_ws: Workspace) -> None:
    found = curate.sql(str(sample_ws.path), "SELECT id, source, n_chars FROM pool ORDER BY row LIMIT 7")
    assert pa.table(found).equals(found.arrow) and pl.DataFrame(found).equals(found.to_polars())
    assert isinstance(found.to_pandas(), pd.DataFrame) and len(found.to_pandas()) == len(found) == 7
    reader = pa.RecordBatchReader.from_stream(found)
    assert reader.read_all().num_rows == 7
    with duckdb.connect() as connection:
        assert connection.execute("SELECT count(*) FROM found").fetchall() == [(7,)]


def test_proxies_are_made_of_a_model_s_name_and_targets() -> None:
    assert proxy_of(None) is None
    proxy = proxy_of("tiny", ["sums"])
    assert proxy == Proxy(curate.ModelChoice("tiny"), Plain(), evals=[curate.EvalSpec("sums", Loss(), "val")])
    assert proxy_of(proxy) == proxy
    assert proxy_of(curate.ModelChoice("tiny")) == Proxy(curate.ModelChoice("tiny"), Plain(), evals=[])
