"""inverse_copies: de-duplication by weights, of exact and of near-duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.weighting import weigh_once
from curate.methods.scores.near_dup import NearDup
from curate.methods.weightings.inverse_copies import InverseCopies
from curate.store.manifests import read_manifest
from tests.conftest import write_jsonl
from tests.oracles.inverse_copies import inverse_copies


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, -1.0])
def test_a_cluster_weighs_its_size_to_the_power_of_what_is_left(power: float) -> None:
    clusters = [*"aabcccd"]
    size = np.array([clusters.count(c) for c in clusters])
    weights = weigh_once(InverseCopies(power), size)
    assert weights == pytest.approx(inverse_copies(clusters, power), abs=1e-15)
    for c in set(clusters):
        its = [w for w, one in zip(weights, clusters, strict=True) if one == c]
        assert sum(its) == pytest.approx(clusters.count(c) ** (1 - power))
        (once,) = weigh_once(InverseCopies(power, held="once"), np.array([clusters.count(c)]))
        assert once == pytest.approx(sum(its))


def test_near_duplicates_and_copies_weigh_less(ws: Any, tmp_path: Path) -> None:
    long = "what is the way from the old mill to the harbour of the town"
    rows = [
        {"question": q, "answer": "follow the river"} for q in (long, f"please: {long}", "who is it?", "who is it?")
    ]
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", rows)])
    curate.score(ws, NearDup())
    curate.weigh(ws, "once", InverseCopies(), "near_dup_size")
    curate.weigh(ws, "exact", InverseCopies(0.5, held="once"), "copies")
    by_name = {name: read_manifest(ws, name)[0]["weight"].to_numpy() for name in ("once", "exact")}
    assert by_name["once"] == pytest.approx(np.array([0.5, 0.5, 1]) * 1.5)
    assert by_name["exact"] == pytest.approx(np.array([1, 1, 2**0.5]) / np.mean([1, 1, 2**0.5]))
    with pytest.raises(CurateError, match="the least of its column is 0, which"):
        curate.weigh(ws, "no", InverseCopies(), "copies - 1")
