"""Vectors step by step: encoded once, they serve every target, find similar samples, and select by similarity.

    python pipelines/select_with_vectors.py [NEW-FOLDER]        (default: ./demo-vectors, made anew each time)

It runs on the sample corpus with the hidden states of the tiny model, so it needs no network; with data and models of
your own take a larger model for embed_lm, or a sentence encoder: curate.methods.scores.embed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import curate
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.selectors.facility import Facility
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.kmeans_quota import KmeansQuota
from curate.methods.selectors.round_robin import RoundRobin
from curate.methods.selectors.semdedup import Semdedup
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec

DATA = Path(__file__).parent.parent / "data" / "sample"


def main(folder: Path) -> None:
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, sorted(str(path) for path in (DATA / "pool").iterdir()))
    for name in ("arithmetic", "facts"):
        curate.target(ws, name, str(DATA / "targets" / f"{name}_val.jsonl"), subtask="subtask")

    print("1. One pass over the pool makes the vectors; each target then costs its own examples and a product.")
    for name in ("arithmetic", "facts"):
        (scored,) = curate.score(ws, EmbedLm(), target=name, models="tiny")
        assert scored.vectors is not None
        print(f"   {scored.name}: {scored.vectors.computed:,} samples encoded, {scored.computed:,} scored")

    (first,) = curate.sql(
        ws, "SELECT id, messages[1].content AS said FROM samples ORDER BY embed_lm_facts DESC LIMIT 1"
    )
    print(f'\n2. What is similar to "{first["said"]}"? From the index stored beside the vectors:')
    for neighbor in curate.neighbors(ws, "embed_lm", sample_id=first["id"], k=3).found:
        print(f"   {neighbor['similarity']:.2f}  {neighbor['source']:9} {' '.join(neighbor['text'].split())[:80]}")

    print("\n3. RDS+: every example of the target takes its nearest samples in turn.")
    by_turns = SelectionSpec(top=200, vectors="embed_lm", target="arithmetic")
    curate.select(ws, "nearest", RoundRobin(), by_turns)
    print(f"   {share(ws, 'nearest', 'skill', 'arithmetic'):.0%} of them teach arithmetic")

    print("\n4. Near-duplicates: of those with a cosine above 0.99, the one farthest from its cluster's centre stays.")
    without = curate.select(ws, "unlike", Semdedup(eps=0.01), SelectionSpec(top=ws.n_rows(), vectors="embed_lm"))
    (n_all, n_left) = (near_repeats(ws, table) for table in ("(SELECT row FROM pool)", "unlike"))
    print(
        f"   {without.rows:,} of {ws.n_rows():,} stay; of {n_all} known pairs of near-repeats {n_left} are still whole."
    )
    print("   So small a model hardly tells them from others; a sentence encoder does: python -m tests.bench.truth")

    print("\n5. Three ways to be diverse, 200 samples each; how many of the six skills and the chat they show:")
    for selector in (Kcenter(), Facility(), KmeansQuota()):
        curate.select(ws, selector.name, selector, SelectionSpec(top=200, vectors="embed_lm"))
        rows = f"SELECT meta->>'skill' AS s FROM {selector.name} JOIN pool USING (row)"
        query = f"SELECT s, count(*) AS n FROM ({rows}) GROUP BY s ORDER BY s"
        skills = ", ".join(f"{row['s']} {row['n']}" for row in curate.sql(ws, query))
        print(f"   {selector.name:13} {skills}")


def near_repeats(ws: Workspace, table: str) -> int:
    """How many samples of a table nearly repeat another sample of it, as the corpus knows."""
    subquery = f"(SELECT meta->>'n' AS n, meta->>'near_duplicate_of' AS of FROM {table} JOIN pool USING (row))"
    return next(iter(curate.sql(ws, f"SELECT count(*) AS n FROM {subquery} a JOIN {subquery} b ON a.of = b.n")))["n"]


def share(ws: Workspace, manifest: str, field: str, value: str) -> float:
    """The share of a manifest's samples whose field in `meta` has a value."""
    query = f"SELECT avg((meta->>'{field}' = '{value}')::INT) AS share FROM {manifest} JOIN pool USING (row)"
    return next(iter(curate.sql(ws, query)))["share"]


if __name__ == "__main__":
    if len(sys.argv) == 1:
        shutil.rmtree("demo-vectors", ignore_errors=True)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-vectors"))
