"""fapm: its worth by hand, and a run pruned by it."""

from __future__ import annotations

import numpy as np
import pytest

import curate
from curate.methods.pruners.fapm import Fapm
from curate.store.workspace import Workspace
from tests.oracles.fapm import fapm
from tests.support.narrow import NARROW
from tests.verbs.test_prune import latest, weights
from tests.verbs.test_prune import ready as _ready

ready = _ready  # the fixture


def test_the_worth_is_the_slow_reference_s_and_small_weights_are_worth_less_than_none() -> None:
    rng = np.random.default_rng(0)
    before, update = rng.normal(size=(7, 9)), rng.normal(size=(7, 9)) * 0.1
    before[0, :3], update[1, :2], update[0, 0] = 0.0, 0.0, 0.0
    worth = Fapm().worth(before, update)
    assert worth == pytest.approx(np.array(fapm(before.tolist(), (before + update).tolist())), abs=1e-12)
    small = (np.abs(before) < np.abs(before).mean()) & (update != 0)
    assert (worth[small] < 0).all() and (worth[~small] >= 0).all()


def test_at_sparsity_0_it_is_the_run_at_1_the_base_and_between_what_is_worth_most_stays(ready: Workspace) -> None:
    run, base = weights(latest(ready, "whole")), weights(NARROW)
    made = {s: weights(curate.prune(ready, "whole", Fapm(), s, name=f"fapm{s * 100:.0f}").folder) for s in (0, 0.9, 1)}
    for name in run:
        before = base[name].astype(np.float32)
        assert (made[0][name] == run[name]).all() and (made[1][name] == before).all()
        worth = Fapm().worth(before.astype(np.float64), run[name].astype(np.float64) - before)
        stays = (made[0.9][name] != before).ravel()
        least = np.sort(worth, axis=None)[::-1][: worth.size - round(0.9 * worth.size)]
        assert not stays.any() or worth.ravel()[stays].min() >= least.min()
