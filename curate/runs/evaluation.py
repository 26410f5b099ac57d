"""Evaluating a model on a target: its questions, few-shot examples, and a metric's result for each question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate import exact_json
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.metric import EvalResult, Metric, Question
from curate.progress import Progress
from curate.store.commits import Parts
from curate.store.schema import EVALUATION
from curate.store.workspace import Workspace

_MOST_OPTIONS = 26
_OPTIONS = ("options", "choices")  # the input fields that list a question's options


@dataclass(frozen=True)
class EvalSpec:
    """A metric on a target's split. shots: few-shot examples, from the split `val`. limit: questions; 0: all."""

    target: str
    metric: Metric
    split: str = "test"
    shots: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise CurateError(f"the split '{self.split}' is neither val (for selection) nor test (for evaluation).")
        if self.shots < 0 or self.limit < 0:
            raise CurateError(f"--shots and --limit are 0 or more, not {self.shots} and {self.limit}.")

    def settings(self) -> str:
        """The non-default settings in words, as in 'limit=20, by=mean'; '' if there are none."""
        default = type(self.metric)().settings()
        changed = {key: value for key, value in self.metric.settings().items() if value != default[key]}
        changed |= {"limit": self.limit} if self.limit else {}
        return ", ".join(f"{key}={value}" for key, value in changed.items())

    def name(self, step: int) -> str:
        """The name of the table part with the results at a checkpoint's step."""
        suffix = f"-{fingerprint(self.settings())[:8]}" if self.settings() else ""
        return f"{self.target}-{self.split}-{self.metric.name}-{self.shots}shot{suffix}-{step:06d}"


def questions(ws: Workspace, eval_spec: EvalSpec) -> list[tuple[str, Question]]:
    """The target's questions, with their ids. Raises CurateError if the target or its split does not exist."""
    if eval_spec.target not in ws.target_names():
        ws.require("target", eval_spec.target)
    rows = ws.target_rows(eval_spec.target).to_pylist()
    split_rows = [row for row in rows if row["split"] == eval_spec.split]
    if not split_rows:
        raise CurateError(
            f"the target '{eval_spec.target}' has no split '{eval_spec.split}', on which to evaluate; add it with "
            f"`curate target {eval_spec.target} FILE --split {eval_spec.split}`."
        )
    examples = [row for row in rows if row["split"] == "val" and row["messages"]]
    if eval_spec.shots > len(examples):
        raise CurateError(
            f"--shots {eval_spec.shots}: the target '{eval_spec.target}' has {len(examples)} chats in its split val, "
            "from which few-shot examples are taken."
        )
    answers: dict[str, set[str]] = {}
    for row in split_rows:
        answers.setdefault(row["subtask"], set()).add(_question(row, (), ()).answer)
    result = []
    for row in split_rows[: eval_spec.limit or None]:
        distinct = answers[row["subtask"]]
        options = tuple(sorted(distinct)) if 2 <= len(distinct) <= _MOST_OPTIONS else ()
        result.append((row["id"], _question(row, _shots(examples, row, eval_spec.shots), options)))
    return result


def _question(row: dict[str, Any], shots: tuple[dict[str, Any], ...], options: tuple[str, ...]) -> Question:
    meta = exact_json.loads(row["meta"])
    listed_options = next((meta[name] for name in _OPTIONS if isinstance(meta.get(name), list)), None)
    options = tuple(map(str, listed_options)) if listed_options else options
    return Question(row["messages"], row["text"], shots, row["subtask"], options, meta, row["template_kwargs"])


def _shots(examples: Sequence[dict[str, Any]], asked_row: dict[str, Any], count: int) -> tuple[dict[str, Any], ...]:
    """The first few-shot examples, those of the same sub-task before others; never the question itself."""
    other_rows = [row for row in examples if row["id"] != asked_row["id"]]
    ordered = sorted(other_rows, key=lambda row: row["subtask"] != asked_row["subtask"])
    return tuple(message for row in ordered[:count] for message in row["messages"])


def commit(
    parts: Parts, eval_spec: EvalSpec, step: int, asked: Sequence[tuple[str, Question]], found: EvalResult, stamp: str
) -> dict[str, Any]:
    """Store the per-question results of an evaluation, and return its summary."""
    valid = np.isfinite(found.values) & (found.error == "")
    table = pa.table(
        {
            "id": [key for key, _ in asked],
            "subtask": [question.subtask for _, question in asked],
            "value": pa.array(np.where(valid, found.values, 0.0), mask=~valid),
            "said": pa.array(found.answers or [None] * len(asked), pa.string()),
            "error": pa.array(found.error, pa.string(), mask=found.error == ""),
        },
        schema=EVALUATION,
    )
    value = eval_spec.metric.summary(found.values[valid])
    summary = {
        "target": eval_spec.target,
        "split": eval_spec.split,
        "metric": eval_spec.metric.name,
        "settings": eval_spec.settings(),
        "shots": eval_spec.shots,
        "step": step,
        "value": value if value == value else None,
        "questions": len(asked),
        "judged": int(valid.sum()),
        "better": eval_spec.metric.better,
        **({"note": found.note} if found.note else {}),
    }
    parts.commit(eval_spec.name(step), table, evaluation=summary, stamp=stamp)
    return summary


def evaluate_model(
    ws: Workspace, parts: Parts, evals: Sequence[EvalSpec], model: Any, step: int, stamp: str, meter: Any
) -> list[dict[str, Any]]:
    """Evaluate a checkpoint by each spec, except those already stored for it; returns the summaries. stamp: the model's
    fingerprint."""
    results = []
    for eval_spec in evals:
        split_questions = questions(ws, eval_spec)
        eval_stamp = fingerprint(
            stamp, eval_spec.metric.settings(), eval_spec.metric.version, [asdict(q) for _, q in split_questions]
        )
        record = parts.record(eval_spec.name(step))
        if record and record["stamp"] == eval_stamp and parts.read(eval_spec.name(step)) is not None:
            results.append(record["evaluation"])
            continue
        meter.begin(len(split_questions))
        started = time.perf_counter()
        with Progress(f"{eval_spec.metric.name} on {eval_spec.target}", len(split_questions), noun="questions"):
            result = eval_spec.metric.evaluate(model, [question for _, question in split_questions])
        result.usage.seconds = time.perf_counter() - started
        meter.add(result.usage)
        results.append(commit(parts, eval_spec, step, split_questions, result, eval_stamp))
    parts.certify()  # also what one that was killed has stored, and was found here
    return results
