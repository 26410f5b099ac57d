"""The main job step by step: files in, a score for every sample, a selection, a trainer's files out.

    python pipelines/select_with_bm25.py [NEW-FOLDER]        (default: ./demo, made anew each time)

It runs on the sample corpus under data/, whose truth is known, so the last step can say how good the choice was.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import curate
from curate.methods.exports.trl import Trl
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.scores.nll import Nll
from curate.methods.scores.repetition import Repetition
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.verbs.select import SelectionSpec

DATA = Path(__file__).parent.parent / "data" / "sample"


def main(folder: Path) -> None:
    ws = curate.open_workspace(folder / "ws")

    print("1. The pool: four domains, each in an input format of its own.")
    pool = sorted(str(path) for path in (DATA / "pool").iterdir())
    result = curate.ingest(ws, pool)
    print(
        f"   {result.read:,} rows read, {result.added:,} samples, {result.rejected} rejected; formats: {result.formats}"
    )

    print("\n2. The target: what we want the model to learn, as 24 worked examples.")
    targeted = curate.target(ws, "arithmetic", str(DATA / "targets" / "arithmetic_val.jsonl"), subtask="subtask")
    print(f"   {targeted.rows['val']} examples in {len(targeted.subtasks)} sub-tasks: {', '.join(targeted.subtasks)}")

    print(
        "\n3. Four scores for every sample, as columns that SQL reads; nll is a language model's, the one in data/tiny."
    )
    for scored in curate.score(ws, Bm25(), Length(), Repetition(), Nll(), target="arithmetic", models="tiny"):
        print(f"   {scored.name}: {scored.rows:,} samples")

    print("\n4. The selection: the best tenth by relevance of what neither repeats itself nor surprises the model.\n")
    spec = SelectionSpec(by="bm25_arithmetic", where="repetition >= -1 AND nll > -1", frac=0.10)
    selected = curate.select(ws, "best", Top(), spec)
    print("   domain      selected  of candidates   share")
    for row in selected.by_source:
        print(f"   {row['source']:10} {row['selected']:9,} {row['candidates']:14,} {row['share']:7.1%}")
    print(f"   {'all':10} {selected.rows:9,} {selected.candidates:14,}   (about {selected.tokens:,.0f} tokens)")

    print("\n5. Was it right? The sample corpus knows each sample's skill and which answers are corrupt.")
    curate.select(ws, "relevant", Top(), SelectionSpec(by="bm25_arithmetic", top=selected.rows))
    curate.select(ws, "chance", Random(), SelectionSpec(top=selected.rows))
    for name in ("best", "relevant", "chance"):
        query = f"""SELECT avg((meta->>'skill' = 'arithmetic')::INT) AS skill,
            avg((meta->>'corrupt' = 'true')::INT) AS bad FROM {name} JOIN pool USING (row)"""
        (truth,) = curate.sql(ws, query)
        print(f"   {name:8} {truth['skill']:6.1%} teach arithmetic, {truth['bad']:5.1%} have a corrupt answer")
    print("   BM25 alone (relevant) finds the topic; it does not see whether an answer is right, and nll does.")

    print("\n6. The export, as TRL's SFTTrainer will read it. One row of it:\n")
    print("   " + json.dumps(curate.preview(ws, "best", Trl(), 1)[0], ensure_ascii=False))
    exported = curate.export(ws, "best", Trl(), str(folder / "trl"))
    print(f"\n   {exported.rows:,} rows for {exported.format}: {', '.join(exported.files)}")
    seconds, flops = (sum(row[column] for row in curate.ledger(ws)) for column in ("seconds", "flops"))
    print(f"   It took {seconds:.1f} s of work and {flops:.1e} FLOPs; the workspace {ws.path} is yours to query:")
    command = os.path.relpath(Path(sys.executable).with_name("curate"))
    print(f'   {command} sql -w {ws.path} "SELECT source, avg(bm25_arithmetic) FROM samples GROUP BY source"')


if __name__ == "__main__":
    if len(sys.argv) == 1:
        shutil.rmtree("demo", ignore_errors=True)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
