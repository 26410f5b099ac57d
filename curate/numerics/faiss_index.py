"""FAISS over arrays: the installed build, the index type for a number of vectors, k-means, nearest neighbours.

FAISS has two builds, faiss-cpu and faiss-gpu, which install the same Python module: a machine can have only one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.hashing import keyed_uniform

EXACT_UP_TO = 100_000  # vectors; above this, an exact search over all of them takes too long
WIDE = 1024  # dimensions above which vectors are quantised
_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")


def load_faiss() -> Any:
    """The faiss module. Raises CurateError where none, or two that overwrite each other, are installed."""
    builds = [name for name in _BUILDS if _installed(name)]
    if len(builds) > 1:
        raise CurateError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files; "
            "run `pip uninstall faiss-cpu faiss-gpu` and install the one you want."
        )
    try:
        import faiss
    except ImportError:
        raise CurateError(
            "FAISS is not installed: `pip install 'curate-lm[cpu]'`, or 'curate-lm[gpu]' for its GPU build, never both."
        ) from None
    return faiss


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def on_gpu(faiss: Any, index: Any) -> Any:
    """The index moved to all GPUs if FAISS's GPU build and a GPU are available; otherwise the index unchanged.

    FAISS has no GPU version of the scalar-quantised exact index used for wide vectors, so that one stays on the CPU.
    """
    if not hasattr(faiss, "index_cpu_to_all_gpus") or not faiss.get_num_gpus():
        return index
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    return index if isinstance(inner, faiss.IndexScalarQuantizer) else faiss.index_cpu_to_all_gpus(index)


# --- which index -----------------------------------------------------------------------------------------


def untrained(rows: int, width: int) -> tuple[Any, int]:
    """An empty inner-product index for `rows` vectors of `width` dimensions, and its number of lists (0 if exact).

    Exact up to EXACT_UP_TO vectors (wide ones in float16, which is exact for what is stored). Above that, an IVF index
    in float16, or with 8 bits per dimension for wide vectors, which has to be trained before use.
    """
    faiss = load_faiss()
    product = faiss.METRIC_INNER_PRODUCT
    if rows <= EXACT_UP_TO:
        return faiss.index_factory(width, f"IDMap,{'SQfp16' if width > WIDE else 'Flat'}", product), 0
    lists = int(4 * rows**0.5)
    index = faiss.index_factory(width, f"IVF{lists},{'SQ8' if width > WIDE else 'SQfp16'}", product)
    index.cp.min_points_per_centroid = 1  # no warning on stderr
    return index, lists


def kind(lists: int, width: int) -> str:
    """The type of an index made by `untrained`, in words."""
    quantised = ("8 bit" if lists else "float16") if width > WIDE else ("float16" if lists else "float32")
    return f"{'inverted lists' if lists else 'exact'}, {quantised}"


def bytes_per_number(rows: int, width: int) -> int:
    """Bytes per vector dimension that an index made by `untrained` stores."""
    if rows <= EXACT_UP_TO:
        return 2 if width > WIDE else 4
    return 1 if width > WIDE else 2


# --- clusters --------------------------------------------------------------------------------------------

_PER_CENTRE = 256  # training vectors per centroid, FAISS's default
_AT_ONCE = 65_536  # vectors converted to float32 at once
_COMPARED = 1024  # vectors compared with their predecessors at once
_HELD = 1 << 26  # cosines in memory at once


def clusters(
    unit: np.ndarray, ids: np.ndarray, k: int, seed: int, iterations: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Spherical k-means: each unit vector's cluster, int64 [N]; its cosine with the centroid, float32 [N]; the FLOPs.

    Trained on about 256 vectors per centroid, drawn by id. Memory: those, plus 65,536 vectors at a time, in float32.
    """
    faiss = load_faiss()
    k = max(1, min(k, len(unit)))
    drawn = keyed_uniform(ids, seed, "clusters") * len(unit) < _PER_CENTRE * k
    training_vectors = np.ascontiguousarray(unit[drawn], np.float32)
    kmeans = faiss.Kmeans(
        unit.shape[1], k, niter=iterations, seed=seed % 2**31, spherical=True, min_points_per_centroid=1
    )
    kmeans.train(training_vectors)
    cluster, cosine = np.empty(len(unit), np.int64), np.empty(len(unit), np.float32)
    for start in range(0, len(unit), _AT_ONCE):
        similarity, nearest = kmeans.index.search(np.ascontiguousarray(unit[start : start + _AT_ONCE], np.float32), 1)
        cluster[start : start + _AT_ONCE], cosine[start : start + _AT_ONCE] = nearest[:, 0], similarity[:, 0]
    return cluster, cosine, 2.0 * k * (iterations * training_vectors.size + unit.size)


def rows_of_clusters(cluster: np.ndarray, by: np.ndarray) -> list[np.ndarray]:
    """The rows of each non-empty cluster, sorted by ascending `by`, ties by position."""
    order = np.lexsort((np.arange(len(cluster)), by, cluster))
    return np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)


def likeness_before(unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The highest cosine of each row with any row before it, float32 [n]; -1 for the first."""
    vectors, highest = unit[rows].astype(np.float32), np.full(len(rows), -1.0, np.float32)
    step = max(1, min(_COMPARED, _HELD // len(rows)))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        cosines = vectors[start:stop] @ vectors[:stop].T
        cosines[:, start:][np.triu_indices(stop - start)] = -1.0  # itself, and those after it
        highest[start:stop] = cosines.max(1)
    return highest
