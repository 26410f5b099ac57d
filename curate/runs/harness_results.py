"""Results of lm-evaluation-harness as evaluations of a run: of tasks that it runs here, and of files made elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.commits import Parts
from curate.store.encoding import digest
from curate.store.run_record import Run
from curate.store.schema import EVALUATION

_NO_FILTER = "none"


@dataclass(frozen=True)
class HarnessValue:
    """One metric of one task. filtered: the harness's filter of the answers. judged: of so many documents."""

    task: str
    metric: str
    filtered: str
    value: float
    better: str
    documents: int
    judged: int
    shots: int

    def summary(self, step: int, note: str = "") -> dict[str, Any]:
        """The row of `evaluations`."""
        more = {"filter": self.filtered} if self.filtered != _NO_FILTER else {}
        more |= {"limit": self.judged} if self.judged < self.documents else {}
        return {
            "target": self.task,
            "split": "test",
            "metric": self.metric,
            "settings": ", ".join(["lm_eval", *(f"{key}={value}" for key, value in more.items())]),
            "shots": self.shots,
            "step": step,
            "value": self.value,
            "questions": self.judged,
            "judged": self.judged,
            "better": self.better,
            **({"note": note} if note else {}),
        }


def values_of(results: Any, where: str) -> list[HarnessValue]:
    """The values in the harness's results (its `EvalResults`, or the JSON that `lm_eval --output_path` writes).

    Raises CurateError for what is no such thing, for a metric without a value, and where it is not said whether higher
    or lower values are better. where: what it is called in the sentence.
    """
    if not isinstance(results, Mapping) or not all(
        isinstance(results.get(key), Mapping) for key in ("results", "higher_is_better", "n-shot")
    ):
        raise CurateError(
            f"{where} is not what `lm_eval --output_path` of lm-evaluation-harness 0.4 writes: it has no objects "
            "results, higher_is_better and n-shot."
        )
    try:
        found = [value for task in results["results"] for value in _of_task(results, task, where)]
    except (AttributeError, TypeError, ValueError) as error:
        raise CurateError(
            f"{where} is not what `lm_eval --output_path` of lm-evaluation-harness 0.4 writes: one of its values is of "
            f"another type ({error})."
        ) from None
    if not found:
        raise CurateError(f"{where} has no value of any task.")
    return found


def _of_task(results: Mapping[str, Any], task: str, where: str) -> Iterator[HarnessValue]:
    members = (results.get("group_subtasks") or {}).get(task) or []
    named = {key: value for key, value in results["results"][task].items() if "," in key and "_stderr," not in key}
    if not named and not members:  # a group that is not averaged has none
        raise CurateError(f"{where}: the task '{task}' has no value.")
    counts = [(results.get("n-samples") or {}).get(name) or {} for name in (members or [task])]
    judged = sum(int(count.get("effective", 0)) for count in counts)
    documents = sum(int(count.get("original", 0)) for count in counts)
    for key, value in named.items():
        metric, filtered = key.split(",", 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CurateError(f"{where}: {metric} of the task '{task}' has no value, but {value!r}.")
        higher = {(results["higher_is_better"].get(name) or {}).get(metric) for name in (task, *members)} - {None}
        if len(higher) != 1:
            raise CurateError(f"{where} does not say whether higher or lower {metric} of the task '{task}' is better.")
        better = "higher" if higher == {True} else "lower"
        shots = results["n-shot"].get(task) or 0
        yield HarnessValue(task, metric, filtered, float(value), better, documents, judged, int(shots))


def _part(summary: Mapping[str, Any]) -> str:
    """The name of the table part of an evaluation; a task may be called anything."""
    which = [summary[key] for key in ("target", "metric", "settings", "shots")]
    return f"lm_eval-{fingerprint(which)[:16]}-{summary['step']:06d}"


# --- made elsewhere --------------------------------------------------------------------------------------


def attach(run: Run, path: Path, step: int) -> list[dict[str, Any]]:
    """Store the values of a file as evaluations of a run at a step, with the file's name and SHA-256; returns their
    rows. Nothing is stored of a file that is refused. Requires holding the lock. Raises CurateError."""
    try:
        data = path.read_bytes()
        results = json.loads(data)
    except OSError as error:
        raise CurateError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CurateError(f"{path} is no JSON ({error}); it is a file of `lm_eval --output_path`.") from None
    values, summaries = values_of(results, str(path)), []
    origin = {"file": path.name, "sha256": digest(data)}
    for value in values:
        summary = value.summary(step, f"attached from {path.name}, and not evaluated here")
        stamp = fingerprint(origin)
        run.evaluations.commit(
            _part(summary), EVALUATION.empty_table(), evaluation=summary, attached=origin, stamp=stamp
        )
        summaries.append(summary)
    run.evaluations.certify()
    return summaries


# --- run here --------------------------------------------------------------------------------------------


def store(parts: Parts, results: Mapping[str, Any], step: int, stamp: str, version: str) -> list[dict[str, Any]]:
    """Store what the harness found, with the value of each document; returns the rows. stamp: the model's fingerprint.
    version: the harness's."""
    summaries = []
    for value in values_of(results, "lm-evaluation-harness's result"):
        summary = value.summary(step)
        samples = [s for s in results["samples"].get(value.task, ()) if s.get("filter", _NO_FILTER) == value.filtered]
        asked = [[sample.get("doc_hash"), sample.get("prompt_hash"), sample.get("target_hash")] for sample in samples]
        table = pa.Table.from_pylist([_row(value, sample) for sample in samples], schema=EVALUATION)
        task = {"lm_eval": version, "documents": fingerprint(asked)}
        parts.commit(_part(summary), table, evaluation=summary, task=task, stamp=fingerprint(stamp, summary, task))
        summaries.append(summary)
    parts.certify()
    return summaries


def _row(value: HarnessValue, sample: Mapping[str, Any]) -> dict[str, Any]:
    own = sample.get(value.metric)
    number = float(own) if isinstance(own, int | float) and math.isfinite(own) else None
    said: Sequence[Any] = sample.get("filtered_resps") or [None]
    return {
        "id": f"{value.task}/{sample['doc_id']}",
        "subtask": "",
        "value": number,  # of some metrics only all documents have one
        "said": said[0] if isinstance(said[0], str) else None,
        "error": None,
    }
