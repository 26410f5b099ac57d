"""Does a selector that wins today harm tomorrow? Selectors through stages of training, measured now and later.

    python pipelines/long_horizon.py smoke|cpu|overlap|few|gpu [NEW-FOLDER] [--only AUDIT]   (default: ./long-horizon)

smoke: two selectors, two stages. cpu: one sequence of three skills, at 25 % of each, on 6,400 samples of the corpus's
endless stream; and, on the corpus, the same with LHAS's weights varied one by one. overlap: the sequence whose myopic
selectors are known (data/make_overlap.py), with one adapter of rank 2 through all stages, and with one for each. few:
some 260 real samples of each stage of three sequences, with the small model. gpu: three sequences at 10, 25 and 50 %,
LoRA and all parameters, ten seeds; and real data with SmolLM2-135M. Each ends in the two-level scorecard, a page with
pictures, and a sentence that says whether the selectors are myopic here.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from equal_flops import with_threads  # pyright: ignore[reportMissingImports]
from presets import SAMPLE, SHARED, make_sample, narrow, real_targets, stream_file, young  # pyright: ignore[reportMissingImports]

import curate
from curate.methods.exports.jsonl import Jsonl
from curate.methods.selectors.top import Top
from curate.pages.audit import page, reading, rows
from curate.runs.audit_toml import plan_of
from curate.store.workspace import Workspace
from curate.text_table import table
from curate.verbs.select import SelectionSpec

PLANS = Path(__file__).parent / "plans"
SKILLS = {name: name for name in ("facts", "program", "strings", "arithmetic", "translation")}
SKILLS["tables"] = "table"  # `table` is a reserved word of SQL and cannot name a target
# Targets held out of the real pool by sample id, where there is no target of its own: name -> which samples.
HELD_OUT = {
    "p3": "source = 'p3'",
    "roleplay": "source = 'gpteacher_roleplay'",
    "reading": "regexp_matches(meta->>'task', '^(adversarial_qa|duorc|quoref|ropes|wiki_hop)')",
    "labelling": "regexp_matches(meta->>'task', '^(rotten|amazon|yelp|ag_news|imdb|trec|paws|glue)')",
    "writing": "regexp_matches(meta->>'task', '^(cnn|common_gen|multi_news|xsum|samsum|gigaword)')",
}
# The lowest id of each stage that leaves about 260 samples; ids are hashes, so these are a random subset.
FEW = {"p3": "fd", "gsm8k": "f7", "code": "f0", "roleplay": "d0", "labelling": "f5", "reading": "f4"}
REAL = ("real", "instruction_labels_code", "qa_reasoning")
SPLITS = {"val": "id < '10'", "test": "id >= '10' AND id < '20'"}


def sample(folder: Path) -> Workspace:
    """The sample corpus with all its targets."""
    return _skills(folder / "ws", sorted(str(path) for path in (SAMPLE / "pool").iterdir()))


def streamed(folder: Path) -> Workspace:
    """Enough samples of its endless stream for a quarter of a skill to teach something; the same targets."""
    return _skills(folder / "ws-stream", [str(stream_file(folder, 6_400))])


def _skills(folder: Path, files: list[str]) -> Workspace:
    ws = curate.open_workspace(folder)
    curate.ingest(ws, files)
    for name, file in SKILLS.items():
        for split in ("val", "test"):
            curate.target(ws, name, str(SAMPLE / f"targets/{file}_{split}.jsonl"), subtask="subtask", split=split)
    return ws


def real(folder: Path) -> Workspace:
    """The real pool; its targets, and those that are held out of it by their ids."""
    ws = curate.open_workspace(folder / "ws-real")
    curate.ingest(ws, sorted(str(path) for path in (SHARED / "pool").iterdir()))
    real_targets(ws)
    for split, file in (("val", "targets/code_val.jsonl"), ("test", "eval/code_test.jsonl")):
        curate.target(ws, "code", str(SHARED / file), split=split)
    present = {(row["target"], row["split"]) for row in curate.sql(ws, "SELECT DISTINCT target, split FROM targets")}
    for name, condition in HELD_OUT.items():
        for split, part in SPLITS.items():
            if (name, split) not in present:
                spec = SelectionSpec(by="-row", where=f"{condition} AND {part}", frac=1.0)
                curate.select(ws, "held_out", Top(), spec, fresh=True)
                with tempfile.TemporaryDirectory() as temporary:
                    files = curate.export(ws, "held_out", Jsonl(), f"{temporary}/out").files
                    curate.target(ws, name, files[0], split=split)
    return ws


def overlap(folder: Path, rows: int = 480) -> Workspace:
    """The towns of data/make_overlap.py, with the targets of its three stages."""
    make_sample()  # which it imports
    spec = importlib.util.spec_from_file_location("make_overlap", SAMPLE.parent / "make_overlap.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder / "towns", rows)
    ws = curate.open_workspace(folder / "ws-overlap")
    curate.ingest(ws, [str(folder / "towns/pool.jsonl")])
    for name in module.THINGS:
        for split in ("val", "test"):
            curate.target(ws, name, str(folder / f"towns/{name}_{split}.jsonl"), split=split)
    return ws


def told(name: str) -> dict[str, Any]:
    """A plan as its file has it."""
    return tomllib.loads((PLANS / f"{name}.toml").read_text(encoding="utf-8"))


def audits(preset: str, folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Which data, the audit's name, and its plan."""
    if preset == "smoke":
        base = str(narrow(folder).name)
        plan = {**told("skills"), "model": base, "selectors": ["random", "lhas"], "seeds": 1, "limit": 8}
        plan |= {"stage": plan["stage"][:2], "probe": {"steps": 2, "every": 1, "limit": 8}, "budget": {"top": 16}}
        yield "sample", "skills", {**plan, "train": {"steps": 2, "batch_size": 8, "lora_r": 4, "lr": 1e-3}}
        return
    if preset == "overlap":
        yield from [("overlap", f"overlap_{a}", {**told("overlap"), "adapter": a}) for a in ("carried", "fresh")]
        return
    base = str(young(folder).name)
    if preset == "few":
        for name in REAL:
            plan = {**told(name), "model": {"name": base, "device": "cpu", "context": 512}, "seeds": 2, "limit": 24}
            stages = [
                {**stage, "where": f"{stage['where']} AND id >= '{FEW[stage['name']]}'"} for stage in plan["stage"]
            ]
            train = {**plan["train"], "epochs": 2, "batch_size": 16, "lr": 1e-3}
            plan |= {"stage": stages, "train": train, "probe": {"steps": 10, "every": 5, "limit": 24}}
            yield "real", f"{name}_few", plan
        return
    if preset == "cpu":
        names = (("streamed", "skills"), ("sample", "lhas_weights"))
        yield from [(data, name, {**told(name), "model": {"name": base, "device": "cpu"}}) for data, name in names]
        return
    for sequence in ("skills", "domains", "interleaved"):
        for share in (0.1, 0.25, 0.5):
            for rank in (16, 0):
                plan = {**told(sequence), "model": base, "seeds": 10, "budget": {"frac": share}}
                plan["train"] = {**plan["train"], "lora_r": rank}
                yield "sample", f"{sequence}_{100 * share:.0f}_{'lora' if rank else 'all'}", plan
    for sequence in (*REAL, "p3_domains"):
        yield "real", sequence, told(sequence)


def audited(ws: str, name: str, plan: dict[str, Any], path: str) -> str:
    """Take the audit, write its page, and return its scorecard in words."""
    started = time.monotonic()
    found = curate.audit(ws, name, plan_of(plan))
    assert found.card is not None
    told = [f"{name}: {', '.join(plan['selectors'])}; {plan['seeds']} seeds, {plan['budget']}."]
    for level in ("now", "later"):
        table_rows = rows(found.card, level)
        told.append(f"\n{level.capitalize()}:\n{table(table_rows, {key: key for key in table_rows[0]})}")
    told.append("\n" + "\n".join([*reading(found.card), *found.warnings]))
    Path(path).write_text(page(found.card, f"Long horizon: {name}"), encoding="utf-8")
    return "\n".join([*told, f"\nThe page is {path}; {time.monotonic() - started:.0f} s.\n"])


def main(preset: str, folder: Path, only: str | None = None, workers: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    open_data, opened = (
        {"sample": sample, "streamed": streamed, "real": real, "overlap": overlap},
        dict[str, Workspace](),
    )
    planned = list(audits(preset, folder))
    if only and only not in {name for _, name, _ in planned}:
        raise SystemExit(f"{preset} has no audit '{only}'; it has {', '.join(name for _, name, _ in planned)}.")
    taken = planned if not only else [each for each in planned if each[1] == only]
    for data, _, _ in taken:
        if data not in opened:
            opened[data] = open_data[data](folder)
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(taken))
    with ProcessPoolExecutor(workers, context, initializer=with_threads, initargs=(workers,)) as pool:
        results = [
            pool.submit(audited, str(opened[data].path), name, plan, str(folder / f"{name}.html"))
            for data, name, plan in taken
        ]
        for result in results:
            print(result.result(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", choices=("smoke", "cpu", "overlap", "few", "gpu"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("long-horizon"))
    parser.add_argument("--only", metavar="AUDIT", help="one of the preset's audits, by its name")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="audits at the same time")
    arguments = parser.parse_args()
    main(arguments.preset, arguments.folder, arguments.only, arguments.workers)
