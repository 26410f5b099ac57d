"""curate: which samples to train a language model on, with what weight, and what it cost to find out.

Every verb of the command line is a function here, imported when first used so that `import curate` is quick:

    import curate
    ws = curate.open_workspace("ws")
    curate.ingest(ws, ["pool.jsonl"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = {
    "open_workspace": "curate.workspace",
    "find": "curate.method",
    "methods": "curate.method",
    "ingest": "curate.stages.ingest",
    "target": "curate.stages.target",
    "score": "curate.stages.score",
    "sql": "curate.stages.sql",
    "neighbors": "curate.stages.neighbors",
    "explain": "curate.stages.explain",
    "status": "curate.stages.status",
    "ledger": "curate.stages.status",
    "verify": "curate.stages.verify",
    "drop": "curate.stages.drop",
    "select": "curate.stages.select",
    "replay": "curate.stages.select",
    "weigh": "curate.stages.weigh",
    "mix": "curate.stages.mix",
    "mask": "curate.stages.mask",
    "train": "curate.stages.train",
    "prune": "curate.stages.prune",
    "compare": "curate.stages.compare",
    "audit": "curate.stages.audit",
    "evaluate": "curate.stages.evaluate",
    "report": "curate.stages.report",
    "export": "curate.stages.export",
    "preview": "curate.stages.export",
}

if TYPE_CHECKING:
    from curate.method import find as find
    from curate.method import methods as methods
    from curate.stages.audit import audit as audit
    from curate.stages.compare import compare as compare
    from curate.stages.drop import drop as drop
    from curate.stages.evaluate import evaluate as evaluate
    from curate.stages.explain import explain as explain
    from curate.stages.export import export as export
    from curate.stages.export import preview as preview
    from curate.stages.ingest import ingest as ingest
    from curate.stages.mask import mask as mask
    from curate.stages.mix import mix as mix
    from curate.stages.neighbors import neighbors as neighbors
    from curate.stages.prune import prune as prune
    from curate.stages.report import report as report
    from curate.stages.score import score as score
    from curate.stages.select import replay as replay
    from curate.stages.select import select as select
    from curate.stages.sql import sql as sql
    from curate.stages.status import ledger as ledger
    from curate.stages.status import status as status
    from curate.stages.target import target as target
    from curate.stages.train import train as train
    from curate.stages.verify import verify as verify
    from curate.stages.weigh import weigh as weigh
    from curate.workspace import open_workspace as open_workspace

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'curate' has no attribute '{name}'")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    return __all__
