"""`curate neighbors`: the samples most similar to a text or another sample, by stored vectors and their index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError
from curate.kinds.vectors import Vectors
from curate.models.choice import weights_fingerprint
from curate.results import Result
from curate.store.ledger import READ_ONLY, charged
from curate.store.locks import lock
from curate.store.workspace import Workspace
from curate.tables.index import ensure_index, index_problem, nearest_exactly, search
from curate.tables.inputs import method_again, model_choices
from curate.tables.lookup import find_sample, no_sample, shown, vector_at
from curate.tables.state import TableState, table_state


@dataclass
class Neighbors(Result):
    """The nearest samples, nearest first: rank, similarity (cosine), id, source, row, text."""

    vectors: str
    found: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def neighbors(
    ws: AnyWorkspace,
    vectors: str,
    *,
    text: str | None = None,
    sample_id: str | None = None,
    k: int = 10,
    wait: float | None = None,
) -> Neighbors:
    """The k samples nearest to a text, or to the sample with an id, or its first digits (which is excluded).

    A text is encoded by the model that made the vectors. An index that is missing or older than the vectors is built
    first, with a warning; where the workspace cannot be written, each vector is compared, and no index is made.

    Raises CurateError for unknown vectors or id, a sample without a vector, or a model that has changed since.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, pinned=True, wait=wait)
    if (text is None) == (sample_id is None):
        raise CurateError("say what to be near to: --text 'some words', or --id of a sample.")
    if text is not None and not text.strip():
        raise CurateError("--text is empty; give some words.")
    if k < 1:
        raise CurateError(f"-k {k}: a number of samples is 1 or more.")
    state = table_state(ws, "vectors", vectors)
    result = Neighbors(vectors, [])
    if problem := state.problem():
        result.warnings.append(f"{state} {problem}; run `{state.command()}`")
    row = _row(ws, sample_id) if sample_id is not None else None
    query = vector_at(ws, state, row) if row is not None else _encoded(ws, state, text or "")
    positions, cosines = _nearest(ws, state, query, k + (row is not None), result)
    nearest = [(int(p), float(s)) for p, s in zip(positions[0], cosines[0], strict=True) if p >= 0 and p != row][:k]
    samples = shown(ws, [p for p, _ in nearest])
    result.found = [{"rank": i, "similarity": s, **samples[p]} for i, (p, s) in enumerate(nearest)]
    return result


def _nearest(
    ws: Workspace, state: TableState, query: np.ndarray, k: int, result: Neighbors
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors nearest to the query, as of `search`; an index is built first where it is needed, and can be."""
    if (problem := index_problem(ws, state.name)) is None:
        return search(ws, state.name, query, k)
    try:
        with lock(ws, f"vectors {state.name}"):
            built = ensure_index(ws, state.name)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        result.warnings.append(f"{state} {problem}, and {ws.path} cannot be written: each vector was compared")
        return nearest_exactly(ws, state.name, query, k)
    if index_problem(ws, state.name):
        raise CurateError(f"{state} {problem}, and it cannot be built: {built.removeprefix('no index: ')}")
    result.warnings.append(f"{state} {problem.replace('has', 'had')}; built {built}")
    return search(ws, state.name, query, k)


def _row(ws: Workspace, sample_id: str) -> int:
    found = find_sample(ws, sample_id)
    if found is None:
        raise no_sample(ws, sample_id)
    return found[0]


def _encoded(ws: Workspace, state: TableState, text: str) -> np.ndarray:
    """The unit vector of a text, by the model that made the vectors, float32 [1, D]."""
    from curate.gradients.roles import load_roles
    from curate.models.forward import score_samples

    recipe = state.recipe
    if recipe.checkpoints:
        raise CurateError(f"{state} are of gradients, which a text alone has none of; name a sample by --id.")
    models = model_choices(recipe, ws.trusted)
    for role, choice in models.items():
        if weights_fingerprint(choice) != recipe.models[role].weights:
            raise CurateError(
                f"{state} were made with other weights than {choice.name} has now; run `{state.command()} --fresh`."
            )
    step = method_again(recipe, str(state)).vectors()
    assert step is not None
    with charged(ws.path, "neighbors", methods=[recipe.method], name=state.name, phase="forward") as meter:
        meter.samples = 1
        columns, usage = score_samples(load_roles(models), [{"messages": None, "text": text}], {"x": step})
        meter.add(usage)
    vectors = Vectors.of(columns["x"]["vector"], columns["x"]["error"])
    if not vectors.there[0]:
        raise CurateError(f"--text {text!r} {vectors.error[0]}; give some words.")
    return vectors.unit.astype(np.float16).astype(np.float32)  # as it would be stored
