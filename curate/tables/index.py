"""The nearest-neighbour index of vectors: what it covers, and whether it is up to date.

    vectors/NAME/index.faiss, index.json      the index, and the parts it covers, by their SHA-256

It returns positions in the pool. It is built after vectors are computed, and rebuilt when it is older than they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from curate.errors import CurateError, DamagedError
from curate.hashing import keyed_uniform
from curate.kinds.vectors import similarities
from curate.machine import free_memory
from curate.numerics.faiss_index import bytes_per_number, kind, load_faiss, on_gpu, untrained
from curate.store.commits import Parts
from curate.store.encoding import digest, read_json, read_table, size, write_json
from curate.store.files import write_atomic
from curate.store.ledger import charged
from curate.store.object_store import Location
from curate.store.workspace import Workspace
from curate.tables.state import table_state
from curate.tables.vector_table import parts_of, vectors_of

_RECALL, _ASKED, _NEAREST = 0.97, 256, 10  # probes are doubled until this recall of the 10 nearest of 256 vectors
_MOST_ON_GPU = 2048  # FAISS's limit of neighbours per query on a GPU
_HELD = 1 << 22  # cosines held in memory at once
_PER_LIST = 64  # training vectors per list, from which its centre is computed


# --- what an index covers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """index.json. parts: name -> SHA-256 of the indexed parts. rows: indexed vectors; samples without a vector are not
    counted. recall: of the ten nearest, measured when the index was built (1 if the search is exact)."""

    parts: dict[str, str]
    rows: int
    kind: str
    lists: int
    probes: int
    recall: float
    bytes: int
    sha256: str

    def __str__(self) -> str:
        if not self.lists:
            return f"an exact index of {self.rows:,} vectors"
        return (
            f"an index of {self.rows:,} vectors in {self.lists:,} lists, {self.probes} of them searched "
            f"(recall of the {_NEAREST} nearest {self.recall:.3f})"
        )


def index_path(ws: Workspace, name: str) -> Location:
    """The file of the index of vectors."""
    return ws.table_folder("vectors", name) / "index.faiss"


def record_of(ws: Workspace, name: str) -> Record | None:
    """The record of the index; None if there is none, or it cannot be read."""
    path = index_path(ws, name).with_suffix(".json")
    try:
        return Record(**read_json(path))
    except (FileNotFoundError, ValueError, TypeError):  # a record truncated by a power failure certifies nothing
        return None


def index_problem(ws: Workspace, name: str) -> str | None:
    """The problem with the index, as the end of a sentence; None if it covers the current vectors."""
    if not is_indexed(ws, name):
        return None
    record = record_of(ws, name)
    if record is None:
        return "has no index"
    if size(index_path(ws, name)) != record.bytes:
        return "has an index that is cut or gone"
    if record.parts != _parts(ws, name):
        return "has an index older than its vectors"
    return None


def is_indexed(ws: Workspace, name: str) -> bool:
    """Whether these vectors are indexed; vectors in parts are not, as their index would be as large as they are."""
    return not parts_of(column for record in _records(ws, name).values() for column in record["schema"])


def index_words(ws: Workspace, name: str) -> str:
    """A description of the index, or of the problem with it."""
    if not is_indexed(ws, name):
        return "no index: vectors in parts are searched as they are"
    return index_problem(ws, name) or str(record_of(ws, name))


def _parts(ws: Workspace, name: str) -> dict[str, str]:
    """The committed parts that belong to the current pool, and their checksums."""
    return {part: record["sha256"] for part, record in _records(ws, name).items()}


def _records(ws: Workspace, name: str) -> dict[str, Any]:
    records = Parts(ws.table_folder("vectors", name)).records()
    return {shard.name: records[shard.name] for shard in table_state(ws, "vectors", name).done}


# --- building --------------------------------------------------------------------------------------------


def ensure_index(ws: Workspace, name: str) -> str:
    """Build the index if there is none, or it is older than its vectors. Requires holding the lock.

    Returns a description; an index that cannot be built (no FAISS, or it needs more than half of the free memory) is
    skipped, and the description states the reason.
    """
    if index_problem(ws, name) is None:
        return index_words(ws, name)
    index_path(ws, name).with_suffix(".json").unlink(missing_ok=True)
    try:
        faiss = load_faiss()
    except CurateError as error:
        return f"no index: {error}"
    records = _records(ws, name)
    rows = sum(record["rows"] - record["nulls"] for record in records.values())
    if not rows:
        return "no index: no sample has a vector"
    width = int(next(iter(records.values()))["schema"]["vector"].rpartition("[")[2].rstrip("]"))
    needed, available = rows * width * bytes_per_number(rows, width), free_memory()
    if needed > available / 2:
        return f"no index: it would take {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB of memory are free"
    with charged(ws.path, "index", methods=["faiss"], name=name, phase="build") as meter:
        meter.samples = rows
        index, lists = untrained(rows, width)
        if lists:
            index.train(training_vectors := _some(ws, name, min(1.0, _PER_LIST * lists / rows)))
            meter.flops += 2.0 * lists * (index.cp.niter * training_vectors.size + rows * width)
        for positions, unit in _blocks(ws, name):
            index.add_with_ids(unit, positions)
        probes, recall = _tuned(faiss, ws, name, index, rows) if lists else (0, 1.0)
        meter.flops += 2.0 * _ASKED * rows * width if lists else 0.0
        data = memoryview(faiss.serialize_index(index))
        write_atomic(index_path(ws, name), data)
        parts = {part: record["sha256"] for part, record in records.items()}
        record = Record(parts, rows, kind(lists, width), lists, probes, recall, len(data), digest(data))
        write_json(index_path(ws, name).with_suffix(".json"), asdict(record))
    return str(record)


def _tuned(faiss: Any, ws: Workspace, name: str, index: Any, rows: int) -> tuple[int, float]:
    """How many lists to search, and the recall that this reaches, measured against an exact search."""
    queries = _some(ws, name, min(1.0, _ASKED / rows))[: 2 * _ASKED]
    exact = nearest_exactly(ws, name, queries, _NEAREST + 1)[0]
    probes, recall = 1, 0.0
    while True:
        faiss.extract_index_ivf(index).nprobe = probes
        nearest = index.search(queries, _NEAREST + 1)[1]
        # The first is the query vector itself, which does not count.
        recall = float(np.mean([len(set(w[1:]) & set(f)) / _NEAREST for w, f in zip(exact, nearest, strict=True)]))
        if recall >= _RECALL or probes >= index.nlist:
            return min(probes, index.nlist), recall
        probes *= 2


def _blocks(ws: Workspace, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All vectors, part by part: their positions in the pool, int64 [n], and the vectors, float32 [n, D]."""
    parts = Parts(ws.table_folder("vectors", name))
    for shard in table_state(ws, "vectors", name).done:
        vectors = vectors_of(read_table(parts.path(shard.name)))
        present = np.flatnonzero(vectors.there)
        yield shard.start + present, np.ascontiguousarray(vectors.unit[present], np.float32)


def _some(ws: Workspace, name: str, share: float) -> np.ndarray:
    """A random share of the vectors, keyed by their positions, float32 [n, D]."""
    blocks = [
        unit[keyed_uniform(positions.astype(np.uint64), 0, "index") < share] for positions, unit in _blocks(ws, name)
    ]
    return np.concatenate(blocks)


# --- asking ----------------------------------------------------------------------------------------------


def search(ws: Workspace, name: str, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors nearest to each of Q unit vectors [Q, D]: positions in the pool, int64 [Q, k], and cosines.

    k is at most the number of vectors. Fewer than k results are padded with position -1. Raises CurateError if the
    index is missing or older than its vectors.
    """
    if problem := index_problem(ws, name):
        raise CurateError(f"the vectors '{name}': {problem}.")
    if not is_indexed(ws, name):
        return nearest_exactly(ws, name, asked, k)
    record, faiss = record_of(ws, name), load_faiss()
    assert record is not None
    data = index_path(ws, name).read_bytes()
    if digest(data) != record.sha256:
        raise DamagedError(
            f"{index_path(ws, name)} is not what was written there (its SHA-256 differs); `curate verify --repair` "
            "builds it again."
        )
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    k = min(k, record.rows)
    if record.lists:  # many neighbours are spread over more lists than ten are
        lists_needed = -(-k * record.lists // record.rows) * 4
        faiss.extract_index_ivf(index).nprobe = min(record.lists, max(record.probes, lists_needed))
    index = index if k > _MOST_ON_GPU else on_gpu(faiss, index)
    cosines, positions = index.search(np.ascontiguousarray(asked, np.float32), k)
    return positions, cosines


def nearest_exactly(ws: Workspace, name: str, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, by a scan of all vectors: needs neither the index nor the memory to hold it."""
    k = min(k, sum(record["rows"] for record in _records(ws, name).values()))
    positions, cosines = np.full((len(asked), k), -1), np.full((len(asked), k), -np.inf)
    step = max(k, _HELD // max(len(asked), 1))
    for block_positions, unit in _blocks(ws, name):
        for start in range(0, len(unit), step):
            block_cosines = similarities(unit[start : start + step], asked).T
            candidates = np.argpartition(-block_cosines, min(k, block_cosines.shape[1]) - 1, axis=1)[:, :k]
            merged = np.concatenate([cosines, np.take_along_axis(block_cosines, candidates, 1)], axis=1)
            merged_positions = np.concatenate([positions, block_positions[start + candidates]], axis=1)
            order = np.lexsort((merged_positions, -merged), axis=1)[:, :k]
            positions, cosines = np.take_along_axis(merged_positions, order, 1), np.take_along_axis(merged, order, 1)
    return positions, cosines
