"""Two or three verbs at once on one workspace: afterwards it verifies clean, and each did its work or said why not.

both        all ended, and what each makes is there
busy        at least one said in a sentence that another is at work; run again, it does its work
LOST        something that was to be there is not, or `verify` finds damage
UNEXPECTED  an exception that is no CurateError, or a process that does not end
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import curate
from curate.errors import CurateError
from tests.attack import children, scene
from tests.attack.damages import link
from tests.attack.tally import Tally

OUTCOMES = ("both", "busy", "LOST", "UNEXPECTED")
BAD = ("LOST", "UNEXPECTED")


def _is_there(kind: str, name: str) -> Callable[[Any], bool]:
    return lambda ws: name in ws.having(kind)


def _rows(least: int) -> Callable[[Any], bool]:
    return lambda ws: curate.status(ws).rows >= least


def _target(place: Path) -> None:
    curate.target(scene.ws_of(place), "more", str(place / "inputs/val.jsonl"))


def _ingest(place: Path) -> None:
    curate.ingest(scene.ws_of(place), [str(place / "inputs/new.jsonl")])


def _score(name: str, method: str) -> Callable[[Path], None]:
    return lambda place: curate.score(scene.ws_of(place), method, target="sums", names={method: name}) and None


def _score_model(place: Path) -> None:
    curate.score(scene.ws_of(place), "nll", models=scene.model(), names={"nll": "nll_again"})


def _select(name: str) -> Callable[[Path], None]:
    return lambda place: curate.select(scene.ws_of(place), name, "random", top=9) and None


def _train(place: Path) -> None:
    curate.train(scene.ws_of(place), "short", model=scene.model(), manifest="best", steps=2, batch_size=2)


def _prune(place: Path) -> None:
    curate.prune(scene.ws_of(place), "plain", "magnitude", 0.3, name="thin")


def _mask(place: Path) -> None:
    curate.mask(scene.ws_of(place), "other", "random", 0.1, model=scene.model())


def _evaluate(place: Path) -> None:
    curate.evaluate(scene.ws_of(place), "light", ["sums"])


def _drop(name: str) -> Callable[[Path], None]:
    return lambda place: curate.drop(scene.ws_of(place), name, force=True) and None


def _verify(place: Path) -> None:
    curate.verify(scene.ws_of(place), repair=True)


def _status(place: Path) -> None:
    curate.status(scene.ws_of(place))
    curate.sql(scene.ws_of(place), "SELECT count(*) FROM samples")


Verb = tuple[Callable[[Path], None], Callable[[Any], bool]]
# Name -> the verb, and whether what it makes is there.
VERBS: dict[str, Verb] = {
    "ingest": (_ingest, _rows(42)),
    "target": (_target, lambda ws: "more" in ws.having("target")),
    "score of text": (_score("bm25_again", "bm25"), _is_there("score", "bm25_again")),
    "score of the same name": (_score("bm25_again", "bm25"), _is_there("score", "bm25_again")),
    "score by a model": (_score_model, _is_there("score", "nll_again")),
    "select": (_select("few_rows"), _is_there("manifest", "few_rows")),
    "select of the same name": (_select("few_rows"), _is_there("manifest", "few_rows")),
    "mask": (_mask, _is_there("mask", "other")),
    "train": (_train, _is_there("run", "short")),
    "train of the same name": (_train, _is_there("run", "short")),
    "prune": (_prune, _is_there("run", "thin")),
    "evaluate": (_evaluate, lambda ws: bool(curate.sql(ws, "SELECT 1 FROM evaluations WHERE run = 'light'"))),
    "drop of a score": (_drop("length"), lambda ws: "length" not in ws.having("score")),
    "drop of a run": (_drop("light"), lambda ws: "light" not in ws.having("run")),
    "verify --repair": (_verify, lambda _: True),
    "status": (_status, lambda _: True),
}
# What the one takes away is not to be there for the other.
APART = ({"drop of a run", "evaluate"},)


def _afterwards(place: Path, names: list[str]) -> list[str]:
    ws = scene.ws_of(place)
    missing = [f"{name} is not done" for name in names if not VERBS[name][1](ws)]
    return missing + [f"{one.kind} {one.name} {one.part}: {one.what}" for one in curate.verify(ws).damaged]


def together(place: Path, names: list[str], delays: list[float]) -> tuple[str, str]:
    """Start verbs at once, each after its delay; how that ended."""

    def late(name: str, delay: float) -> None:
        time.sleep(delay)
        VERBS[name][0](place)

    begun = [children.begin(lambda n=n, d=d: late(n, d)) for n, d in zip(names, delays, strict=True)]
    ended = dict(zip(names, [children.wait(one) for one in begun], strict=True))
    refused = {}
    for name, its in ended.items():
        if its.status or its.error and (not isinstance(its.error, CurateError) or "\n" in str(its.error)):
            return "UNEXPECTED", f"{name}: {its.status} {its.error!r}"
        if its.error:
            refused[name] = str(its.error)
    for name in refused:  # alone now, it does its work, or had done it
        again = children.in_child(lambda name=name: VERBS[name][0](place))
        if again.status or again.error and not isinstance(again.error, CurateError):
            return "UNEXPECTED", f"{name} again: {again.status} {again.error!r}"
    found = children.in_child(lambda: _afterwards(place, names))
    if found.error or found.status:
        return "UNEXPECTED", f"afterwards: {found.error!r}"
    if found.value:
        return "LOST", f"{found.value[:3]}, refused {refused}"
    return ("busy" if refused else "both"), str(refused)


def attack(
    source: Path, folder: Path, seed: int, seconds: float, most: int = 1 << 60, names: tuple[str, ...] = tuple(VERBS)
) -> Tally:
    """Pairs and triples of verbs at random on copies of a place, for some seconds, at most so many."""
    tally, dice, end = Tally("pairs", OUTCOMES, BAD), Random(seed), time.monotonic() + seconds
    while tally.tried < most and time.monotonic() < end:
        chosen = dice.sample(names, dice.choice([2, 2, 3]))
        if any(two <= set(chosen) for two in APART):
            continue
        place = link(source, folder / "place")
        result, why = together(place, chosen, [dice.choice([0, 0, dice.uniform(0, 0.3)]) for _ in chosen])
        tally.add("pairs" if len(chosen) == 2 else "triples", result, f"{' + '.join(chosen)}: {why}")
    return tally
