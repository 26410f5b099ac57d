"""How long work takes on this machine, told from what the ledger has of earlier work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curate.store.ledger_files import read_entries
from curate.store.workspace import Workspace


class RecordedRates:
    """The rates of work that a workspace's ledger has: of the same methods and model first, else of the same model,
    else of anything on the same device."""

    def __init__(self, ws: Workspace):
        entries = read_entries(ws.path).table.to_pylist()  # some may be lost: rates of the others do
        self._rows = [{**row, "flops": row["flops"] or 0.0} for row in entries if (row["seconds"] or 0) > 0]

    def seconds(self, methods: Sequence[str], model: str, phases: Sequence[str], row: dict[str, Any]) -> float | None:
        """The seconds of a planned piece of work, with its `rows`, `flops` and `device`; None if nothing is recorded.
        Work without FLOPs goes by its samples, which only the same method tells."""
        if not row["rows"] and not row["flops"]:
            return 0.0
        here = [r for r in self._rows if r["device"] == row["device"]]
        same = [r for r in here if set(methods) & set(r["methods"]) and r["phase"] in phases]
        if not row["flops"]:
            return _by(same, "samples", row["rows"])
        modelled = [r for r in here if r["model"] == model]
        for rows in ([r for r in modelled if r in same], modelled, here):
            if (found := _by([r for r in rows if r["flops"]], "flops", row["flops"])) is not None:
                return found
        return None


def _by(rows: Sequence[dict[str, Any]], column: str, amount: float) -> float | None:
    """The time for an amount at the mean rate of the rows."""
    done = sum(row[column] for row in rows)
    return amount * sum(row["seconds"] for row in rows) / done if done else None
