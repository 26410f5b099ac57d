from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from curate.hashing import content_id, fingerprint, ids_as_integers, key_of, keyed_uniform
from tests.conftest import ROOT

VECTORS = json.loads((ROOT / "tests/golden/content_ids.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_content_ids_are_the_committed_ones(vector: dict) -> None:
    """The id is the hash of the written-out canonical text, and both are golden."""
    assert content_id(**{key: value for key, value in vector.items() if key not in ("canonical", "id")}) == vector["id"]
    assert hashlib.sha256(vector["canonical"].encode()).hexdigest()[:16] == vector["id"]


def test_what_does_and_does_not_change_an_id() -> None:
    base = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    same = [{"content": "a", "role": "user", "extra": None}, {"content": "b", "role": "assistant"}]
    assert content_id(base, None) == content_id(same, None)
    others = [[*base, base[0]], base[::-1], [base[0]], [{**base[0], "content": "a "}, base[1]]]
    assert len({content_id(m, None) for m in [base, *others]} | {content_id(None, "a")}) == 6


def test_a_lone_surrogate_has_no_id() -> None:
    with pytest.raises(TypeError):
        content_id(None, "bad \ud800")


def test_fingerprints_depend_on_values_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(1, 2), fingerprint(2, 1), fingerprint([1, 2]), fingerprint(1.0, 2)}) == 4


def test_keys_of_texts_and_integers_are_their_fingerprints() -> None:
    every = "".join(map(chr, [*range(256), 0x2028, 0xFFFD, 0x1F600]))
    for parts in [(0, "a"), (-(2**63), every), (2**64 - 1, "sjlt 0", "model.layers.0"), ("",), ()]:
        assert key_of(*parts) == int(fingerprint(*parts), 16), parts


def test_keyed_uniform_depends_on_seed_purpose_and_id_alone() -> None:
    ids = ids_as_integers([f"{i:016x}" for i in range(20_000)])
    u = keyed_uniform(ids, 0, "test")
    assert keyed_uniform(ids[::-1], 0, "test").tolist() == u[::-1].tolist()
    assert keyed_uniform(ids[:5], 0, "test").tolist() == u[:5].tolist()
    assert u.min() > 0 and u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    for other in (keyed_uniform(ids, 1, "test"), keyed_uniform(ids, 0, "other")):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.03
