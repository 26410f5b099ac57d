"""Tasks of lm-evaluation-harness as they are, and results that were made elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.models.choice import TINY as TINY_FOLDER
from curate.models.choice import ModelChoice
from curate.runs.harness_results import values_of
from curate.store.run_record import Run
from curate.store.workspace import Workspace
from tests.conftest import copy_of, write_jsonl

pytest.importorskip("lm_eval")

TINY = ModelChoice("tiny", device="cpu")
NUMBERS = [str(n) for n in range(5, 9)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of two tasks on local data, one of options, one of generated text with two filters."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"ask": f"{n} + 2 =", "options": NUMBERS, "gold": (n + 1) % 4, "answer": str(n + 2)} for n in range(3, 8)]
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": write_jsonl(folder / "d.jsonl", rows)}}}
    how = {**data, "test_split": "test", "doc_to_text": "{{ask}}"}
    accuracies = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    right = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    first = {"function": "take_first"}
    number = [{"function": "regex", "regex_pattern": r"(\d+)"}, first]
    choose: dict[str, Any] = {
        "task": "choose",
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
    }
    say: dict[str, Any] = {"task": "say", "output_type": "generate_until", "doc_to_target": "{{answer}}"}
    say["filter_list"] = [{"name": "whole", "filter": [first]}, {"name": "number", "filter": number}]
    say |= {"generation_kwargs": {"max_gen_toks": 8, "until": ["\n"]}, "metric_list": [right]}
    group = {"group": "sums", "task": ["choose", "say"]}
    choose |= {"metric_list": accuracies}
    for name, content in (("choose", {**how, **choose}), ("say", {**how, **say}), ("g", group)):
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def theirs(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `lm_eval --output_path` writes of these tasks, by the harness's own code from end to end."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(tmp_path_factory.mktemp("out")))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(TINY_FOLDER), "dtype": "float32"},
        tasks=["choose", "say"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        evaluation_tracker=tracker,
        bootstrap_iters=10,
    )
    assert results
    tracker.save_results_aggregated(results={k: v for k, v in results.items() if k != "samples"})
    (file,) = Path(tracker.output_path).rglob("results_*.json")
    return file


@pytest.fixture(scope="module")
def made(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("made") / "ws"
    ws = curate.open_workspace(folder)
    return folder, curate.evaluate(ws, "base", tasks=["sums"], task_dir=tasks, model=TINY)


@pytest.fixture
def evaluated(made: tuple[Path, Any], tmp_path: Path) -> tuple[Workspace, Any]:
    return copy_of(made[0], tmp_path), made[1]


def rows_of(result: Any) -> dict[tuple[str, str, str], float]:
    return {(row["target"], row["metric"], row["settings"]): row["value"] for row in result.evaluations}


def test_a_task_as_it_is_has_the_harness_s_value(evaluated: tuple[Workspace, Any], theirs: Path) -> None:
    ws, result = evaluated
    of_file = json.loads(theirs.read_text())["results"]
    wanted = {
        ("choose", "acc", "lm_eval"): of_file["choose"]["acc,none"],
        ("choose", "acc_norm", "lm_eval"): of_file["choose"]["acc_norm,none"],
        ("say", "exact_match", "lm_eval, filter=whole"): of_file["say"]["exact_match,whole"],
        ("say", "exact_match", "lm_eval, filter=number"): of_file["say"]["exact_match,number"],
    }
    assert rows_of(result) == wanted and len(set(wanted.values())) > 1
    assert {row["judged"] for row in result.evaluations} == {5} and {row["step"] for row in result.evaluations} == {0}
    parts = Run(ws, "base").evaluations
    for name, record in parts.records().items():
        summary, table = record["evaluation"], parts.read(name)
        assert table["value"].to_numpy().mean() == pytest.approx(summary["value"])
        assert len(set(table["id"].to_pylist())) == 5 and record["task"]["documents"]
    spent = curate.sql(ws, "SELECT sum(flops) AS flops, sum(tokens) AS tokens FROM ledger WHERE stage = 'evaluate'")
    assert spent[0]["flops"] > 0 and spent[0]["tokens"] > 100


def test_results_made_elsewhere_meet_those_made_here(
    evaluated: tuple[Workspace, Any], theirs: Path, tmp_path: Path, cli: Any
) -> None:
    ws, here = evaluated
    changed = json.loads(theirs.read_text())
    changed["results"]["choose"]["acc,none"] = 0.875
    big = tmp_path / "big.json"
    big.write_text(json.dumps(changed))
    done = cli("evaluate", "base", "--attach", str(theirs), ws=ws)
    assert done.returncode == 0 and f"attached from {theirs.name}" in done.stderr + done.stdout, done.stderr
    assert rows_of(curate.evaluate(ws, "base", attach=theirs)) == rows_of(here)  # each once, in place of one's own
    records = Run(ws, "base").evaluations.records()
    assert len(records) == 4
    sha256 = hashlib.sha256(theirs.read_bytes()).hexdigest()
    assert {record["attached"]["sha256"] for record in records.values()} == {sha256}
    attached = curate.evaluate(ws, "base", attach=big)
    assert rows_of(attached)["choose", "acc", "lm_eval"] == 0.875
    compared = curate.compare(ws)
    assert compared.arms[0].quality["choose acc [lm_eval]"].mean == 0.875
    assert compared.measures["choose acc [lm_eval]"]["better"] == "higher"
    assert curate.sql(ws, "SELECT value FROM evaluations WHERE metric = 'acc'")[0]["value"] == 0.875
    assert curate.verify(ws).damaged == []


def test_limits_and_examples_hold_for_a_task(evaluated: tuple[Workspace, Any], tasks: Path) -> None:
    ws, _ = evaluated
    done = curate.evaluate(ws, "base", tasks=["choose"], task_dir=tasks, limit=2)
    assert [row["settings"] for row in done.evaluations] == ["lm_eval, limit=2"] * 2
    assert [row["judged"] for row in done.evaluations] == [2, 2]


def edited(file: Path, folder: Path, change: Any) -> Path:
    results = json.loads(file.read_text())
    change(results)
    (folder / "r.json").write_text(json.dumps(results))
    return folder / "r.json"


WRONG: dict[str, tuple[Any, str]] = {
    "another file": (lambda r: [r.pop(key) for key in list(r)], "is not what `lm_eval --output_path`"),
    "no direction": (lambda r: r.pop("higher_is_better"), "is not what `lm_eval --output_path`"),
    "one direction": (lambda r: r["higher_is_better"]["choose"].pop("acc"), "does not say whether higher or lower acc"),
    "a text": (lambda r: r["results"]["choose"].update({"acc,none": "N/A"}), "acc of the task 'choose' has no value"),
    "NaN": (lambda r: r["results"]["choose"].update({"acc,none": float("nan")}), "has no value, but nan"),
    "null": (lambda r: r["results"]["say"].update({"exact_match,whole": None}), "has no value, but None"),
    "no metric": (lambda r: r["results"].update(choose={"alias": "choose"}), "the task 'choose' has no value"),
    "no task": (lambda r: r["results"].clear(), "has no value of any task"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_file_without_values_is_refused_and_nothing_is_stored(
    fault: str, evaluated: tuple[Workspace, Any], theirs: Path, tmp_path: Path
) -> None:
    ws, _ = evaluated
    before = Run(ws, "base").evaluations.records()
    change, why = WRONG[fault]
    with pytest.raises(CurateError, match=why):
        curate.evaluate(ws, "base", attach=edited(theirs, tmp_path, change))
    assert Run(ws, "base").evaluations.records() == before


def test_what_cannot_be_attached_is_said(evaluated: tuple[Workspace, Any], theirs: Path, tmp_path: Path) -> None:
    ws, _ = evaluated
    with pytest.raises(CurateError, match="has no run 'bass': did you mean 'base'"):
        curate.evaluate(ws, "bass", attach=theirs)
    assert ws.run_names() == ["base"]
    (tmp_path / "no.json").write_text("no")
    for file, why in ((tmp_path / "no.json", "is no JSON"), (tmp_path / "gone.json", "cannot be read: No such file")):
        with pytest.raises(CurateError, match=why):
            curate.evaluate(ws, "base", attach=file)
    with pytest.raises(CurateError, match="give only the run with it"):
        curate.evaluate(ws, "base", ["facts"], attach=theirs)


def test_what_cannot_be_run_is_said(evaluated: tuple[Workspace, Any], tasks: Path, tmp_path: Path) -> None:
    ws, _ = evaluated
    broken: dict[str, Any] = {"task": "broken", "dataset_path": "json", "output_type": "multiple_choice"}
    broken |= {"test_split": "test", "dataset_kwargs": {"data_files": {"test": "no.jsonl"}}}
    (tmp_path / "broken.yaml").write_text(json.dumps(broken))
    (tmp_path / "empty").mkdir()
    for names, folder, why in (
        (["chose"], tasks, "no task 'chose' there: did you mean 'choose'"),
        (["choose"], tmp_path / "nowhere", "is no folder of tasks"),
        (["choose"], tmp_path / "empty", "has no task of lm-evaluation-harness"),
        (["broken"], tmp_path, "lm-evaluation-harness stopped in broken: "),
        ([], tasks, "add --task NAME"),
    ):
        with pytest.raises(CurateError, match=why):
            curate.evaluate(ws, "base", [] if names else ["t"], tasks=names, task_dir=folder)


def test_a_group_s_average_and_an_unaveraged_group() -> None:
    """As the harness writes them: a group's row has its tasks' average, or nothing."""
    task = {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1}
    results: dict[str, Any] = {
        "results": {"g": {"acc,none": 0.25, "acc_stderr,none": "N/A"}, "a": task, "b": task, "h": {"alias": "h"}},
        "group_subtasks": {"g": ["a", "b"], "h": ["a"]},
        "higher_is_better": {"a": {"acc": False}, "b": {"acc": False}},
        "n-shot": {"a": 3, "b": 3},
        "n-samples": {"a": {"original": 10, "effective": 10}, "b": {"original": 4, "effective": 4}},
    }
    found = {value.task: value for value in values_of(results, "it")}
    assert set(found) == {"g", "a", "b"} and found["g"].better == "lower" and found["g"].judged == 14
    assert found["a"].shots == 3 and found["g"].value == 0.25
    results["higher_is_better"]["b"]["acc"] = True
    with pytest.raises(CurateError, match="does not say whether higher or lower acc of the task 'g'"):
        values_of(results, "it")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n-shot", {"choose": "five"}), ("results", {"choose": 5}), ("higher_is_better", {"choose": True})],
)
def test_a_file_with_values_of_other_types_is_a_sentence(theirs: Path, key: str, value: Any) -> None:
    results = json.loads(theirs.read_text())
    results[key] = {**results[key], **value}
    with pytest.raises(CurateError, match="one of its values is of another type"):
        values_of(results, "it")
