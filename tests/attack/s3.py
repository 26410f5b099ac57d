"""The attacks on a workspace in an object store, by a local S3 server: kills at every change, and objects damaged.

A store has no rename and no order of files on a disk: what changes it is an object that is put, copied or removed, and
the removal of a prefix is many of these. A verb is killed in place of each, and run again; and objects are harmed as
files are (tests.attack.damages). Outcomes as in tests.attack.kills and tests.attack.damages, but that `wrong` is here

    listed       something was not the same, and only `verify` lists it: the bytes of a store are the store's to look
                 after, and no command but `verify` reads all of them
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import curate
from curate.store.object_store import ObjectPath
from tests.attack import children, damages, kills, scene
from tests.attack.tally import Tally
from tests.support.s3_server import s3_bucket

KILLED = ("ingest", "ingest --meta replace", "target", "score of text", "embed", "select", "mix", "train", "drop")
OUTCOMES = (*kills.OUTCOMES, "held", "verified", "listed", "SILENT")
BAD = ("LOST", "SILENT", "UNEXPECTED")
_FLEETING = re.compile(r"^ws/(ledger|\.claims)/|/$")


@dataclass(frozen=True)
class Place:
    """A place whose workspace is a prefix of a bucket, and whose other files are in a folder."""

    bucket: str
    prefix: str
    folder: Path

    def __truediv__(self, name: str) -> Any:
        if name.partition("/")[0] != "ws":
            return self.folder / name
        return ObjectPath("s3", f"{self.bucket}/{self.prefix}/{name}")

    def objects(self) -> dict[str, str]:
        """Every object's key, without the prefix, and the store's digest of it."""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        found = [one for page in pages for one in page.get("Contents", [])]
        return {one["Key"].removeprefix(f"{self.prefix}/"): one["ETag"] for one in found}

    def read(self, key: str) -> bytes:
        return client().get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()

    def put(self, key: str, data: bytes | None) -> None:
        where = {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}"}
        if data is None:
            client().delete_object(**where)
        else:
            client().put_object(**where, Body=data)

    def hold(self) -> Held:
        """All that is there."""
        tags = self.objects()
        return Held(tags, {key: self.read(key) for key in tags})

    def become(self, held: Held) -> None:
        """Make what is there the same as at another time."""
        now = self.objects()
        for key in now.keys() | held.tags.keys():
            if now.get(key) != held.tags.get(key):
                self.put(key, held.data.get(key))


@dataclass(frozen=True)
class Held:
    """The objects of a place at a time: their digests by the store, and their bytes."""

    tags: dict[str, str]
    data: dict[str, bytes] = field(repr=False)

    def essence(self) -> dict[str, str]:
        """Key -> a digest of what may not differ, without the ledger, locks, and clients' marks of empty prefixes."""
        return {key: kills.essence(key, data) for key, data in self.data.items() if not _FLEETING.search(key)}


_CLIENT: list[Any] = []


def client() -> Any:
    """boto3's client, for this process: a library that shares nothing with what is attacked."""
    if not _CLIENT:
        import boto3

        _CLIENT.append(boto3.client("s3"))
    return _CLIENT[0]


# --- kills -----------------------------------------------------------------------------------------------


class Store:
    """A file system of pyarrow whose changes are counted, and in place of the n-th of which this process is killed."""

    def __init__(self, real: Any, at: int):
        self.real, self.at, self.seen, self.names = real, at, 0, list[str]()
        self.turn = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _step(self, what: str, key: str) -> None:
        with self.turn:
            self.seen += 1
            self.names.append(f"{what} {key}")
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def open_output_stream(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self._step("put", key)
        return self.real.open_output_stream(key, *args, **kwargs)

    def copy_file(self, key: str, to: str) -> None:
        self._step("copy to", to)
        self.real.copy_file(key, to)

    def delete_file(self, key: str) -> None:
        self._step("remove", key)
        self.real.delete_file(key)

    def delete_dir(self, key: str) -> None:
        """One object after another, in an order that the caller cannot count on."""
        from pyarrow.fs import FileSelector

        infos = self.real.get_file_info(FileSelector(key, recursive=True, allow_not_found=True))
        for info in sorted(infos, key=lambda info: info.path, reverse=True):
            if info.is_file:
                self._step("remove", info.path)
                self.real.delete_file(info.path)
        with suppress(FileNotFoundError):
            self.real.delete_dir(key)


def _run(verb: Callable[[Any], Any], place: Place, at: int) -> list[str]:
    from curate.store import object_store

    real, made = object_store._store, dict[tuple[str, ...], Store]()

    def counted(*given: str) -> Store:
        if given not in made:
            made[given] = Store(real(*given), at)
        return made[given]

    ObjectPath.store = property(lambda path: counted(path.scheme, path.key.split("/")[0], path.options))  # type: ignore[assignment,method-assign]
    verb(place)
    return [name for store in made.values() for name in store.names]


class Stage:
    """A verb, what is there before it, and what an undisturbed run of it leaves."""

    def __init__(self, name: str, verb: Callable[[Any], Any], place: Place):
        self.name, self.verb, self.place, self.before = name, verb, place, place.hold()
        ended = children.in_child(lambda: _run(verb, place, 0))
        if ended.status or ended.error:
            raise RuntimeError(f"{name} does not run: {ended}")
        self.changes: list[str] = ended.value
        self.after = place.hold()
        self.whole = self.after.essence()

    def kill(self, at: int) -> tuple[str, str]:
        """Kill the verb in place of a change, and go on."""
        self.place.become(self.before)
        killed = children.in_child(lambda: _run(self.verb, self.place, at))
        if killed.error or killed.status not in (0, -9):
            return "UNEXPECTED", f"before the kill: {killed.status} {killed.error!r}"
        if not killed.status:
            return "same", "ended before"
        ended = children.in_child(lambda: kills.gone_on(self.verb, self.place))
        if ended.status or ended.error:
            return "UNEXPECTED", f"going on ended with {ended.status} {ended.error!r}"
        return kills.judged(*ended.value, self.place.hold().essence(), self.whole)


def stages_of(place: Place, names: tuple[str, ...]) -> list[Stage]:
    """The verbs, each on what those before it have made."""
    given = {**scene.MAKING, "drop": scene.USING["drop of vectors"]}
    stages = []
    for name in names:
        if stages:
            place.become(stages[-1].after)
        stages.append(Stage(name, given[name], place))
    return stages


def attack_by_kills(stages: list[Stage], tally: Tally, seed: int, seconds: float, most: int) -> None:
    """Kills at changes at random, in turn of every verb, for some seconds, at most so many."""
    dice, end = Random(seed), time.monotonic() + seconds
    points = [dice.sample(range(1, len(stage.changes) + 1), len(stage.changes)) for stage in stages]
    while any(points):
        for stage, left in zip(stages, points, strict=True):
            if tally.tried >= most or time.monotonic() > end:
                return
            if left:
                at = left.pop()
                result, why = stage.kill(at)
                tally.add(f"kill: {stage.name}", result, f"{stage.name}, killed before {stage.changes[at - 1]}: {why}")


# --- damages ---------------------------------------------------------------------------------------------


def _score(place: Any) -> Any:
    ws = scene.ws_of(place)
    names = {"bm25": "bm25_anew", "length": "length_anew"}
    curate.score(ws, "bm25", "length", target="sums", names=names)
    files = [path for name in names.values() for path in (ws.path / "scores" / name).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def _select(place: Any) -> Any:
    curate.select(scene.ws_of(place), "anew", "top", by="length + bm25_sums", top=9)
    return (place / "ws/manifests/anew.parquet").read_bytes()


_SHARED = ("status", "sql of samples", "sql of runs", "sql of the ledger", "sql of evaluations", "sql of targets")
READS: dict[str, Callable[[Any], Any]] = {
    **{name: damages.READS[name] for name in (*_SHARED, "sql of rejects", "sql of a manifest", "neighbors")},
    "score": _score,
    "select": _select,
}


def _looked(place: Place, names: tuple[str, ...]) -> tuple[damages.Told, dict[str, damages.Told]]:
    return damages.told(damages.found, place), {name: damages.told(READS[name], place) for name in names}


def attack_by_damages(place: Place, tally: Tally, seed: int, seconds: float, most: int) -> None:
    """Harms objects of a place at random for some seconds, at most so many."""
    end, held = time.monotonic() + seconds, place.hold()
    names = tuple(name for name in READS if name != "neighbors" or "ws/vectors/embed_lm/vectors.json" in held.data)
    calm = children.in_child(lambda: _looked(place, names))
    if calm.error or calm.status:
        raise RuntimeError(f"the whole workspace cannot be read: {calm}")
    verify, right = calm.value
    if verify.shown != "[]" or any(its.error for its in right.values()):
        raise RuntimeError(f"the whole workspace is not: {verify}, {[its for its in right.values() if its.error]}")
    files = [
        key.removeprefix("ws/") for key in held.data if not key.startswith("ws/.claims/") and not key.endswith("/")
    ]
    for number, (file, harm) in enumerate(damages.cases_of(files, Random(seed))):
        if tally.tried >= most or time.monotonic() > end:
            return
        place.become(held)
        data = held.data[f"ws/{file}"]
        changed = damages.HARMS[harm](data, Random(f"{seed} {number}")) if data else None
        if changed == data:
            continue
        place.put(f"ws/{file}", changed)
        read = tuple(name for name in names if name not in damages.READS or name in damages.reading(file))
        ended = children.in_child(lambda read=read: _looked(place, read))
        kind = f"harm: {damages.kind_of(file)}"
        if ended.status or ended.error:
            tally.add(kind, "UNEXPECTED", f"{file} {harm}: ended with {ended.status} {ended.error!r}")
            continue
        result, why = damages.outcome(*ended.value, right)
        tally.add(kind, "listed" if result == "wrong" else result, f"{file}, {harm}: {why}")


def attack(
    folder: Path, seed: int, seconds: float, names: tuple[str, ...] = KILLED, most: tuple[int, int] = (1 << 60, 1 << 60)
) -> Tally:
    """Both, half of the time each. most: kills, and harms."""
    tally = Tally("s3", OUTCOMES, BAD)
    with s3_bucket() as address:
        place = Place(address.removeprefix("s3://"), "place", folder / "place")
        scene.write_inputs(place.folder)
        stages = stages_of(place, names)
        attack_by_kills(stages, tally, seed, seconds / 2, most[0])
        place.become(stages[-1].before)
        attack_by_damages(place, tally, seed, seconds / 2, tally.tried + most[1])
    _CLIENT.clear()  # the next server has another address
    return tally
