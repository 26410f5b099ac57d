"""The start of a training on a million chats: to the end of its first step, by a first run and by a second one.

    python -m tests.bench.tokens [ROWS] [--before TREE] [--in FOLDER]      default: 1000000

Each training is one step of eight samples in a process of its own, with the model `tiny`: seconds of CPU, of the
process and of the workers that it started, and by the clock, from the call of `curate.train` on; its peak memory, and
what of that the libraries are, which are loaded before. TREE: another version's source, which is measured on the same
pool (it tokenises in every run). FOLDER: where the pool stays, and is used again.
Limit: of the first run, rendering and tokenising; of a second one, the digests of the files, and the ids of the pool.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.timing import ROOT, figure, machine, told

RUN = """
import json, resource, sys, time
import curate, torch, transformers
from curate.machine import forget_peak, peak_bytes
from curate.models.load import load
from curate.models.choice import ModelChoice
load(ModelChoice("tiny"))
import transformers.models.llama.modeling_llama
ws = curate.open_workspace(sys.argv[1])
curate.train, curate.status(ws)  # which load the rest
forget_peak()
loaded, cpu, clock = peak_bytes(), time.process_time(), time.perf_counter()
more = json.loads(sys.argv[3])
done = curate.train(ws, sys.argv[2], model="tiny", steps=1, batch_size=8, keep_weights=False, **more)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"cpu": time.process_time() - cpu + children.ru_utime + children.ru_stime,
    "clock": time.perf_counter() - clock, "peak": peak_bytes(), "loaded": loaded, "samples": done.samples,
    "loss": done.loss}))
"""
_WORDS = "all work and no play makes a long and varied answer which says of every number what it is".split()


def made(folder: Path, rows: int) -> Path:
    """A workspace with so many chats of some sixty tokens."""
    import curate

    if not (folder / "ws" / "workspace.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "chats.jsonl"
        with path.open("w") as out:
            for number in range(rows):
                text = " ".join(_WORDS[(number * k) % 19] for k in range(3, 13 + number % 29))
                out.write(json.dumps({"question": f"what is {number}?", "answer": f"{number} {text}"}) + "\n")
        curate.ingest(curate.open_workspace(folder / "ws"), [str(path)])
        path.unlink()
    return folder / "ws"


def trained(ws: Path, name: str, tree: Path = ROOT, **settings: int) -> dict[str, float]:
    """A training of one step, by a version's own code."""
    command = [sys.executable, "-c", RUN, str(ws), name, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "CURATE_PROGRESS": "off"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def shown(what: str, found: dict[str, float]) -> None:
    note = f"{found['samples']:,.0f} samples, loss {found['loss']:.6f}"
    figure(f"{what}: CPU to the first step", found["cpu"], "s", note=f"{found['clock']:.1f} s by the clock; {note}")
    gib = found["peak"] / 2**30
    figure(f"{what}: peak memory", gib, "GiB", note=f"the libraries are {found['loaded'] / 2**30:.2f} of it")


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = {sys.argv[i]: Path(sys.argv[i + 1]) for i, word in enumerate(sys.argv) if word.startswith("--")}
    numbers = [word for word in words if word.isdecimal()]
    rows = int(numbers[0]) if numbers else 1_000_000
    machine("torch", "transformers", "tokenizers")
    with tempfile.TemporaryDirectory() as temporary:
        ws = made(options.get("--in", Path(temporary)), rows)
        run = f"t{time.time_ns()}"
        before = trained(ws, f"{run}a", options["--before"]) if "--before" in options else None
        if before:
            shown("before, any run", before)
        first, second = trained(ws, f"{run}b"), trained(ws, f"{run}c")
        shown("first run", first)
        shown("second run", second)
        assert first["loss"] == second["loss"] and (not before or before["loss"] == first["loss"])
        size = sum(file.stat().st_size for file in (ws / "tokens").rglob("*.safetensors"))
        figure("tokens kept on disk", size / 2**30, "GiB")
        own = second["peak"] - second["loaded"]
        figure("second run: memory beyond the libraries, per sample", own / second["samples"], "bytes")
        told("CPU to the first step, first run / second", [first["cpu"] / second["cpu"]] * 3, "", True)
        if before:
            told("CPU to the first step, before / second run", [before["cpu"] / second["cpu"]] * 3, "", True)


if __name__ == "__main__":
    main()
