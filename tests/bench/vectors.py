"""Selectors on vectors: beside the naive way on 20,000 vectors, and on a million of 384 numbers within 4 GiB.

    python -m tests.bench.vectors [ROWS]      default: 1000000; needs about 1.2 KB of disk a row

The vectors are made up: 2,000 centres with noise about them, so that some are alike. Each selector runs as `curate
select` does, in a process of its own, so that its peak is its own. The limit is 2 D FLOPs a pair that is looked at;
what a naive way spends on all pairs stands beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import curate
from curate.kinds.registry import find
from curate.kinds.selector import Budget, Candidates
from curate.machine import peak_bytes
from curate.methods.selectors.d4 import D4
from curate.methods.selectors.deita import Deita
from curate.methods.selectors.facility import Facility
from curate.methods.selectors.kcenter import Kcenter
from curate.store.commits import Parts
from curate.store.encoding import write_json
from curate.tables.index import ensure_index, nearest_exactly, record_of, search
from curate.tables.inputs import load_target
from curate.tables.vector_table import aim_stamp, target_vectors, vector_table
from curate.verbs.select import SelectionSpec
from tests.bench.scale import generate, prepare
from tests.bench.timing import figure, machine, ratio, told

WIDTH = 384
SELECTORS = ("kcenter", "round_robin", "semdedup", "d4", "deita", "facility", "kmeans_quota")
CENTRES = np.random.default_rng(1).normal(size=(2000, WIDTH)).astype(np.float32)


def made_up(n: int, seed: int) -> np.ndarray:
    """float32 [n, 384], not of unit length."""
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(0, len(CENTRES), n)] + rng.normal(size=(n, WIDTH)).astype(np.float32)


# --- beside the naive way --------------------------------------------------------------------------------


def naive_kcenter(unit: np.ndarray, first: int, k: int) -> list[int]:
    """One product with every vector for each choice."""
    chosen, nearest = [first], unit @ unit[first]
    while len(chosen) < k:
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, unit @ unit[chosen[-1]])
    return chosen


def naive_facility(unit: np.ndarray, k: int) -> list[int]:
    """All similarities in memory, and every gain anew for each choice."""
    likeness = (1 + unit @ unit.T) / 2
    nearest, chosen = np.zeros(len(unit), np.float32), []
    while len(chosen) < k:
        gains = np.array([np.maximum(likeness[:, i] - nearest, 0).sum(dtype=np.float64) for i in range(len(unit))])
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        nearest = np.maximum(nearest, likeness[:, chosen[-1]])
    return chosen


def naive_deita(values: np.ndarray, unit: np.ndarray, threshold: float, k: int) -> list[int]:
    """One candidate after another against all that were taken, as the released code at its batch of 1."""
    kept, taken = np.empty((0, unit.shape[1]), np.float32), []
    for i in np.argsort(-values, kind="stable"):
        if not taken or (kept @ unit[i]).max() <= threshold:
            taken.append(int(i))
            kept = unit[taken]
        if len(taken) == k:
            break
    return taken


def naive_d4(unit: np.ndarray, k: int) -> np.ndarray:
    """De-duplication by the cosines of all pairs, in no clusters, and then D4's second half."""
    product = np.triu(unit @ unit.T, 1)
    left = np.sort(np.argsort(product.max(0), kind="stable")[: round(0.75 * len(unit))])
    return left[D4(dedup=1.0).select(Candidates.of(vectors=unit[left]), Budget("rows", k), 0)]


def side_by_side() -> None:
    some = Candidates.of(vectors=made_up(20_000, 0))
    unit = np.ascontiguousarray(some.require_vectors(""), np.float32)
    ours = Kcenter().select(some, Budget("rows", 1000), 0).tolist()
    theirs = naive_kcenter(unit, ours[0], 1000)
    same = np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    found = ratio(
        lambda: naive_kcenter(unit, ours[0], 1000), lambda: Kcenter().select(some, Budget("rows", 1000), 0), 3
    )
    told("1,000 of 20,000: a product for each choice / kcenter", found, ">= 1x", found[0] >= 1, f"{same:.0%} the same")
    ranked = Candidates.of(np.random.default_rng(2).random(20_000), vectors=unit)
    filtered, budget = Deita(threshold=0.5), Budget("rows", 2000)
    same = filtered.select(ranked, budget, 0).tolist() == naive_deita(ranked.require_values(""), unit, 0.5, 2000)
    found = ratio(
        lambda: naive_deita(ranked.require_values(""), unit, 0.5, 2000), lambda: filtered.select(ranked, budget, 0), 3
    )
    told("2,000 of 20,000: one after another / deita", found, ">= 1x", found[0] >= 1, f"the same: {same}")
    found = ratio(lambda: naive_d4(unit, 2000), lambda: D4().select(some, budget, 0), 3)
    told("2,000 of 20,000: all pairs, then as d4 / d4", found, ">= 1x", found[0] >= 1)
    few = Candidates.of(vectors=made_up(3000, 0))
    unit = np.ascontiguousarray(few.require_vectors(""), np.float32)
    same = Facility().select(few, Budget("rows", 50), 0).tolist() == naive_facility(unit, 50)
    found = ratio(lambda: naive_facility(unit, 50), lambda: Facility().select(few, Budget("rows", 50), 0), 3)
    told("50 of 3,000: every gain for each choice / facility", found, ">= 1x", found[0] >= 1, f"the same: {same}")


# --- a million -------------------------------------------------------------------------------------------


def store(ws: Any) -> None:
    """Vectors of every sample and of the target, as `curate score embed` would have left them."""
    folder = ws.table_folder("vectors", "embed")
    write_json(
        folder / "vectors.json",
        {"method": "embed", "version": 1, "settings": {}, "changed": {}, "scope": "row", "fingerprint": "bench"},
    )
    for i, shard in enumerate(ws.require_pool()):
        ids = pa.array([f"{j:016x}" for j in range(shard.rows)])  # the ids are not read
        table = vector_table(ids, {"vector": made_up(shard.rows, i)})
        Parts(folder).commit(shard.name, table, 43_690, nulls=0, fingerprint="bench", shard=shard.sha256)
    target = load_target(ws, "goal")
    n = len(target.subtasks)
    table = vector_table(
        target.text.frame["id"].to_arrow(), {"vector": made_up(n, 10**6)}, pa.array(target.subtasks, pa.string())
    )
    target_vectors(folder).commit("goal", table, **aim_stamp("bench", target))


def step(name: str, folder: str) -> None:
    ws = curate.open_workspace(Path(folder) / "ws")
    start, said = time.perf_counter(), ""
    if name == "index":
        said = ensure_index(ws, "embed")
    elif name == "ask":
        asked = np.asarray(made_up(200, 10**6 + 1))
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
        found, want = search(ws, "embed", asked, 10)[0], nearest_exactly(ws, "embed", asked, 10)[0]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)])
        said = f"recall@10 of 200 new vectors {recall:.3f}"
    else:
        cls = find("selector", name)
        target, by = "goal" if cls.uses_target else None, "n_chars" if name == "deita" else None
        r = curate.select(ws, name, cls(), SelectionSpec(by=by, top=10_000, vectors="embed", target=target))
        said = f"{r.rows:,} of {r.candidates:,}"
    record = record_of(ws, "embed")
    size = f"{record.bytes / 2**20:.0f} MiB" if record and name == "index" else ""
    found = {"seconds": time.perf_counter() - start, "peak": peak_bytes() / 2**30, "note": f"{said} {size}".strip()}
    print(json.dumps(found))


def main(rows: int) -> None:
    machine("faiss-cpu", "numpy")
    side_by_side()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "input", rows)
        store(prepare(Path(folder)))
        print(f"\n{rows:,} vectors of {WIDTH} numbers:", flush=True)
        for name in (*SELECTORS, "index", "ask"):
            command = [sys.executable, "-m", "tests.bench.vectors", name, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            figure(f"{name} over many vectors", found["seconds"], "s", note=f"{rows:,}: {found['note']}")
            figure(f"{name} over many vectors, peak memory", found["peak"], "GiB", "<= 4 GiB", found["peak"] <= 4)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        step(sys.argv[1], sys.argv[2])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
