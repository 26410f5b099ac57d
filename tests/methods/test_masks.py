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


def cut(weight: np.ndarray, rank: int) -> np.ndarray:
    """|the closest matrix of this rank|, from the eigenvectors of W^T W, flat."""
    _, vectors = np.linalg.eigh(weight.T @ weight)
    kept = vectors[:, ::-1][:, :rank]
    return np.abs(weight @ kept @ kept.T).ravel()


def test_principal_s_rank_goes_with_the_width_unless_it_is_given() -> None:
    rng = np.random.default_rng(5)
    weights = {"a": rng.normal(size=(160, 64)), "b": rng.normal(size=(12, 40)), "c": rng.normal(size=(96, 300))}
    counts = apportion({"a": 224, "b": 52, "c": 396}, 500)
    for share, ranks in ((1 / 32, (2, 1, 3)), (0.25, (16, 3, 24)), (1.0, (64, 12, 96))):
        found = Principal(rank_share=share).init(Parameters(weights, 500))
        for (name, weight), rank in zip(weights.items(), ranks, strict=True):
            assert set(found[name]) == set(np.argsort(-cut(weight, rank), kind="stable")[: counts[name]]), name
            assert set(found[name]) == set(Principal(rank=rank).init(Parameters(weights, 500))[name])
    for wrong in ({"rank": -1}, {"rank_share": 0.0}, {"rank_share": 1.5}, {"lora_rank": -2}):
        with pytest.raises(CurateError, match="principal needs rank, lora_rank and interval of 0 or more"):
            Principal(**wrong)  # type: ignore[arg-type]


def test_principal_s_published_budget_is_a_lora_matrix_of_each_and_dualsft_s_modules_are_fewer() -> None:
    rng = np.random.default_rng(6)
    sides = {"q_proj": (12, 8), "gate_proj": (30, 8), "up_proj": (30, 8), "down_proj": (8, 30), "lm_head": (50, 8)}
    weights = {f"layers.0.{side}.weight": rng.normal(size=shape) for side, shape in sides.items()}
    found = Principal(rank=3, lora_rank=2).init(Parameters(weights, 10_000))
    wanted = {"q_proj": 40, "gate_proj": 76, "up_proj": 76, "down_proj": 76}
    assert {n.split(".")[2]: len(places) for n, places in found.items()} == wanted
    for name, places in found.items():
        assert set(places) == set(np.argsort(-cut(weights[name], 3), kind="stable")[: len(places)])
    capped = Principal(lora_rank=7).init(Parameters(weights, 10_000))
    assert [len(places) for places in capped.values()] == [96, 240, 240, 240]  # each matrix whole, but no more
    with pytest.raises(CurateError, match="lora_rank=2 of principal takes 268 weights, and --frac allows 267: take a"):
        Principal(lora_rank=2).init(Parameters(weights, 267))
    fewer = Principal(modules="dualsft").init(Parameters(weights, 100))
    assert [n.split(".")[2] for n in fewer] == ["q_proj", "down_proj"] and sum(map(len, fewer.values())) == 100


def test_the_number_of_small_weights_changes_as_it_is_told_to() -> None:
    weights = {"a": np.random.default_rng(7).normal(size=(20, 10)), "b": np.random.default_rng(8).normal(size=(5, 4))}
    flat = np.concatenate([np.abs(w).ravel() for w in weights.values()])
    mask = MagnitudeSmall(interval=3, density_interval=10, densities="0.5, 1, 0.25")
    for taken, count in ((0, 80), (3, 80), (9, 80), (10, 40), (19, 40), (20, 80), (30, 20), (999, 20)):
        found = mask.update(Parameters(weights, 80, taken=taken))
        inside = np.concatenate([found["a"], found["b"] + 200])
        assert set(inside) == set(np.argsort(flat, kind="stable")[:count]), taken
    assert sum(map(len, mask.init(Parameters(weights, 80)).values())) == 80
    each = MagnitudeSmall(scope="tensor", density_interval=1, densities="0.5").update(Parameters(weights, 44, taken=1))
    assert {n: len(places) for n, places in each.items()} == {"a": 20, "b": 2}
    for wrong in ({"density_interval": 5}, {"densities": "0.5"}):
        with pytest.raises(CurateError, match="density_interval and densities go together"):
            MagnitudeSmall(**wrong)  # type: ignore[arg-type]
    for densities in ("0.5,1.5", "0", "half"):
        with pytest.raises(CurateError, match=f"densities={densities} of magnitude_small are shares above 0"):
            MagnitudeSmall(density_interval=5, densities=densities)
    with pytest.raises(CurateError, match="are numbers of steps, 0 or more"):
        MagnitudeSmall(interval=-1)


ATTENTION = {
    "q_proj": (16, 8),
    "k_proj": (8, 8),
    "v_proj": (8, 8),
    "o_proj": (8, 16),
}  # 4 heads of queries, 2 of values


def layers(count: int) -> dict[str, np.ndarray]:
    """Layers with attention by heads of 4, and feed-forward layers 20 wide."""
    feed = {"gate_proj": (20, 8), "up_proj": (20, 8), "down_proj": (8, 20)}
    return {
        f"layers.{i}.{part}.{side}.weight": np.zeros(shape)
        for i in range(count)
        for part, sides in (("self_attn", ATTENTION), ("mlp", feed))
        for side, shape in sides.items()
    }


def test_structured_s_ratios_are_of_heads_and_channels_of_all_layers_together() -> None:
    given = Parameters(layers(5), 10_000, head_dim=4)
    mask = Structured(v_ratio=0.3, o_ratio=0.25, u_ratio=0.1, d_ratio=0.037)
    found = mask.init(given)
    drawn: dict[str, list[tuple[str, int]]] = {}
    for name, places in found.items():
        side, (rows, columns) = name.split(".")[3], given.weights[name].shape
        inside = np.zeros(rows * columns, bool)
        inside[places] = True
        inside = inside.reshape(rows, columns)
        lines = inside if side in ("v_proj", "up_proj") else inside.T
        assert (lines.all(1) == lines.any(1)).all()  # whole rows of what goes in, whole columns of what comes out
        width = 4 if side in ("v_proj", "o_proj") else 1
        units = lines[:, 0].reshape(-1, width)
        assert (units.all(1) == units.any(1)).all()  # whole heads
        drawn.setdefault(side, []).extend((name, int(u)) for u in np.flatnonzero(units[:, 0]))
    counts = {side: len(units) for side, units in drawn.items()}
    assert counts == {"v_proj": 3, "o_proj": 5, "up_proj": 10, "down_proj": 3}  # of 10, 20, 100 and 100: int(3.7) is 3
    assert {n.split(".")[3] for n in Structured(d_ratio=0.03).init(given)} == {"down_proj"}
    again = Structured(d_ratio=0.037).init(given)  # a side is drawn by itself, whatever the others are
    assert all((again[n] == found[n]).all() for n in again)
    other = Structured(d_ratio=0.037, seed=1).init(given)
    assert any(len(other[n]) != len(again[n]) or (other[n] != again[n]).any() for n in again)


def test_structured_refuses_ratios_that_cannot_be_had_and_tells_what_they_take() -> None:
    given = Parameters(layers(5), 500, head_dim=4)
    with pytest.raises(
        CurateError, match=r"v_ratio=0.5, d_ratio=0.5 of structured takes 560 weights, and --frac allow"
    ):
        Structured(v_ratio=0.5, d_ratio=0.5).init(given)
    assert sum(map(len, Structured(v_ratio=0.5, d_ratio=0.4).init(given).values())) == 480
    with pytest.raises(CurateError, match="d_ratio=0.009 of structured is less than one channel"):
        Structured(d_ratio=0.009).init(given)
    with pytest.raises(CurateError, match="not how wide a head of this model is; leave out o_ratio"):
        Structured(o_ratio=0.5).init(Parameters(layers(5), 500))
    with pytest.raises(CurateError, match="finds no v_proj in this model; leave out v_ratio"):
        Structured(v_ratio=0.5).init(Parameters({"attn.c_attn.weight": np.zeros((4, 12))}, 500, head_dim=4))
    with pytest.raises(CurateError, match="u_ratio=1.5 of structured is a share"):
        Structured(u_ratio=1.5)


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


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_gradient_block_s_kinds_have_numbers_of_their_own(scope: Any) -> None:
    weights = layers(2)
    pushed = {n: np.random.default_rng([9, i]).normal(size=w.shape) for i, (n, w) in enumerate(weights.items())}
    for name in pushed:
        pushed[name] *= 3 if "mlp" in name else 1  # together, feed-forward layers would have nearly all
    weights["other.weight"], pushed["other.weight"] = np.zeros((8, 8)), np.full((8, 8), 99.0)
    of = {"attn": [n for n in weights if "attn" in n], "mlp": [n for n in weights if "mlp" in n]}

    def best(kind: str, count: int) -> set[tuple[str, int, int]]:
        """The blocks of 4 of greatest |mean|: of the kind, or of each of its matrices its share."""
        values = {
            (n, top, left): abs(sum(sum(row[left : left + 4]) for row in pushed[n][top : top + 4])) / 16
            for n in of[kind]
            for top in range(0, weights[n].shape[0], 4)
            for left in range(0, weights[n].shape[1], 4)
        }
        ranked = sorted(values, key=lambda block: -values[block])
        if scope == "global":
            return set(ranked[:count])
        counts = apportion({n: weights[n].size // 16 for n in of[kind]}, count)
        return {block for n in counts for block in [b for b in ranked if b[0] == n][: counts[n]]}

    def blocks(found: dict[str, np.ndarray]) -> set[tuple[str, int, int]]:
        return {
            (n, int(p) // weights[n].shape[1] // 4 * 4, int(p) % weights[n].shape[1] // 4 * 4)
            for n, places in found.items()
            for p in places
        }

    given = Parameters(weights, 25 * 16, gradients=pushed.__getitem__)
    shared = GradientBlock(block=4, scope=scope, attention_share=0.3).init(given)
    assert blocks(shared) == best("attn", 8) | best("mlp", 17)  # round(7.5) is 8
    assert sum(map(len, shared.values())) == 400
    numbered = GradientBlock(block=4, scope=scope, num_submatrix_attn=11).init(given)
    assert blocks(numbered) == best("attn", 11)
    both = GradientBlock(block=4, scope=scope, num_submatrix_attn=2, num_submatrix_mlp=9).init(given)
    assert blocks(both) == best("attn", 2) | best("mlp", 9)
    assert any(n == "other.weight" for n, *_ in blocks(GradientBlock(block=4, scope=scope).init(given)))


def test_gradient_block_refuses_numbers_that_cannot_be_had() -> None:
    given = Parameters(layers(1), 40 * 16, gradients=lambda name: np.ones(layers(1)[name].shape))
    with pytest.raises(CurateError, match="41 blocks of 4 x 4 have 656 elements, and --frac allows 640"):
        GradientBlock(block=4, num_submatrix_mlp=41).check(given)
    with pytest.raises(CurateError, match="is to choose 26 blocks of attention, and this model has 24"):
        GradientBlock(block=4, num_submatrix_attn=26).check(given)
    with pytest.raises(CurateError, match="is to choose 40 blocks of attention, and this model has 24"):
        GradientBlock(block=4, attention_share=1.0).check(given)
    with pytest.raises(CurateError, match="leave one of them out"):
        GradientBlock(num_submatrix_mlp=3, attention_share=0.5)
    with pytest.raises(CurateError, match="an attention_share of 0 to 1, not 0, 0 and 1.5"):
        GradientBlock(attention_share=1.5)
