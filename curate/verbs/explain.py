"""`curate explain`: why a sample scored as it did, by the target's examples that are most and least similar to it; and
conversely, which samples of the pool are most and least similar to an example of the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.results import Result
from curate.store.workspace import Workspace
from curate.tables.index import nearest_exactly
from curate.tables.inputs import load_target
from curate.tables.lookup import find_sample, no_sample, only, shown, vector_at, words
from curate.tables.state import TableState, score_state, table_state
from curate.tables.vector_table import load_vectors


@dataclass
class Explained(Result):
    """What makes a sample's score high or low.

    of: 'pool', or 'target' if the sample is one of the target's examples. text: its contents. score: the mean or
    maximum similarity, by the score's `aggregate`; None for an example. subtasks: the mean similarity with each.
    for_it, against_it: the most and least similar examples (or samples of the pool): similarity, id, text, and
    sub-task or source.
    """

    id: str
    score_name: str
    target: str
    of: str
    text: str
    score: float | None = None
    subtasks: dict[str, float] = field(default_factory=dict)
    for_it: list[dict[str, Any]] = field(default_factory=list)
    against_it: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def explain(ws: AnyWorkspace, sample_id: str, score: str, *, k: int = 5) -> Explained:
    """Why a sample has its score; or, for an example of the target, which samples of the pool are similar to it.

    The score must be based on vectors (less, embed, embed_lm), and so on similarities, of which the k highest and
    lowest are shown. sample_id: an id, or its first digits if no other begins so. Raises CurateError for another score,
    an unknown or ambiguous id, or a sample without a vector.
    """
    ws = workspace_of(ws, pinned=True)
    if k < 1:
        raise CurateError(f"-k {k}: a number of samples is 1 or more.")
    state = score_state(ws, score)
    if not state.recipe.vectors or not state.recipe.target:
        raise CurateError(
            f"the score '{score}' is made by {state.recipe.method}, which uses the target as a whole; what can "
            "be explained is a score made of similarities: less, embed, embed_lm."
        )
    vectors, target = table_state(ws, "vectors", state.recipe.vectors), state.recipe.target
    warnings = [
        f"{table} {problem}; run `{table.command()}`" for table in (state, vectors) if (problem := table.problem())
    ]
    found = find_sample(ws, sample_id)
    explained = (
        _of_sample(ws, found[1], found[0], state, vectors, target, k)
        if found
        else _of_example(ws, sample_id, state, vectors, target, k)
    )
    explained.warnings = warnings
    return explained


def _of_sample(
    ws: Workspace, sample_id: str, row: int, state: TableState, vectors: TableState, name: str, k: int
) -> Explained:
    """Explain a sample of the pool by the examples of the target."""
    query = vector_at(ws, vectors, row)[0].astype(np.float64)
    example_vectors, target = load_vectors(ws, vectors.name, name), load_target(ws, name)
    present = np.flatnonzero(example_vectors.there)
    similarities = example_vectors.unit[present].astype(np.float64) @ query
    examples = target.text.frame.to_dicts()
    labels = np.array(example_vectors.subtasks, object)[present]
    means = {str(label): float(similarities[labels == label].mean()) for label in sorted(set(labels))}

    def told(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "similarity": float(similarities[i]),
                "id": examples[present[i]]["id"],
                "subtask": labels[i],
                "text": words(examples[present[i]]),
            }
            for i in order
        ]

    order = np.argsort(-similarities, kind="stable")
    score = _aggregated(similarities, means, state.recipe.settings["aggregate"])
    text = shown(ws, [row])[row]["text"]
    return Explained(sample_id, state.name, name, "pool", text, score, means, told(order[:k]), told(order[::-1][:k]))


def _aggregated(similarities: np.ndarray, means: dict[str, float], aggregate: str) -> float:
    return {"mean": float(similarities.mean()), "max": float(similarities.max()), "subtask_max": max(means.values())}[
        aggregate
    ]


def _of_example(ws: Workspace, sample_id: str, state: TableState, vectors: TableState, name: str, k: int) -> Explained:
    """Explain an example of the target by the samples of the pool."""
    example_vectors, target = load_vectors(ws, vectors.name, name), load_target(ws, name)
    examples = target.text.frame.to_dicts()
    beginning = sample_id.strip().lower()
    begun = [example["id"] for example in examples if beginning and example["id"].startswith(beginning)]
    example_id = only(beginning, begun, f"examples of the target '{name}'")
    if example_id is None:
        raise CurateError(
            str(no_sample(ws, sample_id)).rstrip(".") + f"; nor has the target '{name}' one to choose by."
        )
    position = next(i for i, example in enumerate(examples) if example["id"] == example_id)
    if example_vectors.error[position]:
        raise CurateError(f"that example has no vector in '{vectors.name}': {example_vectors.error[position]}.")
    query = example_vectors.unit[position : position + 1].astype(np.float64)

    def told(sign: float) -> list[dict[str, Any]]:
        positions, cosines = nearest_exactly(ws, vectors.name, sign * query, min(k, vectors.rows))
        samples = shown(ws, [int(p) for p in positions[0] if p >= 0])
        return [
            {"similarity": sign * float(s), **samples[int(p)]}
            for p, s in zip(positions[0], cosines[0], strict=True)
            if p >= 0
        ]

    return Explained(example_id, state.name, name, "target", words(examples[position]), None, {}, told(1.0), told(-1.0))
