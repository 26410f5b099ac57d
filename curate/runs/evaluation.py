"""Evaluating a model on a target: its questions, few-shot examples, and a metric's result for each question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate import exact_json
from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.kinds.metric import EvalResult, Metric, Question
from curate.kinds.options import listed_in
from curate.progress import Progress
from curate.runs.shared_judging import agreed, judged
from curate.store.commits import Parts
from curate.store.schema import EVALUATION
from curate.store.workspace import Workspace

_MOST_OPTIONS = 26


@dataclass(frozen=True)
class EvalSpec:
    """A metric on a target's split. shots: few-shot examples, from the split `val`. limit: questions; 0: all.
    average: of all questions (micro), or the mean of the sub-tasks' own averages (macro)."""

    target: str
    metric: Metric
    split: str = "test"
    shots: int = 0
    limit: int = 0
    average: Literal["micro", "macro"] = "micro"

    def __post_init__(self) -> None:
        if self.average not in ("micro", "macro"):
            raise CurateError(f"--average is micro or macro, not '{self.average}'.")
        if self.split not in ("val", "test"):
            raise CurateError(f"the split '{self.split}' is neither val (for selection) nor test (for evaluation).")
        if self.shots < 0 or self.limit < 0:
            raise CurateError(f"--shots and --limit are 0 or more, not {self.shots} and {self.limit}.")

    def settings(self) -> str:
        """The non-default settings in words, as in 'limit=20, by=mean'; '' if there are none."""
        default = type(self.metric)().settings()
        changed = {key: value for key, value in self.metric.settings().items() if value != default[key]}
        changed |= {"limit": self.limit} if self.limit else {}
        changed |= {"average": self.average} if self.average != "micro" else {}
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
    metric, result = eval_spec.metric, []
    shown = [(row, metric.posed(_question(row))) for row in examples] if eval_spec.shots else []
    for row, question in _with_options(split_rows, metric.options_from())[: eval_spec.limit or None]:
        result.append((row["id"], replace(metric.posed(question), shots=_shots(shown, row, eval_spec.shots))))
    return result


def _question(row: dict[str, Any]) -> Question:
    meta = exact_json.loads(row["meta"])
    options = listed_in(meta)
    return Question(row["messages"], row["text"], (), row["subtask"], options, meta, row["template_kwargs"])


def _with_options(rows: Sequence[dict[str, Any]], options_from: str) -> list[tuple[dict[str, Any], Question]]:
    """The questions with their own options, or those of their sub-tasks: its 2 to 26 distinct answers."""
    asked = [_question(row) for row in rows]
    if options_from == "own" or options_from == "auto" and any(question.options for question in asked):
        return list(zip(rows, asked, strict=True))
    answers: dict[str, set[str]] = {}
    for question in asked:
        answers.setdefault(question.subtask, set()).add(question.answer)
    borrowed = {s: tuple(sorted(own)) for s, own in answers.items() if 2 <= len(own) <= _MOST_OPTIONS}
    asked = [replace(q, options=borrowed.get(q.subtask, ()), borrowed=q.subtask in borrowed) for q in asked]
    return list(zip(rows, asked, strict=True))


def _shots(
    examples: Sequence[tuple[dict[str, Any], Question]], asked_row: dict[str, Any], count: int
) -> tuple[dict[str, Any], ...]:
    """The first few-shot examples, those of the same sub-task before others; never the question itself."""
    others = [example for example in examples if example[0]["id"] != asked_row["id"]]
    ordered = sorted(others, key=lambda example: example[0]["subtask"] != asked_row["subtask"])
    return tuple(message for _, question in ordered[:count] for message in question.messages or ())


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
    value, by_subtask = _averages(eval_spec, [question.subtask for _, question in asked], found, valid)
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
        **({"version": eval_spec.metric.version} if eval_spec.metric.version > 1 else {}),
        **({"note": found.note} if found.note else {}),
    }
    parts.commit(eval_spec.name(step), table, evaluation=summary, subtasks=by_subtask, stamp=stamp)
    return summary


def _averages(
    eval_spec: EvalSpec, subtasks: Sequence[str], found: EvalResult, valid: np.ndarray
) -> tuple[float, list[dict[str, Any]]]:
    """The value of all questions that could be judged, bool [N], and a row for every sub-task, if there are several."""
    rows, of_question = list[dict[str, Any]](), np.array(subtasks, object)
    for subtask in dict.fromkeys(subtasks):
        own = valid & (of_question == subtask)
        value = _value(eval_spec.metric, found, own)
        rows.append({"subtask": subtask, "value": value if value == value else None, "judged": int(own.sum())})
    values = [row["value"] for row in rows if row["value"] is not None]
    macro = float(np.mean(values)) if values else float("nan")
    return macro if eval_spec.average == "macro" else _value(eval_spec.metric, found, valid), rows[1:] and rows


def _value(metric: Metric, found: EvalResult, chosen: np.ndarray) -> float:
    if found.weights is None:
        return metric.summary(found.values[chosen])
    return metric.weighted(found.values[chosen], found.weights[chosen])


def evaluate_model(
    ws: Workspace,
    parts: Parts,
    evals: Sequence[EvalSpec],
    model: Any,
    step: int,
    stamp: str,
    meter: Any,
    processes: Any = None,
) -> list[dict[str, Any]]:
    """Evaluate a checkpoint by each spec, except those already stored for it; returns the summaries. stamp: the model's
    fingerprint. processes: those that share the work (an Accelerator), each with the model; None: this one alone. All
    of them call this; the first one writes and charges, and only it returns summaries."""
    writes, count = processes is None or processes.is_main_process, processes.num_processes if processes else 1
    results = []
    for eval_spec in evals:
        split_questions = questions(ws, eval_spec)
        eval_stamp = fingerprint(
            stamp, eval_spec.metric.shaping(), eval_spec.metric.version, [q.shape() for _, q in split_questions]
        )
        record = parts.record(eval_spec.name(step)) if writes else None
        if record and (record["stamp"] != eval_stamp or parts.read(eval_spec.name(step)) is None):
            record = None
        if agreed(processes, record is not None):
            results += [record["evaluation"]] if record else []
            continue
        if writes:
            meter.begin(len(split_questions))
        started = time.perf_counter()
        name = f"{eval_spec.metric.name} on {eval_spec.target}"
        own = -(-len(split_questions) // count)
        with Progress(name, own, noun="questions", shown=writes):
            result = judged(eval_spec.metric, model, [question for _, question in split_questions], processes)
        if writes:
            result.usage.seconds = time.perf_counter() - started
            meter.add(result.usage)
            results.append(commit(parts, eval_spec, step, split_questions, result, eval_stamp))
    if writes:
        parts.certify()  # also what one that was killed has stored, and was found here
    return results


def by_subtask(parts: Parts, evals: Sequence[EvalSpec], step: int) -> list[dict[str, Any]]:
    """The stored values of every sub-task, of targets that have several."""
    return [
        {"target": spec.target, "metric": spec.metric.name, **row}
        for spec in evals
        for row in (parts.record(spec.name(step)) or {}).get("subtasks") or ()  # older records have none
    ]
