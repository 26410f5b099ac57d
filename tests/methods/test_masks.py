"""Masks: which numbers are chosen, against slow references; and training of these alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import curate
from curate.errors import CurateError
from curate.gradients.optimizer_state import load_moments
from curate.kinds.parameters import Parameters
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.principal import Principal
from curate.methods.masks.random import Random
from curate.methods.masks.structured import Structured
from curate.methods.scores.dualsft import Dualsft
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode
from curate.numerics.apportion import apportion
from curate.numerics.top_k import largest
from curate.runs.config import TrainingSpec
from curate.runs.fitted_mask import fitted
from curate.store.encoding import read_arrays
from curate.store.mask_file import read_mask, write_mask
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.masked_parameters import Refreshed
from curate.training.settings import TrainSettings
from tests.conftest import SAMPLE, run_and_kill, tree_bytes
from tests.methods.test_less import AIM, POOL
from tests.oracles.training import weighted_gradient

DECAYING = TrainSettings(batch_size=3, lr=1e-3, warmup=0.0, schedule="constant", steps=100, weight_decay=0.1, clip=0.5)


def tiny() -> LanguageModel:
    model = LanguageModel(ModelChoice("tiny", device="cpu"))
    model.model.requires_grad_(True)
    return model


def trainer(lm: LanguageModel, settings: TrainSettings, mask: Refreshed | None, **more: Any) -> Trainer:
    data = Data.of(Examples.of(encode(lm.tokenizer, [*POOL, *AIM], 512)))
    return Trainer(lm, data, settings, Uniform(), Alone(), mask=mask, **more)


def some(lm: LanguageModel, share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers drawn by lot; of every third parameter none."""
    rng, found = np.random.default_rng(seed), {}
    for i, (name, parameter) in enumerate(lm.model.named_parameters()):
        if i % 3:
            found[name] = np.flatnonzero(rng.random(parameter.numel()) < share)
    return found


def every(lm: LanguageModel) -> dict[str, np.ndarray]:
    return {name: np.arange(p.numel()) for name, p in lm.model.named_parameters()}


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


# --- training ----------------------------------------------------------------------------------------------


def test_the_sums_of_gradients_are_those_of_single_samples_before_the_clip() -> None:
    """At a learning rate that moves nothing, so all steps are at one point."""
    lm, slow = tiny(), tiny()
    settings = TrainSettings(batch_size=4, steps=5, lr=1e-30, warmup=0.0, clip=1e-3, sum_gradients=True)
    made = trainer(lm, settings, None)
    steps = made.run()
    seen = [next(steps).documents for _ in range(2)]
    made = trainer(lm, settings, None, start=copy.deepcopy(made.snapshot()))  # cut short, and gone on with
    seen += [done.documents for done in made.run()]
    wanted = {name: torch.zeros_like(p) for name, p in slow.model.named_parameters()}
    encoded = encode(slow.tokenizer, [*POOL, *AIM], 512)
    assert len(seen) == 5
    for documents in seen:
        samples = [(encoded[i].ids.tolist(), encoded[i].supervised.tolist()) for i in documents]
        divisor = sum(sum(supervised[1:]) for _, supervised in samples)
        for name, gradient in weighted_gradient(slow.model, samples, [1.0] * len(samples), divisor).items():
            wanted[name] += gradient
    sums = {n.removeprefix("sum."): t for n, t in made.snapshot().optimizer.items() if n.startswith("sum.")}
    assert sums.keys() == wanted.keys()
    for name, total in sums.items():
        assert torch.allclose(total, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max())), name


def test_what_is_not_selected_stays_bit_for_bit_and_the_state_is_as_large_as_the_budget() -> None:
    lm = tiny()
    before = copy.deepcopy(dict(lm.model.named_parameters()))
    selected = some(lm, 0.05)
    made = trainer(lm, DECAYING, Refreshed(selected))
    losses = [done.metrics["loss"] for done in made.run()]
    assert len(losses) == 100 and losses[-1] < losses[0]
    for name, parameter in lm.model.named_parameters():
        changed = np.flatnonzero((parameter.detach() != before[name].detach()).flatten().numpy())
        assert set(changed) <= set(selected.get(name, []))
        assert len(changed) >= 0.9 * len(selected.get(name, []))
    tensors = made.snapshot().optimizer
    moments = sum(t.numel() * t.element_size() for n, t in tensors.items() if n.startswith("exp_avg"))
    index = sum(t.numel() * t.element_size() for n, t in tensors.items() if n.startswith("index"))
    count = sum(map(len, selected.values()))
    assert moments + index <= 1.2 * (8 * count + index) and index == 4 * count
    held = [p.data for p in made.parameters.values()] + [p.grad for p in made.parameters.values()]
    assert all(t is None or t.numel() == 0 for t in held)


def test_the_whole_model_selected_is_training_as_ever() -> None:
    plain, masked = tiny(), tiny()
    settings = replace(DECAYING, steps=12)
    mine = [done.metrics for done in trainer(masked, settings, Refreshed(every(masked))).run()]
    theirs = [done.metrics for done in trainer(plain, settings, None).run()]
    assert mine == theirs
    for a, b in zip(masked.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_is_torch_s_adamw_with_gradient_moments_and_decay_restricted() -> None:
    """Against AdamW over everything, whose gradients are zero outside and whose numbers outside are put back."""
    lm, slow = tiny(), tiny()
    selected = some(lm, 0.3)
    settings = replace(DECAYING, steps=4, clip=0.0)
    inside = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in slow.model.named_parameters()}
    for name, places in selected.items():
        inside[name][places] = True
    first = copy.deepcopy(dict(slow.model.named_parameters()))
    plain = trainer(slow, settings, None)

    def restrict(*_: Any) -> None:
        for name, p in slow.model.named_parameters():
            assert p.grad is not None
            p.grad *= inside[name].view_as(p)

    def put_back(*_: Any) -> None:
        for name, p in slow.model.named_parameters():
            p.data = torch.where(inside[name].view_as(p), p.data, first[name].data)

    plain.optimizer.register_step_pre_hook(restrict)
    plain.optimizer.register_step_post_hook(put_back)
    list(plain.run())
    list(trainer(lm, settings, Refreshed(selected)).run())
    for (name, a), b in zip(lm.model.named_parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7), name


def test_a_refreshed_mask_keeps_the_moments_of_what_stays_and_starts_the_rest_at_zero() -> None:
    lm = tiny()
    first, second = some(lm, 0.3, seed=1), some(lm, 0.3, seed=2)
    asked = []

    def update(parameters: Any) -> Any:
        asked.append(set(parameters))
        return second

    made = trainer(lm, replace(DECAYING, steps=6), Refreshed(first, 3, update))
    steps = made.run()
    for _ in range(3):
        next(steps)
    before = made.snapshot().optimizer
    made._refresh_mask(4)
    after = made.snapshot().optimizer
    assert len(asked) == 1 and asked[0] == set(dict(lm.model.named_parameters()))
    for name in second:
        assert after[f"index.{name}"].tolist() == second[name].tolist()
        assert after[f"step.{name}"] == before[f"step.{name}"]
        old = dict(zip(first[name], before[f"exp_avg_sq.{name}"].tolist(), strict=True))
        wanted = [old.get(place, 0.0) for place in second[name]]
        assert after[f"exp_avg_sq.{name}"].tolist() == wanted and any(wanted)
    others = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    made.step = 3
    next(steps)
    for name, p in lm.model.named_parameters():
        changed = np.flatnonzero((p.detach() != others[name]).flatten().numpy())
        assert set(changed) <= set(second.get(name, []))


@pytest.mark.parametrize("interval", [0, 2])
def test_cut_short_and_gone_on_with_it_is_as_if_nothing_had_been(interval: int) -> None:
    def mask(lm: LanguageModel) -> Refreshed:
        def largest(parameters: Any) -> Any:  # moves as the model learns
            return {
                n: np.sort(np.argsort(-p.detach().flatten().numpy())[: p.numel() // 4]) for n, p in parameters.items()
            }

        return Refreshed(some(lm, 0.3), interval, largest if interval else None)

    settings, undisturbed = replace(DECAYING, steps=7), tiny()
    whole = [done.metrics for done in trainer(undisturbed, settings, mask(undisturbed)).run()]
    lm = tiny()
    half = trainer(lm, settings, mask(lm))
    steps = half.run()
    seen = [next(steps).metrics for _ in range(4)]
    again = trainer(lm, settings, mask(lm), start=copy.deepcopy(half.snapshot()))
    assert seen + [done.metrics for done in again.run()] == whole
    for a, b in zip(lm.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- in a workspace ----------------------------------------------------------------------------------------

SHORT = {"warmup": 0.1, "batch_size": 16, "lr": 1e-3, "anchors_share": 0.1, "preserve": "none"}


def test_dualsft_s_mask_is_the_largest_of_q_times_the_sum_of_gradients(small_ws: Any) -> None:
    curate.score(small_ws, Dualsft(**SHORT, curvature_scale=1e6, eta=1.0), target="facts", models="tiny")
    recipe = json.loads((small_ws.score_folder("dualsft_facts") / "score.json").read_text())
    state = {
        k: v
        for path in recipe["states"]
        for k, v in read_arrays(small_ws.path / f"prepared/{path}.safetensors").items()
    }
    (folder,) = (small_ws.path / "prepared" / recipe["warmup"]["place"] / "checkpoints").glob("step-*")
    parameters = dict(load(ModelChoice(str(folder)))[0].named_parameters())
    at = CheckpointChoice(ModelChoice(str(folder)), None, str(folder / "optimizer.safetensors"))
    moments = load_moments(at, parameters, list(parameters))
    n, values = float(state["pool.0/samples"][0]), []
    for name in parameters:
        h = 1e6 * (np.sqrt(moments.square[name].double().numpy() / (1 - 0.999**moments.step)) + 1e-8)
        mean, v = (state[f"{key}.0/{name}"][0].astype(np.float64) for key in ("pool", "task"))
        values.append(((v / n - h * mean / (2 * n)) * n * mean).ravel())
    flat = np.concatenate(values)
    budget = round(0.01 * len(flat))
    for quota in ("global", "module"):
        r = curate.mask(small_ws, quota, DualsftMask(quota=quota), 0.01, score="dualsft_facts")
        assert r.selected == budget and r.parameters == len(flat)
        stored = read_mask(small_ws, quota)
        chosen, start = [], 0
        for name, its in zip(parameters, values, strict=True):
            chosen.append(stored.selected.get(name, np.zeros(0, int)).astype(int) + start)
            start += len(its)
        inside = np.concatenate(chosen)
        if quota == "global":
            assert set(inside) == set(np.argsort(-flat, kind="stable")[:budget])
        else:
            wanted = apportion({name: p.numel() for name, p in parameters.items()}, budget)
            assert {n: len(c) for n, c in zip(parameters, chosen, strict=True)} == wanted
    rows = curate.sql(small_ws, "SELECT sum(first - second) AS s FROM dualsft_facts")
    assert rows[0]["s"] == pytest.approx(flat.sum(), rel=1e-3)  # of samples and of parameters: one game's value


def test_gradient_block_s_warm_up_is_trained_once_and_training_goes_on_from_its_end(small_ws: Any, cli: Any) -> None:
    method = GradientBlock(block=32, steps=4, batch_size=8)
    with pytest.raises(CurateError, match="which blocks of 100 do not cover"):
        curate.mask(small_ws, "blocks", replace(method, block=100), 0.05, model="tiny")
    with pytest.raises(CurateError, match="the budget is 394"):
        curate.mask(small_ws, "blocks", method, 0.0002, model="tiny")
    assert not [row for row in curate.ledger(small_ws) if row["phase"] == "warm-up"]  # nothing was paid for
    r = curate.mask(small_ws, "blocks", method, 0.05, model="tiny")
    other = curate.mask(small_ws, "others", replace(method, measure="abs_mean"), 0.05, model="tiny")
    assert r.checkpoint == other.checkpoint and r.selected == 1967808 // 20 // 1024 * 1024
    warmed = [row for row in curate.ledger(small_ws) if row["phase"] == "warm-up"]
    assert [(row["stage"], row["methods"], row["name"], row["samples"]) for row in warmed] == [
        ("mask", "gradient_block", "blocks", 32)
    ]
    stored, tensors = read_mask(small_ws, "blocks"), load_file(Path(r.checkpoint) / "optimizer.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tiles = tensors[f"sum.{name}"].double().reshape(6, 32, 6, 32).mean((1, 3)).abs()
    inside = np.zeros(192 * 192, bool)
    inside[stored.selected[name]] = True
    taken = inside.reshape(6, 32, 6, 32).all((1, 3))
    assert 0 < taken.sum() < 36 and taken.sum() * 1024 == inside.sum()
    assert tiles[torch.from_numpy(taken)].min() >= tiles[torch.from_numpy(~taken)].max()
    done = cli("train", "goes_on", "--model", r.checkpoint, "--mask", "blocks", "--set", "steps=2", ws=small_ws)
    assert done.returncode == 0, done.stderr


def test_a_stale_score_s_mask_is_of_the_checkpoint_that_the_score_looked_at(small_ws: Any, tmp_path: Path) -> None:
    curate.score(small_ws, Dualsft(**SHORT), target="facts", models="tiny")
    curate.mask(small_ws, "before", DualsftMask(), 0.01, score="dualsft_facts")
    more = (SAMPLE / "pool/atlas.jsonl").read_text().splitlines()[-40:]
    (tmp_path / "more.jsonl").write_text("\n".join(more))
    curate.ingest(small_ws, [str(tmp_path / "more.jsonl")])
    with pytest.raises(CurateError, match="is stale"):
        curate.mask(small_ws, "after", DualsftMask(), 0.01, score="dualsft_facts")
    places = sorted(p.name for p in (small_ws.path / "prepared").iterdir())
    after = curate.mask(small_ws, "after", DualsftMask(), 0.01, score="dualsft_facts", allow_stale=True)
    assert len(after.warnings) == 1
    assert sorted(p.name for p in (small_ws.path / "prepared").iterdir()) == places  # nothing was trained anew
    one, other = (read_mask(small_ws, name).selected for name in ("before", "after"))
    assert one.keys() == other.keys() and all((one[n] == other[n]).all() for n in one)


def test_what_is_no_mask_for_a_model_is_said(small_ws: Any) -> None:
    with pytest.raises(CurateError, match="--frac 0: a mask takes a share of the parameters"):
        curate.mask(small_ws, "m", Random(), 0.0, model="tiny")
    with pytest.raises(CurateError, match="--frac 1.5: "):
        curate.mask(small_ws, "m", Random(), 1.5, model="tiny")
    with pytest.raises(CurateError, match="--frac 1e-09 of 1967808 parameters is none"):
        curate.mask(small_ws, "m", Random(), 1e-9, model="tiny")
    with pytest.raises(CurateError, match="add --model M"):
        curate.mask(small_ws, "m", Random(), 0.1)
    with pytest.raises(CurateError, match="add --score NAME"):
        curate.mask(small_ws, "m", DualsftMask(), 0.1, model="tiny")
    curate.score(
        small_ws,
        curate.find("score", "length")(),
    )
    with pytest.raises(CurateError, match="does not score parameters; use a `dualsft` score"):
        curate.mask(small_ws, "m", DualsftMask(), 0.1, score="length")
    with pytest.raises(CurateError, match="'magnitude_small' finds nothing to choose from in tiny; exclude less"):
        curate.mask(small_ws, "m", MagnitudeSmall(exclude="weight", scope="tensor"), 0.1, model="tiny")
    curate.mask(small_ws, "m", Random(), 0.1, model="tiny")
    stored, lm = read_mask(small_ws, "m"), tiny()
    tied, embedding = "lm_head.weight", "model.embed_tokens.weight"
    lineage = {**stored.lineage, "shapes": {**stored.lineage["shapes"], tied: stored.lineage["shapes"][embedding]}}
    for selected, said in (
        ({"model.layers.9.mlp.up_proj.weight": np.arange(3)}, "no parameter model.layers.9"),
        ({tied: np.arange(3)}, "ties to model.embed_tokens.weight, where it chose 0"),
    ):
        its = {**lineage, "shapes": {**lineage["shapes"], **dict.fromkeys(selected, [512, 192])}}
        with pytest.raises(CurateError, match=said):
            fitted(replace(stored, selected=selected, lineage=its), lm.model)
    both = replace(stored, selected={tied: np.arange(3), embedding: np.arange(3)}, lineage=lineage)
    assert list(fitted(both, lm.model)) == [embedding]
    other = {**lineage, "shapes": {**lineage["shapes"], embedding: [7, 192]}}
    with pytest.raises(CurateError, match=r"its model.embed_tokens.weight is \[7, 192\], and this one's"):
        fitted(replace(stored, lineage=other), lm.model)
    curate.mask(small_ws, "moves", MagnitudeSmall(interval=2), 0.1, model="tiny")
    with pytest.raises(CurateError, match="'moves' \\(magnitude_small\\) is updated during training: give its method"):
        curate.train(small_ws, "m_run", TrainingSpec(ModelChoice("tiny"), Uniform(), mask=read_mask(small_ws, "moves")))
    path = small_ws.mask_path("m")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CurateError, match="is no mask, or damaged"):
        read_mask(small_ws, "m")
    assert [d.kind for d in curate.verify(small_ws).damaged] == ["mask"]
    write_mask(small_ws, "m", {"a": np.array([3, 1])}, {"shapes": {"a": [5]}})
    with pytest.raises(CurateError, match="a has indices that are not ascending within its 5 elements"):
        read_mask(small_ws, "m")
    assert curate.drop(small_ws, "m") == "mask" and small_ws.mask_names() == ["moves"]


def test_the_command_line_masks_trains_and_goes_on_where_it_was_killed(small_ws: Any, cli: Any) -> None:
    done = cli("mask", "small", "--mask", "magnitude_small", "--model", "tiny", "--frac", "0.1", "--set", "interval=2",
               ws=small_ws)  # fmt: skip
    assert done.returncode == 0 and "Mask small: 196,781 of 1,967,808 parameters." in done.stdout, done.stderr
    arguments = [
        "--model",
        "tiny",
        "--mask",
        "small",
        "--set",
        "steps=6",
        "--set",
        "lr=1e-3",
        "--set",
        "checkpoint_every=3",
    ]
    done = cli("train", "r", *arguments, ws=small_ws)
    assert done.returncode == 0, done.stderr
    (run,) = curate.sql(small_ws, "SELECT mask, trainable, optimizer_bytes, peak_bytes FROM runs")
    assert run.pop("peak_bytes") > 4 * 1_967_808
    assert run == {"mask": "small", "trainable": 196_781, "optimizer_bytes": 12 * 196_781}
    folder = small_ws.path / "runs/r/checkpoints/step-000006"
    before, after = (load(ModelChoice(name))[0].state_dict() for name in ("tiny", str(folder)))
    changed = sum(int((before[n] != after[n]).sum()) for n in before if n != "lm_head.weight")
    assert 196_781 * 0.9 < changed < 3 * 196_781  # three masks in turn
    code = f"""
    import sys
    from curate.cli import main
    main(["train", "k", "-w", sys.argv[1], *{arguments!r}])
    """
    run_and_kill(code, str(small_ws.path), die_at=4)  # its tables of step 3, and a checkpoint, are there
    done = cli("train", "k", *arguments, ws=small_ws)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(small_ws.path / "runs/k/checkpoints", "*.safetensors") == tree_bytes(
        small_ws.path / "runs/r/checkpoints", "*.safetensors"
    )
    done = cli("train", "r", "--model", "tiny", "--set", "steps=6", "--set", "lr=1e-3", ws=small_ws)
    assert done.returncode == 2 and "with another mask (small, not none, or made anew)" in done.stderr
    done = cli("train", "l", *arguments, "--set", "lora_r=2", ws=small_ws)
    assert done.returncode == 2 and "leave out one of them" in done.stderr
    done = cli("score", "less", "--checkpoints", "r", "--target", "facts", ws=small_ws)
    assert done.returncode == 2 and "is the state of a training by a mask" in done.stderr


def test_masks_are_arrays_and_a_model_of_a_folder_has_the_same(small_ws: Any, tmp_path: Path) -> None:
    model, tokenizer = load(ModelChoice("tiny"))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    curate.mask(small_ws, "a", MagnitudeSmall(), 0.02, model="tiny")
    curate.mask(small_ws, "b", MagnitudeSmall(), 0.02, model=str(tmp_path / "m"))
    a, b = read_mask(small_ws, "a").selected, read_mask(small_ws, "b").selected
    assert a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a)
