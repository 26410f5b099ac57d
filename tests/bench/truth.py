"""Whether scores find what is known of the sample corpus. Prints the README's table.

python -m tests.bench.truth
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import curate
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.embed import Embed
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.ngram_classifier import NgramClassifier
from curate.methods.scores.nll import Nll
from curate.methods.selectors.semdedup import Semdedup
from curate.numerics.logistic import auroc
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.bench.timing import figure, machine
from tests.conftest import SAMPLE

NEAR = ("bm25", "ngram_classifier", "embed", "embed_lm")
SKILLS = ("arithmetic", "facts", "program", "strings", "table", "translation")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(Path(folder) / "ws")
        curate.ingest(ws, sorted(map(str, (SAMPLE / "pool").iterdir())))
        curate.score(ws, Nll(), EmbedLm(), models="tiny")
        for skill in SKILLS:
            curate.target(ws, f"t_{skill}", str(SAMPLE / f"targets/{skill}_val.jsonl"), subtask="subtask")
            curate.score(ws, Bm25(), NgramClassifier(), Embed(), EmbedLm(), target=f"t_{skill}", models="tiny")
        named = ", ".join(f"{method}_t_{skill}" for method in NEAR for skill in SKILLS)
        near = {}
        for name in ("embed", "embed_lm"):
            left = curate.select(
                ws, f"unlike_{name}", Semdedup(eps=0.05), SelectionSpec(top=ws.n_rows(), vectors=name)
            ).rows
            near[name] = (left, pairs(ws, f"unlike_{name}"), pairs(ws, "pool"))
        known = "meta->>'skill' AS skill, (meta->>'corrupt')::BOOLEAN AS corrupt, nll_nll AS nll"
        rows = curate.sql(ws, f"SELECT {known}, {named} FROM samples")
    skill, corrupt = np.array([r["skill"] for r in rows]), np.array([bool(r["corrupt"]) for r in rows])
    columns = {name: np.array([r[name] for r in rows], float) for name in rows[0] if name not in ("skill", "corrupt")}
    known, nll = skill != "chat", columns["nll"]
    machine("torch", "transformers", "polars", "numpy")
    print(f"| AUROC | {' | '.join(SKILLS)} | all |\n|---|{'---|' * (len(SKILLS) + 1)}")
    found = [auroc(nll[skill == s], corrupt[skill == s]) for s in SKILLS] + [auroc(nll[known], corrupt[known])]
    print(_line("`nll` for corrupt answers", found))
    for method in NEAR:
        found = [auroc(columns[f"{method}_t_{s}"], skill == s) for s in SKILLS]
        print(_line(f"`{method}` for the target's skill", [*found, float(np.mean(found))]))
    for name, (left, whole, all_) in near.items():
        what, note = f"semdedup on {name}: known near-duplicates that stay", f"{whole} of {all_}; {left} of 3000 stay"
        figure(what, whole / all_, "%", note=note)


def pairs(ws: Workspace, table: str) -> int:
    """Samples of a table that nearly repeat another sample of it."""
    those = f"(SELECT row FROM {table}) JOIN pool USING (row)"
    some = f"(SELECT meta->>'n' AS n, meta->>'near_duplicate_of' AS twin FROM {those})"
    return next(iter(curate.sql(ws, f"SELECT count(*) AS n FROM {some} a JOIN {some} b ON a.twin = b.n")))["n"]


def _line(what: str, values: list[float]) -> str:
    figure(f"AUROC: {what.replace('`', '')}, all", values[-1], "")
    return f"| {what} | {' | '.join(f'{value:.2f}' for value in values)} |"


if __name__ == "__main__":
    main()
