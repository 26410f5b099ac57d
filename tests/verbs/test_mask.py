"""`curate mask` and training by what it made: warm-ups, stale scores, what is refused, kills."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file

import curate
from curate.errors import CurateError
from curate.gradients.optimizer_state import load_moments
from curate.kinds.parameters import Parameters
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.random import Random
from curate.methods.scores.dualsft import Dualsft
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.numerics.apportion import apportion
from curate.runs.config import TrainingSpec
from curate.runs.fitted_mask import fitted
from curate.store.contents import take_out
from curate.store.encoding import read_arrays
from curate.store.mask_file import read_mask, write_mask
from curate.store.recipes import MaskRecipe
from curate.training.settings import TrainSettings
from tests.conftest import SAMPLE, run_and_kill, tree_bytes
from tests.support.narrow import NARROW

SHORT = {"warmup": 0.1, "batch_size": 16, "lr": 1e-3, "anchors_share": 0.1, "preserve": "none"}


def test_dualsft_s_mask_is_the_largest_of_q_times_the_sum_of_gradients(handful_ws: Any) -> None:
    curate.score(handful_ws, Dualsft(**SHORT, curvature_scale=1e6, eta=1.0), target="facts", models=NARROW)
    recipe = json.loads((handful_ws.score_folder("dualsft_facts") / "score.json").read_text())
    state = {
        k: v
        for path in recipe["states"]
        for k, v in read_arrays(handful_ws.path / f"prepared/{path}.safetensors").items()
    }
    (folder,) = (handful_ws.path / "prepared" / recipe["warmup"]["place"] / "checkpoints").glob("step-*")
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
        r = curate.mask(handful_ws, quota, DualsftMask(quota=quota), 0.01, score="dualsft_facts")
        assert r.selected == budget and r.parameters == len(flat)
        stored = read_mask(handful_ws, quota)
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
    rows = curate.sql(handful_ws, "SELECT sum(first - second) AS s FROM dualsft_facts")
    assert rows[0]["s"] == pytest.approx(flat.sum(), rel=1e-3)  # of samples and of parameters: one game's value


def test_dualsft_s_mask_with_floors_gives_every_layer_and_kind_of_module_its_part() -> None:
    """Against a list of all elements, chosen one group after another."""
    rng = np.random.default_rng(0)
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.{m}.weight" for i in range(3) for m in ("mlp.up_proj", "self_attn.q_proj")]
    values = {name: rng.normal(size=(6, 5)) * 10.0 ** rng.integers(-2, 2) for name in names}
    given = Parameters(values, 40, values.__getitem__)
    found = DualsftMask(quota="floors", sign="absolute", floor=0.3).init(given)
    elements = [(abs(v), name, i) for name in names for i, v in enumerate(values[name].ravel())]
    chosen: set[tuple[str, int]] = set()
    layers = [[names[0]], *([f"model.layers.{i}.mlp.up_proj.weight", f"model.layers.{i}.self_attn.q_proj.weight"]
                            for i in range(3))]  # fmt: skip
    kinds = [[n for n in names if kind in n] for kind in ("embed", "up_proj", "q_proj")]
    for groups in (layers, kinds):
        for group in groups:
            open_ = sorted((e for e in elements if e[1] in group and e[1:] not in chosen), reverse=True)
            chosen |= {e[1:] for e in open_[: int(0.3 * 40 / len(groups))]}
    open_ = sorted((e for e in elements if e[1:] not in chosen), reverse=True)
    chosen |= {e[1:] for e in open_[: 40 - len(chosen)]}
    assert {(name, int(i)) for name, places in found.items() for i in places} == chosen
    every = DualsftMask(quota="floors", floor=0.5).init(Parameters(values, 210, values.__getitem__))
    assert sum(map(len, every.values())) == 210
    with pytest.raises(CurateError, match="floor=0.6 of the mask dualsft is taken twice"):
        DualsftMask(floor=0.6)
    signed = DualsftMask().init(given)
    assert (
        sum(map(len, signed.values())) == 40
        and min(values[n].ravel()[p].min() for n, p in signed.items() if len(p)) > 0
    )


def test_gradient_block_s_warm_up_is_trained_once_and_training_goes_on_from_its_end(handful_ws: Any, cli: Any) -> None:
    method = GradientBlock(block=16, steps=4, batch_size=8)
    with pytest.raises(CurateError, match="which blocks of 100 do not cover"):
        curate.mask(handful_ws, "blocks", replace(method, block=100), 0.05, model=NARROW)
    with pytest.raises(CurateError, match="the budget is 11"):
        curate.mask(handful_ws, "blocks", method, 0.0002, model=NARROW)
    assert not [row for row in curate.ledger(handful_ws) if row["phase"] == "warm-up"]  # nothing was paid for
    r = curate.mask(handful_ws, "blocks", method, 0.05, model=NARROW)
    other = curate.mask(handful_ws, "others", replace(method, measure="abs_mean"), 0.05, model=NARROW)
    assert r.checkpoint == other.checkpoint and r.selected == 53408 // 20 // 256 * 256
    warmed = [row for row in curate.ledger(handful_ws) if row["phase"] == "warm-up"]
    assert [(row["stage"], row["methods"], row["name"], row["samples"]) for row in warmed] == [
        ("mask", "gradient_block", "blocks", 32)
    ]
    stored, tensors = read_mask(handful_ws, "blocks"), load_file(Path(r.checkpoint) / "optimizer.safetensors")
    tiles, taken = [], []
    for name in (n.removeprefix("sum.") for n in tensors if n.startswith("sum.") and "_proj" in n):
        (high, wide), within = tensors[f"sum.{name}"].shape, (1, 3)
        cut = (high // 16, 16, wide // 16, 16)
        inside = np.zeros(high * wide, bool)
        inside[stored.selected.get(name, [])] = True
        tiles.append(tensors[f"sum.{name}"].double().reshape(cut).mean(within).abs().ravel())
        taken.append(inside.reshape(cut).all(within).ravel())
        assert taken[-1].sum() * 256 == inside.sum()
    means, chosen = torch.cat(tiles), torch.from_numpy(np.concatenate(taken))
    assert 0 < chosen.sum() < len(chosen) and means[chosen].min() >= means[~chosen].max()
    done = cli("train", "goes_on", "--model", r.checkpoint, "--mask", "blocks", "--set", "steps=2", ws=handful_ws)
    assert done.returncode == 0, done.stderr


def test_the_hundred_full_steps_before_gradient_block_are_in_the_ledger_and_in_the_cost_of_its_runs(
    handful_ws: Any,
) -> None:
    """By default; at least 6 FLOPs for every parameter in a product and every token of every sample."""
    method = GradientBlock(block=16, batch_size=2)
    assert method.steps == 100
    curate.mask(handful_ws, "blocks", method, 0.05, model=NARROW)
    rows = [row for row in curate.ledger(handful_ws) if row["stage"] == "mask"]
    assert [(row["phase"], row["name"], row["methods"], row["samples"]) for row in rows] == [
        ("warm-up", "blocks", "gradient_block", 200)
    ]
    (warmed,) = rows
    in_products = sum(p.numel() for n, p in load(ModelChoice(NARROW))[0].named_parameters() if "_proj" in n)
    assert warmed["tokens"] > 200 and warmed["flops"] >= 6 * in_products * warmed["tokens"]
    spec = TrainingSpec(ModelChoice(NARROW), Uniform(), TrainSettings(steps=1, batch_size=2))
    curate.train(handful_ws, "masked", replace(spec, mask=read_mask(handful_ws, "blocks")))
    (arm,) = curate.compare(handful_ws, ["masked"]).arms
    assert arm.cost.prep == pytest.approx(warmed["flops"], rel=1e-12)
    other = curate.mask(handful_ws, "others", replace(method, attention_share=0.5), 0.05, model=NARROW)
    again = [row for row in curate.ledger(handful_ws) if row["stage"] == "mask"]
    assert len(again) == 1 and other.selected == 53408 // 20 // 256 * 256  # the warm-up is that of the first


def test_structured_heads_are_those_of_the_model_and_nothing_else_changes(handful_ws: Any, cli: Any) -> None:
    """The narrow model has two layers of two heads, 16 wide; half of four heads are two, and of 128 channels 6."""
    words = ["--mask", "structured", "--model", NARROW, "--frac", "0.1", "--set", "seed=3"]
    ratios = [w for r in ("v_ratio=0.5", "o_ratio=0.5", "d_ratio=0.05") for w in ("--set", r)]
    done = cli("mask", "s2", *words, *ratios, ws=handful_ws)
    count = 2 * 2 * 16 * 32 + 6 * 32
    assert done.returncode == 0 and f"Mask s2: {count:,} of 53,408 parameters." in done.stdout, done.stderr
    done = cli("train", "r", "--model", NARROW, "--mask", "s2", "--set", "steps=3", "--set", "lr=1e-3", ws=handful_ws)
    assert done.returncode == 0, done.stderr
    folder = handful_ws.path / "runs/r/checkpoints/step-000003"
    before, after = (load(ModelChoice(name))[0].state_dict() for name in (NARROW, str(folder)))
    selected = read_mask(handful_ws, "s2").selected
    assert {n.split(".")[4] for n in selected} == {"v_proj", "o_proj", "down_proj"}
    for name in before:
        changed = set(np.flatnonzero((before[name] != after[name]).flatten().numpy()))
        its = set(selected.get(name, np.zeros(0, int)).tolist())
        assert changed <= its and len(changed) >= 0.9 * len(its), name
    done = cli("mask", "s3", *words, "--set", "d_ratio=0.9", "--set", "v_ratio=1", ws=handful_ws)
    assert done.returncode == 2 and "v_ratio=1, d_ratio=0.9 of structured takes 5,728 weights" in done.stderr


def test_a_mask_that_shrinks_is_trained_by_the_command_line(handful_ws: Any, cli: Any) -> None:
    words = ["--mask", "magnitude_small", "--model", NARROW, "--frac", "0.1"]
    density = ["--set", "density_interval=2", "--set", "densities=0.5,0.2"]
    done = cli("mask", "small", *words, *density, ws=handful_ws)
    assert done.returncode == 0 and "5,341 of 53,408" in done.stdout, done.stderr
    with pytest.raises(CurateError, match="'small' \\(magnitude_small\\) is updated during training: give its method"):
        spec = TrainingSpec(ModelChoice(NARROW), Uniform(), mask=read_mask(handful_ws, "small"))
        curate.train(handful_ws, "x", spec)
    keep = ["--set", "steps=5", "--set", "checkpoint_every=1", "--set", "keep_checkpoints=0"]
    done = cli("train", "r", "--model", NARROW, "--mask", "small", *keep, ws=handful_ws)
    assert done.returncode == 0, done.stderr
    counts = []
    for step in range(1, 6):
        tensors = load_file(handful_ws.path / f"runs/r/checkpoints/step-00000{step}/optimizer.safetensors")
        counts.append(sum(t.numel() for n, t in tensors.items() if n.startswith("index.")))
    assert counts == [5341, 5341, 2670, 2670, 1068]
    done = cli("mask", "other", *words, "--set", "density_interval=2", ws=handful_ws)
    assert done.returncode == 2 and "density_interval and densities go together" in done.stderr


def test_a_stale_score_s_mask_is_of_the_checkpoint_that_the_score_looked_at(handful_ws: Any, tmp_path: Path) -> None:
    curate.score(handful_ws, Dualsft(**SHORT), target="facts", models=NARROW)
    curate.mask(handful_ws, "before", DualsftMask(), 0.01, score="dualsft_facts")
    more = (SAMPLE / "pool/atlas.jsonl").read_text().splitlines()[-40:]
    (tmp_path / "more.jsonl").write_text("\n".join(more))
    curate.ingest(handful_ws, [str(tmp_path / "more.jsonl")])
    with pytest.raises(CurateError, match="is stale"):
        curate.mask(handful_ws, "after", DualsftMask(), 0.01, score="dualsft_facts")
    places = sorted(p.name for p in (handful_ws.path / "prepared").iterdir())
    after = curate.mask(handful_ws, "after", DualsftMask(), 0.01, score="dualsft_facts", allow_stale=True)
    assert len(after.warnings) == 1
    assert sorted(p.name for p in (handful_ws.path / "prepared").iterdir()) == places  # nothing was trained anew
    one, other = (read_mask(handful_ws, name).selected for name in ("before", "after"))
    assert one.keys() == other.keys() and all((one[n] == other[n]).all() for n in one)


def test_what_is_no_mask_for_a_model_is_said(handful_ws: Any) -> None:
    with pytest.raises(CurateError, match="--frac 0: a mask takes a share of the parameters"):
        curate.mask(handful_ws, "m", Random(), 0.0, model=NARROW)
    with pytest.raises(CurateError, match="--frac 1.5: "):
        curate.mask(handful_ws, "m", Random(), 1.5, model=NARROW)
    with pytest.raises(CurateError, match="--frac 1e-09 of 53408 parameters is none"):
        curate.mask(handful_ws, "m", Random(), 1e-9, model=NARROW)
    with pytest.raises(CurateError, match="add --model M"):
        curate.mask(handful_ws, "m", Random(), 0.1)
    with pytest.raises(CurateError, match="add --score NAME"):
        curate.mask(handful_ws, "m", DualsftMask(), 0.1, model=NARROW)
    curate.score(
        handful_ws,
        curate.find("score", "length")(),
    )
    with pytest.raises(CurateError, match="does not score parameters; use a `dualsft` score"):
        curate.mask(handful_ws, "m", DualsftMask(), 0.1, score="length")
    with pytest.raises(CurateError, match="'magnitude_small' finds nothing to choose from in .*; exclude less"):
        curate.mask(handful_ws, "m", MagnitudeSmall(exclude="weight", scope="tensor"), 0.1, model=NARROW)
    curate.mask(handful_ws, "m", Random(), 0.1, model=NARROW)
    stored, lm = read_mask(handful_ws, "m"), LanguageModel(ModelChoice(NARROW, device="cpu"))
    tied, embedding = "lm_head.weight", "model.embed_tokens.weight"
    shape = stored.recipe.shapes[embedding]

    def with_shapes(shapes: dict[str, list[int]]) -> MaskRecipe:
        return structs.replace(stored.recipe, shapes={**stored.recipe.shapes, **shapes})

    for selected, said in (
        ({"model.layers.9.mlp.up_proj.weight": np.arange(3)}, "no parameter model.layers.9"),
        ({tied: np.arange(3)}, "ties to model.embed_tokens.weight, where it chose 0"),
    ):
        other = with_shapes({tied: shape, **dict.fromkeys(selected, [512, 32])})
        with pytest.raises(CurateError, match=said):
            fitted(replace(stored, selected=selected, recipe=other), lm.model)
    both = replace(stored, selected={tied: np.arange(3), embedding: np.arange(3)}, recipe=with_shapes({tied: shape}))
    assert list(fitted(both, lm.model)) == [embedding]
    with pytest.raises(CurateError, match=r"its model.embed_tokens.weight is \[7, 32\], and this one's"):
        fitted(replace(stored, recipe=with_shapes({embedding: [7, 32]})), lm.model)
    curate.mask(handful_ws, "moves", MagnitudeSmall(interval=2), 0.1, model=NARROW)
    with pytest.raises(CurateError, match="'moves' \\(magnitude_small\\) is updated during training: give its method"):
        curate.train(
            handful_ws, "m_run", TrainingSpec(ModelChoice(NARROW), Uniform(), mask=read_mask(handful_ws, "moves"))
        )
    path = handful_ws.mask_path("m")
    path.write_bytes(path.read_bytes()[:1000])
    take_out(handful_ws, "mask", "m")  # as in a workspace of format 1, which has no list to hold it to
    with pytest.raises(CurateError, match="is no mask, or damaged"):
        read_mask(handful_ws, "m")
    assert [d.kind for d in curate.verify(handful_ws).damaged] == ["mask"]
    write_mask(handful_ws, "m", {"a": np.array([3, 1])}, with_shapes({"a": [5]}))
    with pytest.raises(CurateError, match="a has indices that are not ascending within its 5 elements"):
        read_mask(handful_ws, "m")
    assert curate.drop(handful_ws, "m").kind == "mask" and handful_ws.mask_names() == ["moves"]


def test_the_command_line_masks_trains_and_goes_on_where_it_was_killed(handful_ws: Any, cli: Any) -> None:
    done = cli("mask", "small", "--mask", "magnitude_small", "--model", NARROW, "--frac", "0.1", "--set", "interval=2",
               ws=handful_ws)  # fmt: skip
    assert done.returncode == 0 and "Mask small: 5,341 of 53,408 parameters." in done.stdout, done.stderr
    arguments = [
        "--model",
        NARROW,
        "--mask",
        "small",
        "--set",
        "steps=6",
        "--set",
        "lr=1e-3",
        "--set",
        "checkpoint_every=3",
    ]
    done = cli("train", "r", *arguments, ws=handful_ws)
    assert done.returncode == 0, done.stderr
    (run,) = curate.sql(handful_ws, "SELECT mask, trainable, optimizer_bytes, peak_bytes FROM runs")
    assert run.pop("peak_bytes") > 4 * 53_408
    assert run == {"mask": "small", "trainable": 5_341, "optimizer_bytes": 12 * 5_341}
    folder = handful_ws.path / "runs/r/checkpoints/step-000006"
    before, after = (load(ModelChoice(name))[0].state_dict() for name in (NARROW, str(folder)))
    changed = sum(int((before[n] != after[n]).sum()) for n in before if n != "lm_head.weight")
    assert 5_341 * 0.9 < changed < 3 * 5_341  # three masks in turn
    code = f"""
    import sys
    from curate.cli import main
    main(["train", "k", "-w", sys.argv[1], *{arguments!r}])
    """
    run_and_kill(code, str(handful_ws.path), die_at=4)  # its tables of step 3, and a checkpoint, are there
    done = cli("train", "k", *arguments, ws=handful_ws)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(handful_ws.path / "runs/k/checkpoints", "*.safetensors") == tree_bytes(
        handful_ws.path / "runs/r/checkpoints", "*.safetensors"
    )
    done = cli("train", "r", "--model", NARROW, "--set", "steps=6", "--set", "lr=1e-3", ws=handful_ws)
    assert done.returncode == 2 and "with another mask (small, not none, or made anew)" in done.stderr
    done = cli("train", "l", *arguments, "--set", "lora_r=2", ws=handful_ws)
    assert done.returncode == 2 and "leave out one of them" in done.stderr
    done = cli("score", "less", "--checkpoints", "r", "--target", "facts", ws=handful_ws)
    assert done.returncode == 2 and "is the state of a training by a mask" in done.stderr


def test_masks_are_arrays_and_a_model_of_a_folder_has_the_same(handful_ws: Any, tmp_path: Path) -> None:
    model, tokenizer = load(ModelChoice(NARROW))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    curate.mask(handful_ws, "a", MagnitudeSmall(), 0.02, model=NARROW)
    curate.mask(handful_ws, "b", MagnitudeSmall(), 0.02, model=str(tmp_path / "m"))
    a, b = read_mask(handful_ws, "a").selected, read_mask(handful_ws, "b").selected
    assert a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a)
