"""What runs cost, read from the ledger, by phase:

F_prep   the scores and vectors that the choice was made of, the choice itself, and the trainings of those models that
         they or the weighting look at
F_train  the steps
F_online what a weighting needs beside them: anchors, second forward passes, losses of the base model
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate import query
from curate.runs import Run, run_behind
from curate.workspace import Workspace

_ONLINE = ("losses", "anchors", "base losses", "candidates", "target", "selection")

_Rows = Sequence[tuple[int, Mapping[str, Any]]]  # of the ledger, by number


@dataclass
class Cost:
    """What a run cost, in FLOPs by our formula unless said otherwise.

    prep: the full price of what its choice is made of; prep_marginal: without what an arm listed before has paid.
    paper, counted: the total by the papers' convention, and as it was measured (null where it was not). padding: the
    share of padding among the tokens that went through the model in training.
    """

    prep: float = 0.0
    prep_marginal: float = 0.0
    train: float = 0.0
    online: float = 0.0
    paper: float = 0.0
    counted: float | None = None
    seconds: float = 0.0
    samples_seen: float = 0.0
    padding: float = 0.0

    @property
    def total(self) -> float:
        return self.prep + self.train + self.online

    @property
    def marginal(self) -> float:
        return self.prep_marginal + self.train + self.online


def costs_of(ws: Workspace, recipes: Mapping[str, dict[str, Any]], arms: Mapping[str, str]) -> dict[str, Cost]:
    """What each run cost. recipes, arms: run -> its recipe, and its arm, in the order in which arms are listed."""
    rows = list(enumerate(query.rows(ws, 'SELECT * FROM ledger ORDER BY "at"')))
    paid: set[int] = set()  # rows of the ledger that an arm listed before has paid
    costs = {}
    for arm in dict.fromkeys(arms.values()):
        of_arm: set[int] = set()
        for name in (name for name in recipes if arms[name] == arm):
            mine, prep = _training(rows, name, recipes[name]), _preparation(ws, rows, recipes[name])
            costs[name] = _cost(rows, mine, prep, paid)
            of_arm |= mine | prep
        paid |= of_arm
    return costs


def steps_of(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How a run's manifest came to be, step by step: a selection, weights on top of it, …"""
    found, step = [], recipe.get("selection")
    while step:
        found.append(step)
        step = step.get("selection")
    return found


def scores_behind(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores that a run's manifest, its weights and its mask were made of: name -> recipe."""
    made = [*reversed(steps_of(recipe)), recipe, recipe.get("mask") or {}]
    return {name: score for its in made for name, score in (its.get("scores") or {}).items()}


def _cost(rows: _Rows, mine: set[int], prep: set[int], paid: set[int]) -> Cost:
    """mine, prep: the rows of the ledger that are the run's own, and its preparation's; paid: another arm's."""
    cost, its = Cost(), dict(rows)
    for i in sorted(mine):
        _add(cost, its[i], "online" if its[i]["phase"] in _ONLINE else "train")
    for i in sorted(prep):
        _add(cost, its[i], "prep")
        cost.prep_marginal += 0.0 if i in paid else its[i]["flops"] or 0.0
    steps = [its[i] for i in mine if its[i]["phase"] == "train"]
    cost.samples_seen = sum(row["samples"] for row in steps)
    padded, tokens = (sum(row[key] or 0 for row in steps) for key in ("padded_tokens", "tokens"))
    cost.padding = 1 - tokens / padded if padded else 0.0
    counts = [its[i]["flops_counted"] for i in mine | prep if i in mine or its[i]["flops"]]
    cost.counted = sum(counts) if counts and None not in counts else None
    return cost


def _add(cost: Cost, row: Mapping[str, Any], phase: str) -> None:
    setattr(cost, phase, getattr(cost, phase) + (row["flops"] or 0.0))
    cost.paper += row["flops_paper"] or 0.0
    cost.seconds += row["seconds"] or 0.0


def _training(rows: _Rows, name: str, recipe: Mapping[str, Any]) -> set[int]:
    """The rows that a run's own training paid; of a pruned run those of the run that it is made of."""
    begun, until, account = recipe.get("begun", ""), recipe.get("until", "~"), recipe.get("account", name)
    mine = [(i, row) for i, row in rows if row["run"] == account and row["stage"] == "train"]
    return {i for i, row in mine if row["phase"] != "evaluate" and begun <= row["at"].isoformat() <= until}


def _preparation(ws: Workspace, rows: _Rows, recipe: Mapping[str, Any]) -> set[int]:
    """The rows before the run that paid for its scores and vectors, its manifest, its mask, and models to look at.

    Of a score they are all of its name, method and models (what a kill threw away is paid, too); of a manifest the
    last, since each replaced the one before.
    """
    begun = recipe.get("begun", "")
    before = [(i, row) for i, row in rows if row["at"].isoformat() <= begun]
    scores, mask = scores_behind(recipe), recipe.get("mask") or {}
    shared = {state for score in scores.values() for state in score.get("states", ())}
    trained = {f"warmup_{score['warmup']['wanted']}" for score in scores.values() if score.get("warmup")}
    trained |= {mask["warmup"]} if mask.get("warmup") else set()
    proxies = {name for step in steps_of(recipe) for name in step.get("proxies", ())}
    made = [(name, s) for name, s in scores.items()] + [(s["vectors"], s) for s in scores.values() if s.get("vectors")]
    found = set()
    for i, row in before:
        its = dict(zip(row["name"].split(", "), row["methods"] or [], strict=False)) if row["stage"] == "score" else {}
        for name, score in made:
            models = {model["name"] for model in score.get("models", {}).values()}
            if its.get(name) == score["method"] and models <= set((row["model"] or "").split(", ")):
                found.add(i)
        if row["prepared"] in shared or row["stage"] != "train" and row["run"] in trained | proxies:
            found.add(i)
    manifests = [recipe.get("manifest"), *((step.get("manifest") or {}).get("name") for step in steps_of(recipe))]
    for manifest in manifests:
        chosen = [
            i for i, r in before if r["stage"] in ("select", "weigh", "mix") and not r["run"] and r["name"] == manifest
        ]
        found |= set(chosen[-1:])
    for run in _looked_at(ws, recipe, scores):
        its = Run(ws, run).recipe or {}
        its = its if its.get("begun", "") < begun else {}  # else it was trained anew since; all of its name was paid
        found |= _training(before, run, its) | _preparation(ws, rows, its)
    return found


def _looked_at(ws: Workspace, recipe: Mapping[str, Any], scores: Mapping[str, Any]) -> set[str]:
    """The runs whose models the scores or the weighting look at, but for those that the run itself goes on from."""
    models = [model for score in scores.values() for model in score.get("models", {}).values()]
    models += [recipe["reference"]] if recipe.get("reference") else []
    given = {name for score in scores.values() for name in score.get("checkpoints_given", ())}
    found = {run_behind(ws, model["name"]) for model in models} | {run_behind(ws, name) for name in given}
    found |= given & set(ws.run_names())
    return {run for run in found if run} - _goes_on_from(ws, recipe)


def _goes_on_from(ws: Workspace, recipe: Mapping[str, Any]) -> set[str]:
    """The run that a run's model comes from, the one that this run's comes from, …"""
    found, its = set[str](), recipe
    while its and (run := run_behind(ws, its["model"]["name"])) and run not in found:
        found.add(run)
        its = Run(ws, run).recipe or {}
    return found
