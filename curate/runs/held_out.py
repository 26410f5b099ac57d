"""The samples of a pool that a score leaves out: those its warm-up was trained on, and its anchors."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.hashing import fingerprint, ids_as_integers, keyed_uniform
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.runs.samples import pool_ids
from curate.runs.warmup import rows_of_warmup
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables.inputs import CheckpointSet, HeldOut, load_target

_WARMUP, _ANCHOR = "it was in the warm-up", "it is one of the anchors"


def held_out_of(ws: Workspace, method: Score, checkpoint_set: CheckpointSet, target: str | None) -> HeldOut:
    """The samples a score leaves out. Raises CurateError if the target contains any of them, or nothing would be
    left."""
    anchor_spec = method.anchors()
    if method.scores_warmup and anchor_spec is None:
        return HeldOut()
    ids = pool_ids(ws).to_pylist()
    reasons = np.full(len(ids), "", object)
    if not method.scores_warmup:
        reasons[rows_of_warmup(ws, method, checkpoint_set)] = _WARMUP
    if anchor_spec:
        remaining = np.flatnonzero(reasons == "")
        numbers = keyed_uniform(ids_as_integers(ids), anchor_spec.seed, "anchors")[remaining]
        count = int(anchor_spec.share * len(ids))
        if not count:
            raise CurateError(
                f"{anchor_spec.share:g} of {len(ids)} samples leaves '{method.name}' no anchors; use a larger share."
            )
        reasons[remaining[np.argsort(-numbers, kind="stable")[:count]]] = _ANCHOR
    if (reasons != "").all():
        raise CurateError(f"the warm-up and the anchors of '{method.name}' leave nothing to score; use smaller shares.")
    excluded = np.flatnonzero(reasons != "")
    _refuse_shared(ws, method, [(ids[row], reasons[row]) for row in excluded], target)
    left_out = {
        shard.name: {
            int(row - shard.start): str(reasons[row]) for row in excluded[_inside(excluded, shard.start, shard.rows)]
        }
        for shard in ws.shards()
    }
    anchors = _anchors(ws, np.flatnonzero(reasons == _ANCHOR)) if anchor_spec else None
    return HeldOut(left_out, anchors, fingerprint([[ids[row], reasons[row]] for row in excluded]))


def _inside(rows: np.ndarray, start: int, count: int) -> slice:
    return slice(*np.searchsorted(rows, [start, start + count]))


def _refuse_shared(ws: Workspace, method: Score, excluded: list[tuple[str, str]], target: str | None) -> None:
    """Raises CurateError if a sample of the target was trained on in the warm-up, or is an anchor."""
    if target is None:
        return
    target_ids = set(load_target(ws, target).text.frame["id"].to_list())
    for sample_id, reason in excluded:
        if sample_id in target_ids:
            setting = "warmup_seed" if reason == _WARMUP else "anchors_seed"
            raise CurateError(
                f"the sample {sample_id} of the target '{target}' is in the pool too, and there {reason} of "
                f"'{method.name}': it must be neither; draw others by --set {setting}=…, or take it out of "
                "the target."
            )


def _anchors(ws: Workspace, rows: np.ndarray) -> Target:
    import pyarrow as pa

    tables = []
    for shard in ws.shards():
        inside = rows[_inside(rows, shard.start, shard.rows)]
        if len(inside):
            tables.append(read_table(shard.path, Text.schema.names).take(pa.array(inside - shard.start)))
    table = pa.concat_tables(tables)
    return Target("anchors", Text(table), ("",) * len(table), fingerprint(table["id"].to_pylist()))
