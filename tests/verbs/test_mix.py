"""Mixers, mixtures, and what a training draws from them."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import chisquare

import curate
from curate.cli.main import cli
from curate.errors import CurateError
from curate.kinds.mixer import Domains, Proxies
from curate.kinds.signals import Drawn, Step
from curate.methods.executors.local import Local
from curate.methods.metrics.loss import Loss
from curate.methods.mixers.doremi import Doremi, Reweighting
from curate.methods.mixers.given import Given
from curate.methods.mixers.proportional import Proportional
from curate.methods.mixers.regmix import Regmix
from curate.methods.mixers.softmax import Softmax
from curate.methods.mixers.temperature import Temperature
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.methods.weightings.stm import Stm
from curate.methods.weightings.uniform import Uniform as Plain
from curate.models.choice import ModelChoice
from curate.numerics.apportion import largest_remainders
from curate.runs.config import TrainingSpec
from curate.runs.evaluation import EvalSpec
from curate.runs.proxies import Proxy
from curate.store.manifests import read_any, read_manifest
from curate.store.workspace import Workspace
from curate.training.mixture_sampler import Draws
from curate.training.settings import TrainSettings
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.methods.test_exports import toy_model
from tests.oracles.doremi import step as doremi_step

THREE = Domains(["a", "b", "c"], np.array([50.0, 30.0, 20.0]), np.array([1.0, 2.0, 4.0]))
TINY = ModelChoice("tiny", device="cpu")


# --- weights ---------------------------------------------------------------------------------------------


def test_pure_mixers_by_hand() -> None:
    assert Uniform().mix(THREE).weights.tolist() == pytest.approx([1 / 3] * 3)
    assert Proportional().mix(THREE).weights.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert Temperature(1.0).mix(THREE).weights.tolist() == pytest.approx([0.5, 0.3, 0.2])
    roots = [math.sqrt(x) for x in (0.5, 0.3, 0.2)]
    assert Temperature(2.0).mix(THREE).weights.tolist() == pytest.approx([r / sum(roots) for r in roots])
    powers = [math.exp(x / 2) for x in (1, 2, 4)]
    assert Softmax(2.0).mix(THREE).weights.tolist() == pytest.approx([p / sum(powers) for p in powers])
    sd = float(np.std([1, 2, 4]))
    powers = [math.exp(x / sd) for x in (1, 2, 4)]
    found = Softmax(standardize=True).mix(THREE).weights.tolist()
    assert found == pytest.approx([p / sum(powers) for p in powers])
    assert Softmax(1e-3).mix(THREE).weights.tolist() == pytest.approx([0, 0, 1])  # no overflow
    assert Given("c=3, a=1").mix(THREE).weights.tolist() == [0.25, 0, 0.75]
    for wrong in ("", "d=1", "a=-1", "a=x", "a=0", "a"):
        with pytest.raises(CurateError):
            Given(wrong).mix(THREE)


def test_doremi_s_update_on_three_domains_by_hand() -> None:
    """Two steps; the second has no token of the third domain, whose excess stays."""
    share = np.array([0.5, 0.3, 0.2])
    tokens = [
        [(0, 2.0, 1.5), (0, 1.0, 2.0), (1, 3.0, 1.0), (2, 1.0, 0.5), (2, 0.5, 0.5)],
        [(1, 1.0, 1.0), (0, 4.0, 1.0), (0, 2.0, 1.0)],
    ]
    samples = [([0, 1, 2], [2, 1, 2]), ([1, 0], [1, 2])]
    weighting, state = Reweighting(tuple(share.tolist()), 1.0, 1e-2), {}
    weights, excess, total = share.tolist(), [math.log(99)] * 3, [0.0] * 3
    for number, (its, (of, counts)) in enumerate(zip(tokens, samples, strict=True), 1):
        proxy, reference = np.array([t[1] for t in its]), np.array([t[2] for t in its])
        step = Step(
            number,
            counts=np.array(counts),
            token_loss=proxy,
            base_token_loss=reference,
            domains=Drawn(np.array(of), 99),
        )
        given_, state = weighting.update(step, state)
        weights, excess = doremi_step(weights, excess, its, 1.0, 1e-2)
        total = [t + w for t, w in zip(total, weights, strict=True)]
        assert given_.values == pytest.approx([weights[d] / share[d] for d in of], rel=1e-12)
        assert state["excess"] == pytest.approx(excess) and state["total"] == pytest.approx(total, rel=1e-12)
    # the first step by hand: excesses (0.5 + 0) / 2, 2 and (0.5 + 0) / 2
    raised = [0.5 * math.exp(0.25), 0.3 * math.exp(2), 0.2 * math.exp(0.25)]
    first = [0.99 * r / sum(raised) + 0.01 / 3 for r in raised]
    assert doremi_step(share.tolist(), [0, 0, 0], tokens[0], 1.0, 1e-2)[0] == pytest.approx(first)


class Planted(Proxies):
    """Proxies whose loss is a known function of the mixture, with some noise."""

    def __init__(self, loss: Any, noise: float = 0.0):
        self.loss, self.noise = loss, noise

    def train(self, label: str, weights: np.ndarray, weighting: Any = None, reference: str = "") -> Any:
        raise AssertionError

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        lot = np.random.default_rng(0)
        found = self.loss(mixtures)
        return np.stack([found + self.noise * lot.normal(size=len(found)) for _ in range(2)], 1)


FIVE = Domains(list("abcde"), np.array([30.0, 25.0, 20.0, 15.0, 10.0]))


def test_regmix_finds_a_planted_optimum() -> None:
    """A response like a scaling law: each domain helps less, the more there is of it."""
    gains = np.array([0.05, 0.3, 0.1, 0.6, 0.2])

    def loss(x: np.ndarray) -> np.ndarray:
        return 3 - (gains * np.sqrt(x)).sum(1)

    best = gains**2 / (gains**2).sum()  # of sum of g sqrt(x) on the simplex
    found = Regmix(trials=256).mix(FIVE, Planted(loss, noise=0.003))
    at, least = loss(found.weights[None])[0], loss(best[None])[0]
    worst = loss(np.eye(5)).max()
    assert (at - least) / least <= 0.02 and (at - least) / (worst - least) < 0.1
    assert found.info["cross_validated_lightgbm"] > 0.9
    assert loss(FIVE.share[None])[0] > at  # better than the pool as it is


def test_regmix_takes_the_plane_where_a_plane_is_planted_or_trials_are_few() -> None:
    slope = np.array([1.0, 0.5, 2.0, 0.1, 1.5])
    found = Regmix(trials=24).mix(FIVE, Planted(lambda x: x @ slope))
    assert found.info["cross_validated_linear"] == pytest.approx(1) and found.info["cross_validated_lightgbm"] < 0.9
    assert found.weights.argmax() == 3 and found.weights[3] > 0.8
    assert Regmix(trials=24).mix(FIVE, Planted(lambda x: x @ slope)).weights.tolist() == found.weights.tolist()
    forced = Regmix(trials=24, regressor="linear").mix(FIVE, Planted(lambda x: x @ slope))
    assert "cross_validated_lightgbm" not in forced.info


def test_regmix_s_trials_are_mixtures_within_15_times_the_pool_s_share() -> None:
    small = Domains(["a", "b"], np.array([99.0, 1.0]))
    mixtures = Regmix(trials=40).draw(small)
    assert mixtures.sum(1) == pytest.approx(np.ones(40)) and mixtures[:, 1].max() <= 0.15 + 1e-9
    assert not ((mixtures > 0) & (mixtures < 1e-4)).any() and len(np.unique(mixtures, axis=0)) == 40
    many = Domains([f"d{i}" for i in range(60)], np.ones(60))
    assert Regmix(trials=12).draw(many).shape == (12, 60)  # narrow strengths are refused, wide ones are not
    with pytest.raises(CurateError, match="could not be drawn"):
        Regmix(trials=3, folds=2).draw(Domains(["a"], np.array([5.0])))


# --- draws -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=8).filter(any), st.integers(0, 1000))
def test_quotas_add_up_and_are_within_one_of_the_share(share: list[float], size: int) -> None:
    weights = np.array(share)
    found = largest_remainders(weights, size)
    assert found.sum() == size and (np.abs(found - weights / weights.sum() * size) < 1 + 1e-9).all()
    assert (found[weights == 0] == 0).all()


def drawn(exact: bool, seed: int = 0, order: Any = None) -> Draws:
    domain = np.repeat([0, 1, 2], [10, 40, 50])
    keys = np.arange(100, dtype=np.uint64) * 977
    order = np.arange(100) if order is None else order
    return Draws(domain[order], keys[order], np.array([0.5, 0.25, 0.25]), 60, exact, seed)


def test_quota_draws_match_the_mixture_exactly_and_go_through_a_domain_before_they_repeat() -> None:
    draws = drawn(exact=True)
    seen = [draws.samples(e) for e in range(4)]
    for samples in seen:
        assert Counter(draws.domain[samples].tolist()) == {0: 30, 1: 15, 2: 15}
        assert set(Counter(samples[draws.domain[samples] == 0].tolist()).values()) == {3}
    of_1 = np.concatenate([s[draws.domain[s] == 1] for s in seen])[:40]
    assert len(set(of_1.tolist())) == 40  # 2 2/3 epochs, and no sample twice
    shuffled = np.random.default_rng(1).permutation(100)
    other = drawn(exact=True, order=shuffled)
    for e in (0, 3):  # neither the pool's order nor what came before matters
        assert other.keys[other.samples(e)].tolist() == draws.keys[draws.samples(e)].tolist()
    assert drawn(True, seed=1).samples(0).tolist() != seen[0].tolist()


def test_draws_by_lot_match_the_mixture_in_expectation() -> None:
    draws = drawn(exact=False)
    counts = sum(draws.counts(e) for e in range(200))
    assert chisquare(counts, draws.share * 60 * 200).pvalue > 1e-3
    each = np.stack([draws.counts(e) for e in range(200)])
    variance = each.var(0) / (60 * draws.share * (1 - draws.share))
    assert (variance > 0.7).all() and (variance < 1.4).all()  # a multinomial's
    ofs = np.concatenate([draws.samples(e) for e in range(200)])
    for d, n in enumerate((10, 40, 50)):  # within a domain all alike, to one round
        found = np.bincount(ofs[draws.domain[ofs] == d], minlength=100)[draws.domain == d]
        assert len(found) == n and np.ptp(found) <= 1


# --- the verb --------------------------------------------------------------------------------------------


def test_a_mixture_is_a_manifest_with_its_epochs(sample_ws: Workspace) -> None:
    found = curate.mix(sample_ws, "even", Uniform(), MixtureSpec(rows=400))
    table, lineage = read_any(sample_ws, "even")
    assert table["source"].to_pylist() == ["atlas", "forum", "school", "workshop"]
    assert table["rows"].to_pylist() == [100] * 4 and table["weight"].to_pylist() == [0.25] * 4
    assert table["epochs"].to_pylist() == [100 / n for n in table["available"].to_pylist()]
    assert found.rows == 400 and lineage["mixer"]["name"] == "uniform"
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
    assert curate.drop(sample_ws, "even") == "manifest"


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
    spilled = curate.mix(sample_ws, "m", most, MixtureSpec(rows=1200, most_epochs=1.0, lower=True))
    assert spilled.rows == 1200 and max(row["epochs"] for row in spilled.by_domain) == 1
    with pytest.raises(CurateError, match=r"all domains together have \(3,000\)"):
        curate.mix(sample_ws, "m", most, MixtureSpec(rows=3001, most_epochs=1.0, lower=True))
    assert curate.mix(sample_ws, "m", most, MixtureSpec(rows=1200, most_epochs=None)).by_domain[0]["rows"] == 900
    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", where="source = 'atlas'", top=20))
    with pytest.raises(CurateError, match="no domain 'forum' to mix, or it is empty"):
        curate.mix(sample_ws, "n", most, MixtureSpec(manifest="longest"))


def test_what_a_mixer_lacks_or_has_no_use_for_is_said(sample_ws: Workspace) -> None:
    for mixer, blend, proxy, said in (
        (Softmax(), MixtureSpec(), None, "needs a column: --by SQL"),
        (Uniform(), MixtureSpec(by="n_chars"), None, "has no use for a column"),
        (Doremi(), MixtureSpec(), None, "needs a model to train proxies of"),
        (Uniform(), MixtureSpec(), Proxy(TINY, Plain()), "has no use for a model"),
        (Regmix(), MixtureSpec(), Proxy(TINY, Plain()), "needs targets"),
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
        TINY, Plain(), TrainSettings(epochs=2, batch_size=4 if packing else 16, packing=packing), "blend"
    )
    done = curate.train(sample_ws, "drew", plan)
    assert by_source(sample_ws, "drew") == [(e, s, n) for e in (1, 2) for s, n in (("atlas", 48), ("forum", 16))]
    assert done.steps == 8 if not packing else done.steps > 0
    rows = curate.sql(sample_ws, "SELECT count(DISTINCT row)::INT AS n FROM trained WHERE run = 'drew'")
    assert list(rows) == [{"n": 128}]  # the second epoch has others


def test_a_training_by_lot_goes_on_where_it_stood_as_if_nothing_had_been(sample_ws: Workspace) -> None:
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48, exact=False))
    plan = TrainingSpec(TINY, Plain(), FAST, "blend", seed=3)
    curate.train(sample_ws, "whole", plan)
    settings_ = TrainSettings(**{**FAST.__dict__, "checkpoint_every": 4, "keep_checkpoints": 0})
    curate.train(sample_ws, "cut", TrainingSpec(TINY, Plain(), settings_, "blend", seed=3))
    runs = Path(str(sample_ws.path)) / "runs"
    for path in (runs / "cut/checkpoints/_commit").glob("step-000006*"):
        path.unlink()
    curate.train(sample_ws, "cut", TrainingSpec(TINY, Plain(), settings_, "blend", seed=3))
    assert by_source(sample_ws, "cut") == by_source(sample_ws, "whole")
    ends = [load_file(runs / run / "checkpoints/step-000006/model.safetensors") for run in ("cut", "whole")]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    epochs = {n for e, _, n in by_source(sample_ws, "whole") if e == 1}
    assert epochs != {12}  # by lot, no quota


def test_a_mixture_draws_from_what_it_was_mixed_of_or_says_that_it_cannot(sample_ws: Workspace) -> None:
    plan = TrainingSpec(TINY, Plain(), TrainSettings(steps=2, batch_size=8), "blend")
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48))
    curate.train(sample_ws, "before", plan)
    aside = Path(str(sample_ws.path)).parent / "more.jsonl"
    aside.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    curate.ingest(sample_ws, [str(aside)], source="atlas")
    curate.train(sample_ws, "after", plan)  # what was appended is not drawn
    assert by_source(sample_ws, "before") == by_source(sample_ws, "after")
    curate.mix(sample_ws, "blend", Uniform(), MixtureSpec(rows=48, exact=False))
    with pytest.raises(CurateError, match="exists, with manifest_sha256"):
        curate.train(sample_ws, "after", plan)

    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", top=200))
    curate.mix(sample_ws, "of_longest", Proportional(), MixtureSpec(manifest="longest"))
    for name, base in (("longest", "longest"), ("of_blend", "blend")):
        with pytest.raises(CurateError, match="take the place of what it draws|is a mixture itself"):
            curate.mix(sample_ws, name, Uniform(), MixtureSpec(manifest=base))
    curate.select(sample_ws, "longest", Top(), SelectionSpec(by="n_chars", top=100))
    with pytest.raises(CurateError, match="the manifest 'longest' is not what the mixture 'of_longest' was mixed of"):
        curate.train(sample_ws, "r", TrainingSpec(TINY, Plain(), FAST, "of_longest"))
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
        curate.train(sample_ws, "r", TrainingSpec(TINY, Plain(), TrainSettings(order="rank"), "blend"))
    aside = Path(str(sample_ws.path)).parent / "mute.jsonl"
    aside.write_text('{"messages": [{"role": "user", "content": "hm"}]}\n')
    curate.ingest(sample_ws, [str(aside)], source="mute")
    curate.mix(sample_ws, "silent", Given("mute=1,atlas=1"), MixtureSpec(rows=2))
    with pytest.raises(CurateError, match="'mute', which has no sample left to train on"):
        curate.train(sample_ws, "s", TrainingSpec(TINY, Plain(), FAST, "silent"))


def stranger(folder: Path) -> ModelChoice:
    """A model of another tokenizer."""
    model, tokenizer = toy_model()
    for its in (model, tokenizer):
        its.save_pretrained(folder / "stranger")
    return ModelChoice(str(folder / "stranger"), device="cpu")


def test_losses_are_compared_with_the_reference_that_is_named(sample_ws: Workspace, tmp_path: Path) -> None:
    curate.select(sample_ws, "few", Random(), SelectionSpec(top=32))
    first = curate.train(sample_ws, "base", TrainingSpec(TINY, Plain(), TrainSettings(batch_size=8, lr=1e-2), "few"))
    settings_ = TrainSettings(batch_size=32, steps=1)
    reference = ModelChoice(first.folder, device="cpu")
    plans = [
        TrainingSpec(TINY, Stm(1.2), settings_, "few"),
        TrainingSpec(TINY, Stm(1.2), settings_, "few", reference=reference),
    ]
    weights = [curate.train(sample_ws, f"s{i}", plan).weight_mean for i, plan in enumerate(plans)]
    with pytest.raises(CurateError, match="another vocabulary, and the model that is trained 1,024 tokens"):
        curate.train(sample_ws, "s9", TrainingSpec(TINY, Stm(), settings_, "few", reference=stranger(tmp_path)))
    other = TrainingSpec(reference, Stm(1.2), settings_, "few")  # whose own losses these are
    assert weights[0] != weights[1] == curate.train(sample_ws, "s2", other).weight_mean
    with pytest.raises(CurateError, match="compared with the model it began with, not"):
        curate.train(sample_ws, "s0", plans[1])
    with pytest.raises(CurateError, match="uses no --reference"):
        curate.train(sample_ws, "s3", TrainingSpec(TINY, Plain(), settings_, "few", reference=reference))


# --- mixers that train -----------------------------------------------------------------------------------

SKILLS = MixtureSpec(domain="meta->>'skill'", most_epochs=None)
BRIEF = TrainSettings(steps=3, batch_size=12, lr=1e-3)


def proxy_of(settings_: TrainSettings = BRIEF, workers: int = 1, **more: Any) -> Proxy:
    evals = [EvalSpec("facts", Loss(), "val"), EvalSpec("words", Loss(), "val")]
    return Proxy(TINY, Plain(), settings_, **{"evals": evals, "executor": Local(workers=workers), **more})


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
        found = curate.mix(ws, "found", Doremi(smoothing=0.0), blend, proxy=still)
        plain = curate.mix(ws, "plain", Proportional(), blend)
        for its, want in zip(found.by_domain, plain.by_domain, strict=True):
            assert its["weight"] == pytest.approx(want["weight"], abs=1e-3)


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
