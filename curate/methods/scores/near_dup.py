from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
import polars as pl

from curate.errors import CurateError
from curate.hashing import pair_number
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import ALONE, split_words
from curate.methods.scores._told import Told
from curate.numerics.minhash import minhash

# Words, characters that are words, and marks.
_TOKENS = rf"[{ALONE}]|[\w--[{ALONE}]]+|[^\w\s]"
_AT_ONCE = 1 << 13  # pairs that are compared before it is asked which still would join two components
_IN_MEMORY = 1 << 29  # bytes of bands; more are in temporary files
_MOST_PARTS = 64  # arrays that wait to be joined

_MOST_WORDS = 10_000  # of a shingle: each takes a pass over all words
_MOST_PERMUTATIONS = 65_536  # a signature of them is a quarter of a megabyte


@dataclass(frozen=True)
class NearDup(Score):
    """Clusters of near-duplicates (samples that repeat others with small changes), and which of each to keep.

    Formula: 1 / (a sample's rank in its cluster), so 1 is the one to keep, or has no near-duplicate
    (`--where "near_dup = 1"`). Columns: `cluster`, the id of the one to keep; `size` of the cluster; `keep`. Clusters
    are connected components of the similar pairs. A pair is similar where every message of one is similar to its
    counterpart of the same role in the other (a tool call counts as part of its message); of preference pairs only the
    prompts are compared, so two pairs on the same prompt are near-duplicates, whatever their answers:

        J(a, b) >= threshold                            Jaccard index of their words, with multiplicity
        |LCS(a, b)| >= (1 - replaced) min(|a|, |b|)     the shorter is nearly a subsequence of the longer

    The second condition tells words added (an opening, a thank-you) from words replaced (the numbers of the same
    exercise), which in templated data make a different sample. Only candidates are compared: pairs whose MinHash
    signatures of `permutations` values, over shingles of `ngram` words, agree in one of `permutations / band` bands.
    Where more than `window` samples share a band, each is compared with the next `window` of them in the order of their
    signatures.

    Cost: reads and tokenises the pool twice; no FLOPs. Bottleneck: hashing shingles; then comparing candidates, about
    20 microseconds each, in as many threads as there are cores. Memory: 40 bytes per sample while bands are compared,
    all of which (8 bytes per band and sample) are in memory up to half a gigabyte, and else in temporary files; 16
    bytes per pair, of which there are few in real data and about 50 per sample where all samples share one template; 4
    bytes per word of all candidates.

    Departures: the usual rule is the Jaccard index of shingles alone (`replaced=1` ignores word order). Under that rule
    every exercise of one template is a duplicate of the others. Clusters may chain: their ends need not be similar.

    Reference: Broder, "On the Resemblance and Containment of Documents", 1997; Lee et al., "Deduplicating Training Data
    Makes Language Models Better", ACL 2022, arXiv:2107.06499, Appendix A (MinHash, bands, connected components).

    >>> from curate.kinds.score import run
    >>> texts = ["the cat sat on the mat by the door", "please: the cat sat on the mat by the door", "a dog ran"]
    >>> run(NearDup(), [Text.of(texts)])[0]["score"].tolist()
    [0.5, 1.0, 1.0]
    """

    scope: ClassVar = "pool"
    columns: ClassVar = {"cluster": "id", "size": "int32", "keep": "bool"}

    threshold: float = 0.7
    """Lowest Jaccard index of two messages' words. [chosen here; Lee et al. take an edit similarity of 0.8]"""
    replaced: float = 0.03
    """Largest share of the shorter message's words that may be missing from the longer; 1: order does not matter."""
    keep: Literal["longest", "shortest", "lowest_id"] = "longest"
    """Which of a cluster is kept; ties go to the lowest id."""
    ngram: int = 2
    """Words per shingle."""
    permutations: int = 128
    """Values per MinHash signature."""
    band: int = 4
    """Values per band. More miss more pairs, fewer compare more."""
    window: int = 4
    """How many samples of the same band a sample is compared with."""
    seed: int = 1
    """Seed of the permutations."""

    def __post_init__(self) -> None:
        valid = 0 < self.threshold <= 1 and 0 <= self.replaced <= 1 and 1 <= self.ngram <= _MOST_WORDS
        valid = valid and min(self.band, self.window) >= 1
        if not valid or not self.band <= self.permutations <= _MOST_PERMUTATIONS or self.seed < 0:
            raise CurateError(
                "near_dup needs threshold in (0, 1], replaced in [0, 1], ngram "
                f"(to {_MOST_WORDS:,}), band and window of 1 or more, a seed of 0 or more, and at least as many "
                f"permutations as a band and at most {_MOST_PERMUTATIONS:,}, not {self.settings()}."
            )

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        signed = ("ngram", "permutations", "band", "window", "seed")
        return (
            Pass("sign", self._sign, reduce=self._candidates, shaped_by=signed),
            Pass("compare", self._words, self._clusters, _Pairs, shaped_by=("threshold", "replaced", "keep")),
            Pass("flag", self._flag),
        )

    def note(self, columns: Mapping[str, np.ndarray], target: Target | None) -> str:
        repeating, kept = int((columns["score"] < 1).sum()), int(((columns["size"] > 1) & columns["keep"]).sum())
        return f"{repeating:,} samples repeat one of {kept:,} others; `near_dup = 1` leaves them out"

    # Signatures, and the candidate pairs they yield

    def _sign(self, batch: Text, _: Arrays) -> Arrays:
        """The id of every sample with words, and one hash for each band of its signature, uint64 [n, bands]."""
        words, ends = _hashes(batch.asked.whole)
        shingles, ends = _shingles(words, ends, self.ngram)
        rows = np.flatnonzero(np.diff(ends))  # a sample without words has no near-duplicate
        n_bands = self.permutations // self.band
        values = minhash(shingles, ends[np.append(rows, len(ends) - 1)], self.permutations, self.seed)
        values = np.ascontiguousarray(values[: n_bands * self.band].T)
        by_band, bands = values.reshape(-1, n_bands, self.band), np.zeros((len(rows), n_bands), np.uint64)
        for k in range(self.band):
            bands = pair_number(bands, by_band[:, :, k].astype(np.uint64))
        return {"ids": batch.ids[rows], "bands": bands}

    def _candidates(self, partials: Iterable[Arrays]) -> Arrays:
        """The pairs of ids that share a band, the lower id first: uint64 [P, 2]."""
        with ExitStack() as stack:
            columns = _Columns(stack)
            for partial in partials:
                columns.append(partial["ids"], partial["bands"])
            pairs = np.zeros(0, np.uint64)
            for band in range(columns.width):
                pairs = np.unique(np.concatenate([pairs, *self._near(columns, band)]))
            ids, n = columns.ids, np.uint64(max(columns.rows, 1))
        first, second = np.divmod(pairs, n)
        return {"pairs": np.sort(np.stack([ids[first], ids[second]], 1), 1)}

    def _near(self, columns: _Columns, band: int) -> Iterator[np.ndarray]:
        """The pairs of rows that share a band and are near within it, the lower times their number plus the higher."""
        values, n = columns[band], np.uint64(columns.rows)
        order = np.argsort(values)
        equal = values[order[1:]] == values[order[:-1]]
        rows = np.sort(order[np.append(equal, False) | np.append(False, equal)]) if len(equal) else order[:0]
        near = [columns[(band + k) % columns.width][rows] for k in (2, 1)]  # within a band ordered by the next two
        rows = rows[np.lexsort([columns.ids[rows], *near, values[rows]])]
        shared = values[rows]
        for step in range(1, min(self.window, len(rows) - 1) + 1):
            matches = np.flatnonzero(shared[step:] == shared[:-step])
            first, second = rows[matches].astype(np.uint64), rows[matches + step].astype(np.uint64)
            yield np.minimum(first, second) * n + np.maximum(first, second)

    # Candidates compared, and clusters

    def _words(self, batch: Text, pairs: _Pairs) -> Arrays:
        """The words of this batch's samples that are in a pair, message by message; and the pairs whose first is
        one."""
        rows = np.flatnonzero(pairs.have(batch.ids))
        message_field = pl.element().struct.field
        parts = [message_field("content"), message_field("extra")]  # a tool call is part of its message
        contents = pl.col("messages").list.eval(pl.concat_str(parts, separator="\n", ignore_nulls=True))
        roles = pl.col("messages").list.eval(message_field("role"))
        frame = batch.asked.frame[rows.tolist()].select(
            pl.coalesce(contents, pl.concat_list("text")).alias("content"),
            pl.coalesce(roles, pl.concat_list(pl.lit(""))).alias("role"),
        )
        words, ends = _hashes(frame["content"].explode().fill_null(""))
        role = [crc32((name or "").encode()) for name in frame["role"].explode()]
        return {
            "ids": batch.ids[rows],
            "messages": np.maximum(frame["content"].list.len().to_numpy().astype(np.int64), 1),
            "roles": np.array(role, np.uint32),
            "lengths": np.diff(ends),
            "words": words,
            "pairs": pairs.begun_by(batch.ids[rows]),
        }

    def _clusters(self, partials: Iterable[Arrays]) -> Arrays:
        """For every sample in a cluster, by id: the id of the one to keep, its own rank, and the cluster's size."""
        dtypes = {"ids": np.uint64, "messages": np.int64, "roles": np.uint32, "lengths": np.int64, "words": np.uint32}
        empty = {name: np.zeros(0, kind) for name, kind in dtypes.items()}
        *texts, pairs = _joined(partials, **empty, pairs=np.zeros((0, 2), np.uint64))
        samples = Told(*texts)
        pairs = pairs[np.isin(pairs, samples.ids).all(1)]  # without those of which one could not be read
        label = _components(samples.ids, pairs, lambda rows: samples.alike(rows, self.threshold, self.replaced))
        size = np.bincount(label, minlength=len(label))[label]
        ranked = np.lexsort([samples.ids, self._worse(samples), label])
        ranked = ranked[size[ranked] > 1]
        first = np.flatnonzero(np.diff(label[ranked], prepend=-1))
        cluster_sizes = np.diff(first, append=len(ranked))
        place = np.arange(len(ranked)) - np.repeat(first, cluster_sizes) + 1
        kept = np.repeat(samples.ids[ranked[first]], cluster_sizes)
        by_id = np.argsort(samples.ids[ranked])
        columns = {"ids": samples.ids[ranked], "cluster": kept, "place": place, "size": size[ranked]}
        return {name: values[by_id] for name, values in columns.items()}

    def _worse(self, samples: Told) -> np.ndarray:
        """What the samples of a cluster are ordered by, the lowest first."""
        return {"longest": -samples.sizes, "shortest": samples.sizes, "lowest_id": 0 * samples.sizes}[self.keep]

    # What is reported for each sample

    def _flag(self, batch: Text, state: Arrays) -> Columns:
        ids, clustered = batch.ids, state["ids"]
        cluster, place, size = ids.copy(), np.ones(len(ids)), np.ones(len(ids), np.int64)
        positions = np.searchsorted(clustered, ids)
        inside = np.append(clustered, 0)[positions] == ids
        inside &= positions < len(clustered)
        cluster[inside], place[inside] = state["cluster"][positions[inside]], state["place"][positions[inside]]
        size[inside] = state["size"][positions[inside]]
        return {"score": 1 / place, "cluster": cluster, "size": size, "keep": place == 1}


class _Columns:
    """The bands of all samples, band by band: in memory while they are few, else in temporary files; and the ids."""

    def __init__(self, stack: ExitStack):
        self._stack, self._files, self._ids = stack, [], [np.zeros(0, np.uint64)]
        self._read: dict[int, np.ndarray] = {}  # the bands that were read last

    def append(self, ids: np.ndarray, bands: np.ndarray) -> None:
        """Add samples: uint64 [n] and [n, bands]."""
        if not self._files:
            size = _IN_MEMORY // bands.shape[1]
            made = (SpooledTemporaryFile(max_size=size) for _ in range(bands.shape[1]))  # noqa: SIM115  closed by the stack
            self._files = [self._stack.enter_context(file) for file in made]
        self._ids = [np.concatenate([*self._ids, ids])] if len(self._ids) > _MOST_PARTS else [*self._ids, ids]
        for file, values in zip(self._files, bands.T, strict=True):
            file.write(np.ascontiguousarray(values).data)

    @property
    def width(self) -> int:
        """The number of bands."""
        return len(self._files)

    @property
    def rows(self) -> int:
        """The number of samples."""
        return sum(map(len, self._ids))

    @property
    def ids(self) -> np.ndarray:
        """The samples' ids, uint64 [N]."""
        self._ids = [np.concatenate(self._ids)]
        return self._ids[0]

    def __getitem__(self, band: int) -> np.ndarray:
        if band not in self._read:
            if len(self._read) == 3:
                del self._read[next(iter(self._read))]
            self._files[band].seek(0)
            self._read[band] = np.frombuffer(self._files[band].read(), np.uint64)
        return self._read[band]


class _Pairs:
    """Pairs of ids, sorted by the first. members: all ids that are in a pair, ascending."""

    def __init__(self, state: Arrays):
        pairs = state["pairs"]
        self._pairs = pairs[np.lexsort(pairs.T[::-1])]
        self.members = np.unique(pairs)

    def have(self, ids: np.ndarray) -> np.ndarray:
        """Whether ids are in a pair, bool [n]; the members, which are many, are not looked through."""
        if not len(self.members):
            return np.zeros(len(ids), bool)
        places = np.searchsorted(self.members, ids)
        return self.members[np.minimum(places, len(self.members) - 1)] == ids

    def begun_by(self, ids: np.ndarray) -> np.ndarray:
        """Those whose first is one of some ids, uint64 [n, 2]."""
        first = self._pairs[:, 0]
        ranges = zip(np.searchsorted(first, ids), np.searchsorted(first, ids, "right"), strict=True)
        return np.concatenate([self._pairs[a:b] for a, b in ranges] or [self._pairs[:0]])


def _components(ids: np.ndarray, pairs: np.ndarray, alike: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Which component each sample is in, int64 [N]; pairs are compared only where they would join two.

    alike: rows of pairs, int64 [P, 2] -> bool [P]."""
    rank, parent = np.argsort(ids), list(range(len(ids)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for start in range(0, len(pairs), _AT_ONCE):
        rows = rank[np.searchsorted(ids, pairs[start : start + _AT_ONCE], sorter=rank)]
        apart = [root(a) != root(b) for a, b in rows.tolist()]
        for a, b in rows[apart][alike(rows[apart])].tolist():
            x, y = root(a), root(b)
            parent[max(x, y)] = min(x, y)
    return np.array([root(i) for i in parent], np.int64)


def _hashes(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The words of texts as hashes, uint32 [N], text after text, and where each text ends, int64 [B + 1]."""
    words = split_words(texts, _TOKENS)
    return words.numbers(4).astype(np.uint32), words.ends


def _shingles(words: np.ndarray, ends: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every run of n words within a text as a hash, uint32; a shorter text as a whole; and where each text ends."""
    length, positions = np.diff(ends), np.arange(len(words))
    stop = np.repeat(ends[1:], length)
    padded, mixed = np.append(words, np.zeros(n, np.uint32)).astype(np.uint64), np.zeros(len(words), np.uint64)
    for k in range(n):
        mixed = pair_number(mixed, np.where(positions + k < stop, padded[positions + k], np.uint64(0)))
    complete = (positions + n <= stop) | (positions == np.repeat(ends[:-1], length))
    counts = np.append(0, np.cumsum(complete))
    return (mixed[complete] >> np.uint64(32)).astype(np.uint32), counts[ends]


def _joined(partials: Iterable[Arrays], **empty: np.ndarray) -> list[np.ndarray]:
    """The arrays of all partials under each name, one after another."""
    parts = list(partials)
    return [np.concatenate([p[name] for p in parts if len(p[name])] or [default]) for name, default in empty.items()]
