"""Masks chosen anew within a training by their own methods: what is chosen, which moments are kept, what stays."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from curate.kinds.parameters import Mask, Parameters
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.principal import Principal
from curate.methods.weightings.uniform import Uniform
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.numerics.apportion import apportion
from curate.runs.fitted_mask import refreshed
from curate.store.mask_file import StoredMask
from curate.store.recipes import MaskRecipe, MethodRecipe, ModelRecipe
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.settings import TrainSettings
from tests.support.checkpoints import AIM, POOL
from tests.support.training import narrow

SETTINGS = TrainSettings(batch_size=3, lr=3e-3, warmup=0.0, schedule="constant", steps=9, clip=0.0)
BUDGET = 4_000


def weights_of(lm: LanguageModel) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in lm.model.named_parameters()}


def stored(lm: LanguageModel, method: Mask) -> StoredMask:
    """The mask as `curate mask` would have stored it."""
    weights = weights_of(lm)
    selected = {name: places for name, places in method.init(Parameters(weights, BUDGET)).items() if len(places)}
    recipe = MaskRecipe(
        name="m",
        curate="",
        mask=MethodRecipe(name=method.name, version=method.version, settings=method.settings()),
        frac=BUDGET / sum(w.size for w in weights.values()),
        model=ModelRecipe(name="narrow", weights="", dtype="float32", context=0, too_long="cut"),
        shapes={name: list(w.shape) for name, w in weights.items()},
        selected=sum(map(len, selected.values())),
        result={},
    )
    return StoredMask("m", selected, recipe, "")


def trainer(lm: LanguageModel, mask: Refreshed, **more: Any) -> Trainer:
    data = Data.of(Examples.of(encode(lm.tokenizer, [*POOL, *AIM], 512)))
    return Trainer(lm, data, SETTINGS, Uniform(), Alone(), mask=mask, **more)


def principal(weights: dict[str, np.ndarray], rank: int) -> dict[str, set[int]]:
    """Of every matrix but the embedding its share of the budget, by the largest |W_r|, by torch's decomposition."""
    matrices = {n: torch.from_numpy(w).double() for n, w in weights.items() if w.ndim == 2 and "embed" not in n}
    counts = apportion({n: sum(w.shape) for n, w in matrices.items()}, BUDGET)
    chosen = {}
    for name, weight in matrices.items():
        u, s, v = torch.linalg.svd(weight)
        low = (u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]).abs().flatten()
        chosen[name] = set(torch.argsort(low, descending=True, stable=True)[: counts[name]].tolist())
    return chosen


def smallest(weights: dict[str, np.ndarray], count: int) -> dict[str, set[int]]:
    ranked = sorted((abs(float(x)), n, i) for n, w in weights.items() if w.ndim == 2 for i, x in enumerate(w.flat))
    chosen: dict[str, set[int]] = {}
    for _, name, place in ranked[:count]:
        chosen.setdefault(name, set()).add(place)
    return chosen


def moments_of(tensors: dict[str, torch.Tensor], key: str) -> dict[tuple[str, int], float]:
    """A moment of every trained weight."""
    names = [n.removeprefix("index.") for n in tensors if n.startswith("index.")]
    return {
        (name, int(place)): float(value)
        for name in names
        for place, value in zip(tensors[f"index.{name}"], tensors[f"{key}.{name}"], strict=True)
    }


SHRINKING = MagnitudeSmall(interval=2, density_interval=3, densities="0.5,0.25")
CASES = [
    (Principal(interval=3), {3: BUDGET, 6: BUDGET}),  # of matrices 32 wide the share 1/32 is one singular value
    (Principal(rank=4, interval=4), {4: BUDGET, 8: BUDGET}),
    (MagnitudeSmall(interval=3), {3: BUDGET, 6: BUDGET}),
    (SHRINKING, {2: BUDGET, 3: BUDGET // 2, 4: BUDGET // 2, 6: BUDGET // 4, 8: BUDGET // 4}),
]


@pytest.mark.parametrize(("method", "changes"), CASES, ids=lambda x: getattr(x, "name", ""))
def test_a_mask_is_chosen_anew_within_the_training_and_keeps_the_moments_of_what_stays(
    method: Any, changes: dict[int, int]
) -> None:
    """changes: steps taken -> how many weights are chosen then, of the weights as they are. A step's gradient is in
    both moments: m' = 0.9 m + 0.1 g and v' = 0.999 v + 0.001 g^2, where m and v are 0 for a weight that was not trained
    before."""
    lm = narrow("float64")
    mask = stored(lm, method)
    made = trainer(lm, refreshed(mask, method, lm.model))
    chosen = {name: set(places.tolist()) for name, places in mask.selected.items()}
    weights, m, v = weights_of(lm), {}, {}
    stayed = came = 0
    for done in made.run():
        taken = done.step - 1
        before = chosen
        if count := changes.get(taken):
            now = {name: w.astype(np.float32) for name, w in weights.items()}
            chosen = principal(now, method.rank or 1) if method.name == "principal" else smallest(now, count)
            assert sum(map(len, chosen.values())) == count
        tensors = dict(made.snapshot().optimizer)
        found = {n.removeprefix("index."): set(t.tolist()) for n, t in tensors.items() if n.startswith("index.")}
        assert found == chosen, f"after {taken} steps"
        if taken in changes:
            stayed += sum(len(places & before.get(name, set())) for name, places in chosen.items())
            came += sum(len(places - before.get(name, set())) for name, places in chosen.items())
        new_m, new_v = moments_of(tensors, "exp_avg"), moments_of(tensors, "exp_avg_sq")
        for at in new_m:
            gradient = (new_m[at] - 0.9 * m.get(at, 0.0)) / 0.1
            assert new_v[at] == pytest.approx(0.999 * v.get(at, 0.0) + 0.001 * gradient**2, rel=1e-7, abs=1e-20), at
        m, v, after = new_m, new_v, weights_of(lm)
        for name, weight in after.items():
            assert set(np.flatnonzero(weight.ravel() != weights[name].ravel())) <= chosen.get(name, set()), name
        weights = after
    assert stayed > 100 and (came > 100 or method is SHRINKING)


def test_a_training_whose_mask_shrinks_goes_on_where_it_was_cut_short() -> None:
    whole, lm = narrow(), narrow()
    figures = [
        done.metrics for done in trainer(whole, refreshed(stored(whole, SHRINKING), SHRINKING, whole.model)).run()
    ]
    mask = refreshed(stored(lm, SHRINKING), SHRINKING, lm.model)
    half = trainer(lm, mask)
    steps = half.run()
    seen = [next(steps).metrics for _ in range(4)]  # one change is behind, another before it
    again = trainer(lm, mask, start=copy.deepcopy(half.snapshot()))
    assert seen + [done.metrics for done in again.run()] == figures
    for a, b in zip(lm.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_mask_of_before_there_were_settings_is_refreshed_as_it_was() -> None:
    """A recipe without rank_share, modules and lora_rank; the method is made of the settings that it has."""
    lm = narrow()
    method = Principal(rank=20, interval=3)
    settings = {key: method.settings()[key] for key in ("rank", "interval", "exclude")}
    old = stored(lm, method)
    recipe = structs.replace(old.recipe, mask=MethodRecipe(name="principal", version=1, settings=settings))
    mask = refreshed(replace(old, recipe=recipe), Principal(**settings), lm.model)
    assert mask.update is not None
    chosen = mask.update(dict(lm.model.named_parameters()), 3)
    assert {name: set(places.tolist()) for name, places in chosen.items()} == principal(weights_of(lm), 20)
