"""What runs cost, read from the ledger, by phase:

F_prep   the scores and vectors that the choice was made of, the choice itself, and the trainings of those models that
         they or the weighting look at
F_train  the steps
F_online what a weighting needs beside them: anchors, second forward passes, losses of the base model
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from curate.store.run_record import Run, run_behind
from curate.store.workspace import Workspace
from curate.tables import sql

_ONLINE = ("losses", "anchors", "base losses", "candidates", "target", "selection")

_Ledger = Mapping[str, Mapping[str, Any]]  # entry -> row, by time


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
    ledger, costs = _ledger(ws), {}
    paid: set[str] = set()  # entries that an arm listed before has paid
    for arm in dict.fromkeys(arms.values()):
        of_arm: set[str] = set()
        for name in (name for name in recipes if arms[name] == arm):
            mine, prep = _training(ledger, name, recipes[name]), _preparation(ledger, recipes[name])
            costs[name] = _cost(ledger, mine, prep, paid)
            of_arm |= mine | prep
        paid |= of_arm
    return costs


def charged_entries(ws: Workspace, models: Iterable[str]) -> list[str]:
    """The ledger's entries that paid for those models which runs of the workspace have learnt, and for all that led to
    them. What looks at such models records them, since a run may be trained anew or dropped."""
    runs = {run for model in models if (run := run_behind(ws, model))}
    ledger, found = _ledger(ws) if runs else {}, set[str]()
    for run in runs:
        recipe = Run(ws, run).recipe or {}
        found |= _training(ledger, run, recipe) | _preparation(ledger, recipe) | set(recipe.get("model_paid", ()))
    return sorted(found)


def _ledger(ws: Workspace) -> _Ledger:
    return {row["entry"]: row for row in sql.rows(ws, 'SELECT * FROM ledger ORDER BY "at", entry')}


def steps_of(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How a run's manifest came to be, step by step: a selection, weights on top of it, …"""
    found, step = [], recipe.get("selection")
    while step:
        found.append(step)
        step = step.get("selection")
    return found


def scores_behind(recipe: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The scores that a run's manifest, its weights and its mask were made of: name and recipe. One of them may have
    been computed anew under its name between two steps."""
    return [(name, score) for its in _made_of(recipe) for name, score in (its.get("scores") or {}).items()]


def _made_of(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*steps_of(recipe), recipe, recipe.get("mask") or {}]


def _cost(ledger: _Ledger, mine: set[str], prep: set[str], paid: set[str]) -> Cost:
    """mine, prep: the entries that are the run's own, and its preparation's; paid: another arm's."""
    cost = Cost()
    for entry, row in ledger.items():
        if entry in mine:
            _add(cost, row, "online" if row["phase"] in _ONLINE else "train")
        elif entry in prep:
            _add(cost, row, "prep")
            cost.prep_marginal += 0.0 if entry in paid else row["flops"] or 0.0
    steps = [ledger[entry] for entry in mine if ledger[entry]["phase"] == "train"]
    cost.samples_seen = sum(row["samples"] for row in steps)
    padded, tokens = (sum(row[key] or 0 for row in steps) for key in ("padded_tokens", "tokens"))
    cost.padding = 1 - tokens / padded if padded else 0.0
    rows = [row for entry, row in ledger.items() if entry in mine or entry in prep and row["flops"]]
    counts = [row["flops_counted"] for row in rows]
    cost.counted = sum(counts) if counts and None not in counts else None
    return cost


def _add(cost: Cost, row: Mapping[str, Any], phase: str) -> None:
    setattr(cost, phase, getattr(cost, phase) + (row["flops"] or 0.0))
    cost.paper += row["flops_paper"] or 0.0
    cost.seconds += row["seconds"] or 0.0


def _training(ledger: _Ledger, name: str, recipe: Mapping[str, Any]) -> set[str]:
    """The entries that a run's own training paid; of a pruned run those of the run that it is made of."""
    begun, until, account = recipe.get("begun", ""), recipe.get("until", "~"), recipe.get("account", name)
    mine = {entry: row for entry, row in ledger.items() if row["run"] == account and row["stage"] == "train"}
    return {e for e, row in mine.items() if row["phase"] != "evaluate" and begun <= row["at"].isoformat() <= until}


def _preparation(ledger: _Ledger, recipe: Mapping[str, Any]) -> set[str]:
    """The entries before the run that paid for its scores and vectors, its manifest, its mask, and for models that they
    or its weighting look at, but for what led to the model that the run goes on from.

    Of a score they are all of its name, method and models (what a kill threw away is paid, too); of a manifest the
    last, since each replaced the one before.
    """
    before = {entry: row for entry, row in ledger.items() if row["at"].isoformat() <= recipe.get("begun", "")}
    made, mask = scores_behind(recipe), recipe.get("mask") or {}
    shared = {state for _, score in made for state in score.get("states", ())}
    trained = {f"warmup_{score['warmup']['wanted']}" for _, score in made if score.get("warmup")}
    trained |= {mask["warmup"]} if mask.get("warmup") else set()
    proxies = {name for step in steps_of(recipe) for name in step.get("proxies", ())}
    named = [*made, *((score["vectors"], score) for _, score in made if score.get("vectors"))]
    found = set()
    for entry, row in before.items():
        its = dict(zip(row["name"].split(", "), row["methods"] or [], strict=False)) if row["stage"] == "score" else {}
        for name, score in named:
            models = {model["name"] for model in score.get("models", {}).values()}
            if its.get(name) == score["method"] and models <= set((row["model"] or "").split(", ")):
                found.add(entry)
        if row["prepared"] in shared or row["stage"] != "train" and row["run"] in trained | proxies:
            found.add(entry)
    for manifest in (recipe.get("manifest"), *((step.get("manifest") or {}).get("name") for step in steps_of(recipe))):
        chosen = [
            entry
            for entry, row in before.items()
            if row["stage"] in ("select", "weigh", "mix") and not row["run"] and row["name"] == manifest
        ]
        found |= set(chosen[-1:])
    paid = {entry for its in (*_made_of(recipe), *(score for _, score in made)) for entry in its.get("paid", ())}
    return found | (paid - set(recipe.get("model_paid", ()))) & ledger.keys()
