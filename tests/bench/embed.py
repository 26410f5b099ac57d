"""`embed` on real data: what it finds, what its index finds again, and what a second target costs.

    python -m tests.bench.embed [WS]      needs the real data; default: a workspace in a temporary folder

The pool of ../shared/data is encoded by MiniLM once, then scored for GSM8K and BBH. Limit: 2N FLOPs a token.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import curate
from curate import index, vector_index
from curate.scores.embed import Embed
from curate.selectors.top import Top
from curate.stages.select import Choice
from curate.workspace import Workspace
from tests.bench.timing import machine
from tests.conftest import SHARED


def main(folder: Path) -> None:
    machine("torch", "transformers", "faiss-cpu")
    ws = curate.open_workspace(folder)
    curate.ingest(ws, sorted(map(str, (SHARED / "pool").iterdir())))
    for name in ("gsm8k", "bbh"):
        curate.target(ws, name, str(SHARED / f"targets/{name}_val.jsonl"), subtask="subtask" if name == "bbh" else None)
    for name in ("gsm8k", "bbh"):
        start = time.perf_counter()
        (r,) = curate.score(ws, Embed(), target=name)
        assert r.vectors is not None
        spent = time.perf_counter() - start
        done = f"{r.vectors.computed:,} samples encoded now, {r.computed:,} scored"
        print(f"{name}: {done}, {spent:.1f} s; {r.vectors.index}")
    for row in curate.ledger(ws):
        if row["stage"] in ("score", "index"):
            what = f"{row['name']:14} {row['phase']:8} {row['samples']:7,} samples"
            print(f"  {what} {row['flops']:.2e} FLOPs {row['seconds']:7.1f} s")
    print_composition(ws)
    print_recall(ws)


def print_composition(ws: Workspace) -> None:
    for name in ("gsm8k", "bbh"):
        r = curate.select(ws, f"top_{name}", Top(), Choice(by=f"embed_{name}", frac=0.05))
        shares = ", ".join(f"{row['source']} {row['share']:.1%}" for row in r.by_source if row["selected"])
        print(f"\nthe 5 % nearest to {name}: {shares}")
        said = "coalesce(text, array_to_string(list_transform(messages, m -> m.content), ' | '))"
        for order in ("DESC", "ASC"):
            rows = curate.sql(
                ws,
                f"""SELECT round(embed_{name}, 3) AS score, source, meta->>'task' AS task, {said} AS said FROM samples
                WHERE embed_{name} IS NOT NULL ORDER BY embed_{name} {order}, id LIMIT 10""",
            )
            print("  the ten best" if order == "DESC" else "  the ten worst")
            for row in rows:
                print(f"    {row['score']:6.3f}  {row['source']:20} {' '.join(row['said'].split())[:90]}")


def print_recall(ws: Workspace) -> None:
    vectors = np.concatenate([unit for _, unit in index._blocks(ws, "embed")])
    asked = vectors[:: max(1, len(vectors) // 500)]
    want = index.nearest_exactly(ws, "embed", asked, 10)[0]
    for up_to in (vector_index.EXACT_UP_TO, 1000):
        vector_index.EXACT_UP_TO = up_to
        index.index_path(ws, "embed").with_suffix(".json").unlink()
        start = time.perf_counter()
        made = index.ensure_index(ws, "embed")
        built = time.perf_counter() - start
        found = index.search(ws, "embed", asked, 10)[0]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)])
        print(f"{made}, built in {built:.1f} s: recall@10 of {len(asked)} vectors {recall:.3f}")


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary) / "ws")
