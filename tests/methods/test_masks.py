"""Masks: which numbers are chosen, against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.parameters import Parameters
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.principal import Principal
from curate.methods.masks.random import Random
from curate.methods.masks.structured import Structured
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest


def tiny() -> LanguageModel:
    model = LanguageModel(ModelChoice("tiny", device="cpu"))
    model.model.requires_grad_(True)
    return model


# --- choosing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 30, 44, 60])
def test_the_largest_are_those_of_a_stable_sort(k: int) -> None:
    rng = np.random.default_rng(k)
    arrays = {"a": rng.integers(-3, 4, (4, 5)) / 2, "b": rng.integers(-3, 4, 7) / 2, "c": rng.integers(-3, 4, 17) / 2}
    arrays["b"][2] = np.nan
    found = largest(arrays.__getitem__, {name: a.size for name, a in arrays.items()}, k)
    flat = np.concatenate([a.ravel() for a in arrays.values()])
    wanted = np.sort(np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind="stable")[:k])
    starts = dict(zip(arrays, np.cumsum([0, 20, 7]), strict=True))
    assert np.concatenate([places + starts[name] for name, places in found.items()]).tolist() == wanted.tolist()


def test_shares_add_up_and_follow_the_sizes() -> None:
    assert apportion({"a": 3, "b": 3, "c": 1}, 5) == {"a": 2, "b": 2, "c": 1}
    assert sum(apportion({f"x{i}": i + 1 for i in range(50)}, 333).values()) == 333


def test_the_smallest_weights_and_of_norms_none() -> None:
    weights = {n: p.detach().numpy() for n, p in tiny().model.named_parameters()}
    found = MagnitudeSmall(exclude="embed").init(Parameters(weights, 5000))
    assert sum(map(len, found.values())) == 5000 and not [n for n in found if "norm" in n or "embed" in n]
    inside = np.concatenate([np.abs(weights[n]).ravel()[places] for n, places in found.items()])
    outside = np.concatenate([np.delete(np.abs(weights[n]).ravel(), places) for n, places in found.items()])
    assert inside.max() <= outside.min()
    each = MagnitudeSmall(scope="tensor").init(Parameters(weights, 5000))
    assert {n: len(p) for n, p in each.items()} == apportion({n: weights[n].size for n in each}, 5000)


def test_a_draw_is_of_its_seed() -> None:
    weights = {"a": np.zeros((30, 40)), "b": np.zeros(100)}
    first, again, other = (Random(seed=s).init(Parameters(weights, 130)) for s in (0, 0, 1))
    assert all((first[n] == again[n]).all() and len(first[n]) == len(other[n]) for n in weights)
    assert (first["a"] != other["a"]).any() and len(np.unique(first["a"])) == 120


def test_principal_finds_what_a_planted_rank_holds() -> None:
    """A matrix of rank 2 with four large rows in noise: without the cut the noise's outliers would come first."""
    rng = np.random.default_rng(0)
    left = np.zeros((40, 2))
    left[[3, 7, 20, 33]] = rng.choice([-1.0, 1.0], (4, 2))
    plant = 5 * left @ rng.choice([-1.0, 1.0], (2, 60)) * (rng.random(60) < 0.5)
    noise = rng.normal(size=(40, 60)) * (rng.random((40, 60)) < 0.02) * 3
    given = Parameters({"w": plant + noise, "norm": np.ones(60), "embed.w": np.ones((90, 2))}, 40)
    found = Principal(rank=2).init(given)
    assert list(found) == ["w"] and len(found["w"]) == 40
    assert set(found["w"] // 60) <= {3, 7, 20, 33}
    u, s, v = np.linalg.svd(given.weights["w"], full_matrices=False)
    cut = np.abs(u[:, :2] @ np.diag(s[:2]) @ v[:2]).ravel()
    assert set(found["w"]) == set(np.argsort(-cut, kind="stable")[:40])
    shapes = {"a": np.ones((4, 6)), "b": rng.normal(size=(30, 10))}
    assert {n: len(p) for n, p in Principal().init(Parameters(shapes, 10)).items()} == {"a": 2, "b": 8}


@pytest.mark.parametrize("trained", ["coupled", "down"])
def test_structured_takes_whole_channels_on_all_their_sides(trained: Any) -> None:
    weights = {n: p.detach().numpy() for n, p in tiny().model.named_parameters()}
    found = Structured(trained=trained).init(Parameters(weights, 60_000))
    count = sum(map(len, found.values()))
    assert 60_000 - 3 * 192 <= count <= 60_000
    for layer in {name.split(".mlp.")[0] for name in found}:
        width = weights[f"{layer}.mlp.down_proj.weight"].shape[1]
        columns = np.unique(found[f"{layer}.mlp.down_proj.weight"] % width)
        assert len(found[f"{layer}.mlp.down_proj.weight"]) == 192 * len(columns)
        for side in ("up_proj", "gate_proj") if trained == "coupled" else ():
            rows = np.unique(found[f"{layer}.mlp.{side}.weight"] // 192)
            assert rows.tolist() == columns.tolist()
    assert all("mlp" in name for name in found)
    with pytest.raises(CurateError, match="take a larger --frac"):
        Structured().init(Parameters(weights, 100))
    with pytest.raises(CurateError, match="finds no feed-forward layer"):
        Structured().init(Parameters({"w": np.ones((3, 3))}, 5))


def test_structured_knows_gpt2_s_matrices_which_are_stored_the_other_way_round() -> None:
    weights = {"h.0.mlp.c_fc.weight": np.zeros((4, 16)), "h.0.mlp.c_proj.weight": np.zeros((16, 4)),
               "h.0.attn.c_proj.weight": np.zeros((4, 4))}  # fmt: skip
    found = Structured().init(Parameters(weights, 16))
    assert list(found) == ["h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"]
    into, out = found.values()
    assert sorted(set(into % 16)) == sorted(set(out // 4)) and len(into) == len(out) == 8


@pytest.mark.parametrize("measure", ["mean_abs", "abs_mean"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_gradient_block_s_blocks_are_those_of_a_plain_loop(measure: Any, scope: Any) -> None:
    rng = np.random.default_rng(3)
    pushed = {"a": rng.normal(size=(10, 7)), "b": rng.normal(size=(4, 12)) + 0.3, "embed": rng.normal(size=(8, 8)) * 9}
    pushed["a"][3:6, 3:6] = 5.0  # planted: a block of its own, whatever the measure
    given = Parameters({n: np.zeros_like(g) for n, g in pushed.items()}, 60, gradients=pushed.__getitem__)
    found = GradientBlock(block=3, measure=measure, scope=scope, edges="pad").init(given)
    values: dict[tuple[str, int, int], float] = {}
    for name in ("a", "b"):
        rows, columns = pushed[name].shape
        for top in range(0, rows, 3):
            for left in range(0, columns, 3):
                some = [pushed[name][i, j] for i in range(top, min(top + 3, rows)) for j in range(left, min(left + 3, columns))]  # fmt: skip # noqa: E501
                total = abs(sum(some)) if measure == "mean_abs" else sum(map(abs, some))
                values[name, top, left] = total / 9
    counts = {"a": 6, "b": 6} if scope == "global" else apportion({"a": 12, "b": 8}, 6)
    best = sorted(values, key=lambda block: -values[block])
    wanted = best[:6] if scope == "global" else [b for n in counts for b in [x for x in best if x[0] == n][: counts[n]]]
    assert ("a", 3, 3) in wanted and set(found) == {"a", "b"}
    for name in found:
        columns = pushed[name].shape[1]
        inside = {(int(p) // columns // 3 * 3, int(p) % columns // 3 * 3) for p in found[name]}
        assert inside == {(top, left) for n, top, left in wanted if n == name}
        assert (np.diff(found[name]) > 0).all()
    with pytest.raises(CurateError, match="a is 10 x 7, which blocks of 3 do not cover"):
        GradientBlock(block=3).init(given)
    with pytest.raises(CurateError, match="a block of 8 x 8 has 64 elements, and the budget is 60"):
        GradientBlock(block=8, edges="pad").init(given)
