"""`curate weigh`, weights lowered to repeats and strata, and weighted exports read by real trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import curate
from curate.errors import CurateError
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.trl import Trl
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.weightings.adapt import Adapt
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.flow import Flow
from curate.methods.weightings.linupper import Linupper
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.talr import Talr
from curate.numerics.resampling import repeats_of, strata_of
from curate.store.manifests import read_manifest
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.support.exports import toy_model


@pytest.fixture
def ready(sample_ws: Workspace) -> Workspace:
    curate.score(sample_ws, Bm25(), Length(), target="arithmetic")
    curate.select(sample_ws, "picked", Random(), SelectionSpec(top=60))
    return sample_ws


def weights(ws: Workspace, name: str) -> np.ndarray:
    return read_manifest(ws, name)[0]["weight"].to_numpy()


def test_weights_are_the_gate_s_and_1_in_the_mean(ready: Workspace) -> None:
    found = curate.weigh(ready, "w", AdaptStatic(tau=0.5), "bm25_arithmetic")
    column = np.array([r["v"] for r in curate.sql(ready, "SELECT bm25_arithmetic AS v FROM samples ORDER BY row")])
    want = 1 / (1 + np.exp(-(column - column.min()) / (column.max() - column.min()) / 0.5))
    assert weights(ready, "w") == pytest.approx(want / want.mean(), rel=1e-5)
    assert found.mean == pytest.approx(want.mean()) and found.quantiles[3] == pytest.approx(np.median(want))
    assert found.effective_rows == pytest.approx(want.sum() ** 2 / (want**2).sum())
    assert sum(row["weighted_share"] for row in found.by_source) == pytest.approx(1)
    assert [row for row in curate.status(ready).manifests if row["name"] == "w"][0]["made_by"] == "adapt_static"


def test_talr_weighs_samples_by_a_column_and_tokens_in_training_alone(ready: Workspace) -> None:
    curate.weigh(ready, "w", Talr(unit="sample", floor=0.0), "length")
    length = np.array([r["v"] for r in curate.sql(ready, "SELECT length AS v FROM samples ORDER BY row")], float)
    want = np.exp(-length / np.median(length))
    assert weights(ready, "w") == pytest.approx(want / want.mean(), rel=1e-5)
    with pytest.raises(CurateError, match="'talr' uses the model during .*\\(token_loss\\).*take --set unit=sample"):
        curate.weigh(ready, "x", Talr(), "length")


def test_a_manifest_is_weighed_on_top_of_its_own_and_what_has_no_value_is_left_out(ready: Workspace) -> None:
    curate.weigh(ready, "once", Flow(temperature=2.0), "length", manifest="picked")
    twice = curate.weigh(ready, "twice", Linupper(), "CASE WHEN length > 2 THEN length END", manifest="once")
    base = dict(zip(read_manifest(ready, "once")[0]["row"].to_pylist(), weights(ready, "once"), strict=True))
    table = read_manifest(ready, "twice")[0]
    assert twice.without_value == 60 - table.num_rows > 0
    length = {r["row"]: r["length"] for r in curate.sql(ready, "SELECT row, length FROM samples")}
    rows = table["row"].to_pylist()
    h = np.array([float(length[r]) for r in rows])
    h = 2 * (h - h.min()) / (h.max() - h.min()) - 1
    want = np.exp(np.minimum(h + 1, 1)) * np.array([base[r] for r in rows])
    assert weights(ready, "twice") == pytest.approx(want / want.mean(), rel=1e-4)


def test_what_cannot_weigh_is_said(ready: Workspace) -> None:
    with pytest.raises(
        CurateError, match="'adapt' uses the model during training .states., so it works in `curate train` only"
    ):
        curate.weigh(ready, "w", Adapt(), "length")
    with pytest.raises(CurateError, match="'max_loss' chooses among a step's candidates, .* choose by `curate select`"):
        curate.weigh(ready, "w", MaxLoss(), "length")
    with pytest.raises(CurateError, match="no sample has a value"):
        curate.weigh(ready, "w", AdaptStatic(), "NULL")
    with pytest.raises(CurateError, match="did you mean 'length'"):
        curate.weigh(ready, "w", AdaptStatic(), "lenght")
    with pytest.raises(CurateError, match="the weights are all 0"):
        curate.weigh(ready, "w", Flow(temperature=1e-4), "length + 1000")


def test_adapt_bm25_is_spread_on_the_real_pool_and_not_saturated(ws: Workspace, shared: Path) -> None:
    curate.ingest(ws, [str(shared / "pool/gsm8k.jsonl"), str(shared / "pool/gpteacher_code.json")])
    curate.target(ws, "code", str(shared / "targets/code_val.jsonl"))
    curate.score(ws, Bm25(), target="code")
    found = curate.weigh(ws, "w", AdaptStatic(), "bm25_code")
    print(found.quantiles)
    assert found.quantiles[0] == 0.5 and found.quantiles[-1] == pytest.approx(0.731, abs=1e-3)
    assert 0.51 < found.quantiles[3] < 0.70 and found.quantiles[5] - found.quantiles[1] > 0.04


# --- lowering --------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40).filter(any), st.integers(1, 200), st.integers(0, 9))
def test_repeats_add_up_and_each_is_its_share_rounded_down_or_up(given_: list[float], total: int, seed: int) -> None:
    w = np.array(given_)
    repeats, lowered = repeats_of(w, total, seed)
    share = w / w.sum() * total
    assert repeats.sum() == total == lowered.rows
    assert (repeats >= np.floor(share - 1e-9)).all() and (repeats <= np.ceil(share + 1e-9)).all()
    assert lowered.left_out == (repeats == 0).sum()


def test_repeats_are_their_share_in_the_mean() -> None:
    w = np.random.default_rng(0).gamma(1.0, size=30)
    mean = np.mean([repeats_of(w, 60, seed)[0] for seed in range(800)], axis=0)
    assert mean == pytest.approx(w * 60 / w.sum(), abs=0.08)


def test_strata_are_quantiles_and_their_means() -> None:
    w = np.array([0.0, 1.0, 2.0, 3.0, 10.0, 30.0])
    stratum, means, lowered = strata_of(w, 3)
    assert stratum.tolist() == [0, 1, 1, 2, 3, 3] and means.tolist() == [0.0, 1.5, 3.0, 20.0]  # 0 apart
    assert lowered.largest_error == pytest.approx(1.0) and lowered.effective_rows == pytest.approx(46**2 / 1014)
    assert strata_of(np.ones(5), 4)[1].tolist() == [1.0]


def test_repeats_in_a_manifest(ready: Workspace) -> None:
    found = curate.weigh(ready, "r", Flow(temperature=3.0), "length", repeats=0)
    table = read_manifest(ready, "r")[0]
    assert table["repeats"].to_numpy().sum() == 3000 and set(table["weight"].to_pylist()) == {1.0}
    assert "weights as repeats: 3,000 rows" in found.lowered and table.num_rows < 3000


# --- exports ---------------------------------------------------------------------------------------------


def test_a_weighted_set_is_refused_repeated_or_parted(ready: Workspace, tmp_path: Path) -> None:
    curate.weigh(ready, "w", Flow(temperature=3.0), "length", manifest="picked")
    with pytest.raises(
        CurateError, match="cannot carry them; export it as jsonl or parquet, or approximate them by --set weights="
    ):
        curate.export(ready, "w", Trl(), str(tmp_path / "no"))
    result = curate.export(ready, "w", Trl(weights="repeats"), str(tmp_path / "trl"))
    told = json.loads((tmp_path / "trl/weights.json").read_text())
    assert result.rows == 60 and told["how"] == "repeats" and told["effective_rows"] < 60 and told["largest_error"] > 0
    assert "effective sample size" in result.lowered
    parted = curate.export(ready, "w", Llamafactory(weights="strata", strata=3), str(tmp_path / "lf"))
    mix = json.loads((tmp_path / "lf/w.mix.json").read_text())
    names = mix["dataset"].split(",")
    assert parted.rows == 60 and set(names) == set(json.loads((tmp_path / "lf/dataset_info.json").read_text()))
    share = np.array([float(p) for p in mix["interleave_probs"].split(",")])
    table, _ = read_manifest(ready, "w")
    source, mass = np.array(table["source"].to_pylist()), []
    for name in np.unique(source):  # each source by its own quantiles
        w = np.sort(weights(ready, "w")[source == name])
        mine = [n for n in names if n.startswith(f"w_{name}_")]
        sizes = [len((tmp_path / f"lf/{n}.jsonl").read_text().strip().split("\n")) for n in mine]
        mass += [part.sum() for part in np.split(w, np.cumsum(sizes)[:-1])]
    w = weights(ready, "w")
    assert share == pytest.approx(np.array(mass) / w.sum(), abs=1e-4)


def test_trl_trains_on_a_weighted_set_that_repeats(ready: Workspace, tmp_path: Path) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    curate.weigh(ready, "w", AdaptStatic(tau=0.1), "bm25_arithmetic", manifest="picked")
    files = curate.export(ready, "w", Trl(weights="repeats"), str(tmp_path / "out")).files
    lines = [f for f in files if f.endswith(".jsonl")]
    data = datasets.load_dataset("json", data_files=lines, split="train", cache_dir=str(tmp_path / "cache"))
    model, tokenizer = toy_model()
    arguments = SFTConfig(output_dir=str(tmp_path / "run"), max_steps=2, report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    assert len(data) == 60 and np.isfinite(trainer.train().training_loss)


def test_a_weighted_loss_of_ones_is_the_stock_loss() -> None:
    from curate.training.weighted_trainer import weighted_loss

    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11, requires_grad=True), torch.randint(0, 11, (3, 7))
    labels[0, :3] = labels[2, 5:] = -100
    stock = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    mine = weighted_loss(logits, labels, torch.ones(3))
    assert mine.item() == pytest.approx(stock.item(), rel=1e-6)
    (a,), (b,) = torch.autograd.grad(stock, [logits], retain_graph=True), torch.autograd.grad(mine, [logits])
    assert torch.equal(a, b)
    weights = torch.tensor([0.0, 2.0, 1.0])
    doubled = weighted_loss(logits[[1, 1, 2]], labels[[1, 1, 2]], torch.ones(3), 5.0)
    assert weighted_loss(logits, labels, weights, 5.0).item() == pytest.approx(doubled.item(), rel=1e-6)


class Tokens:
    """A collator for rows of text over a toy tokenizer."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [self.tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        made = self.tokenizer(texts, padding=True, return_tensors="pt")
        return {**made, "labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}


def huggingface(model: Any, tokenizer: Any, rows: Any, folder: Path, kind: Any) -> list[torch.Tensor]:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3, learning_rate=1e-2,
        report_to=[], use_cpu=True, save_strategy="no", remove_unused_columns=False, optim="sgd",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=Tokens(tokenizer))
    assert np.isfinite(trainer.train().training_loss)
    return [p.detach().clone() for p in model.parameters()]


def test_transformers_trainer_takes_an_exported_weighted_set(ready: Workspace, tmp_path: Path) -> None:
    """Weights of 1 are the stock Trainer's steps, bit for bit; 0 and 2 are dropping and doubling."""
    import copy

    import datasets
    from transformers import Trainer

    from curate.training.weighted_trainer import WeightedTrainer

    curate.weigh(ready, "w", Flow(temperature=3.0), "length", manifest="picked")
    (file,) = curate.export(ready, "w", Jsonl(), str(tmp_path / "out")).files
    data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    rows = [{"messages": r["messages"], "loss_weight": r["loss_weight"]} for r in data]
    model, tokenizer = toy_model()

    def steps(weights: list[float] | None, kind: Any, order: list[int] | None = None) -> list[torch.Tensor]:
        some = [dict(row) for row in (rows[i] for i in order or range(24))]
        for row, weight in zip(some, weights or [], strict=False):
            row["loss_weight"] = weight
        if kind is Trainer:
            some = [{"messages": row["messages"]} for row in some]
        return huggingface(copy.deepcopy(model), tokenizer, some, tmp_path / "run", kind)

    stock, ones = steps(None, Trainer), steps([1.0] * 24, WeightedTrainer)
    assert all(torch.equal(a, b) for a, b in zip(stock, ones, strict=True))
    real = steps(None, WeightedTrainer)
    assert any(not torch.equal(a, b) for a, b in zip(stock, real, strict=True))


def test_a_negative_weight_is_refused() -> None:
    from curate.training.weighted_trainer import WeightedCollator

    collator = WeightedCollator(lambda rows: {"n": len(rows)})
    assert collator([{"a": 1, "loss_weight": 2.0}, {"a": 2}])["loss_weight"].tolist() == [2.0, 1.0]
    with pytest.raises(CurateError, match="loss_weight is a number of 0 or more, not"):
        collator([{"loss_weight": -1.0}])


def test_the_command_line_weighs(ready: Workspace, cli: Any) -> None:
    done = cli("weigh", "w", "--by", "bm25_arithmetic", "--set", "tau=0.2", ws=ready)
    assert done.returncode == 0, done.stderr
    assert "Manifest w: 3,000 samples, effective sample size" in done.stdout and "school" in done.stdout
    repeated = cli("weigh", "r", "--by", "length", "--weighting", "flow", "--repeats", "500", ws=ready)
    assert "500 rows" in repeated.stdout
    assert (
        "weights.json"
        in cli(
            "export", "w", "--to", "trl", "--set", "weights=repeats", "-o", str(ready.path) + "_out", ws=ready
        ).stdout
    )
