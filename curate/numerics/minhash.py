"""MinHash signatures of many sets at once (Broder 1997): the lowest value of each of some permutations of its members.

The permutations are those of datasketch 2 (`affine32`): h -> a h + b modulo 2^32, with a odd, of a hash that the
finalizer of MurmurHash3 has mixed.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_AT_ONCE = 1 << 15  # hashes that are permuted at once: they stay in the cache


def minhash(hashes: np.ndarray, ends: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """The signatures of n sets of hashes, none of them empty: uint32 [permutations, n].

    hashes: uint32, set after set. ends: where each set begins, and the last one ends, int64 [n + 1].
    """
    draws = np.random.RandomState(seed)
    factors = draws.randint(0, 1 << 31, permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = draws.randint(0, 1 << 32, permutations, dtype=np.uint32)
    mixed, values = _mixed(hashes), np.zeros((permutations, len(ends) - 1), np.uint32)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1], _AT_ONCE))
    for first, last in pairwise(np.unique([*cuts, len(ends) - 1]).tolist()):
        part, starts = mixed[ends[first] : ends[last]], ends[first:last] - ends[first]
        permuted = np.empty_like(part)
        for k in range(permutations):
            np.multiply(part, factors[k], out=permuted)
            permuted += offsets[k]
            np.minimum.reduceat(permuted, starts, out=values[k, first:last])
    return values


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3, uint32."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
