"""The cost of runs, read from the ledger, by phase:

F_prep   preparation: the scores and vectors that the selection is based on, the selection itself, and the training of
         the models that they or the weighting use
F_train  the training steps
F_online the extra work of a weighting during training: anchors, second forward passes, losses of the base model
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
    """The cost of a run, in FLOPs by curate's formula unless stated otherwise.

    prep: the full cost of its preparation; prep_marginal: without what an arm listed earlier has already paid for.
    paper, counted: the total by the convention of the papers, and as measured (None if it was not). padding: the share
    of padding among the tokens that went through the model in training.
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
        """FLOPs, with the full cost of preparation."""
        return self.prep + self.train + self.online

    @property
    def marginal(self) -> float:
        """FLOPs, with the marginal cost of preparation."""
        return self.prep_marginal + self.train + self.online


def costs_of(ws: Workspace, recipes: Mapping[str, dict[str, Any]], arms: Mapping[str, str]) -> dict[str, Cost]:
    """The cost of each run. recipes, arms: run -> its recipe, and its arm, in the order in which arms are listed."""
    ledger, costs = _ledger(ws), {}
    paid: set[str] = set()  # entries already paid for by an arm listed earlier
    for arm in dict.fromkeys(arms.values()):
        of_arm: set[str] = set()
        for name in (name for name in recipes if arms[name] == arm):
            mine, prep = _training(ledger, name, recipes[name]), _preparation(ledger, recipes[name])
            costs[name] = _cost(ledger, mine, prep, paid)
            of_arm |= mine | prep
        paid |= of_arm
    return costs


def charged_entries(ws: Workspace, models: Iterable[str]) -> list[str]:
    """The ledger's entries that paid for those of the models that runs of the workspace trained, and for all that led
    to them. Whatever uses such a model records these entries, since the run may later be retrained or dropped."""
    runs = {run for model in models if (run := run_behind(ws, model))}
    ledger, found = _ledger(ws) if runs else {}, set[str]()
    for run in runs:
        recipe = Run(ws, run).recipe or {}
        found |= _training(ledger, run, recipe) | _preparation(ledger, recipe) | set(recipe.get("model_paid", ()))
    return sorted(found)


def _ledger(ws: Workspace) -> _Ledger:
    return {row["entry"]: row for row in sql.rows(ws, 'SELECT * FROM ledger ORDER BY "at", entry')}


def steps_of(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How a run's manifest was made, the last step first: weights, the selection beneath them, …"""
    found, step = [], recipe.get("selection")
    while step:
        found.append(step)
        step = step.get("selection")
    return found


def scores_behind(recipe: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The (name, recipe) of the scores that a run's manifest, weights and mask were made from. A name may occur twice,
    if the score was recomputed between two steps."""
    return [(name, score) for its in _made_of(recipe) for name, score in (its.get("scores") or {}).items()]


def _made_of(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*steps_of(recipe), recipe, recipe.get("mask") or {}]


def _cost(ledger: _Ledger, mine: set[str], prep: set[str], paid: set[str]) -> Cost:
    """mine, prep: the entries of the run itself, and of its preparation; paid: those of arms listed earlier."""
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
    """The entries of a run's own training; for a pruned run, of the run that it was made from."""
    begun, until, account = recipe.get("begun", ""), recipe.get("until", "~"), recipe.get("account", name)
    mine = {entry: row for entry, row in ledger.items() if row["run"] == account and row["stage"] == "train"}
    return {e for e, row in mine.items() if row["phase"] != "evaluate" and begun <= row["at"].isoformat() <= until}


def _preparation(ledger: _Ledger, recipe: Mapping[str, Any]) -> set[str]:
    """The entries before the run that paid for its scores and vectors, its manifest, its mask, and the models that they
    or its weighting use, except what led to the model that the run starts from.

    For a score these are all entries with its name, method and models (including work lost to kills); for a manifest
    only the last, since each one replaced the one before.
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
