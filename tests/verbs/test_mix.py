"""`curate mix`, what a training draws from a mixture, and mixers that train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import curate
from curate.cli.main import cli
from curate.errors import CurateError
from curate.methods.executors.local import Local
from curate.methods.metrics.loss import Loss
from curate.methods.mixers.doremi import Doremi
from curate.methods.mixers.given import Given
from curate.methods.mixers.proportional import Proportional
from curate.methods.mixers.regmix import Regmix
from curate.methods.mixers.softmax import Softmax
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.uniform import Uniform as Plain
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.proxies import Proxy
from curate.store.commits import Parts
from curate.store.manifests import read_any, read_manifest
from curate.store.recipes import MixtureRecipe
from curate.store.workspace import Workspace
from curate.training.settings import TrainSettings
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.support.exports import toy_model
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")


# --- the verb --------------------------------------------------------------------------------------------


def test_a_mixture_is_a_manifest_with_its_epochs(sample_ws: Workspace) -> None:
    found = curate.mix(sample_ws, "even", Uniform(), MixtureSpec(rows=400))
    table, recipe = read_any(sample_ws, "even")
    assert table["source"].to_pylist() == ["atlas", "forum", "school", "workshop"]
    assert table["rows"].to_pylist() == [100] * 4 and table["weight"].to_pylist() == [0.25] * 4
    assert table["epochs"].to_pylist() == [100 / n for n in table["available"].to_pylist()]
    assert found.rows == 400 and isinstance(recipe, MixtureRecipe) and recipe.mixer.name == "uniform"
    rows = curate.sql(sample_ws, "SELECT sum(rows)::INT AS n FROM even")
    assert list(rows) == [{"n": 400}]
    (info,) = [row for row in curate.status(sample_ws).manifests if row["name"] == "even"]
    assert info["made_by"] == "uniform" and info["rows"] == 400
    for use in (
        lambda: read_manifest(sample_ws, "even"),
        lambda: curate.mix(sample_ws, "x", Uniform(), MixtureSpec(manifest="even")),
    ):
        with pytest.raises(CurateError, match="mixture"):
            use()
    assert curate.drop(sample_ws, "even").kind == "manifest"


def test_weights_of_tokens_become_draws_by_the_mean_length(sample_ws: Workspace) -> None:
    curate.mix(sample_ws, "even", Uniform(), MixtureSpec(tokens=20_000))
    table, _ = read_any(sample_ws, "even")
    assert np.array(table["tokens"].to_pylist()) == pytest.approx(np.full(4, 5000), abs=15)  # half a sample
    rows = table["rows"].to_pylist()
    assert rows[3] > rows[1] > rows[2]  # workshop's are the shortest, school's the longest


def test_a_domain_that_is_too_small_is_an_error_or_gives_way(sample_ws: Workspace) -> None:
    most = Given("atlas=3,forum=1")
    with pytest.raises(CurateError, match=r"more than 1 times: atlas \(900 draws from 539 samples\)"):
        curate.mix(sample_ws, "m", most, MixtureSpec(rows=1200, most_epochs=1.0))
    found = curate.mix(sample_ws, "m", most, MixtureSpec(rows=1100, most_epochs=1.0, lower=True))
    its = {row["source"]: row for row in found.by_domain}
    assert (its["atlas"]["rows"], its["forum"]["rows"]) == (539, 561) and found.lowered == ["atlas"]
    assert its["atlas"]["weight"] == pytest.approx(539 / 1100) and its["school"]["rows"] == 0
    spilled = curate.mix(sample_ws, "m", most, MixtureSpec(rows=1200, most_epochs=1.0, lower=True), fresh=True)
    assert spilled.rows == 1200 and max(row["epochs"] for row in spilled.by_domain) == 1
    with pytest.raises(CurateError, match=r"all domains together have \(3,000\)"):
        curate.mix(sample_ws, "m", most, MixtureSpec(rows=3001, most_epochs=1.0, lower=True), fresh=True)
    assert (
        curate.mix(sample_ws, "m", most, MixtureSpec(rows=1200, most_epochs=None), fresh=True).by_domain[0]["rows"]
        == 900
    )
    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", where="source = 'atlas'", top=20))
    with pytest.raises(CurateError, match="no domain 'forum' to mix, or it is empty"):
        curate.mix(sample_ws, "n", most, MixtureSpec(manifest="longest"))


def test_what_a_mixer_lacks_or_has_no_use_for_is_said(sample_ws: Workspace) -> None:
    for mixer, blend, proxy, said in (
        (Softmax(), MixtureSpec(), None, "needs a column: --by SQL"),
        (Uniform(), MixtureSpec(by="n_chars"), None, "has no use for a column"),
        (Doremi(), MixtureSpec(), None, "needs a model to train proxies of"),
        (Uniform(), MixtureSpec(), Proxy(MODEL, Plain()), "has no use for a model"),
        (Regmix(), MixtureSpec(), Proxy(MODEL, Plain()), "needs targets"),
        (Uniform(), MixtureSpec(domain="NULL"), None, "no sample has a domain"),
        (Softmax(), MixtureSpec(by="CASE WHEN source = 'atlas' THEN 1 END"), None, "'forum' has a value"),
    ):
        with pytest.raises(CurateError, match=said):
            curate.mix(sample_ws, "m", mixer, blend, proxy=proxy)
    with pytest.raises(CurateError, match="give one size"):
        MixtureSpec(rows=1, tokens=1.0)
    for more in (["--max-epochs", "x"], ["--workers", "4"], ["--metric", "loss"], ["--executor", "ray"]):
        result = CliRunner().invoke(cli, ["mix", "m", "-w", str(sample_ws.path), "--mixer", "uniform", *more])
        assert isinstance(result.exception, CurateError), more


# --- training --------------------------------------------------------------------------------------------

FAST = TrainSettings(epochs=2, batch_size=16, lr=1e-4)


def by_source(ws: Workspace, run: str) -> list[tuple[int, str, int]]:
    query = f"""SELECT epoch, source, count(*) AS n FROM trained JOIN pool USING (row) WHERE run = '{run}'
        GROUP BY ALL ORDER BY ALL"""
    return [(row["epoch"], row["source"], row["n"]) for row in curate.sql(ws, query)]


@pytest.mark.parametrize("packing", [False, True])
def test_a_training_draws_its_epochs_from_the_mixture(sample_ws: Workspace, packing: bool) -> None:
    curate.mix(sample_ws, "blend", Given("atlas=3,forum=1"), MixtureSpec(rows=64))
    plan = TrainingSpec(
        MODEL, Plain(), TrainSettings(epochs=2, batch_size=4 if packing else 16, packing=packing), "blend"
    )
    done = curate.train(sample_ws, "drew", plan)
    assert by_source(sample_ws, "drew") == [(e, s, n) for e in (1, 2) for s, n in (("atlas", 48), ("forum", 16))]
    assert done.steps == 8 if not packing else done.steps > 0
    rows = curate.sql(sample_ws, "SELECT count(DISTINCT row)::INT AS n FROM trained WHERE run = 'drew'")
    assert list(rows) == [{"n": 128}]  # the second epoch has others


def test_a_training_by_lot_goes_on_where_it_stood_as_if_nothing_had_been(sample_ws: Workspace) -> None:
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48, exact=False))
    plan = TrainingSpec(MODEL, Plain(), FAST, "blend", seed=3)
    curate.train(sample_ws, "whole", plan)
    settings_ = TrainSettings(**{**FAST.__dict__, "checkpoint_every": 4, "keep_checkpoints": 0})
    curate.train(sample_ws, "cut", TrainingSpec(MODEL, Plain(), settings_, "blend", seed=3))
    runs = Path(str(sample_ws.path)) / "runs"
    Parts(runs / "cut/checkpoints").remove("step-000006")
    curate.train(sample_ws, "cut", TrainingSpec(MODEL, Plain(), settings_, "blend", seed=3))
    assert by_source(sample_ws, "cut") == by_source(sample_ws, "whole")
    ends = [load_file(runs / run / "checkpoints/step-000006/model.safetensors") for run in ("cut", "whole")]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    epochs = {n for e, _, n in by_source(sample_ws, "whole") if e == 1}
    assert epochs != {12}  # by lot, no quota


def test_a_mixture_draws_from_what_it_was_mixed_of_or_says_that_it_cannot(sample_ws: Workspace) -> None:
    plan = TrainingSpec(MODEL, Plain(), TrainSettings(steps=2, batch_size=8), "blend")
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48))
    curate.train(sample_ws, "before", plan)
    aside = Path(str(sample_ws.path)).parent / "more.jsonl"
    aside.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    curate.ingest(sample_ws, [str(aside)], source="atlas")
    curate.train(sample_ws, "after", plan)  # what was appended is not drawn
    assert by_source(sample_ws, "before") == by_source(sample_ws, "after")
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48, exact=False), fresh=True)
    with pytest.raises(CurateError, match="exists, with manifest_sha256"):
        curate.train(sample_ws, "after", plan)

    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", top=200))
    curate.mix(sample_ws, "of_longest", Proportional(), MixtureSpec(manifest="longest"))
    for name, base in (("longest", "longest"), ("of_blend", "blend")):
        with pytest.raises(CurateError, match="take the place of what it draws|is a mixture itself"):
            curate.mix(sample_ws, name, Uniform(), MixtureSpec(manifest=base))
    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", top=100), fresh=True)
    with pytest.raises(CurateError, match="the manifest 'longest' is not what the mixture 'of_longest' was mixed of"):
        curate.train(sample_ws, "r", TrainingSpec(MODEL, Plain(), FAST, "of_longest"))
    curate.score(sample_ws, Length())
    by_length = MixtureSpec(domain="CASE WHEN length > 4 THEN 'long' ELSE 'short' END", rows=40)
    curate.mix(sample_ws, "of_length", Uniform(), by_length)
    aside.write_text('{"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}\n')
    curate.ingest(sample_ws, [str(aside)], source="atlas")
    with pytest.raises(CurateError, match="length"):
        curate.mix(sample_ws, "of_length", Uniform(), by_length)
    curate.weigh(sample_ws, "heavy", AdaptStatic(), "n_chars")
    with pytest.raises(CurateError, match="repeats or weights samples"):
        curate.mix(sample_ws, "m", Uniform(), MixtureSpec(manifest="heavy"))


def test_a_mixture_has_no_order_and_stands_on_samples_that_can_be_learnt(sample_ws: Workspace) -> None:
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48))
    with pytest.raises(CurateError, match="no order=rank"):
        curate.train(sample_ws, "r", TrainingSpec(MODEL, Plain(), TrainSettings(order="rank"), "blend"))
    aside = Path(str(sample_ws.path)).parent / "mute.jsonl"
    aside.write_text('{"messages": [{"role": "user", "content": "hm"}]}\n')
    curate.ingest(sample_ws, [str(aside)], source="mute")
    curate.mix(sample_ws, "silent", Given("mute=1,atlas=1"), MixtureSpec(rows=2))
    with pytest.raises(CurateError, match="'mute', which has no sample left to train on"):
        curate.train(sample_ws, "s", TrainingSpec(MODEL, Plain(), FAST, "silent"))


def stranger(folder: Path) -> ModelChoice:
    """A model of another tokenizer."""
    model, tokenizer = toy_model()
    for its in (model, tokenizer):
        its.save_pretrained(folder / "stranger")
    return ModelChoice(str(folder / "stranger"), device="cpu")


def test_losses_are_compared_with_the_reference_that_is_named(sample_ws: Workspace, tmp_path: Path) -> None:
    curate.select(sample_ws, "few", Random(), SelectionSpec(top=32))
    first = curate.train(sample_ws, "base", TrainingSpec(MODEL, Plain(), TrainSettings(batch_size=8, lr=1e-2), "few"))
    settings_ = TrainSettings(batch_size=32, steps=1)
    reference = ModelChoice(first.folder, device="cpu")
    plans = [
        TrainingSpec(MODEL, Stm(500.0), settings_, "few"),
        TrainingSpec(MODEL, Stm(500.0), settings_, "few", reference=reference),
    ]
    weights = [curate.train(sample_ws, f"s{i}", plan).weight_mean for i, plan in enumerate(plans)]
    with pytest.raises(CurateError, match="another vocabulary, and the model that is trained 1,024 tokens"):
        curate.train(sample_ws, "s9", TrainingSpec(MODEL, Stm(), settings_, "few", reference=stranger(tmp_path)))
    other = TrainingSpec(reference, Stm(500.0), settings_, "few")  # whose own losses these are
    assert weights[0] != weights[1] == curate.train(sample_ws, "s2", other).weight_mean
    with pytest.raises(CurateError, match="compared with the model it began with, not"):
        curate.train(sample_ws, "s0", plans[1])
    with pytest.raises(CurateError, match="uses no --reference"):
        curate.train(sample_ws, "s3", TrainingSpec(MODEL, Plain(), settings_, "few", reference=reference))


# --- mixers that train -----------------------------------------------------------------------------------

SKILLS = MixtureSpec(domain="meta->>'skill'", most_epochs=None)
BRIEF = TrainSettings(steps=3, batch_size=12, lr=1e-3)


def proxy_of(settings_: TrainSettings = BRIEF, workers: int = 1, **more: Any) -> Proxy:
    evals = [EvalSpec("facts", Loss(), "val"), EvalSpec("words", Loss(), "val")]
    return Proxy(MODEL, Plain(), settings_, **{"evals": evals, "executor": Local(workers=workers), **more})


def test_doremi_trains_a_reference_and_a_proxy_once_and_says_the_mean_of_its_weights(small_ws: Workspace) -> None:
    found = curate.mix(small_ws, "mixed", Doremi(), SKILLS, proxy=proxy_of(evals=[]))
    phases = [(row["phase"], row["samples"]) for row in curate.ledger(small_ws) if row["stage"] == "mix"]
    assert dict(phases) == {"mix": 300, "reference": 36, "proxy": 36, "base losses": 300}
    again = curate.mix(small_ws, "again", Doremi(), SKILLS, proxy=proxy_of(evals=[]))
    trained = [row for row in curate.ledger(small_ws) if row["phase"] == "proxy"]
    assert [row["samples"] for row in trained] == [36] and again.by_domain == found.by_domain
    cut = proxy_of(TrainSettings(**{**BRIEF.__dict__, "micro_batch_size": 5}), evals=[])
    for path in (Path(str(small_ws.path)) / "prepared").iterdir():
        shutil.rmtree(path)
    parts = curate.mix(small_ws, "parts", Doremi(), SKILLS, proxy=cut)
    proxies = [row for row in curate.ledger(small_ws) if (row["name"], row["phase"]) == ("parts", "proxy")]
    assert [row["samples"] for row in proxies] == [36]
    weights = [{row["source"]: row["weight"] for row in its.by_domain} for its in (found, parts)]
    assert weights[1] == pytest.approx(weights[0], rel=1e-4)  # whole steps, however they are cut


def test_doremi_s_weights_of_tokens_are_of_tokens(ws: Workspace, tmp_path: Path) -> None:
    """Two models that learn nothing have no excess, so the weights stay where they began."""
    texts = [("long", "a b c d e f g h i j k l m n o p q r s t u v w " * 3), ("short", "a")]
    for name, text in texts:
        lines = [json.dumps({"text": f"{text}{i:02}"}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        curate.ingest(ws, [str(tmp_path / f"{name}.jsonl")])
    still = proxy_of(TrainSettings(steps=4, batch_size=12, lr=1e-12), evals=[])
    for blend in (MixtureSpec(tokens=2000, most_epochs=None), MixtureSpec(rows=200, most_epochs=None)):
        found = curate.mix(ws, "found", Doremi(smoothing=0.0), blend, proxy=still, fresh=True)
        plain = curate.mix(ws, "plain", Proportional(), blend, fresh=True)
        for its, want in zip(found.by_domain, plain.by_domain, strict=True):
            assert its["weight"] == pytest.approx(want["weight"], abs=1e-3)


@pytest.mark.usefixtures("forked_workers")
def test_regmix_tries_mixtures_under_any_executor_and_forgets_their_models(small_ws: Workspace) -> None:
    blend, mixer = SKILLS, Regmix(trials=4, folds=2)
    found = curate.mix(small_ws, "mixed", mixer, blend, proxy=proxy_of())
    trials = [row for row in curate.ledger(small_ws) if row["phase"] == "trial"]
    assert [row["runs"] for row in trials] == [4] and trials[0]["samples"] == 4 * 36
    prepared = Path(str(small_ws.path)) / "prepared"
    assert len(list(prepared.glob("*/outcome.json"))) == 4 and not list(prepared.glob("*/checkpoints"))
    next(prepared.glob("*/outcome.json")).unlink()  # as where it was killed
    again = curate.mix(small_ws, "again", mixer, blend, proxy=proxy_of())
    assert again.by_domain == found.by_domain
    assert [row["runs"] for row in curate.ledger(small_ws) if row["name"] == "again" and row["phase"] == "trial"] == [1]
    for path in prepared.glob("*/outcome.json"):
        path.unlink()
    beside = curate.mix(small_ws, "beside", mixer, blend, proxy=proxy_of(workers=2))
    weights = [{row["source"]: row["weight"] for row in its.by_domain} for its in (found, beside)]
    assert weights[1] == pytest.approx(weights[0], abs=1e-3) and beside.told["best_trial"] < beside.told["median_trial"]


def test_a_proxy_that_diverges_counts_for_nothing_and_is_not_tried_again(small_ws: Workspace) -> None:
    wild = proxy_of(TrainSettings(steps=3, batch_size=12, lr=1e20, clip=0, warmup=0))
    with pytest.raises(CurateError, match="only 0 of 4 proxies have a loss"):
        curate.mix(small_ws, "m", Regmix(trials=4, folds=2), SKILLS, proxy=wild)
    assert len(list((Path(str(small_ws.path)) / "prepared").glob("*/outcome.json"))) == 4
