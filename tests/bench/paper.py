"""What a pool of 10^8 samples takes, reckoned from what is measured here on a small one. Prints the README's table.

    python -m tests.bench.paper [ROWS]      default: 200000 rows, of about 1,000 characters

Made-up words compress worse than prose, and every row has a word of its own, so the figures err upwards.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import torch

import curate
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from curate.methods.selectors.top import Top
from curate.store.commits import Parts
from curate.store.encoding import parquet
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target
from curate.tables.unit_worker import UnitWorker
from curate.tables.units import shard_units
from curate.verbs.ingest import SHARD_BYTES
from curate.verbs.select import SelectionSpec
from tests.bench.scale import generate, prepare
from tests.bench.timing import machine, timed

MANY = 10**8
PARAMETERS, TOKENS = 10**9, 250  # of a model; of a sample, at four characters each
HOUR, GB = 3600.0, 1e9


def table(rows: Iterable[tuple[str, str, str]]) -> None:
    print("| of 10⁸ samples | measured | takes |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def on_disk(ws: Workspace) -> Iterable[tuple[str, str, str]]:
    n = ws.n_rows()
    chars = sum(shard.n_chars for shard in ws.shards())
    pool = sum(ws.pool.sizes().values())
    yield "the pool", f"{pool / chars:.2f} bytes a character", f"{MANY / n * pool / GB:.0f} GB"
    yield "its shards", f"{SHARD_BYTES >> 20} MiB of text each", f"{MANY / n * chars / SHARD_BYTES:,.0f} files"
    for name in ("bm25_goal", "length"):
        each = sum(Parts(ws.score_folder(name)).sizes().values()) / n
        yield f"the score `{name}`", f"{each:.1f} bytes a row", f"{MANY * each / GB:.1f} GB"
    for what, size in (("an embedding of 384 numbers", 384), ("a LESS feature of 8,192 numbers, per checkpoint", 8192)):
        each = vectors(size)
        yield what, f"{each:,.0f} bytes a row", f"{MANY * each / GB:,.0f} GB"


def vectors(size: int, rows: int = 4096) -> float:
    """Bytes a row of random unit vectors as the design stores them: id, float16 [size], norm."""
    chance = np.random.default_rng(0)
    values = chance.normal(size=(rows, size))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16).ravel()
    columns = {
        "id": [f"{x:016x}" for x in chance.integers(0, 2**63, rows)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(values), size),
        "norm": pa.array(chance.normal(size=rows).astype(np.float32)),
    }
    return len(parquet(pa.table(columns))) / rows


def hours(ws: Workspace) -> Iterable[tuple[str, str, str]]:
    """Text passes by the ledger, which has what each cost; forward passes by the rate of matrix products."""
    chars = sum(shard.n_chars for shard in ws.shards())
    seconds: dict[str, float] = {}
    for row in curate.ledger(ws):
        if row["stage"] in ("ingest", "score"):
            what = row["methods"] or "ingest"
            seconds[what] = seconds.get(what, 0.0) + row["seconds"]
    for what, took in seconds.items():
        rate = f"{chars / took / 1e6:.0f} M characters a second on this machine"
        yield f"`{what}`", rate, f"{took * MANY / ws.n_rows() / HOUR:.1f} hours"
    flops = 2.0 * PARAMETERS * TOKENS * MANY
    device, rate_ = products()
    yield (
        f"a forward pass of 10⁹ parameters ({flops:.0e} FLOPs)",
        f"{rate_ / 1e12:.2f} TFLOP/s in matrix products on this {device}",
        f"{flops / rate_ / HOUR:,.0f} hours; at R TFLOP/s {flops / 1e12 / HOUR:,.0f} / R",
    )


def products() -> tuple[str, float]:
    """FLOPs a second of large matrix products, and on what."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)

    def multiply() -> float:
        return float((a @ a)[0, 0])  # reading a number waits for the device

    multiply()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({torch.get_num_threads()} cores)"
    return name, 2.0 * n**3 / min(timed(multiply) for _ in range(5))


def held(ws: Workspace) -> Iterable[tuple[str, str, str]]:
    """What the driver and Ray hold, which is tasks and records, and no data."""
    shards = ws.shards()
    units = [unit for shard in shards for unit in shard_units(shard, Bm25.unit_bytes, {})]
    many = MANY / ws.n_rows() * len(units)
    task = len(cloudpickle.dumps(units[0]))
    yield (
        "tasks of `bm25`",
        f"{task} bytes each, one under way for each worker",
        f"{many:,.0f} tasks, {many * task / 1e6:.0f} MB",
    )
    work = UnitWorker(Bm25(), load_target(ws, "goal"), 1, (), ws.path, "")
    yield (
        "what Ray's object store holds",
        "the method and the target, once for each pass",
        f"{len(cloudpickle.dumps(work)) / 1e6:.2f} MB",
    )
    again = min(timed(partial(curate.score, ws, Bm25(), target="goal")) for _ in range(3))
    yield (
        "going on with a finished score",
        f"{again / len(shards) * 1e3:.1f} ms a shard",
        f"{again * MANY / ws.n_rows():.0f} s",
    )
    yield "ids known to `ingest`", "8 bytes a row", f"{8 * MANY / GB:.1f} GB"


def main(rows: int) -> None:
    machine("polars", "pyarrow", "duckdb", "torch")
    folder = Path(tempfile.mkdtemp(prefix="curate-paper-"))
    try:
        generate(folder / "input", rows, sentences=10)
        ws = prepare(folder)
        curate.score(ws, Bm25(), target="goal")
        curate.score(ws, Length(), Repetition())
        curate.select(ws, "best", Top(), SelectionSpec(by="bm25_goal", frac=0.05))
        chars = sum(shard.n_chars for shard in ws.shards())
        print(f"{ws.n_rows():,} samples of {chars / ws.n_rows():.0f} characters in {len(ws.shards())} shards\n")
        table([*on_disk(ws), *hours(ws), *held(ws)])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200_000)
