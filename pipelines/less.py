"""LESS step by step: a warm-up, features of all samples, two targets, an explained score, a selection, its export.

    python pipelines/less.py smoke|cpu|few|gpu [NEW-FOLDER] [--model MODEL]      (default: ./less)

smoke and cpu run on the sample corpus, whose truth is known, so they can say how good the choice was; few and gpu on
real data with SmolLM2-135M, 400 samples of it or all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from presets import FEW, PRESETS, SAMPLE, SKILLS, WHOLE, Preset  # pyright: ignore[reportMissingImports]
from scipy.stats import mannwhitneyu

import curate
from curate.methods.exports.trl import Trl
from curate.methods.scores.bm25 import Bm25
from curate.methods.selectors.top import Top
from curate.models.choice import ModelChoice
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec


def costs(ws: Workspace, since: int) -> list[dict[str, Any]]:
    """Prints and returns the ledger's rows after the first `since`, by phase."""
    rows = curate.sql(ws, 'SELECT name, phase, samples, tokens, flops, seconds FROM ledger ORDER BY "at"')[since:]
    for row in rows:
        print(
            f"   {row['name']:18} {row['phase']:11} {row['samples']:7,} samples {row['tokens'] or 0:10,} tokens "
            f"{row['flops']:9.1e} FLOPs {row['seconds']:7.1f} s"
        )
    return rows


def seconds_per_token(rows: list[dict[str, Any]]) -> float:
    """Of gradients and their projection, without the warm-up and the product."""
    seconds = sum(row["seconds"] for row in rows if row["phase"] in ("forward", "backward", "projection"))
    return seconds / sum(row["tokens"] for row in rows if row["phase"] == "forward")


def truth(ws: Workspace, preset: Preset, model: ModelChoice) -> None:
    """How well LESS, and BM25 for comparison, recover the sample corpus's ground truth, for each of its skills."""
    heads = ("in best", "skill", "clean")
    print(f"   {'':12}" + "".join(f"{f'{method}: {head}':>15}" for method in ("less", "bm25") for head in heads))
    for skill in SKILLS:
        target_name = f"known_{skill}"
        curate.target(ws, target_name, str(SAMPLE / f"targets/{skill}_val.jsonl"), subtask="subtask")
        curate.score(ws, preset.less, Bm25(), target=target_name, models=model)
        columns = f"meta->>'skill' = '{skill}' AS mine, NOT (meta->>'corrupt')::BOOLEAN AS clean"
        rows = curate.sql(
            ws, f"SELECT {columns}, less_{target_name} AS less, bm25_{target_name} AS bm25 FROM samples ORDER BY row"
        )
        match, clean = (np.array([bool(r[name]) for r in rows]) for name in ("mine", "clean"))
        row = ""
        for method in ("less", "bm25"):
            value = np.array([np.nan if r[method] is None else r[method] for r in rows], float)
            best = np.argsort(-value)[: int(len(rows) * preset.budgets[0])]  # missing values go last
            row += f"{match[best].mean():15.0%}{auroc(value, match):15.2f}{auroc(value[match], clean[match]):15.2f}"
        print(f"   {skill:12}{row}")


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has the higher value; ties count half, and missing values are ignored."""
    present = ~np.isnan(values)
    positives, negatives = values[positive & present], values[~positive & present]
    return (
        mannwhitneyu(positives, negatives).statistic / (len(positives) * len(negatives))
        if len(positives) and len(negatives)
        else np.nan
    )


def composition(ws: Workspace, target: str, share: float) -> None:
    """Which sources the best by LESS come from, for the target and for each of its sub-tasks."""
    best = f"row_number() OVER (PARTITION BY part ORDER BY value DESC) <= (SELECT count(*) * {share} FROM pool)"
    query = f"""WITH valued AS (
            SELECT source, '' AS part, less_{target} AS value FROM samples WHERE less_{target} IS NOT NULL
            UNION ALL SELECT source, e.key, e.value FROM
                (SELECT source, unnest(map_entries(less_{target}_subtasks)) AS e FROM samples)),
        best AS (SELECT * FROM valued QUALIFY {best})
        SELECT part, string_agg(source || ' ' || n, ', ' ORDER BY n DESC, source) AS made_of
        FROM (SELECT part, source, count(*) AS n FROM best GROUP BY ALL) GROUP BY part ORDER BY part"""
    for row in curate.sql(ws, query):
        print(f"   {target}{row['part'] and ', '}{row['part'] or ''}: {row['made_of']}")


def main(preset: Preset, folder: Path, named: str | None = None) -> None:
    model = ModelChoice(named, context=preset.context) if named else preset.base(folder)
    ws = curate.open_workspace(folder / "ws")
    preset.data(ws)
    first, second = preset.pairs[0]
    n_entries = len(curate.ledger(ws))

    print(f"1. A warm-up on {preset.less.warmup:.0%} of the pool; then every sample's feature, at each checkpoint.")
    (scored,) = curate.score(ws, preset.less, target=first, models=model)
    print(f"   {scored.name}: {scored.rows:,} samples, {scored.nulls:,} of them without a score")
    first_costs = costs(ws, n_entries)

    print(f"\n2. A second target, {second}: its own gradients, and a product.")
    curate.score(ws, preset.less, target=second, models=model)
    second_costs = costs(ws, n_entries + len(first_costs))
    if first_costs and second_costs:  # otherwise both had been computed before
        share = seconds_per_token(second_costs) / seconds_per_token(first_costs)
        print(f"   Its gradients take {share:.2f} times as long per token as those of the first pass.")

    print(f"\n3. What the best {preset.budgets[0]:.0%} are.")
    for target in (first, second):
        composition(ws, target, preset.budgets[0])
    if preset.pairs[0] == ("facts", "translation"):
        print(
            "   What is known, for each skill as a target: its share in the best; AUROC of its samples before\n"
            "   others, and of its clean answers before corrupt ones."
        )
        truth(ws, preset, model)

    (best,) = curate.sql(ws, f"SELECT id FROM samples ORDER BY less_{second} DESC NULLS LAST LIMIT 1")
    explained = curate.explain(ws, best["id"], f"less_{second}", k=2)
    print(f"\n4. Why is this the best for {second}?\n   {' '.join(explained.text.split())[:100]}")
    for title, examples in (("most like it", explained.for_it), ("least", explained.against_it)):
        for example in examples:
            words = " ".join(example["text"].split())[:80]
            print(f"   {title:12} {example['similarity']:+.3f} {example['subtask']:10} {words}")

    print("\n5. The selection, as TRL's SFTTrainer will read it.")
    selected = curate.select(ws, f"less_best_{first}", Top(), SelectionSpec(by=f"less_{first}", frac=preset.budgets[0]))
    exported = curate.export(ws, f"less_best_{first}", Trl(), str(folder / "trl"))
    print(f"   {selected.rows:,} of {selected.candidates:,}: {', '.join(exported.files)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    presets = PRESETS | {"smoke": WHOLE, "few": FEW}
    parser.add_argument("preset", choices=presets)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("less"))
    parser.add_argument("--model", help="another model than the preset's: a folder, a .gguf file, a hub id")
    arguments = parser.parse_args()
    main(presets[arguments.preset], arguments.folder, arguments.model)
