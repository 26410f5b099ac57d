"""Whether scores find what is known of the sample corpus. Prints the README's table.

python -m tests.bench.truth
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

import curate
from curate.scores.nll import Nll
from tests.conftest import SAMPLE


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has the higher value; ties count half."""
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(values)[positive].sum() - n * (n + 1) / 2) / (n * m))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ws = curate.open_workspace(Path(folder) / "ws")
        curate.ingest(ws, sorted(map(str, (SAMPLE / "pool").iterdir())))
        curate.score(ws, Nll(), models="tiny")
        rows = curate.sql(
            ws,
            "SELECT meta->>'skill' AS skill, (meta->>'corrupt')::BOOLEAN AS corrupt, nll_nll AS nll FROM samples "
            "WHERE skill <> 'chat'",
        )
    skill, corrupt = np.array([r["skill"] for r in rows]), np.array([r["corrupt"] for r in rows])
    nll = np.array([r["nll"] for r in rows])
    found = {s: auroc(nll[skill == s], corrupt[skill == s]) for s in sorted(set(skill))}
    found["all"] = auroc(nll, corrupt)
    print("AUROC of nll under the tiny model for corrupt answers")
    print(f"| {' | '.join(found)} |\n| {' | '.join(f'{value:.2f}' for value in found.values())} |")


if __name__ == "__main__":
    main()
