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
    aside = method.anchors()
    if method.scores_warmup and aside is None:
        return HeldOut()
    ids = pool_ids(ws).to_pylist()
    whys = np.full(len(ids), "", object)
    if not method.scores_warmup:
        whys[rows_of_warmup(ws, method, checkpoint_set)] = _WARMUP
    if aside:
        left = np.flatnonzero(whys == "")
        numbers = keyed_uniform(ids_as_integers(ids), aside.seed, "anchors")[left]
        count = int(aside.share * len(ids))
        if not count:
            raise CurateError(
                f"{aside.share:g} of {len(ids)} samples leaves '{method.name}' no anchors; use a larger share."
            )
        whys[left[np.argsort(-numbers, kind="stable")[:count]]] = _ANCHOR
    if (whys != "").all():
        raise CurateError(f"the warm-up and the anchors of '{method.name}' leave nothing to score; use smaller shares.")
    out = np.flatnonzero(whys != "")
    _refuse_shared(ws, method, [(ids[row], whys[row]) for row in out], target)
    left_out = {
        shard.name: {int(row - shard.start): str(whys[row]) for row in out[_inside(out, shard.start, shard.rows)]}
        for shard in ws.shards()
    }
    anchors = _anchors(ws, np.flatnonzero(whys == _ANCHOR)) if aside else None
    return HeldOut(left_out, anchors, fingerprint([[ids[row], whys[row]] for row in out]))


def _inside(rows: np.ndarray, start: int, count: int) -> slice:
    return slice(*np.searchsorted(rows, [start, start + count]))


def _refuse_shared(ws: Workspace, method: Score, out: list[tuple[str, str]], target: str | None) -> None:
    """Raises CurateError if a sample of the target was trained on in the warm-up, or is an anchor."""
    if target is None:
        return
    its = set(load_target(ws, target).text.frame["id"].to_list())
    for sample_id, why in out:
        if sample_id in its:
            setting = "warmup_seed" if why == _WARMUP else "anchors_seed"
            raise CurateError(
                f"the sample {sample_id} of the target '{target}' is in the pool too, and there {why} of "
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
