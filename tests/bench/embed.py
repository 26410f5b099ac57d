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
from curate.kinds.vectors import Vectors
from curate.methods.scores.embed import Embed
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice, resolve
from curate.models.forward import score_samples
from curate.models.sentence_encoder import SentenceEncoder
from curate.numerics import faiss_index
from curate.store.workspace import Workspace
from curate.tables import index
from curate.verbs.select import SelectionSpec
from tests.bench.forward import real
from tests.bench.timing import figure, machine, ratio, told
from tests.conftest import SHARED


def main(folder: Path) -> None:
    ws = curate.open_workspace(folder)
    curate.ingest(ws, sorted(map(str, (SHARED / "pool").iterdir())))
    for name in ("gsm8k", "bbh"):
        curate.target(ws, name, str(SHARED / f"targets/{name}_val.jsonl"), subtask="subtask" if name == "bbh" else None)
    for name in ("gsm8k", "bbh"):
        start = time.perf_counter()
        (r,) = curate.score(ws, Embed(), target=name)
        assert r.vectors is not None
        spent = time.perf_counter() - start
        done = f"{r.vectors.computed:,} samples encoded now, {r.computed:,} scored; {r.vectors.index}"
        figure(f"{name}: encoded and scored", spent, "s", note=done)
    for row in curate.ledger(ws):
        if row["stage"] in ("score", "index"):
            what = f"{row['name']:14} {row['phase']:8} {row['samples']:7,} samples"
            print(f"  {what} {row['flops']:.2e} FLOPs {row['seconds']:7.1f} s")
    print_composition(ws)
    print_recall(ws)


def beside_sentence_transformers() -> None:
    """500 real samples, as sentence-transformers encodes them by default and as curate does."""
    machine("torch", "transformers", "sentence-transformers", "faiss-cpu")
    from sentence_transformers import SentenceTransformer

    peer, model = SentenceTransformer(str(resolve("minilm")), device="cpu"), SentenceEncoder(ModelChoice("minilm"))
    samples = real(500)
    texts = ["\n".join(m["content"] for m in s["messages"]) for s in samples]
    step = {"x": Embed().vectors()}

    def ours() -> np.ndarray:
        return Vectors.of(score_samples({"encoder": model}, samples, step)[0]["x"]["vector"]).unit

    def theirs() -> np.ndarray:
        return peer.encode(texts, show_progress_bar=False)

    off = np.abs(ours() - theirs()).max()
    found = ratio(theirs, ours, pairs=3)
    what, apart = "500 samples: encode of sentence-transformers / embed", f"they differ by {off:.0e}"
    told(what, found, ">= 1x", found[0] >= 1, apart)


def print_composition(ws: Workspace) -> None:
    for name in ("gsm8k", "bbh"):
        r = curate.select(ws, f"top_{name}", Top(), SelectionSpec(by=f"embed_{name}", frac=0.05))
        shares = ", ".join(f"{row['source']} {row['share']:.1%}" for row in r.by_source if row["selected"])
        print(f"\nthe 5 % nearest to {name}: {shares}")
        said = "coalesce(text, array_to_string(list_transform(messages, lambda m: m.content), ' | '))"
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
    for kind, up_to in (("as it is made", faiss_index.EXACT_UP_TO), ("in inverted lists", 1000)):
        faiss_index.EXACT_UP_TO = up_to
        index.index_path(ws, "embed").with_suffix(".json").unlink()
        start = time.perf_counter()
        made = index.ensure_index(ws, "embed")
        built = time.perf_counter() - start
        found = index.search(ws, "embed", asked, 10)[0]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)])
        figure(f"recall of the 10 nearest, an index {kind}", float(recall), "", note=f"{made}; {len(asked)} asked")
        figure(f"building an index {kind}", built, "s")


if __name__ == "__main__":
    beside_sentence_transformers()
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary) / "ws")
