"""Tokens of a training's samples: made once, kept in the workspace, and shared by runs, seeds and processes.

What is kept is each sample as a whole. What a training makes of it (cut to its context, in pieces, every token
supervised) is told by numbers, so that trainings of other settings share it, and only a step's documents are read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.errors import CurateFailure
from curate.hashing import fingerprint
from curate.machine import usable_cores, without_garbage_collection
from curate.methods.executors.local import Local
from curate.progress import Progress
from curate.runs.samples import TrainingRows
from curate.store.encoding import read_table
from curate.store.locks import FOREVER, lock
from curate.store.object_store import Location
from curate.store.schema import CONTENT
from curate.store.token_files import PARTIAL, PLAIN, WEIGHTED, TokenFile, TokenFiles
from curate.store.workspace import Shard, Workspace
from curate.training.settings import TrainSettings

if TYPE_CHECKING:  # loaded only when there is something to train
    from curate.models.language_model import LanguageModel
    from curate.models.tokens import Encoded

_CHARS = 1 << 20  # of text that are tokenised at once: the offsets of their tokens take some 100 MB
_ROWS = 4096
_WORTH_WORKERS = 16 << 20  # characters for which starting processes is worth while
_MOST_WORKERS = 8  # that are started unasked: about what one process can write for


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of n samples are. files: those that have some. start, length, counts: int64 [n], the sample's
    first token among those of all files, its tokens, and how many are supervised. flags: uint8 [n], see TokenFile.
    reason: int32 [n], 0 or the number (from 1) in `reasons` of why it cannot go through a model. notes: what was made
    again, in words."""

    files: Sequence[TokenFile]
    start: np.ndarray
    length: np.ndarray
    counts: np.ndarray
    flags: np.ndarray
    reason: np.ndarray
    reasons: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Tokens in all files."""
        return sum(len(file.ids) for file in self.files)


def tokens_of(ws: Workspace, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel, processes: Any) -> Tokens:
    """The tokens of a training's samples; what is not kept yet is made, by the main process, while the others wait."""
    from curate.models.tokenizer_identity import tokens_made_by

    made_by = tokens_made_by(lm.tokenizer, lm.choice, settings.add_eos_token)
    files = TokenFiles(ws, fingerprint(made_by))
    wanted = _by_shard(ws, rows.row)
    notes: list[str] = []
    if processes.is_main_process:
        encoding = _Encoding(lm.tokenizer, lm.choice.date, settings.add_eos_token, lm.choice.special_tokens)
        notes = _ensure(files, wanted, encoding, settings.tokenize_workers, {**made_by, "model": lm.choice.name})
    processes.wait_for_everyone()
    return _looked_up(files, wanted, len(rows.row), notes)


@dataclass(frozen=True)
class _Wanted:
    """Rows of a shard. rows: int64, their positions in it. places: int64, among the samples."""

    shard: Shard
    rows: np.ndarray
    places: np.ndarray


def _by_shard(ws: Workspace, row: np.ndarray) -> list[_Wanted]:
    order = np.argsort(row, kind="stable")
    ordered, found = row[order], []
    for shard in ws.shards():
        first, stop = np.searchsorted(ordered, [shard.start, shard.start + shard.rows])
        if first < stop:
            found.append(_Wanted(shard, ordered[first:stop] - shard.start, order[first:stop]))
    return found


# --- making them -----------------------------------------------------------------------------------------


def _ensure(
    files: TokenFiles, wanted: Sequence[_Wanted], encoding: _Encoding, workers: int, what: dict[str, Any]
) -> list[str]:
    """Make what is missing, and what is damaged or another's. Returns that in words."""
    shards = [one.shard for one in wanted]
    good, bad = files.whole(shards)
    if not bad and not any(len(rows) for _, rows in _missing(files, wanted, good)):
        return []
    with lock(files.ws, files.lock_name, wait=FOREVER):
        good, bad = files.whole(shards)  # another process may have made it meanwhile
        for name in bad:
            files.parts.remove(name)
        files.parts.remove_leftovers()
        files.describe(what)
        _make(files, [(shard, rows) for shard, rows in _missing(files, wanted, good) if len(rows)], encoding, workers)
    return _words(files, bad)


def _words(files: TokenFiles, bad: dict[str, str]) -> list[str]:
    if not bad:
        return []
    first, why = next(iter(bad.items()))
    those = f"{first} {why}" if len(bad) == 1 else f"{len(bad)} files are not what they should be ({first} {why})"
    return [f"of the kept tokens in {files.folder}, {those}; these samples were tokenised again"]


def _missing(
    files: TokenFiles, wanted: Sequence[_Wanted], good: dict[str, list[str]]
) -> Iterator[tuple[Shard, np.ndarray]]:
    """Of each shard the rows, once each, that no file has."""
    for one in wanted:
        have = np.zeros(one.shard.rows, bool)
        for name in good.get(one.shard.name, []):
            have[files.read(name).rows] = True
        yield one.shard, np.unique(one.rows[~have[one.rows]])


@dataclass(frozen=True)
class _Block:
    """Some rows of a shard, int64, to be tokenised together."""

    path: Location
    sha256: str
    rows: np.ndarray


@dataclass(frozen=True)
class _Encoding:
    """Tokenises blocks, in whichever process."""

    tokenizer: Any
    date: str
    add_eos_token: bool
    special_tokens: Any

    def __call__(self, block: _Block) -> TokenFile:
        """The block's samples in tokens."""
        from datetime import date

        from curate.models.tokens import encode

        samples = _contents(block.path, block.sha256).take(pa.array(block.rows)).to_pylist()
        rules = {"today": date.fromisoformat(self.date), "special_tokens": self.special_tokens}
        with without_garbage_collection():
            encoded = encode(self.tokenizer, samples, 1 << 40, add_eos_token=self.add_eos_token, **rules)
        plain = np.array([sample["messages"] is None for sample in samples], bool)
        return _file_of(block.rows, encoded, plain)


@functools.lru_cache(1)
def _contents(path: Location, sha256: str) -> pa.Table:
    """A shard's samples, which its next block needs again."""
    return read_table(path, list(CONTENT))


def _file_of(rows: np.ndarray, encoded: Sequence[Encoded], plain: np.ndarray) -> TokenFile:
    reasons = list(dict.fromkeys(item.error for item in encoded if item.error))
    number = {"": 0, **{reason: i + 1 for i, reason in enumerate(reasons)}}
    weighted = np.array([item.weight is not None for item in encoded], bool)
    weights = [np.ones(len(e.ids), np.float32) if e.weight is None else e.weight for e in encoded]
    return TokenFile(
        rows,
        np.concatenate([[0], np.cumsum([len(item.ids) for item in encoded])]).astype(np.int64),
        np.concatenate([item.ids for item in encoded]).astype(np.int32),
        np.concatenate([item.supervised for item in encoded]),
        np.concatenate(weights).astype(np.float32) if weighted.any() else None,
        np.array([item.supervised.sum() for item in encoded], np.int64),
        (PARTIAL * np.array([item.partial for item in encoded], bool) + PLAIN * plain + WEIGHTED * weighted).astype(
            np.uint8
        ),
        np.array([number[item.error] for item in encoded], np.int32),
        reasons,
    )


def _make(files: TokenFiles, todo: list[tuple[Shard, np.ndarray]], encoding: _Encoding, workers: int) -> None:
    """Tokenise rows of shards, a file for each shard, written as soon as it is whole."""
    planned, chars = [], 0
    for shard, rows in todo:
        blocks, size = _blocks(shard, rows)
        planned.append((shard, blocks))
        chars += size
    processes = workers or (1 if chars < _WORTH_WORKERS else min(usable_cores(), _MOST_WORKERS))
    total = sum(len(rows) for _, rows in todo)
    with closing(Local(workers=processes).open()) as pool, Progress("tokens", total, noun="samples") as shown:
        encoded = pool.in_order(encoding, (block for _, blocks in planned for block in blocks))
        for shard, blocks in planned:
            parts = []
            for part in (next(encoded) for _ in blocks):
                parts.append(part)
                shown.finished(len(part.rows), len(part.ids))
            files.write(shard, _together(parts))
    _contents.cache_clear()


def _blocks(shard: Shard, rows: np.ndarray) -> tuple[list[_Block], int]:
    """Rows of a shard in blocks, and their characters."""
    chars = read_table(shard.path, ["n_chars"])["n_chars"].to_numpy()[rows].astype(np.int64)
    before = np.cumsum(chars) - chars
    group = np.maximum(before // _CHARS, 0)
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(rows)]
    cuts = [cut for a, b in zip(bounds[:-1], bounds[1:], strict=True) for cut in range(a, b, _ROWS)] + [len(rows)]
    blocks = [_Block(shard.path, shard.sha256, rows[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    return blocks, int(chars.sum())


def _together(parts: Sequence[TokenFile]) -> TokenFile:
    """Files of samples that follow each other, as one."""
    reasons = list(dict.fromkeys(reason for part in parts for reason in part.reasons))
    number = {reason: i + 1 for i, reason in enumerate(reasons)}
    renumbered = [np.array([0, *(number[reason] for reason in part.reasons)], np.int32)[part.reason] for part in parts]
    offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
    weight = None
    if any(part.weight is not None for part in parts):
        weight = np.concatenate([np.ones(len(p.ids), np.float32) if p.weight is None else p.weight for p in parts])
    ends = [part.ends[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _SIMPLE}
    return TokenFile(
        **joined,
        ends=np.concatenate([[0], *ends]).astype(np.int64),
        weight=weight,
        reason=np.concatenate(renumbered),
        reasons=reasons,
    )


_SIMPLE = ("rows", "ids", "supervised", "counts", "flags")  # fields that are put end to end


# --- looking them up -------------------------------------------------------------------------------------


def _looked_up(files: TokenFiles, wanted: Sequence[_Wanted], n: int, notes: Sequence[str]) -> Tokens:
    names = files.found([one.shard for one in wanted])
    start, length, counts = (np.zeros(n, np.int64) for _ in range(3))
    flags, reason = np.zeros(n, np.uint8), np.zeros(n, np.int32)
    opened, reasons, offset, found = list[TokenFile](), dict[str, int](), 0, 0
    for one in wanted:
        place = np.full(one.shard.rows, -1, np.int64)
        for name in names.get(one.shard.name, []):
            file = files.read(name)
            place[:] = -1
            place[file.rows] = np.arange(len(file.rows))
            at = place[one.rows]
            here, at = one.places[at >= 0], at[at >= 0]
            if not len(here):
                continue
            start[here], length[here] = offset + file.ends[at], np.diff(file.ends)[at]
            counts[here], flags[here] = file.counts[at], file.flags[at]
            own = [reasons.setdefault(words, len(reasons) + 1) for words in file.reasons]
            reason[here] = np.array([0, *own], np.int32)[file.reason[at]]
            opened.append(file)
            offset, found = offset + len(file.ids), found + len(here)
    if found != n:
        raise CurateFailure(f"the tokens in {files.folder} were removed as this training began; run it again.")
    return Tokens(opened, start, length, counts, flags, reason, list(reasons), notes)
