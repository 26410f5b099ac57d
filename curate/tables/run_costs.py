"""The cost of runs, read from the ledger, by phase:

F_prep   selection cost: the scores and vectors that the selection is based on, the selection itself, and the training
         of the models that they or the weighting use
F_train  the training steps
F_online the extra work of a weighting during training: anchors, second forward passes, losses of the base model
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.store.ledger_files import Entries, read_entries
from curate.store.recipes import ManifestStep, RunMask, RunRecipe, TableRecipe
from curate.store.run_record import Run, run_behind
from curate.store.workspace import Workspace

_ONLINE = ("losses", "anchors", "base losses", "candidates", "target", "selection")

_Ledger = Mapping[str, Mapping[str, Any]]  # entry -> row, in the order of appending


@dataclass
class Cost:
    """The cost of a run, in FLOPs by curate's formula unless stated otherwise.

    prep: the full cost of its selection; prep_marginal: without what an arm listed earlier has already paid for.
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
        """FLOPs, with the full cost of selection."""
        return self.prep + self.train + self.online

    @property
    def marginal(self) -> float:
        """FLOPs, with the marginal cost of selection."""
        return self.prep_marginal + self.train + self.online


def costs_of(ws: Workspace, recipes: Mapping[str, RunRecipe], arms: Mapping[str, str]) -> tuple[dict[str, Cost], str]:
    """The cost of each run; and what of the ledger is lost, in a sentence, '' if nothing is. recipes, arms: run -> its
    recipe, and its arm, in the order in which arms are listed."""
    entries = read_entries(ws.path)
    ledger, costs = _by_name(entries), {}
    already_paid: set[str] = set()  # entries already paid for by an arm listed earlier
    for arm in dict.fromkeys(arms.values()):
        of_arm: set[str] = set()
        for name in (name for name in recipes if arms[name] == arm):
            own, prep = _training(ledger, name, recipes[name]), _preparation(ledger, recipes[name])
            costs[name] = _cost(ledger, own, prep, already_paid)
            of_arm |= own | prep
        already_paid |= of_arm
    return costs, entries.problem(ws.path)


def charged_entries(ws: Workspace, models: Iterable[str]) -> list[str]:
    """The ledger's entries that paid for those of the models that runs of the workspace trained, and for all that led
    to them. Whatever uses such a model records these entries, since the run may later be retrained or dropped."""
    runs = {run for model in models if (run := run_behind(ws, model))}
    ledger, entries = _by_name(read_entries(ws.path)) if runs else {}, set[str]()
    for run in runs:
        recipe = Run(ws, run).require_recipe()
        entries |= _training(ledger, run, recipe) | _preparation(ledger, recipe) | set(recipe.model_paid or ())
    return sorted(entries)


def _by_name(entries: Entries) -> _Ledger:
    return {row["entry"]: row for row in entries.table.to_pylist()}


def steps_of(recipe: RunRecipe) -> list[ManifestStep]:
    """How a run's manifest was made, the last step first: weights, the selection beneath them, …"""
    steps, step = [], recipe.selection
    while step:
        steps.append(step)
        step = step.selection
    return steps


def scores_behind(recipe: RunRecipe) -> list[tuple[str, TableRecipe]]:
    """The (name, recipe) of the scores that a run's manifest, weights and mask were made from. A name may occur twice,
    if the score was recomputed between two steps."""
    return [(name, score) for part in _made_of(recipe) for name, score in (part.scores or {}).items()]


def _made_of(recipe: RunRecipe) -> list[ManifestStep | RunRecipe | RunMask]:
    return [*steps_of(recipe), recipe, *([recipe.mask] if recipe.mask else [])]


def _cost(ledger: _Ledger, own: set[str], prep: set[str], already_paid: set[str]) -> Cost:
    """own, prep: the entries of the run itself, and of its selection; already_paid: those of arms listed earlier."""
    cost = Cost()
    for entry, row in ledger.items():
        if entry in own:
            _add(cost, row, "online" if row["phase"] in _ONLINE else "train")
        elif entry in prep:
            _add(cost, row, "prep")
            cost.prep_marginal += 0.0 if entry in already_paid else row["flops"] or 0.0
    steps = [ledger[entry] for entry in own if ledger[entry]["phase"] == "train"]
    cost.samples_seen = sum(row["samples"] for row in steps)
    padded, tokens = (sum(row[key] or 0 for row in steps) for key in ("padded_tokens", "tokens"))
    cost.padding = 1 - tokens / padded if padded else 0.0
    rows = [row for entry, row in ledger.items() if entry in own or entry in prep and row["flops"]]
    counts = [row["flops_counted"] for row in rows]
    cost.counted = sum(counts) if counts and None not in counts else None
    return cost


def _add(cost: Cost, row: Mapping[str, Any], phase: str) -> None:
    setattr(cost, phase, getattr(cost, phase) + (row["flops"] or 0.0))
    cost.paper += row["flops_paper"] or 0.0
    cost.seconds += row["seconds"] or 0.0


def _training(ledger: _Ledger, name: str, recipe: RunRecipe) -> set[str]:
    """The entries of a run's own training; for a pruned run, of the run that it was made from."""
    account = recipe.account or name
    own = {entry: row for entry, row in ledger.items() if row["run"] == account and row["stage"] == "train"}
    return {e for e, row in own.items() if row["phase"] != "evaluate" and _is_during(row, recipe)}


def _preparation(ledger: _Ledger, recipe: RunRecipe) -> set[str]:
    """The entries before the run that paid for its scores and vectors, its manifest, its mask, and the models that they
    or its weighting use, except what led to the model that the run starts from."""
    earlier = {entry: row for entry, row in ledger.items() if _is_before(row, recipe)}
    paid = {entry for part in _made_of(recipe) for entry in part.paid or ()}
    paid |= {entry for _, score in scores_behind(recipe) for entry in score.paid}
    paid = (paid - set(recipe.model_paid or ())) & ledger.keys()
    scores = _of_scores(earlier, scores_behind(recipe))
    return scores | _of_trainings(earlier, recipe) | _of_manifests(earlier, recipe) | paid


def score_cost(ws: Workspace, scores: Sequence[tuple[str, TableRecipe]]) -> tuple[float, float]:
    """FLOPs and seconds of everything that scores, and what they rest on, have cost so far: their passes, warm-ups, and
    the models that they use. A pass that several scores share is counted whole for each."""
    ledger = _by_name(read_entries(ws.path))
    entries = _of_scores(ledger, scores) | _of_warmups(ledger, scores)
    entries |= {entry for _, score in scores for entry in score.paid} & ledger.keys()
    rows = [ledger[entry] for entry in entries]
    return sum(row["flops"] or 0.0 for row in rows), sum(row["seconds"] or 0.0 for row in rows)


def _of_scores(earlier: _Ledger, scores: Sequence[tuple[str, TableRecipe]]) -> set[str]:
    """The entries of the scores and vectors: all with their name, method and models, including work lost to kills."""
    tables = [*scores, *((score.vectors, score) for _, score in scores if score.vectors)]
    states = {state for _, score in scores for state in score.states}
    entries = {entry for entry, row in earlier.items() if row["prepared"] in states}
    for entry, row in earlier.items():
        methods = dict(zip(row["name"].split(", "), row["methods"] or [], strict=False))
        for name, score in tables if row["stage"] == "score" else ():
            models = {model.name for model in score.models.values()}
            if methods.get(name) == score.method and models <= set((row["model"] or "").split(", ")):
                entries.add(entry)
    return entries


def _of_trainings(earlier: _Ledger, recipe: RunRecipe) -> set[str]:
    """The entries of the warm-ups of scores and of the mask, and of the proxies of mixtures."""
    warmups = _of_warmups(earlier, scores_behind(recipe))
    runs = {recipe.mask.warmup} if recipe.mask and recipe.mask.warmup else set()
    runs |= {name for step in steps_of(recipe) for name in step.proxies or ()}
    return warmups | {entry for entry, row in earlier.items() if row["stage"] != "train" and row["run"] in runs}


def _of_warmups(earlier: _Ledger, scores: Sequence[tuple[str, TableRecipe]]) -> set[str]:
    runs = {f"warmup_{score.warmup.wanted}" for _, score in scores if score.warmup}
    return {entry for entry, row in earlier.items() if row["stage"] != "train" and row["run"] in runs}


def _of_manifests(earlier: _Ledger, recipe: RunRecipe) -> set[str]:
    """The last entry of each manifest, since each one replaced the one before."""
    steps = steps_of(recipe)
    entries = set[str]()
    for manifest in (recipe.manifest, *(step.manifest.name if step.manifest else None for step in steps)):
        matching = [
            entry
            for entry, row in earlier.items()
            if row["stage"] in ("select", "weigh", "mix") and not row["run"] and row["name"] == manifest
        ]
        entries |= set(matching[-1:])
    return entries


def _is_before(row: Mapping[str, Any], recipe: RunRecipe) -> bool:
    """Whether an entry is older than a run: by its place in the ledger, as a clock may be set back; by its time for
    runs of earlier versions, which recorded no place."""
    if isinstance(recipe.ledger_begun, int):
        return row["sequence"] < recipe.ledger_begun
    return row["at"].isoformat() <= recipe.begun


def _is_during(row: Mapping[str, Any], recipe: RunRecipe) -> bool:
    """Whether an entry is not older than a run, and not newer than the pruning that took it over, if there was one."""
    place, time = row["sequence"], row["at"].isoformat()
    first, end = recipe.ledger_begun, recipe.ledger_until
    begun = place >= first if isinstance(first, int) else time >= recipe.begun
    ended = place < end if isinstance(end, int) else time <= (recipe.until or "~")
    return begun and ended
