"""What `--dry-run` says against what the ledger then has: FLOPs of jobs on the embedded sample, and their seconds.

    python -m tests.bench.dry_run [MODEL [JOB…]]        default: tiny, and all jobs

Every job runs in a workspace of its own, first dry and then wet. Its FLOPs are those of every row that the job left in
the ledger, its bytes those of the tables and checkpoints. Then its results are removed and it is foreseen once more,
now that the ledger has its rates: the seconds. A ratio is what was foreseen over what was. Ends with status 1 if FLOPs
are off by more than a tenth.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import curate
from curate.kinds.score import Score
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.davir import Davir
from curate.methods.scores.el2n import El2n
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.ifd import Ifd
from curate.methods.scores.length import Length
from curate.methods.scores.less import Less
from curate.methods.scores.near_dup import NearDup
from curate.methods.scores.nll import Nll
from curate.methods.weightings.uniform import Uniform
from curate.runs.config import TrainingSpec
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from tests.bench.timing import machine, told
from tests.conftest import SAMPLE

TRAININGS = {
    "train 20 steps": TrainSettings(steps=20, batch_size=16),
    "train LoRA": TrainSettings(epochs=0.2, batch_size=16, micro_batch_size=8, lora_r=8),
}


def main() -> None:
    model, wanted = ([*sys.argv[1:], "tiny"])[0], sys.argv[2:]
    scores: list[tuple[Score, ...]] = [
        (Length(),), (Bm25(),), (NearDup(),), (Nll(),), (Ifd(),), (El2n(),), (Nll(), El2n()), (EmbedLm(),), (Davir(),),
        (Graddot(),), (Gradnorm(),), (Less(warmup=0.05, epochs=2, batch_size=16, lora_r=8, lora_alpha=16, dim=512),),
    ]  # fmt: skip
    machine("torch", "transformers")
    print(f"{'job':18}{'FLOPs foreseen':>16}{'in the ledger':>16}{'ratio':>8}{'seconds':>10}{'bytes':>8}")
    worst = 1.0
    jobs = {"+".join(method.name for method in methods): partial(of_scores, methods, model) for methods in scores}
    jobs |= {name: partial(of_training, settings, model) for name, settings in TRAININGS.items()}
    for name, compared in jobs.items():
        if not wanted or name in wanted:
            worst = max(worst, shown(name, *compared()))
    told("FLOPs foreseen / in the ledger, the farthest of all jobs", [worst] * 3, "<= 1.1x", worst <= 1.1)
    sys.exit(worst > 1.1)


def shown(name: str, dry: dict[str, float], wet: dict[str, float]) -> float:
    """Print a line; returns how far the FLOPs are off, as a ratio of at least 1."""
    ratios = {key: dry[key] / wet[key] if wet[key] else float(dry[key] == 0) for key in ("flops", "seconds", "bytes")}
    figures = f"{dry['flops']:16.4g}{wet['flops']:16.4g}{ratios['flops']:8.3f}"
    print(f"{name:18}{figures}{ratios['seconds']:10.2f}{ratios['bytes']:8.2f}", flush=True)
    return max(ratios["flops"], 1 / ratios["flops"]) if ratios["flops"] else float("inf")


def of_scores(methods: tuple[Score, ...], model: str) -> tuple[dict[str, float], dict[str, float]]:
    """What scores would cost, and what they did."""

    def run(ws: Workspace, **options: Any) -> Any:
        target = "arithmetic" if any(method.uses_target for method in methods) else None
        roles = dict.fromkeys([role for method in methods for role in method.models], curate.ModelChoice(model))
        if "reference" in roles:  # of its own, so that there are two passes
            roles["reference"] = curate.ModelChoice(model, batch_tokens=1_024)
        return curate.score(ws, *methods, target=target, models=roles, **options)

    def planned(ws: Workspace) -> list[dict[str, Any]]:
        results = run(ws, dry_run=True)
        return [row for r in results for part in (r.vectors, r) if part for row in part.planned]

    return of_job(run, planned)


def of_training(settings: TrainSettings, model: str) -> tuple[dict[str, float], dict[str, float]]:
    """What a training would cost, and what it did."""
    training = TrainingSpec(curate.ModelChoice(model), Uniform(), settings)

    def planned(ws: Workspace) -> list[dict[str, Any]]:
        return [curate.train(ws, "r", training, dry_run=True).planned or {}]

    return of_job(lambda ws: curate.train(ws, "r", training), planned)


def of_job(
    run: Callable[[Workspace], Any], planned: Callable[[Workspace], list[dict[str, Any]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Foreseen, done, and foreseen again in a new workspace."""
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(Path(folder) / "ws")
        curate.ingest(ws, sorted(str(path) for path in (SAMPLE / "pool").iterdir()))
        curate.target(ws, "arithmetic", str(SAMPLE / "targets/arithmetic_val.jsonl"), subtask="subtask")
        before = len(list(curate.sql(ws, "SELECT * FROM ledger")))
        rows = planned(ws)
        run(ws)
        spent = list(curate.sql(ws, 'SELECT coalesce(flops, 0) AS flops, seconds FROM ledger ORDER BY "at"'))[before:]
        tables = [*(ws.path / "scores").rglob("*.parquet"), *(ws.path / "vectors").rglob("*.parquet")]
        tables += [*ws.path.rglob("model.safetensors"), *ws.path.rglob("adapter_model.safetensors")]
        tables += [*ws.path.rglob("optimizer.safetensors")]
        sizes = sum(path.stat().st_size for path in tables)
        for made in ("scores", "vectors", "prepared", "runs"):  # the ledger is left, and so the rates
            shutil.rmtree(ws.path / made, ignore_errors=True)
        again = planned(ws)
        dry = {key: sum(row[key] or 0 for row in rows) for key in ("flops", "bytes")}
        return (
            {**dry, "seconds": sum(row["seconds"] or 0 for row in again)},
            {**{key: sum(row[key] for row in spent) for key in ("flops", "seconds")},
             "bytes": sizes},
        )  # fmt: skip


if __name__ == "__main__":
    main()
