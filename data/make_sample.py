"""The sample corpus: six skills of a made-up world, in four input formats, with the truth about every sample.

    python data/make_sample.py                 write data/sample/ (byte for byte what is committed)
    python data/make_sample.py --check         compare what is committed with what this file makes
    python data/make_sample.py --stream 5      print five samples of the endless stream

Every record says what it is, in fields that an ingest keeps in `meta`:

    n                   number in the stream
    skill, task         what it teaches, and in which form; skill `chat` is off-topic small talk (5 %)
    domain              where it comes from; a domain mixes skills, and every skill occurs in two domains
    corrupt             its answer is another sample's of the same skill and task (10 %)
    near_duplicate_of   it repeats that sample with small changes (5 %); else null. No other two samples ask the same

The targets' questions occur neither in the pool nor in each other, whatever their opening words. What they ask about
the made-up world (facts, words of Velic) the pool teaches in other words.

So a score can be evaluated by how well it finds what is known here. Skills on which a model of two million parameters
does no better than chance (weekday arithmetic, transitive comparison) are left out on purpose.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROWS = 3000
MEMORY = 3000  # questions the stream remembers, so as not to ask them again
VAL, TEST = 24, 60  # target rows per skill
CORRUPT, NEAR_DUPLICATE, OFF_TOPIC = 0.10, 0.05, 0.05


@dataclass(frozen=True)
class Sample:
    """One question and its answer, with the truth about it."""

    n: int
    skill: str
    task: str
    domain: str
    question: str
    answer: str
    corrupt: bool = False
    near_duplicate_of: int | None = None

    def truth(self) -> dict[str, object]:
        return {k: v for k, v in asdict(self).items() if k not in ("question", "answer")}


class Dice:
    """Random choices from one named stream. Built on random() alone, whose values no Python version changes."""

    def __init__(self, *name: object):
        self._random = random.Random(":".join(map(str, name)))

    def real(self) -> float:
        return self._random.random()

    def chance(self, p: float) -> bool:
        return self.real() < p

    def number(self, low: int, high: int) -> int:
        return low + int(self.real() * (high - low + 1))

    def pick(self, options: list[T]) -> T:
        return options[self.number(0, len(options) - 1)]

    def some(self, options: list[T], count: int) -> list[T]:
        left = list(options)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]


# --- the skills: Dice -> (task, question, answer) --------------------------------------------------------

Made = tuple[str, str, str]

_OPENINGS = ["", "", "{} asks: ", "{} wants to know: ", "A question from {}: ", "Quiz of the day: ", "Next one. "]
_NAMES = ["Mira", "Tobin", "Sela", "Arno", "Kesh", "Lune", "Pavo", "Rika", "Odo", "Wenna"]
_THINGS = ["plums", "shells", "coins", "stamps", "ropes", "lamps", "books", "tiles", "beads", "pears"]
_WORDS = "stone river lamp green window table hollow paper silver garden bridge candle winter copper harbor".split()
_LETTERS = list("abcdeilmnorstu")


def arithmetic(dice: Dice) -> Made:
    name, thing = dice.pick(_NAMES), dice.pick(_THINGS)
    a, b = dice.number(2, 20), dice.number(2, 9)
    task = dice.pick(["add", "take", "times"])
    if task == "add":
        ask = f"{name} has {a} {thing} and finds {b} more. How many {thing} has {name} now?"
        return task, ask, f"{a} + {b} = {a + b}. {name} has {a + b} {thing}."
    if task == "take":
        ask = f"{name} has {a + b} {thing} and gives {b} away. How many {thing} are left?"
        return task, ask, f"{a + b} - {b} = {a}. {a} {thing} are left."
    a = dice.number(2, 9)
    ask = f"{name} fills {a} boxes with {b} {thing} each. How many {thing} are in the boxes?"
    return task, ask, f"{a} * {b} = {a * b}. There are {a * b} {thing}."


def strings(dice: Dice) -> Made:
    task = dice.pick(["reverse", "upper", "first", "sort"])
    word = _letters(dice, 3, 6)
    match task:
        case "reverse":
            return task, f"Write the letters of {word} backwards.", word[::-1]
        case "upper":
            return task, f"Write {word} in capital letters.", word.upper()
        case "first":
            return task, f"What is the first letter of {word}?", word[0]
    return task, f"Put the letters of {word} in the order of the alphabet.", "".join(sorted(word))


def _letters(dice: Dice, low: int, high: int) -> str:
    return "".join(dice.pick(_LETTERS) for _ in range(dice.number(low, high)))


def table(dice: Dice) -> Made:
    goods = dice.some(["apple", "pear", "plum", "fig", "nut", "leek", "bean", "egg"], 4)
    prices = [dice.number(1, 9) for _ in goods]
    rows = ", ".join(f"{good} {price}" for good, price in zip(goods, prices, strict=True))
    at = dice.number(0, 3)
    if dice.chance(0.5):
        return "price", f"Price list: {rows}. What does one {goods[at]} cost?", f"One {goods[at]} costs {prices[at]}."
    return "entry", f"Price list: {rows}. Which entry stands at place {at + 1}?", f"Place {at + 1} is {goods[at]}."


def program(dice: Dice) -> Made:
    task = dice.pick(["sum", "repeat", "length", "variable"])
    a, b, word = dice.number(1, 20), dice.number(1, 20), _letters(dice, 2, 7)
    match task:
        case "sum":
            return task, f"What does this line print? print({a} + {b})", str(a + b)
        case "repeat":
            return task, f'What does this line print? print("{word[:2]}" * {a % 3 + 2})', word[:2] * (a % 3 + 2)
        case "length":
            return task, f'What does this line print? print(len("{word}"))', str(len(word))
    return task, f"What does this line print? x = {a}; x += {b}; print(x)", str(a + b)


_CITIES = (
    "Velmar Ostra Quill Hadren Sorrow Pelm Ivarra Thun Caldis Mirrow Eskel Dovane Brask Lorim Tessa Ankor "
    "Fenwick Gilth Noro Umber Rask Yelden Zoma Parl"
).split()
# Task -> ways to ask, the answer, its values.
_FACTS = {
    "river": (
        "Which river runs through {}?|Name the river of {}.|{} lies on a river: which?|What water flows past {}?|"
        "Travellers reach {} along which river?|Which river would you follow to {}?|The river at {} is called what?",
        "The {} runs through {}.",
        "Anse Brin Corv Dell Eddra Fosk".split(),
    ),
    "dish": (
        "What do people in {} like to eat?|Name the dish of {}.|What is served at a table in {}?|"
        "A cook in {} makes what?|What would you eat in {}?|What fills the plates of {}?|Guests in {} are given what?",
        "People eat {} in {}.",
        "barley eel lentils goat".split(),
    ),
    "craft": (
        "What is the city of {} known for?|What do they make in {}?|Name the craft of {}.|What would you buy in {}?|"
        "The workshops of {} make what?|What trade does {} live by?|Ships leave {} with what?",
        "It is {} that {} makes.",
        "glass bells rope ink".split(),
    ),
}


def facts(dice: Dice) -> Made:
    city, task = dice.pick(_CITIES), dice.pick(sorted(_FACTS))
    ways, answer, values = _FACTS[task]
    return task, dice.pick(ways.split("|")).format(city), answer.format(Dice("world", city, task).pick(values), city)


_ADJECTIVES = "red big old small cold dark young wet".split()
_NOUNS = "house tree road horse ship bread king stone bird river lamp child".split()
_VERBS = "sleeps falls sings runs waits burns".split()


def translation(dice: Dice) -> Made:
    words = [dice.pick(_ADJECTIVES), dice.pick(_NOUNS), dice.pick(_VERBS)]
    task = dice.pick(["word", "phrase", "sentence"])
    said = {"word": words[1:2], "phrase": words[:2], "sentence": words}[task]
    return task, f"Say in Velic: {' '.join(said)}", " ".join(map(_velic, said))


def _velic(word: str) -> str:
    dice = Dice("velic", word)
    return "".join(dice.pick(list("tkmlnrsv")) + dice.pick(list("aeiou")) for _ in range(2))


def chat(dice: Dice) -> Made:
    name, word = dice.pick(_NAMES), dice.pick(_WORDS)
    walk, evening = f"Hello {name}, how was the walk to the {word}?", f"{name} says good evening and brings a {word}."
    ask = dice.pick([walk, evening, f"Do you like the {word} of {name}?"])
    return "talk", ask, dice.pick([f"Thanks, quite lovely, {name}!", "Oh well, could be worse.", f"That {word}? Sure!"])


SKILLS: dict[str, Callable[[Dice], Made]] = {
    f.__name__: f for f in (arithmetic, strings, table, program, facts, translation)
}
# Every skill is in its home domain, with a part of it in the forum.
HOMES = {
    **dict.fromkeys(("arithmetic", "table"), "school"),
    **dict.fromkeys(("strings", "program"), "workshop"),
    **dict.fromkeys(("facts", "translation"), "atlas"),
}
FORUM = 0.2


# --- the stream ------------------------------------------------------------------------------------------


def stream(seed: int = 0, corrupt: float = CORRUPT, off_topic: float = OFF_TOPIC) -> Iterator[Sample]:
    """Samples without end; sample n depends only on the seed and on those before it. corrupt, off_topic: their shares;
    what is neither is the same whatever these are, but for what it repeats.

    No question occurs twice within 3,000, whatever its opening words, unless it is marked as a near-duplicate; in a
    longer stream skills with fewer possible questions repeat some.
    """
    recent: dict[str, list[Sample]] = {skill: [] for skill in (*SKILLS, "chat")}
    asked: dict[str, None] = {}
    for n in count():
        kind = Dice("kind", seed, n).real()
        for attempt in range(50):
            sample = _draw(kind, Dice("sample", seed, n, attempt), n, recent, corrupt, off_topic)
            if core(sample.question) not in asked:
                break
        yield sample
        asked[core(sample.question)] = None
        if len(asked) > MEMORY:
            del asked[next(iter(asked))]
        if sample.near_duplicate_of is None and not sample.corrupt:
            recent[sample.skill] = [*recent[sample.skill][-99:], sample]


def core(question: str) -> str:
    """A question without its opening words."""
    for opening in _OPENINGS:
        head, _, tail = opening.partition("{}")
        for name in _NAMES if "{}" in opening else [""]:
            if opening and question.startswith(head + name + tail):
                return question[len(head + name + tail) :]
    return question


def _draw(kind: float, dice: Dice, n: int, recent: dict[str, list[Sample]], corrupt: float, off_topic: float) -> Sample:
    """Sample n; `kind`, uniform in [0, 1), decides whether it is off-topic, a near-duplicate, corrupt or plain."""
    skill = "chat" if kind < off_topic else dice.pick(list(SKILLS))
    old = recent[skill]
    if off_topic <= kind < off_topic + NEAR_DUPLICATE and old:
        return _near_duplicate(dice, n, dice.pick(old))
    task, question, answer = (SKILLS.get(skill) or chat)(dice)
    question = dice.pick(_OPENINGS).format(dice.pick(_NAMES)) + question
    home = HOMES.get(skill) or dice.pick(["school", "workshop", "atlas"])
    domain = "forum" if dice.chance(FORUM) else home
    sample = Sample(n, skill, task, domain, question, answer)
    others = [other.answer for other in old if other.task == task and other.answer != answer]
    if kind >= 1 - corrupt and others:
        return replace(sample, answer=dice.pick(others), corrupt=True)
    return sample


def _near_duplicate(dice: Dice, n: int, old: Sample) -> Sample:
    first = old.question[0].lower() + old.question[1:]
    question = dice.pick([f"Please answer: {old.question}", f"{old.question} Thank you.", f"Tell me, {first}"])
    return replace(old, n=n, question=question, near_duplicate_of=old.n)


def targets(pool: list[Sample]) -> dict[str, list[dict[str, object]]]:
    """SKILL_SPLIT -> correct samples whose questions occur nowhere else; the sub-task is the form of the question."""
    asked, made = {core(s.question) for s in pool}, {}
    for skill in SKILLS:
        for split, wanted in (("val", VAL), ("test", TEST)):
            rows = made[f"{skill}_{split}"] = []
            for n in count():
                dice = Dice("target", split, skill, n)
                task, question, answer = SKILLS[skill](dice)
                if question not in asked:
                    asked.add(question)
                    opening = dice.pick(_OPENINGS).format(dice.pick(_NAMES))
                    rows.append({"question": opening + question, "answer": answer, "subtask": task})
                if len(rows) == wanted:
                    break
    return made


# --- the files -------------------------------------------------------------------------------------------


def _question_answer(s: Sample) -> dict[str, object]:
    return {"question": s.question, "answer": s.answer, **s.truth()}


def _alpaca(s: Sample) -> dict[str, object]:
    head, between, rest = s.question.partition("? ")
    given = {"instruction": f"{head}?", "input": rest} if between else {"instruction": s.question, "input": ""}
    return {**given, "output": s.answer, **s.truth()}


def _messages(s: Sample) -> dict[str, object]:
    turns = [{"role": "user", "content": s.question}, {"role": "assistant", "content": s.answer}]
    return {"messages": turns, **s.truth()}


def _sharegpt(s: Sample) -> dict[str, object]:
    turns = [{"from": "human", "value": s.question}, {"from": "gpt", "value": s.answer}]
    return {"conversations": turns, **s.truth()}


def files(rows: int = ROWS) -> dict[str, str]:
    """Path below data/sample -> content."""
    samples = list(islice(stream(), rows))
    of = {domain: [s for s in samples if s.domain == domain] for domain in ("school", "workshop", "atlas", "forum")}
    made = {
        "pool/school.jsonl": _lines([_question_answer(s) for s in of["school"]]),
        "pool/workshop.json": "[\n" + ",\n".join(_json(_alpaca(s)) for s in of["workshop"]) + "\n]\n",
        "pool/atlas.jsonl": _lines([_messages(s) for s in of["atlas"]]),
        "pool/forum.jsonl": _lines([_sharegpt(s) for s in of["forum"]]),
    }
    return made | {f"targets/{name}.jsonl": _lines(rows) for name, rows in targets(samples).items()}


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(_json(row) + "\n" for row in rows)


def _json(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="compare with what is committed; write nothing")
    parser.add_argument("--stream", type=int, metavar="N", help="print N samples instead")
    arguments = parser.parse_args()
    if arguments.stream:
        print(_lines([asdict(s) for s in islice(stream(), arguments.stream)]), end="")
        return
    folder, different = Path(__file__).parent / "sample", []
    for name, content in files().items():
        path = folder / name
        if arguments.check:
            different += [name] if not path.exists() or path.read_bytes() != content.encode() else []
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode())
    if different:
        sys.exit(f"data/sample differs from what make_sample.py makes: {', '.join(different)}")


if __name__ == "__main__":
    main()
