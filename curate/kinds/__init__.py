"""The interfaces of methods: the abstract classes and their inputs. Third-party packages import from here.

    from curate.kinds import Pass, Score, Text

Each name is imported on first use: `Text` needs Arrow and polars, which a machine that only runs models may lack.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Method": "method",
    "Score": "score",
    "Target": "score",
    "Warmup": "score",
    "near_target": "score",
    "run": "score",
    "Pass": "passes",
    "ForwardRequest": "passes",
    "GradientRequest": "passes",
    "Arrays": "passes",
    "Columns": "passes",
    "Text": "text",
    "Vectors": "vectors",
    "Anchors": "vectors",
    "Selector": "selector",
    "RankingSelector": "selector",
    "Candidates": "selector",
    "Budget": "selector",
    "by_value": "selector",
    "Weighting": "weighting",
    "Step": "signals",
    "Weights": "signals",
    "weigh_once": "weighting",
    "Mixer": "mixer",
    "Domains": "mixer",
    "Mixed": "mixer",
    "Proxies": "mixer",
    "Mask": "parameters",
    "Parameters": "parameters",
    "Pruner": "parameters",
    "Metric": "metric",
    "Question": "metric",
    "EvalResult": "metric",
    "Export": "export",
    "Row": "export",
    "Part": "export",
    "Executor": "executor",
}

if TYPE_CHECKING:
    from curate.kinds.executor import Executor as Executor
    from curate.kinds.export import Export as Export
    from curate.kinds.export import Part as Part
    from curate.kinds.export import Row as Row
    from curate.kinds.method import Method as Method
    from curate.kinds.metric import EvalResult as EvalResult
    from curate.kinds.metric import Metric as Metric
    from curate.kinds.metric import Question as Question
    from curate.kinds.mixer import Domains as Domains
    from curate.kinds.mixer import Mixed as Mixed
    from curate.kinds.mixer import Mixer as Mixer
    from curate.kinds.mixer import Proxies as Proxies
    from curate.kinds.parameters import Mask as Mask
    from curate.kinds.parameters import Parameters as Parameters
    from curate.kinds.parameters import Pruner as Pruner
    from curate.kinds.passes import Arrays as Arrays
    from curate.kinds.passes import Columns as Columns
    from curate.kinds.passes import ForwardRequest as ForwardRequest
    from curate.kinds.passes import GradientRequest as GradientRequest
    from curate.kinds.passes import Pass as Pass
    from curate.kinds.score import Score as Score
    from curate.kinds.score import Target as Target
    from curate.kinds.score import Warmup as Warmup
    from curate.kinds.score import near_target as near_target
    from curate.kinds.score import run as run
    from curate.kinds.selector import Budget as Budget
    from curate.kinds.selector import Candidates as Candidates
    from curate.kinds.selector import RankingSelector as RankingSelector
    from curate.kinds.selector import Selector as Selector
    from curate.kinds.selector import by_value as by_value
    from curate.kinds.signals import Step as Step
    from curate.kinds.signals import Weights as Weights
    from curate.kinds.text import Text as Text
    from curate.kinds.vectors import Anchors as Anchors
    from curate.kinds.vectors import Vectors as Vectors
    from curate.kinds.weighting import Weighting as Weighting
    from curate.kinds.weighting import weigh_once as weigh_once

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curate.kinds' has no attribute '{name}'")
    return getattr(importlib.import_module(f"curate.kinds.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
