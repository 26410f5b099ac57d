"""Tokenised samples of the pool, kept in the workspace for all that trains on them: flat arrays, mapped into memory.

    tokens/FINGERPRINT/tokens.json               what made them: tokenizer, rules, versions
                       part-00000-0.safetensors  of the pool's part-00000, the samples that were asked for first
                       part-00000-1.safetensors  … and those that were asked for later
                       _commit/…                 their records

FINGERPRINT is of all that decides what a sample's tokens are, so that any training with the same tokenizer and rules
finds them, whichever samples it chooses, at whatever context. A sample is in one file. What is damaged, or was put here
from elsewhere, is made again; all of it can be removed at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curate.errors import DamagedError
from curate.machine import usable_cores
from curate.store.commits import Parts
from curate.store.encoding import read_json, write_json
from curate.store.files import remove_tree
from curate.store.object_store import Location
from curate.store.workspace import Shard, Workspace

FOLDER = "tokens"
WHAT = "tokens.json"
_TYPES = {"BOOL": "bool", "U8": "uint8", "I32": "int32", "I64": "int64", "F32": "float32"}


@dataclass(frozen=True)
class TokenFile:
    """Samples of one part of the pool, n of them, in tokens.

    rows: int64 [n], their positions in the part, ascending. ends: int64 [n + 1], the boundaries of their tokens.
    ids: int32 [T]. supervised: bool [T]. weight: float32 [T], or None if no turn has a weight of its own. counts: int64
    [n], supervised tokens. flags: uint8 [n], the sum of PARTIAL, PLAIN and WEIGHTED. reason: int32 [n], 0 or the number
    (from 1) in `reasons` of why a sample cannot go through a model.
    """

    rows: np.ndarray
    ends: np.ndarray
    ids: np.ndarray
    supervised: np.ndarray
    weight: np.ndarray | None
    counts: np.ndarray
    flags: np.ndarray
    reason: np.ndarray
    reasons: Sequence[str]

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they are written."""
        names = ("rows", "ends", "ids", "supervised", "weight", "counts", "flags", "reason")
        arrays = {name: array for name in names if (array := getattr(self, name)) is not None}
        return {**arrays, "reasons": np.frombuffer(orjson.dumps(list(self.reasons)), np.uint8)}


PARTIAL, PLAIN, WEIGHTED = 1, 2, 4  # some turns are not supervised; a raw text; turns have weights of their own


def token_file(arrays: Mapping[str, np.ndarray]) -> TokenFile:
    """A file's arrays, by name."""
    own = {name: array for name, array in arrays.items() if name not in ("reasons", "weight")}
    return TokenFile(**own, weight=arrays.get("weight"), reasons=orjson.loads(arrays["reasons"].tobytes()))


@dataclass(frozen=True)
class TokenFiles:
    """The files of one fingerprint."""

    ws: Workspace
    fingerprint: str

    @property
    def folder(self) -> Location:
        """Where they are."""
        return self.ws.path / FOLDER / self.fingerprint

    @property
    def parts(self) -> Parts:
        """The files as parts. Not flushed: after a power failure their digests tell what to make again."""
        return Parts(self.folder, ".safetensors", lasting=False)

    @property
    def lock_name(self) -> str:
        """What is locked while they are written."""
        return f"tokens {self.fingerprint}"

    def describe(self, what: Mapping[str, Any]) -> None:
        """Write down what made them, if it is not written yet."""
        if not (self.folder / WHAT).exists():
            write_json(self.folder / WHAT, dict(what), flush=False)

    def what(self) -> dict[str, Any]:
        """What made them, as `describe` wrote it; {} if that cannot be read, which nothing depends on."""
        try:
            found = read_json(self.folder / WHAT)
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def whole(self, shards: Sequence[Shard]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The files of each shard, by its name, whose bytes are those written for this tokenizer and pool; and those
        that are not, with what is wrong. Every file is read once, by several threads."""
        wanted = {shard.name for shard in shards}
        names = [name for name in self.parts.names() if _shard_of(name) in wanted]
        with ThreadPoolExecutor(usable_cores()) as pool:
            problems = list(pool.map(self._problem, names))
        good: dict[str, list[str]] = {}
        for name, problem in zip(names, problems, strict=True):
            if not problem:
                good.setdefault(_shard_of(name), []).append(name)
        return good, {name: problem for name, problem in zip(names, problems, strict=True) if problem}

    def found(self, shards: Sequence[Shard]) -> dict[str, list[str]]:
        """The files of each shard, which another process has looked at."""
        wanted, found = {shard.name for shard in shards}, dict[str, list[str]]()
        for name in self.parts.names():
            if _shard_of(name) in wanted:
                found.setdefault(_shard_of(name), []).append(name)
        return found

    def of_another(self, name: str, record: Mapping[str, Any]) -> str:
        """What a file is of, if not of this tokenizer and pool; '' if it is, or its part of the pool is lost."""
        if record.get("tokens") != self.fingerprint:
            return "is of another tokenizer, or of other rules"
        pool = self.ws.pool.record(_shard_of(name))
        return "is of another pool" if pool and pool["sha256"] != record.get("shard") else ""

    def _problem(self, name: str) -> str:
        record = self.parts.record(name)
        if record is None:
            return "has no record that can be read"
        if other := self.of_another(name, record):
            return other
        try:
            self.parts.intact(name)
        except DamagedError:
            return "has other bytes than were written"
        return ""

    def read(self, name: str) -> TokenFile:
        """A file, mapped into memory; of an object store, read."""
        path = self.parts.path(name)
        return token_file(_mapped(path) if isinstance(path, Path) else self.parts.read(name))

    def write(self, shard: Shard, file: TokenFile) -> None:
        """Add samples of a shard. Requires holding the lock."""
        taken = {name for name in self.parts.names() if _shard_of(name) == shard.name}
        number = next(i for i in range(len(taken) + 1) if f"{shard.name}-{i}" not in taken)
        record = {"tokens": self.fingerprint, "shard": shard.sha256, "samples": len(file.rows), "size": len(file.ids)}
        self.parts.commit(f"{shard.name}-{number}", file.arrays(), **record)

    def size(self) -> tuple[int, int, int]:
        """Samples, tokens and bytes, as far as the records say."""
        records = [record for name in self.parts.names() if (record := self.parts.record(name))]
        return tuple(sum(int(record.get(key, 0)) for record in records) for key in ("samples", "size", "bytes"))  # type: ignore[return-value]


def _shard_of(name: str) -> str:
    return name.rpartition("-")[0]


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped into memory."""
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    start = 8 + int(data[:8].view("<u8")[0])
    arrays = {}
    for name, entry in orjson.loads(data[8:start].tobytes()).items():
        if name != "__metadata__":
            first, stop = (start + offset for offset in entry["data_offsets"])
            arrays[name] = data[first:stop].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


# --- all of a workspace ----------------------------------------------------------------------------------


def all_token_files(ws: Workspace) -> Iterator[TokenFiles]:
    """The tokens of every tokenizer and rule that a workspace keeps."""
    for folder in sorted((ws.path / FOLDER).glob("[0-9a-f]*")):
        yield TokenFiles(ws, folder.name)


def kept_tokens(ws: Workspace) -> list[dict[str, Any]]:
    """What a workspace keeps in tokens: name, model, samples, tokens, bytes of each."""
    rows = []
    for files in all_token_files(ws):
        samples, tokens, n_bytes = files.size()
        model = files.what().get("model", "")
        name = f"{FOLDER}/{files.fingerprint}"
        rows.append({"name": name, "model": model, "samples": samples, "tokens": tokens, "bytes": n_bytes})
    return rows


def drop_tokens(files: TokenFiles) -> None:
    """Remove the files. Requires holding the lock."""
    remove_tree(files.folder, marker=WHAT)
