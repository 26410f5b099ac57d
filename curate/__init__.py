"""curate: which samples to train a language model on, with what weight, and what it cost to find out.

Every verb of the command line is a function here, imported when first used so that `import curate` is quick:

    import curate
    curate.ingest("ws", "pool.jsonl")
    curate.score("ws", "length")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "__version__": "curate.store.workspace",
    "open_workspace": "curate.store.workspace",
    "method": "curate.arguments.methods",
    "find": "curate.kinds.registry",
    "list_methods": "curate.kinds.registry",
    "ingest": "curate.verbs.ingest",
    "target": "curate.verbs.target",
    "score": "curate.verbs.score",
    "attach": "curate.verbs.attach",
    "sql": "curate.verbs.sql",
    "neighbors": "curate.verbs.neighbors",
    "explain": "curate.verbs.explain",
    "show": "curate.verbs.show",
    "head": "curate.verbs.head",
    "diff": "curate.verbs.diff",
    "explore": "curate.web.explore",
    "status": "curate.verbs.status",
    "ledger": "curate.verbs.status",
    "verify": "curate.verbs.verify",
    "drop": "curate.verbs.drop",
    "doctor": "curate.verbs.doctor",
    "select": "curate.verbs.select",
    "replay": "curate.verbs.replay",
    "weigh": "curate.verbs.weigh",
    "mix": "curate.verbs.mix",
    "mask": "curate.verbs.mask",
    "train": "curate.verbs.train",
    "prune": "curate.verbs.prune",
    "compare": "curate.verbs.compare",
    "audit": "curate.verbs.audit",
    "trial": "curate.verbs.trial",
    "foretell": "curate.verbs.foretell",
    "combine": "curate.verbs.combine",
    "evaluate": "curate.verbs.evaluate",
    "report": "curate.verbs.report",
    "export": "curate.verbs.export",
    "preview": "curate.verbs.export",
    "CurateError": "curate.errors",
    "DamagedError": "curate.errors",
    "WorkspaceBusy": "curate.errors",
    "InputLimits": "curate.store.input_limits",
    "ModelChoice": "curate.models.choice",
    "SelectionSpec": "curate.verbs.select",
    "MixtureSpec": "curate.verbs.mix",
    "TrainingSpec": "curate.runs.config",
    "TrainSettings": "curate.training.settings",
    "EvalSpec": "curate.runs.evaluation",
}

if TYPE_CHECKING:
    from curate.arguments.methods import method as method
    from curate.errors import CurateError as CurateError
    from curate.errors import DamagedError as DamagedError
    from curate.errors import WorkspaceBusy as WorkspaceBusy
    from curate.kinds.registry import find as find
    from curate.kinds.registry import list_methods as list_methods
    from curate.models.choice import ModelChoice as ModelChoice
    from curate.runs.config import TrainingSpec as TrainingSpec
    from curate.runs.evaluation import EvalSpec as EvalSpec
    from curate.store.input_limits import InputLimits as InputLimits
    from curate.store.workspace import __version__ as __version__
    from curate.store.workspace import open_workspace as open_workspace
    from curate.training.settings import TrainSettings as TrainSettings
    from curate.verbs.attach import attach as attach
    from curate.verbs.audit import audit as audit
    from curate.verbs.combine import combine as combine
    from curate.verbs.compare import compare as compare
    from curate.verbs.diff import diff as diff
    from curate.verbs.doctor import doctor as doctor
    from curate.verbs.drop import drop as drop
    from curate.verbs.evaluate import evaluate as evaluate
    from curate.verbs.explain import explain as explain
    from curate.verbs.export import export as export
    from curate.verbs.export import preview as preview
    from curate.verbs.foretell import foretell as foretell
    from curate.verbs.head import head as head
    from curate.verbs.ingest import ingest as ingest
    from curate.verbs.mask import mask as mask
    from curate.verbs.mix import MixtureSpec as MixtureSpec
    from curate.verbs.mix import mix as mix
    from curate.verbs.neighbors import neighbors as neighbors
    from curate.verbs.prune import prune as prune
    from curate.verbs.replay import replay as replay
    from curate.verbs.report import report as report
    from curate.verbs.score import score as score
    from curate.verbs.select import SelectionSpec as SelectionSpec
    from curate.verbs.select import select as select
    from curate.verbs.show import show as show
    from curate.verbs.sql import sql as sql
    from curate.verbs.status import ledger as ledger
    from curate.verbs.status import status as status
    from curate.verbs.target import target as target
    from curate.verbs.train import train as train
    from curate.verbs.trial import trial as trial
    from curate.verbs.verify import verify as verify
    from curate.verbs.weigh import weigh as weigh
    from curate.web.explore import explore as explore

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curate' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
