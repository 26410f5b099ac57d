"""Three stages on which selection can be myopic, with the answer known: decoys help now and block later.

    python data/make_overlap.py FOLDER             write pool.jsonl and the targets' files
    python data/make_overlap.py FOLDER --rows 96   with so many samples in each stage

A made-up world of 24 towns, of each of which three things are to be learnt, one in each stage: its river, its dish, its
craft. Every sample of a stage says the stage's thing rightly, and another stage's: that of the next stage, or in the
last stage that of the first. Half of the samples are *decoys*, half are *sound*:

    decoy   asks for the stage's thing, as its target does, answers rightly, and adds the other thing wrongly (the same
            wrong value every time)
    sound   asks for the other thing, as that one's target does, answers rightly, and adds the stage's thing rightly

So decoys teach what the stage is tested on, and are the better choice now. What they add has no part in the stage's own
target; it has to be unlearnt in the next stage, or spoils the first, and it is what the sound ones teach in advance, of
the same towns, through the same few directions of an adapter of small rank. A selector that takes decoys is myopic here
by construction, and one that takes sound samples is not.

Every record says what it is: `n`, `stage`, `task` (the thing), `kind` (decoy or sound), `town`, and `lot`, a number
from 0 to 99 at random, by which a selector can take a share. The targets' questions occur nowhere in the pool.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from make_sample import Dice  # pyright: ignore[reportMissingImports]

ROWS = 480  # of a stage
VAL = TEST = 24  # target rows of a stage: one for each town

TOWNS = (
    "Arvel Besk Cindor Drell Ewick Falmo Gorrin Hest Imber Jolna Kirrow Lanth Morvi Nessel Orbe Pandry Quor Ridda "
    "Sable Tarn Uvel Vosk Wray Yorrel"
).split()
THINGS = {  # thing -> what is asked; what is said; its values
    "river": ("Which river runs through {}?", "The {} runs through {}.", "Anse Brin Corv Dell Eddra Fosk".split()),
    "dish": ("What do people in {} like to eat?", "People eat {} in {}.", "barley eel lentils goat plum leek".split()),
    "craft": ("What do they make in {}?", "It is {} that {} makes.", "glass bells rope ink lamps tiles".split()),
}
_NAMES = ["Mira", "Tobin", "Sela", "Arno", "Kesh", "Lune", "Pavo", "Rika", "Odo", "Wenna"]
_OPENINGS = [opening.format(name) for opening in ("{} asks: ", "{} wants to know: ") for name in _NAMES]
_ASKED = {"val": "Next one. ", "test": "Quiz of the day: "}  # how the targets' questions begin


@dataclass(frozen=True)
class Sample:
    """One question and its answer, with the truth about it."""

    n: int
    stage: int
    task: str
    kind: str
    town: str
    lot: int
    question: str
    answer: str


def value(town: str, thing: str) -> str:
    """What is so in the world."""
    return Dice("overlap", thing, town).pick(THINGS[thing][2])


def wrong(town: str, thing: str) -> str:
    """What decoys say instead: always the same."""
    others = [other for other in THINGS[thing][2] if other != value(town, thing)]
    return Dice("decoy", thing, town).pick(others)


def stage(number: int, rows: int = ROWS, seed: int = 0) -> list[Sample]:
    """The samples of a stage (from 1), in random order: half decoys, half sound, and of every town as many."""
    things = list(THINGS)
    own, other = things[number - 1], things[number % len(things)]
    dice, drawn = Dice("stage", number, seed), list[tuple[str, str, str]]()
    for kind in ("decoy", "sound"):
        openings = {town: dice.some(_OPENINGS, len(_OPENINGS)) for town in TOWNS}
        towns = [(TOWNS[i % len(TOWNS)], i // len(TOWNS)) for i in range(rows // 2)]
        drawn += [(kind, town, openings[town][i]) for town, i in towns]
    samples = []
    for n, (kind, town, opening) in enumerate(dice.some(drawn, len(drawn))):
        if kind == "decoy":
            asked, said = own, f"{sentence(own, town, value(town, own))} {sentence(other, town, wrong(town, other))}"
        else:
            asked, said = other, f"{sentence(other, town, value(town, other))} {sentence(own, town, value(town, own))}"
        question = opening + THINGS[asked][0].format(town)
        samples.append(Sample(n, number, own, kind, town, dice.number(0, 99), question, said))
    return samples


def sentence(thing: str, town: str, its: str) -> str:
    """What is said of a town's thing."""
    return THINGS[thing][1].format(its, town)


def targets() -> dict[str, list[dict[str, str]]]:
    """THING_SPLIT -> what is asked of every town, and the right answer alone."""
    made = {}
    for thing, (asked, _, _) in THINGS.items():
        for split, opening in _ASKED.items():
            made[f"{thing}_{split}"] = [
                {"question": opening + asked.format(town), "answer": sentence(thing, town, value(town, thing))}
                for town in TOWNS
            ]
    return made


def write(folder: Path, rows: int = ROWS, seed: int = 0) -> None:
    """Write pool.jsonl and the targets' files."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [asdict(sample) for number in (1, 2, 3) for sample in stage(number, rows, seed)]
    for name, its in {"pool": samples, **targets()}.items():
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in its)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS, help="samples of each stage, at most 960")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.rows, arguments.seed)
