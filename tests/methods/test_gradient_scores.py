"""Scores by gradients against one sample at a time by autograd; and the stage that runs them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.kinds.score import Target
from curate.methods.executors.local import Local
from curate.methods.scores.dualsft import Dualsft
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.gradnorm import Gradnorm
from curate.methods.scores.gradsim import Gradsim
from curate.methods.scores.less import Less
from curate.methods.scores.tracin import Tracin
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.store.commits import Parts
from curate.tables.inputs import load_target, table_recipe
from curate.tables.units import shard_units
from tests.conftest import SAMPLE, run_and_kill, tree_bytes
from tests.oracles import gradients as slow
from tests.support import forks, laws
from tests.support.checkpoints import AIM, LORA, POOL, SUBTASKS, one_at_a_time, write_checkpoints
from tests.support.narrow import NARROW
from tests.support.threads import single_thread


def double(lora: bool = False) -> Backward:
    lm = LanguageModel(ModelChoice(NARROW, device="cpu"))
    lm.model.double()
    return Backward.of(lm)


def scored(model: Any, method: Any, samples: list[Any], aim: list[Any] | None = None) -> Any:
    """The columns of a score with counting passes, from memory, each pass over batches of two samples."""
    target = Target("t", None, SUBTASKS, "") if aim else None  # type: ignore[arg-type]
    state: Any = {}
    *counting, last = method.passes(target)
    for step in counting:
        over = aim if step.over == "target" else samples
        given = [over] if step.over == "target" else [over[i : i + 2] for i in range(0, len(over), 2)]
        opened = laws.opened(step, state)
        partials = [score_samples({"base": model}, some, {"x": step}, {"x": opened})[0]["x"] for some in given]
        state |= step.state([{k: v for k, v in p.items() if k != "error"} for p in partials], state)
    state = laws.opened(last, state)
    return score_samples({"base": model}, samples, {"x": last}, {"x": state})[0]["x"]


@pytest.fixture(scope="module")
def model() -> Backward:
    return double()


@pytest.fixture(scope="module")
def gradients(model: Backward) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of the pool and of the target, one sample at a time."""
    tokens = [(one.ids.tolist(), one.supervised.tolist()) for one in encode(model.lm.tokenizer, [*POOL, *AIM], 512)]
    found = [slow.flat(slow.gradient(model.lm.model, one, model.parameters)) for one in tokens]
    return found[: len(POOL)], found[len(POOL) :]


def test_gradnorm_is_the_length_of_the_gradient(model: Backward, gradients: Any) -> None:
    found = scored(GradientModel.of(model), Gradnorm(), POOL)
    assert found["score"] == pytest.approx([float(g.norm()) for g in gradients[0]], rel=1e-9)


def test_gradsim_is_the_cosine_with_the_pool_s_mean_gradient(model: Backward, gradients: Any) -> None:
    found = scored(GradientModel.of(model), Gradsim(), POOL)
    mean = torch.stack(gradients[0]).mean(0)
    wanted = [float(g @ mean / (g.norm() * mean.norm())) for g in gradients[0]]
    assert found["score"] == pytest.approx(wanted, rel=1e-6)  # the mean is kept in float32


@pytest.mark.parametrize("by", ["ghost", "jvp"])
@pytest.mark.parametrize("aggregate", ["mean", "subtask_max"])
def test_graddot_is_the_product_with_the_target_s_mean_gradient(
    model: Backward, gradients: Any, by: Any, aggregate: Any
) -> None:
    found = scored(GradientModel.of(model), Graddot(aggregate=aggregate, by=by, keep_subtasks=True), POOL, AIM)
    pool, aim = gradients
    sums, words = torch.stack(aim[:2]).mean(0), aim[2]
    of_each = np.array([[float(g @ sums), float(g @ words)] for g in pool])
    wanted = of_each @ [2 / 3, 1 / 3] if aggregate == "mean" else of_each.max(1)
    scale = np.abs(wanted).max()
    assert np.abs(found["score"] - wanted).max() < 2e-5 * scale
    assert np.abs(found["subtasks"]["sums"] - of_each[:, 0]).max() < 2e-5 * scale


@pytest.mark.parametrize("wide", [True, False])
def test_graddot_by_differences_is_near_the_product_and_leaves_the_model_as_it_was(gradients: Any, wide: bool) -> None:
    model = double() if wide else Backward.of(LanguageModel(ModelChoice(NARROW, device="cpu", dtype="float32")))
    before = {name: p.clone() for name, p in model.parameters.items()}
    found = scored(GradientModel.of(model), Graddot(by="difference"), POOL, AIM)
    pool, aim = gradients
    wanted = np.array([float(g @ torch.stack(aim).mean(0)) for g in pool])
    assert np.abs(found["score"] - wanted).max() < 1e-3 * np.abs(wanted).max()
    assert all(torch.equal(p, before[name]) for name, p in model.parameters.items())


def test_differences_refuse_several_directions_and_half_precision() -> None:
    for more in ({"keep_subtasks": True}, {"aggregate": "subtask_max"}):
        with pytest.raises(CurateError, match=r"by=difference of graddot is for one direction.*; take by=ghost"):
            Graddot(by="difference", **more)  # type: ignore[arg-type]
    model = Backward.of(LanguageModel(ModelChoice(NARROW, device="cpu")), bfloat16=True)
    with pytest.raises(CurateError, match=r"by=difference needs weights in float32: --set model.dtype=float32"):
        scored(GradientModel.of(model), Graddot(by="difference"), POOL, AIM)


def test_tracin_is_the_sum_over_checkpoints_by_their_learning_rates(tmp_path: Path) -> None:
    folders = write_checkpoints(tmp_path, dataclasses.replace(LORA, epochs=2))
    choices = [
        CheckpointChoice(ModelChoice(str(f), device="cpu"), lr) for f, lr in zip(folders, (0.5, 0.1), strict=True)
    ]
    wanted = np.zeros(len(POOL))
    for choice in choices:
        model = Backward([choice])
        tokens = encode(model.lm.tokenizer, [*POOL, *AIM], 512)
        model.lm.model.double()
        g = [
            slow.flat(slow.gradient(model.lm.model, (t.ids.tolist(), t.supervised.tolist()), model.parameters))
            for t in tokens
        ]
        mean = torch.stack(g[len(POOL) :]).mean(0)
        wanted += [(choice.lr or 0.0) * float(one @ mean) for one in g[: len(POOL)]]
    found = scored(GradientModel(choices), Tracin(), POOL, AIM)
    assert np.abs(found["score"] - wanted).max() < 1e-4 * np.abs(wanted).max()


# --- the stage -------------------------------------------------------------------------------------------


RATES = {"lr": 1e-3, "batch_size": 16, "lora_r": 4, "lora_alpha": 8.0, "epochs": 2.0, "dim": 512}


def test_less_trains_its_warm_up_once_and_a_second_target_costs_only_itself(handful_ws: Any) -> None:
    less = Less(warmup=0.1, **RATES)
    (first,) = curate.score(handful_ws, less, target="facts", models=NARROW)
    assert first.rows == first.computed == 100 and first.nulls == 0
    (second,) = curate.score(handful_ws, less, target="words", models=NARROW)
    assert second.vectors is not None and second.vectors.computed == 0 and second.vectors.reused == 100
    ledger = curate.sql(handful_ws, "SELECT name, phase, sum(samples)::INT AS n, sum(flops) AS flops FROM ledger "
                                  "WHERE stage = 'score' GROUP BY ALL")  # fmt: skip
    cost = {(r["name"], r["phase"]): r for r in ledger}
    assert cost["less", "warm-up"]["n"] == 20  # 10 samples, two epochs
    for phase in ("forward", "backward", "projection"):
        assert cost["less", phase]["n"] == 100 + 24 + 24 and cost["less", phase]["flops"] > 0
    assert 0.8 < cost["less", "backward"]["flops"] / cost["less", "forward"]["flops"] < 1.1  # no weight has a gradient
    recipe = table_recipe(handful_ws, "vectors", "less")
    assert len(recipe.checkpoints) == 2 and all(c.optimizer for c in recipe.checkpoints)
    assert recipe.settings["projector"] == "sjlt" and recipe.settings["dim"] == 512


def test_a_stored_score_is_less_with_the_learning_rates_of_its_checkpoints(few_ws: Any, tmp_path: Path) -> None:
    """From the disk: the first of two checkpoints counts nine times the other; one sample at a time, in float64."""
    folders = write_checkpoints(tmp_path, dataclasses.replace(LORA, epochs=2))
    given = [f"{folder}@{rate}" for folder, rate in zip(folders, (9e-3, 1e-3), strict=True)]
    curate.score(few_ws, Less(projector="none"), target="facts", checkpoints=given)
    rows = curate.sql(few_ws, "SELECT messages, text, less_facts AS s FROM samples WHERE row < 12 ORDER BY row")
    target = load_target(few_ws, "facts")
    aims, choices = target.text.frame.select("messages", "text").to_dicts(), []
    for folder in folders:
        model = ModelChoice(str(folder), device="cpu")
        choices.append(CheckpointChoice(model, 1.0, str(folder / "optimizer.safetensors")))
    compared = one_at_a_time(choices, "code", rows, aims)
    scores = slow.less(*compared, target.subtasks, (0.9, 0.1))
    assert [r["s"] for r in rows] == pytest.approx(scores, abs=1e-4)  # features are float16
    even = slow.less(*compared, target.subtasks, (0.5, 0.5))
    assert np.abs(np.array(even) - scores).max() > 1e-3  # which even shares would not pass


def test_a_kill_between_adding_two_sums_and_removing_them_counts_nothing_twice(few_ws: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("curate.tables.spec.unit_size", lambda models: 650)
    curate.score(few_ws, Gradsim(), models=NARROW, names={"gradsim": "whole"})
    shutil.rmtree(few_ws.path / "prepared")
    remove, calls = Parts.remove, []

    def dies(self: Any, name: str) -> None:
        calls.append(name)
        if len(calls) == 2:  # of the first pair one is removed
            raise KeyboardInterrupt
        remove(self, name)

    monkeypatch.setattr(Parts, "remove", dies)
    with pytest.raises(KeyboardInterrupt):
        curate.score(few_ws, Gradsim(), models=NARROW, names={"gradsim": "cut"})
    monkeypatch.setattr(Parts, "remove", remove)
    curate.score(few_ws, Gradsim(), models=NARROW, names={"gradsim": "cut"})
    (off,) = curate.sql(few_ws, "SELECT max(abs(whole - cut)) AS most FROM samples")
    assert off["most"] == 0


def test_what_is_refused_is_refused_before_a_warm_up_is_trained(handful_ws: Any) -> None:
    with pytest.raises(CurateError, match="has no target 'tpyo'"):
        curate.score(handful_ws, Less(**RATES), target="tpyo", models=NARROW)
    assert not (handful_ws.path / "prepared").exists()
    (plan,) = curate.score(handful_ws, Less(warmup=0.1, **RATES), target="facts", models=NARROW, dry_run=True)
    assert plan.vectors is not None
    assert [(p["pass"], p["rows"]) for p in plan.vectors.planned] == [
        ("warm-up", 10), ("gradients", 100), ("gradients of the target", 24)
    ]  # fmt: skip
    (plan,) = curate.score(handful_ws, Graddot(), target="facts", models=NARROW, dry_run=True)
    assert [(p["pass"], p["rows"]) for p in plan.planned] == [("mean of the target", 24), ("gradients", 100)]
    less = Less(warmup=0.1, **RATES)
    curate.score(handful_ws, less, target="facts", models=NARROW)
    made = set((handful_ws.path / "prepared").iterdir())
    with pytest.raises(CurateError, match="vectors 'less' were made with lr=0.001, not lr=0.002"):
        curate.score(handful_ws, dataclasses.replace(less, lr=2e-3), target="facts", models=NARROW)
    assert set((handful_ws.path / "prepared").iterdir()) == made


def test_features_are_two_bytes_a_number_and_checkpoint(handful_ws: Any) -> None:
    curate.score(handful_ws, Less(warmup=0.1, **{**RATES, "dim": 8192}), models="tiny")
    parts = Parts(handful_ws.table_folder("vectors", "less"))
    size = sum(parts.sizes().values())
    assert not (parts.folder / "index.faiss").exists()
    assert size / 100 / 2 <= 2 * 8192 * 1.05
    table = parts.read("part-00000")
    assert table.column_names == ["id", "vector_1", "norm_1", "vector_2", "norm_2", "error"]
    assert np.linalg.norm(np.array(table["vector_2"][0].as_py())) == pytest.approx(1.0, abs=1e-3)


def test_new_samples_are_scored_by_the_warm_up_that_is_there(handful_ws: Any, tmp_path: Path) -> None:
    less = Less(warmup=0.1, **RATES)
    curate.score(handful_ws, less, target="facts", models=NARROW)
    before = curate.sql(handful_ws, "SELECT less_facts AS s FROM samples ORDER BY row")
    more = (SAMPLE / "pool/atlas.jsonl").read_text().splitlines()[-40:]
    (tmp_path / "more.jsonl").write_text("\n".join(more))
    curate.ingest(handful_ws, [str(tmp_path / "more.jsonl")])
    (listed,) = handful_ws.path.glob("prepared/*/checkpoints/_parts.json")
    before_kill = listed.read_bytes()
    listed.unlink()  # as after a kill between the last checkpoint and its list
    (again,) = curate.score(handful_ws, less, target="facts", models=NARROW)
    assert again.computed == 40 and again.rows == 140 and listed.read_bytes() == before_kill
    (once,) = curate.sql(handful_ws, "SELECT count(*) AS n FROM ledger WHERE phase = 'warm-up' AND samples > 0")
    assert once["n"] == 1
    after = curate.sql(handful_ws, "SELECT less_facts AS s FROM samples ORDER BY row")
    assert after[:100] == before
    (anew,) = curate.score(handful_ws, less, models=NARROW, fresh=True)
    assert anew.computed == 140
    vectors, score = table_recipe(handful_ws, "vectors", "less"), table_recipe(handful_ws, "score", "less_facts")
    assert vectors.warmup and score.warmup and vectors.warmup.place != score.warmup.place


@pytest.fixture
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.mark.parametrize(
    ("method", "die_at"),
    [
        pytest.param(Gradsim(), 5, marks=pytest.mark.slow),
        pytest.param(Less(warmup=0.1, **RATES), 9, marks=pytest.mark.slow),  # four commits are the warm-up's
        pytest.param(Less(warmup=0.1, **RATES), 3, marks=pytest.mark.slow),
        pytest.param(Gradsim(), 20, marks=pytest.mark.slow),
        pytest.param(Gradnorm(), 5, marks=pytest.mark.slow),
        pytest.param(Graddot(), 5, marks=pytest.mark.slow),
        pytest.param(Dualsft(warmup=0.1, batch_size=16, lr=1e-3), 9, marks=pytest.mark.slow),
    ],
)
def test_bytes_do_not_depend_on_a_kill_nor_on_workers(
    method: Any, die_at: int, handful_ws: Any, one_thread: None, forked_workers: list[Any], monkeypatch: Any
) -> None:
    """Units of some fourteen samples; killed in place of a commit; then two workers, of a thread as the one has."""
    monkeypatch.setattr("curate.tables.spec.unit_size", lambda models: 2_700)
    whole = handful_ws.path.parent / "whole"
    shutil.copytree(handful_ws.path, whole)
    code = f"""
    import sys, curate, curate.tables.spec, torch
    from curate.methods.scores import {method.name} as module
    torch.set_num_threads(1)
    curate.tables.spec.unit_size = lambda models: 2_700
    method = module.{type(method).__name__}(**{method.settings()!r})
    target = "facts" if method.uses_target else None
    curate.score(curate.open_workspace(sys.argv[1]), method, target=target, models={NARROW!r})
    """
    run_and_kill(code, str(handful_ws.path), die_at=die_at)
    target = "facts" if method.uses_target else None
    curate.score(
        curate.open_workspace(handful_ws.path), method, target=target, models=NARROW, executor=Local(workers=2)
    )
    assert len(forked_workers) == 2
    done = forks.run(code, str(whole))
    assert done.returncode == 0, done.stderr
    one, other = (tree_bytes(folder / "scores") for folder in (handful_ws.path, whole))
    assert one and one == other
    assert tree_bytes(handful_ws.path / "vectors") == tree_bytes(whole / "vectors")
    units = max(len(shard_units(shard, 1_350, {})) for shard in handful_ws.shards())
    assert units > 1
    query = "SELECT sum(samples)::INT AS n FROM ledger WHERE phase = 'forward'"
    seen, once = (curate.sql(curate.open_workspace(f), query)[0]["n"] for f in (handful_ws.path, whole))
    largest = max(u.samples for shard in handful_ws.shards() for u in shard_units(shard, 1_350, {}))
    assert once <= seen <= once + largest  # at most a unit was done twice


@pytest.mark.slow
def test_tracin_looks_at_a_run_s_checkpoints_and_is_repaired_by_them(handful_ws: Any, cli: Any) -> None:
    done = cli("train", "r", "--model", NARROW, "--set", "steps=4", "--set", "checkpoint_every=2", "--set",
               "keep_checkpoints=0", "--set", "lora_r=2", "--set", "lr=1e-3", ws=handful_ws)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = cli("score", "tracin", "graddot", "--target", "facts", "--checkpoints", "r", "--set", "model.context=256",
               ws=handful_ws)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["tracin_facts", "graddot_facts"]
    recipe = table_recipe(handful_ws, "score", "tracin_facts")
    assert [c.name for c in recipe.checkpoints] == ["r step 2", "r step 4"]
    rates = [
        r["lr"]
        for r in curate.sql(handful_ws, "SELECT avg(lr) AS lr FROM metrics GROUP BY (step - 1) // 2 ORDER BY 1 DESC")
    ]
    assert sorted(c.lr for c in recipe.checkpoints if c.lr) == pytest.approx(sorted(rates))
    (last,) = table_recipe(handful_ws, "score", "graddot_facts").checkpoints
    assert last.name == "r step 4"
    part = handful_ws.score_folder("tracin_facts") / "part-00001.parquet"
    before = part.read_bytes()
    part.write_bytes(b"damaged")
    done = cli("verify", "--repair", ws=handful_ws)
    assert part.read_bytes() == before, done.stdout + done.stderr
    done = cli("score", "tracin", "--target", "facts", "--model", NARROW, ws=handful_ws)
    assert done.returncode == 2 and "uses the checkpoints of a training: add --checkpoints RUN" in done.stderr
    done = cli("score", "tracin", "--target", "facts", "--model", NARROW, "--checkpoints", "r", ws=handful_ws)
    assert done.returncode == 2 and f"with --checkpoints the model is theirs; leave out --model {NARROW}" in done.stderr
    done = cli("score", "length", "--checkpoints", "r", ws=handful_ws)
    assert done.returncode == 2 and "no method of length uses checkpoints" in done.stderr


def test_explain_shows_what_the_score_is_made_of(handful_ws: Any, cli: Any) -> None:
    curate.score(handful_ws, Less(warmup=0.1, **RATES), target="facts", models=NARROW)
    curate.score(handful_ws, Gradnorm(), models=NARROW)
    best, *_ = curate.sql(handful_ws, "SELECT id, less_facts AS s FROM samples ORDER BY less_facts DESC")
    found = curate.explain(handful_ws, best["id"], "less_facts", k=24)
    assert found.score == pytest.approx(best["s"], abs=1e-4) == pytest.approx(max(found.subtasks.values()))
    near = [e["similarity"] for e in found.for_it]
    assert near == sorted(near, reverse=True) and near == [e["similarity"] for e in found.against_it][::-1]
    mine = [
        e["similarity"] for e in found.for_it if e["subtask"] == max(found.subtasks, key=found.subtasks.__getitem__)
    ]
    assert np.mean(mine) == pytest.approx(found.score)
    other = curate.explain(handful_ws, found.for_it[0]["id"], "less_facts", k=100)
    (mine_again,) = [e for e in other.for_it if e["id"] == best["id"]]
    assert other.of == "target" and mine_again["similarity"] == pytest.approx(near[0], abs=1e-4)
    assert len(other.for_it) == 100 and other.for_it[0]["similarity"] == pytest.approx(
        other.against_it[-1]["similarity"]
    )
    done = cli("explain", best["id"], "--score", "less_facts", "-k", "2", ws=handful_ws)
    assert done.returncode == 0 and "most like it in the target facts:" in done.stdout
    done = cli("explain", best["id"], "--score", "gradnorm", ws=handful_ws)
    assert done.returncode == 2 and "what can be explained is a score made of similarities" in done.stderr
    done = cli("explain", "0" * 16, "--score", "less_facts", ws=handful_ws)
    assert done.returncode == 2 and "nor has the target 'facts' one to choose by" in done.stderr


def test_flops_are_what_is_counted(few_ws: Any) -> None:
    """Forward, backward and the products of whole gradients, within 5 % of the counter by eager attention."""
    for method in (Gradnorm(), Graddot(), Less(variant="sgd", projector="rademacher", **{**RATES, "dim": 64})):
        model, target = ModelChoice(NARROW, count_flops=True), "facts" if method.uses_target else None
        curate.score(few_ws, method, target=target, models=model)
    rows = curate.sql(few_ws, "SELECT methods[1] AS method, phase, flops, flops_counted FROM ledger "
                                "WHERE phase IN ('forward', 'backward', 'projection')")  # fmt: skip
    assert len(rows) == 3 + 6 + 3
    for row in rows:
        assert row["flops"] == pytest.approx(row["flops_counted"], rel=0.05), row
