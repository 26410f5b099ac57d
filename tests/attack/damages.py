"""Every file of a rich workspace, damaged: what is read of it must be right, said, or be found by `verify`.

A file is damaged in a copy of the workspace, and a set of verbs is run on that in a forked process:

    held         every verb gave what it gives of the whole workspace, and nothing was to be found
    said         a verb ended in one sentence (a CurateError), or its result says `damaged` or why there is no index;
                 the others were right
    verified     every verb gave the same, and `verify` lists the damage
    page         something was not the same for a bit in a Parquet file, whose pages DuckDB reads unchecked; counted
                 apart, and no failure
    wrong        something was not the same, and only `verify` lists the damage
    SILENT       something was not the same, and nothing says so
    UNEXPECTED   an exception that is no CurateError, a sentence of several lines, or the end of the process
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import curate
from curate.errors import CurateError
from tests.attack import children, scene
from tests.attack.tally import Tally

OUTCOMES = ("held", "said", "verified", "page", "wrong", "SILENT", "UNEXPECTED")
BAD = ("wrong", "SILENT", "UNEXPECTED")


def _flipped(data: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


HARMS: dict[str, Callable[[bytes, Random], bytes | None]] = {
    "a bit flipped": _flipped,
    "cut in half": lambda data, _: data[: len(data) // 2],
    "deleted": lambda *_: None,
    "emptied": lambda *_: b"",
    "zeroed": lambda data, _: bytes(len(data)),
    "garbage": lambda data, dice: dice.randbytes(len(data)),
}


# --- what is read ----------------------------------------------------------------------------------------


def _rows(query: str) -> Callable[[Path], Any]:
    return lambda place: sorted(map(repr, curate.sql(scene.ws_of(place), query)))


def _report(place: Path) -> Any:
    return repr(asdict(curate.report(scene.ws_of(place))))


def _tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _export(place: Path) -> Any:
    curate.export(scene.ws_of(place), "heavy", "jsonl", str(place / "out/heavy"))
    return _tree(place / "out/heavy")


def _select(place: Path) -> Any:
    curate.select(scene.ws_of(place), "anew", "top", by="length + bm25_sums", top=9)
    return (place / "ws/manifests/anew.parquet").read_bytes()


def _mix(place: Path) -> Any:
    curate.mix(scene.ws_of(place), "anew_mixed", "temperature", rows=9, most_epochs=None, manifest="best")
    return (place / "ws/manifests/anew_mixed.parquet").read_bytes()


def _score(place: Path) -> Any:
    ws = scene.ws_of(place)
    names = {"bm25": "bm25_anew", "length": "length_anew"}
    curate.score(ws, "bm25", "length", target="sums", names=names)
    return [_tree(place / "ws/scores" / name) for name in names.values()]


def _score_vectors(place: Path) -> Any:
    names = {"embed_lm": "near"}
    curate.score(scene.ws_of(place), "embed_lm", target="sums", models=scene.model(), names=names)
    return _tree(place / "ws/scores/near")


def _train(place: Path) -> Any:
    ws = scene.ws_of(place)
    curate.train(ws, "masked", model=scene.model(), mask="sparse", manifest="best", steps=1, batch_size=2)
    return (place / "ws/runs/masked/checkpoints/step-000001/model.safetensors").read_bytes()


def _prune(place: Path) -> Any:
    curate.prune(scene.ws_of(place), "plain", "magnitude", 0.5, name="pruned")
    return next((place / "ws/runs/pruned/checkpoints").glob("step-*/model.safetensors")).read_bytes()


def _evaluate(place: Path) -> Any:
    result = curate.evaluate(scene.ws_of(place), "light", ["sums"])
    return [{key: row[key] for key in row if key != "seconds"} for row in result.evaluations]


def _neighbors(place: Path) -> Any:
    first = next(iter(curate.sql(scene.ws_of(place), "SELECT id FROM pool WHERE row = 5")))["id"]
    return curate.neighbors(scene.ws_of(place), "embed_lm", sample_id=first, k=5).found


READS: dict[str, Callable[[Path], Any]] = {
    "status": lambda place: _plain(curate.status(scene.ws_of(place))),
    "sql of samples": _rows("SELECT * FROM samples"),
    "sql of runs": _rows("SELECT * FROM runs"),
    "sql of the ledger": _rows("SELECT * FROM ledger"),
    "sql of evaluations": _rows("SELECT * FROM evaluations"),
    "sql of targets": _rows("SELECT * FROM targets"),
    "sql of rejects": _rows("SELECT * FROM rejects"),
    "sql of a manifest": _rows("SELECT * FROM best"),
    "compare": lambda place: _plain(curate.compare(scene.ws_of(place))),
    "report": _report,
    "export": _export,
    "neighbors": _neighbors,
    "select": _select,
    "mix": _mix,
    "score": _score,
    "score on vectors": _score_vectors,
    "evaluate": _evaluate,
    "prune": _prune,
    "train": _train,
}
# The verbs that take long, and what they read beside the pool.
READ_BY = {
    "report": ("manifests", "scores"),
    "neighbors": ("vectors",),
    "mix": ("manifests",),
    "score": ("targets", "prepared", "scores"),
    "score on vectors": ("vectors", "targets"),
    "evaluate": ("runs", "targets"),
    "prune": ("runs",),
    "train": ("masks", "manifests"),
}
QUICK = ("status", "sql of samples", "sql of runs", "sql of the ledger", "sql of targets", "export", "select", "score")


def reading(file: str) -> tuple[str, ...]:
    """The verbs that may read a file."""
    room = file.partition("/")[0]
    known = {*sum(READ_BY.values(), ()), "rejects", "ledger"}
    return tuple(name for name in READS if room not in known or room in READ_BY.get(name, (room,)))


def _plain(result: Any) -> Any:
    return json.loads(json.dumps(asdict(result), default=str))


# --- one damage ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """How a verb ended: right (`value`), or in an error. listed: the damage that it says it has seen."""

    value: str = ""
    error: str = ""
    unexpected: bool = False
    shown: str = ""


def told(verb: Callable[[Any], Any], place: Any) -> Told:
    """How a verb ends."""
    try:
        value = verb(place)
    except CurateError as error:
        words = str(error)
        return Told(error=words, unexpected="\n" in words or error.exit_status not in (1, 2))
    except Exception as error:  # whatever it is, it is what is looked for
        return Told(error=f"{type(error).__name__}: {error}"[:300], unexpected=True)
    whole = value if isinstance(value, bytes) else repr(value).encode()
    return Told(hashlib.sha256(whole).hexdigest(), shown=whole[:100_000].decode(errors="replace"))


def found(place: Any) -> list[str]:
    """The damage that `verify` lists."""
    return [f"{one.kind} {one.name} {one.part}: {one.what}" for one in curate.verify(scene.ws_of(place)).damaged]


def looked(place: Path, names: tuple[str, ...]) -> tuple[Told, dict[str, Told]]:
    """`verify`, and then every verb."""
    return told(found, place), {name: told(READS[name], place) for name in names}


def outcome(verify: Told, told: dict[str, Told], right: dict[str, Told]) -> tuple[str, str]:
    """What a damage came to, and the verb that it came to that by."""
    for name, its in {"verify": verify, **told}.items():
        if its.unexpected:
            return "UNEXPECTED", f"{name}: {its.error}"
    found = verify.error or verify.shown.strip("[]")
    wrong = [name for name, its in told.items() if not its.error and its.value != right[name].value]
    said = [name for name in wrong if _says(told[name].shown, right[name].shown)]
    wrong = [f"{name} ({_difference(told[name].shown, right[name].shown)})" for name in wrong if name not in said]
    if wrong and not found:
        return "SILENT", ", ".join(wrong)
    if wrong:
        return "wrong", ", ".join(wrong)
    errors = [f"{name}: {its.error}" for name, its in told.items() if its.error]
    if errors or said:
        return "said", (errors or said)[0]
    return ("verified" if found else "held"), found[:200]


def _says(shown: str, right: str) -> bool:
    """Whether a result that is another says of itself that something is damaged."""
    if "'damaged': []" in right and "'damaged': []" not in shown:
        return True
    told = (
        "'state': 'damaged'",
        "is damaged",
        "are damaged",
        "has no index",
        "has an index that is cut or gone",
        "has an index older than its vectors",
        "is gone",
        "damaged, so left out",  # warnings of `compare`
        "cannot be read or are gone",
    )
    return any(shown.count(words) > right.count(words) for words in told)


def _difference(shown: str, right: str) -> str:
    """Where two results begin to differ."""
    at = len(os.path.commonprefix([shown, right]))
    return f"{shown[max(at - 30, 0) : at + 60]!r} in place of {right[max(at - 30, 0) : at + 60]!r}"


def kind_of(file: str) -> str:
    """A file's kind: its path without what is particular to it."""
    file = re.sub(r"[0-9a-f]{16,}", "H", re.sub(r"part-\d+-\d+", "part-N", file))
    file = re.sub(r"\d{5,}", "N", re.sub(r"\.rows-\d+-\d+", "", file))
    return re.sub(r"^(scores|vectors|runs|manifests|masks)/[^/.]+(?=[/.])", r"\1/X", file)


def link(source: Path, to: Path) -> Path:
    """A copy of a place by hard links, but for locks: what else is written is another file, which is renamed."""
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(source, to, copy_function=os.link, ignore=shutil.ignore_patterns(".claims"))


def harmed(source: Path, place: Path, file: str, data: bytes | None) -> None:
    """A copy of a place in which one file has these bytes, or is gone."""
    link(source, place)
    path = place / "ws" / file
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def cases(source: Path, dice: Random) -> Iterator[tuple[str, str]]:
    """(file, harm) without end, at random: each harm to one file of each kind, and again to others."""
    files = [str(path.relative_to(source / "ws")) for path in sorted((source / "ws").rglob("*")) if path.is_file()]
    yield from cases_of(files, dice)


def cases_of(files: list[str], dice: Random) -> Iterator[tuple[str, str]]:
    """The same for these files of a workspace."""
    kinds: dict[str, list[str]] = {}
    for file in files:
        if not file.startswith(".claims/"):
            kinds.setdefault(kind_of(file), []).append(file)
    while True:
        whole = [(dice.choice(files), harm) for files in kinds.values() for harm in HARMS]
        yield from dice.sample(whole, len(whole))


def attack(
    source: Path, folder: Path, seed: int, seconds: float, names: tuple[str, ...] = tuple(READS), most: int = 1 << 60
) -> Tally:
    """Damages files of the place `source` at random for some seconds, at most so many."""
    tally, place, end = Tally("damages", OUTCOMES, BAD), folder / "place", time.monotonic() + seconds
    link(source, place)
    calm = children.in_child(lambda: looked(place, names))
    if calm.error or calm.status:
        raise RuntimeError(f"the whole workspace cannot be read: {calm}")
    verify, right = calm.value
    if verify.shown != "[]" or any(its.error for its in right.values()):
        raise RuntimeError(f"the whole workspace is not: {verify}, {[its for its in right.values() if its.error]}")
    for file, harm in cases(source, Random(seed)):
        if tally.tried >= most or time.monotonic() > end:
            return tally
        data = (source / "ws" / file).read_bytes()
        changed = HARMS[harm](data, Random(f"{seed} {tally.tried}")) if data else None
        if changed == data:
            continue
        harmed(source, place, file, changed)
        read = tuple(name for name in reading(file) if name in names)
        ended = children.in_child(lambda read=read: looked(place, read))
        if ended.status or ended.error:
            tally.add(kind_of(file), "UNEXPECTED", f"{file} {harm}: ended with {ended.status} {ended.error!r}")
            continue
        result, why = outcome(*ended.value, right)
        if result in ("wrong", "SILENT") and file.endswith(".parquet") and harm == "a bit flipped":
            result = "page"
        tally.add(kind_of(file), result, f"{file}, {harm}: {why}".replace(str(place), ""))
    return tally
