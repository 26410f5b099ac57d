from __future__ import annotations

import numpy as np
import pytest
from datasketch import MinHash

from curate.numerics import minhash as module
from curate.numerics.minhash import minhash


@pytest.mark.parametrize("at_once", [1, 50, 1 << 15])
def test_signatures_are_those_of_datasketch(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    chance = np.random.default_rng(0)
    sizes = chance.integers(1, 60, 40)
    hashes, ends = chance.integers(0, 1 << 32, sizes.sum(), dtype=np.uint32), np.append(0, np.cumsum(sizes))
    sets = [hashes[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    want = [sketch.hashvalues for sketch in MinHash.generator(sets, num_perm=96, seed=5, hashfunc=int)]
    assert np.array_equal(minhash(hashes, ends, 96, 5).T, np.array(want))


def test_no_sets_have_no_signatures() -> None:
    assert minhash(np.zeros(0, np.uint32), np.zeros(1, np.int64), 8, 1).shape == (8, 0)
