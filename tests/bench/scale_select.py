"""`curate select` over a pool of a hundred million samples with three scores: time, peak memory, growth.

    python -m tests.bench.scale_select [ROWS …] [--in FOLDER]      default: 1000000 10000000

Needs 55 bytes of disk a row; the pools stay in FOLDER, if one is named, and are used again. Each selection runs in a
process of its own, so that its peak is its own. Pool and scores are written as a workspace's own parts, with records
and digests, and tiny texts, which a selection does not read. Limit: unpacking the columns that it names and ids, and
reading the scores' files for their digests.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import curate
from curate.hashing import keyed_uniform
from curate.methods.scores.length import Length
from curate.store.commits import Parts
from curate.store.contents import enter
from curate.store.recipes import write_recipe
from curate.store.schema import POOL
from curate.store.workspace import Shard, Workspace, recipe_file
from curate.tables.spec import TableSpec
from tests.bench.timing import figure, machine, timed, told

CASES = {
    "top 5 % by an expression": "--by=relevance+0.5*quality-0.1*coarse --frac=0.05",
    "top 5 % per source": "--by=relevance+0.5*quality-0.1*coarse --frac=0.05 --per=source",
    "a condition, and tokens": "--by=coarse --where=quality>-1 --tokens=1e6",
    "random, 1 %": "--selector=random --frac=0.01",
}
SCORES = ("relevance", "quality", "coarse")  # the last has a hundred values: most samples are tied
_PART = 1 << 18
_HEX = np.array([f"{i:04x}".encode() for i in range(1 << 16)])
_TEXTS = ["word " * (1 + i) for i in range(8)]


def made(folder: Path, rows: int) -> Workspace:
    """A workspace of so many samples of four sources, with three scores of each; one in a hundred has no value."""
    ws = curate.open_workspace(folder / "ws")  # it makes the folders above
    for start in range(0, rows, _PART):
        _pool_part(ws, start, min(_PART, rows - start))
    ws.pool.certify()
    shards = ws.shards()
    for number, name in enumerate(SCORES):
        recipe = TableSpec(ws, name, Length(), None, shards).recipe
        write_recipe(ws.score_folder(name) / recipe_file("score"), recipe)
        for shard in shards:
            _score_part(ws, name, number, shard, recipe.fingerprint)
        Parts(ws.score_folder(name)).certify()
        enter(ws, "score", name)
    return ws


def _pool_part(ws: Workspace, start: int, n: int) -> None:
    kinds = (_uniform(start, n, "text") * len(_TEXTS)).astype(np.int32)
    columns = {
        "id": _ids(start, n),
        "source": _of_few([f"source{i}" for i in range(4)], (_uniform(start, n, "source") ** 2 * 4).astype(np.int32)),
        "text": _of_few(_TEXTS, kinds),
        "copies": pa.array(np.ones(n, np.int32)),
        "n_chars": pa.array(np.array([len(text) for text in _TEXTS], np.int32)[kinds]),
        "meta": _of_few(["{}"], np.zeros(n, np.int32)),
    }
    table = pa.table({f.name: columns.get(f.name, pa.nulls(n, f.type)) for f in POOL}, schema=POOL)
    n_chars = int(columns["n_chars"].to_numpy().sum())
    ws.pool.commit(f"part-{start // _PART:05d}", table, listed=False, n_chars=n_chars, files={}, beside={})


def _score_part(ws: Workspace, name: str, number: int, shard: Shard, fingerprint: str) -> None:
    u = _uniform(shard.start, shard.rows, name)
    lacks = u < 0.01
    values = np.floor(u * 100) if number == 2 else np.log(u / (1 - u))
    counts = {column: pa.array(np.ones(shard.rows, np.int32)) for column in Length.columns}
    table = pa.table(
        {
            "id": _ids(shard.start, shard.rows),
            "score": pa.array(values.astype(np.float32), mask=lacks),
            **counts,
            "error": _of_few(["it has no text"], np.zeros(shard.rows, np.int32), ~lacks),
        }
    )
    stamp = {"nulls": int(lacks.sum()), "flops": 0.0, "fingerprint": fingerprint, "shard": shard.sha256}
    Parts(ws.score_folder(name)).commit(shard.name, table, listed=False, **stamp)


def _numbers(start: int, n: int) -> np.ndarray:
    """A number of 64 bits for each row, all of them different, as each step permutes them."""
    with np.errstate(over="ignore"):
        x = np.arange(start + 1, start + n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)


def _uniform(start: int, n: int, purpose: str) -> np.ndarray:
    return keyed_uniform(_numbers(start, n), 0, purpose)


def _ids(start: int, n: int) -> pa.Array:
    digits = _HEX[_numbers(start, n).astype(">u8").view(">u2")]
    offsets = np.arange(0, 16 * n + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(digits))


def _of_few(texts: list[str], codes: np.ndarray, null: np.ndarray | None = None) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=null), texts).cast(pa.string())


def measured(folder: Path, name: str, options: str) -> tuple[float, float, float, dict]:
    """Seconds by the clock and of CPU, and peak GiB, of a selection in a process of its own; and what it printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.scale_select", "--one", str(folder / "ws"), name, *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{options} failed: {done.stderr}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu, found["peak"] / 2**30, found


def one(folder: str, name: str, options: list[str]) -> None:
    """One selection; prints its peak memory in bytes, and how many rows it chose of how many."""
    from curate.cli.main import main
    from curate.machine import peak_bytes
    from curate.store.manifests import manifest_recipe

    try:
        main(["-w", folder, "select", name, *options])
    except SystemExit as end:
        if end.code:
            raise
    result = manifest_recipe(curate.open_workspace(folder), name).as_json()["result"]
    print(json.dumps({"peak": peak_bytes(), "rows": result["rows"], "candidates": result["candidates"]}))


def main(sizes: list[int], folder: Path) -> None:
    """Print a line for each selection from each pool."""
    machine("duckdb", "pyarrow", "numpy")
    before: dict[str, tuple[int, float]] = {}
    for rows in sizes:
        place = folder / str(rows)
        if not place.exists():
            took = timed(lambda place=place, rows=rows: made(place, rows))
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            print(f"{rows:,} rows generated in {took:.0f} s, {size / 2**30:.2f} GiB")
        for number, (case, options) in enumerate(CASES.items()):
            seconds, cpu, peak, found = measured(place, f"chosen{number}", options)
            what = f"select from {rows:,}: {case}"
            figure(f"{what}, CPU", cpu, "s", note=f"{seconds:.0f} s by the clock; {found['rows']:,} chosen")
            figure(f"{what}, peak memory", peak, "GiB", "<= 4 GiB", peak <= 4)
            if case in before:
                fewer, took = before[case]
                most = 1.1 * rows / fewer
                told(f"{what}, CPU / at {fewer:,}", [cpu / took] * 3, f"<= {most:g}x", cpu / took <= most)
            before[case] = rows, cpu


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        words, given = sys.argv[1:], Path()
        if "--in" in words:
            at = words.index("--in")
            given, words = Path(words[at + 1]), [*words[:at], *words[at + 2 :]]
        with tempfile.TemporaryDirectory(prefix="curate-scale-select-") as scratch:
            main([int(word) for word in words] or [1_000_000, 10_000_000], given if given.parts else Path(scratch))
