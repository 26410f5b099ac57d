"""A workspace with everything in it, made by one verb after another: what the attacks are on.

A place is a folder with `inputs`, the workspace `ws`, and `out`, where exports go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curate
from tests.support.narrow import NARROW

SHARDS = 3


def ws_of(place: Path) -> Any:
    return curate.open_workspace(place / "ws")


def write_inputs(place: Path) -> None:
    """Files of rows: some twice, one that is none, and some again with other fields."""
    folder = place / "inputs"
    folder.mkdir(parents=True)
    rows = [_row(i, "What is the number of" if i % 2 else "Name the tree of", n=i) for i in range(30)]
    for shard in range(SHARDS):
        part = rows[10 * shard : 10 * shard + 10]
        lines = [json.dumps(row) for row in [*part, part[0]]] + ['{"nothing": 1}']
        (folder / f"pool{shard}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "again.jsonl").write_text("".join(json.dumps({**row, "n": -1}) + "\n" for row in rows[:4]))
    (folder / "new.jsonl").write_text("".join(json.dumps(_row(i, "Say", n=i)) + "\n" for i in range(100, 112)))
    for split, start in (("val", 50), ("test", 60)):
        lines = [json.dumps(_row(i, "What is the number of", kind=str(i % 2))) for i in range(start, start + 4)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _row(i: int, asked: str, **fields: Any) -> dict[str, Any]:
    answer = f"It is {i} " + "and so on " * (i % 7)
    said = [{"role": "user", "content": f"{asked} {i}?"}, {"role": "assistant", "content": answer}]
    return {"messages": said, **fields}


def _ingest(place: Path) -> None:
    for shard in range(SHARDS):
        curate.ingest(curate.open_workspace(place / "ws"), [str(place / f"inputs/pool{shard}.jsonl")])


def _ingest_again(place: Path) -> None:
    curate.ingest(ws_of(place), [str(place / "inputs/again.jsonl")], meta="replace")


def _target(place: Path) -> None:
    for split in ("val", "test"):
        path = str(place / f"inputs/{split}.jsonl")
        curate.target(ws_of(place), "sums", path, split=split, subtask="kind")


def _score_text(place: Path) -> None:
    curate.score(ws_of(place), "length", "bm25", target="sums")


def _score_model(place: Path) -> None:
    curate.score(ws_of(place), "nll", models=model())


def _score_gradients(place: Path) -> None:
    less = {"warmup": 0.2, "epochs": 1.0, "batch_size": 4, "lora_r": 2, "lora_alpha": 4.0, "dim": 64, "lr": 1e-3}
    curate.score(ws_of(place), curate.method("score", "less", **less), target="sums", models=model())


def _embed(place: Path) -> None:
    curate.score(ws_of(place), "embed_lm", target="sums", models=model())


def _select(place: Path) -> None:
    curate.select(ws_of(place), "best", "top", by="length", top=12)


def _select_fresh(place: Path) -> None:
    """In place of one that a run was trained on, which is kept."""
    curate.select(ws_of(place), "best", "top", by="length", top=10, fresh=True)


def _weigh(place: Path) -> None:
    curate.weigh(ws_of(place), "heavy", "adapt_static", "length", manifest="best")


def _mix(place: Path) -> None:
    curate.mix(ws_of(place), "even", "uniform", rows=12, most_epochs=None)


def _mask(place: Path) -> None:
    curate.mask(ws_of(place), "sparse", "magnitude_small", 0.05, model=model())


def _train(place: Path) -> None:
    given = {"manifest": "best", "steps": 4, "batch_size": 2, "checkpoint_every": 2, "keep_checkpoints": 2, "seed": 1}
    curate.train(ws_of(place), "plain", model=model(), evals=["sums"], **given)


def _evaluate(place: Path) -> None:
    curate.evaluate(ws_of(place), "plain", ["sums"], metrics=["perplexity"])


def _prune(place: Path) -> None:
    curate.prune(ws_of(place), "plain", "magnitude", 0.5, name="light")


def _export(place: Path) -> None:
    curate.export(ws_of(place), "best", "trl", str(place / "out/trl"))


def _report(place: Path) -> None:
    from curate.pages.report import page

    (place / "out").mkdir(exist_ok=True)
    (place / "out/report.html").write_text(page(curate.report(ws_of(place)), "it"))


def _verify(place: Path) -> None:
    curate.verify(ws_of(place), repair=True)


def _drop(name: str) -> Callable[[Path], None]:
    return lambda place: curate.drop(ws_of(place), name, force=True) and None


def model() -> Any:
    return curate.ModelChoice(NARROW, device="cpu")


def _harm(place: Path) -> None:
    """What `verify --repair` mends."""
    ws = place / "ws"
    for file in ("scores/length/part-00001.parquet", "vectors/embed_lm/index.faiss", "scores/nll/part-00002.parquet"):
        (ws / file).write_bytes(b"harmed")
    (ws / "pool/_commit/part-00001.json").unlink()
    (ws / "contents.json").write_bytes(b"")


# Name -> the verb, and what is done to the place before it.
MAKING: dict[str, Callable[[Path], None]] = {
    "ingest": _ingest,
    "ingest --meta replace": _ingest_again,
    "target": _target,
    "score of text": _score_text,
    "score by a model": _score_model,
    "embed": _embed,
    "score by gradients": _score_gradients,
    "select": _select,
    "weigh": _weigh,
    "mix": _mix,
    "mask": _mask,
    "train": _train,
    "evaluate": _evaluate,
    "prune": _prune,
    "select --fresh": _select_fresh,
}
USING: dict[str, Callable[[Path], None]] = {
    "export": _export,
    "report": _report,
    "verify --repair": _verify,
    "drop of a score": _drop("nll"),
    "drop of vectors": _drop("embed_lm"),
    "drop of a manifest": _drop("best"),
    "drop of a run": _drop("plain"),
    "drop of a mask": _drop("sparse"),
    "drop of a target": _drop("sums"),
}
BEFORE: dict[str, Callable[[Path], None]] = {"verify --repair": _harm}


def make(place: Path, names: list[str] | None = None) -> None:
    """Make the rich workspace at a place."""
    write_inputs(place)
    for name in names or MAKING:
        MAKING[name](place)
