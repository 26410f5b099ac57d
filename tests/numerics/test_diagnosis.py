"""The diagnostics of DualSFT against enumeration, whole gradients one sample at a time, and real training."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.gradient_model import GradientModel
from curate.gradients.interactions import (
    curvature_along,
    drawn_by_score,
    flat,
    look,
    products,
    reselect,
    restricted,
    summed,
)
from curate.gradients.optimizer_state import Moments
from curate.methods.scores.dualsft import Dualsft
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.numerics.rank_agreement import Interval, Regret, best, jaccard, pairwise_agreement, spearman, top_overlap
from curate.numerics.selection_profile import diversity, enrichment, place_of
from curate.training.examples import Examples
from curate.training.realised import RealisedTrial, Start, Validation, realised
from curate.training.settings import TrainSettings
from tests.methods.test_dualsft import ANCHORS, tokens
from tests.oracles.dualsft import distillation
from tests.oracles.gradients import gradient
from tests.support.checkpoints import AIM, POOL
from tests.support.narrow import NARROW

# --- agreement -------------------------------------------------------------------------------------------


def test_agreement_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 15).astype(float), rng.normal(size=15)
        ranks = [np.array([(x < y).sum() + ((x == y).sum() + 1) / 2 for y in x]) for x in (a, b)]
        assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
        pairs = [(i, j) for i in range(15) for j in range(i)]
        counted = sum(0.5 if a[i] == a[j] else float((a[i] < a[j]) == (b[i] < b[j])) for i, j in pairs)
        assert pairwise_agreement(a, b) == pytest.approx(counted / len(pairs), abs=1e-12)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert best(np.array([1.0, np.nan, 3.0, 3.0, 2.0]), 3).tolist() == [2, 3, 4]
    assert jaccard([1, 2, 3], [3, 4]) == 0.25 and jaccard([], []) == 1.0
    assert top_overlap(np.arange(40.0), -np.arange(40.0), 0.05) == 0.0
    assert top_overlap(np.arange(40.0), np.arange(40.0) ** 3, 0.05) == 1.0


def test_an_interval_holds_what_the_statistic_is_and_narrows_with_more() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (20, 500):
        a = rng.normal(size=n)
        found = Interval.of(spearman, a, a + rng.normal(size=n))
        assert found.low < found.value < found.high and str(found).count(".") == 3
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_regret_is_what_the_unaware_choice_lacks() -> None:
    aware, unaware = np.array([5.0, 4.0, 1.0, 0.0]), np.array([0.0, 9.0, 8.0, 1.0])
    found = Regret.of(aware, unaware, 2)
    assert found.ratio == 5 / 9 and found.regret == pytest.approx(4 / 9) and found.jaccard == 1 / 3
    assert Regret.of(aware, aware, 3) == Regret(1.0, 1.0)


# --- what was chosen -------------------------------------------------------------------------------------


def test_diversity_is_the_mean_over_pairs() -> None:
    vectors = np.random.default_rng(2).normal(size=(9, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]
    assert diversity(vectors) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert diversity(vectors[:1]) == 0.0 and diversity(vectors[[0, 0]] * [[1.0], [3.0]]) == pytest.approx(0, abs=1e-12)


def test_enrichment_says_where_the_chosen_numbers_lie() -> None:
    sizes = {"model.layers.0.mlp.up_proj.weight": 80, "model.layers.1.mlp.up_proj.weight": 80, "model.norm.weight": 40}
    found = enrichment(sizes, {"model.layers.1.mlp.up_proj.weight": range(20)})
    assert [(b.layer, b.module, b.chosen, b.share, b.enrichment) for b in found] == [
        (-1, "norm", 0, 0.0, 0.0), (0, "mlp.up_proj", 0, 0.0, 0.0), (1, "mlp.up_proj", 20, 0.25, 2.5)
    ]  # fmt: skip
    assert place_of("transformer.h.3.attn.c_proj.weight") == (3, "attn.c_proj")
    assert place_of("model.embed_tokens.weight") == (-1, "embed_tokens")


# --- gradients -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def way() -> GradientModel:
    """`tiny` in float64, a little way from where it was, which stands beside it."""
    origin = LanguageModel(ModelChoice(NARROW, device="cpu"))
    origin.model.double()
    lm = LanguageModel(ModelChoice(NARROW, device="cpu"), (copy.deepcopy(origin.model), origin.tokenizer))
    torch.manual_seed(0)
    for parameter in lm.model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return GradientModel.of(Backward.of(lm, {"origin": origin}))


def each_gradient(way: GradientModel, samples: list) -> np.ndarray:
    """Of every sample one whole gradient, float64 [N, P]."""
    model = way.backward
    found = [gradient(model.lm.model, one, model.parameters) for one in tokens(model, samples)]
    return np.stack([np.concatenate([g[n].numpy().ravel() for n in model.parameters]) for g in found])


def direction(way: GradientModel, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in way.backward.at.shapes.items()}


def test_products_lengths_and_sums_are_those_of_whole_gradients(way: GradientModel) -> None:
    g, directions = each_gradient(way, POOL), [direction(way, 1), direction(way, 2)]
    found = look(way, [*POOL, {"messages": None, "text": ""}], directions)
    wanted = g @ np.stack([flat(d) for d in directions], axis=1)
    assert np.abs(found.dot[:-1] - wanted).max() < 1e-9 * np.abs(wanted).max()
    assert np.isnan(found.dot[-1]).all() and np.isnan(found.length[-1]) and found.usage.flops > 0
    assert np.abs(found.length[:-1] - np.linalg.norm(g, axis=1)).max() < 1e-9
    groups = np.arange(len(POOL)) % 2
    sums, counts, _ = summed(way, POOL, groups)
    for group in (0, 1):
        assert np.abs(flat(sums[group]) - g[groups == group].sum(0)).max() < 1e-9
    assert counts.tolist() == np.bincount(groups).tolist()


def test_sums_of_another_loss_are_its_own(way: GradientModel) -> None:
    method, model = Dualsft(), way.backward
    (found,), counts, _ = summed(way, ANCHORS, loss=method.distillation, beside="origin")
    parameters = list(model.parameters.values())
    for p in parameters:
        p.requires_grad_(True)
    teacher = model.others["origin"].model
    its = [distillation(model.lm.model, teacher, *one, 2.0, "entropy_inv", True) for one in tokens(model, ANCHORS)]
    wanted = torch.autograd.grad(torch.stack(its).sum(), parameters)
    for p in parameters:
        p.requires_grad_(False)
    assert counts.tolist() == [len(ANCHORS)]
    for mine, slow in zip(found.values(), wanted, strict=True):
        assert np.abs(mine - slow.numpy()).max() < 1e-6 * float(slow.abs().max())


def test_curvature_is_how_the_gradient_changes(way: GradientModel) -> None:
    along, step = direction(way, 3), 1e-5
    found = curvature_along(way, AIM, along)
    ends = []
    for sign in (1, -1):
        for name, p in way.backward.parameters.items():
            p.data.add_(sign * step * torch.from_numpy(along[name]))
        ends.append(each_gradient(way, AIM).mean(0))
        for name, p in way.backward.parameters.items():
            p.data.sub_(sign * step * torch.from_numpy(along[name]))
    wanted = (ends[0] - ends[1]) / (2 * step)  # the model's norms are in float32
    assert np.abs(flat(found) - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_choosing_again_is_what_enumeration_chooses(way: GradientModel) -> None:
    q, g, rows, numbers = direction(way, 4), each_gradient(way, POOL), 3, 5000
    flat_q = flat(q)
    mine, some = best(g @ flat_q, rows), best(flat_q * g.sum(0), numbers)
    jaccards, spearmans, before = [], [], (g @ flat_q, flat_q * g.sum(0))
    for _ in range(2):
        kept = np.zeros(len(flat_q))
        kept[some] = 1
        worth = g @ (flat_q * kept), flat_q * g[mine].sum(0)
        again = best(worth[0], rows), best(worth[1], numbers)
        jaccards += [jaccard(some, again[1]), jaccard(mine, again[0])]
        spearmans += [spearman(before[1], worth[1]), spearman(before[0], worth[0])]
        (mine, some), before = again, worth
    found = reselect(way, POOL, q, rows, numbers, 2)
    assert [(r.number, r.what) for r in found.rounds] == [
        (1, "parameters"),
        (1, "data"),
        (2, "parameters"),
        (2, "data"),
    ]
    assert [r.jaccard for r in found.rounds] == pytest.approx(jaccards)
    assert [r.spearman for r in found.rounds] == pytest.approx(spearmans, abs=1e-6)
    assert found.rows.tolist() == mine.tolist()
    starts = np.cumsum([0, *(v.size for v in q.values())])
    places = [s + found.selected[n] for s, n in zip(starts, q, strict=False)]
    assert np.concatenate(places).tolist() == some.tolist()
    assert all(r.flops > 0 for r in found.rounds) and found.rounds[0].from_first == found.rounds[0].jaccard


def test_places_are_drawn_from_every_third_of_the_worths() -> None:
    worths = {"a": np.arange(90.0).reshape(9, 10) * (-1) ** np.arange(10), "b": np.zeros(4)}
    found = drawn_by_score(worths, ["a"], 12, seed=0)
    assert list(found) == ["a"] and np.histogram(found["a"], [0, 30, 60, 90])[0].tolist() == [4, 4, 4]
    assert (drawn_by_score(worths, ["a"], 12, seed=0)["a"] == found["a"]).all()
    q = restricted({"a": worths["a"]}, found)["a"]
    assert np.count_nonzero(q) <= 12 and (q.ravel()[found["a"]] == worths["a"].ravel()[found["a"]]).all()
    assert (products({"a": q}, {"a": worths["a"]})["a"] >= 0).all()


# --- what training really does ---------------------------------------------------------------------------

# AdamW whose eps drowns its second moments, without momentum: a plain step along the gradient, of length lr / eps.
PLAIN = TrainSettings(batch_size=2, lr=10.0, eps=1e6, beta1=0.0, schedule="constant", warmup=0.0, clip=0.0)


def test_one_short_step_takes_off_what_the_score_foretells(way: GradientModel) -> None:
    """Of samples and of parameters: s <v, g> summed over what is learnt, and over what is trained."""
    lm = way.backward.lm
    encoded = encode(lm.tokenizer, [*POOL, *AIM], 512)
    task = encoded[len(POOL) :]
    g, v = each_gradient(way, POOL), each_gradient(way, AIM).mean(0)
    pairs = [np.array(pair) for pair in [(0, 1), (1, 2), (2, 3), (0, 3)]]
    settings = replace(PLAIN, reduction="sample")
    before = copy.deepcopy(lm.model.state_dict())
    validation = Validation(way.backward, task)
    examples = Examples.of(encoded)
    found, usage = realised(lm, examples, [RealisedTrial(p) for p in pairs], [1], settings, Uniform(), validation)
    wanted = [1e-5 * float(v @ g[p].mean(0)) for p in pairs]
    assert found.total[:, 0] == pytest.approx(wanted, rel=0.02) and usage.flops > 0
    halves = [{}, {}]
    for i, (name, p) in enumerate(way.backward.parameters.items()):
        halves[i % 2][name] = np.arange(p.numel())
    trials = [RealisedTrial(np.arange(2), half) for half in halves]
    found, _ = realised(lm, examples, trials, [1], settings, Uniform(), validation)
    starts = np.cumsum([0, *(p.numel() for p in way.backward.parameters.values())])
    each = 1e-5 * np.add.reduceat(v * g[:2].mean(0), starts[:-1])
    assert found.total[:, 0] == pytest.approx([each[0::2].sum(), each[1::2].sum()], rel=0.02)
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_several_horizons_are_looked_at_on_the_way(way: GradientModel) -> None:
    lm = way.backward.lm
    encoded = encode(lm.tokenizer, [*POOL, *AIM, *ANCHORS], 512)
    anchors = encoded[-len(ANCHORS) :]
    loss = Dualsft().distillation
    validation = Validation(way.backward, encoded[len(POOL) : -len(ANCHORS)], anchors, 0.5, loss, "origin")
    examples, trial = Examples.of(encoded), RealisedTrial(np.arange(len(POOL)))
    one, _ = realised(lm, examples, [trial], [1, 3], PLAIN, Uniform(), validation)
    for i, steps in enumerate((1, 3)):
        again, _ = realised(lm, examples, [trial], [steps], PLAIN, Uniform(), validation)
        assert again.total[0, 0] == one.total[0, i]
    assert one.total[0, 0] != one.total[0, 1]
    assert (one.total == one.task + 0.5 * one.preserved).all() and np.abs(one.preserved).min() > 0
    alone = replace(validation, lam=0.0).value()
    teacher = way.backward.others["origin"].model
    with torch.no_grad():
        its = [distillation(lm.model, teacher, *x, 2.0, "entropy_inv", True) for x in tokens(way.backward, ANCHORS)]
    assert validation.value() - alone == pytest.approx(0.5 * float(torch.stack(its).mean()), rel=1e-7)
    with pytest.raises(CurateError, match="no sample of the validation loss has anything supervised"):
        Validation(way.backward, []).value()


def test_training_goes_on_with_the_moments_that_it_is_given(way: GradientModel) -> None:
    """Against torch's AdamW with that state, of all numbers and of some."""
    lm = way.backward.lm
    encoded = encode(lm.tokenizer, [*POOL, *AIM], 512)
    parameters = way.backward.parameters
    generator = torch.Generator().manual_seed(4)
    mean, square = (
        {n: scale * torch.rand(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
        for scale in (1e-3, 1e-4)
    )
    validation = Validation(way.backward, encoded[len(POOL) :])
    settings = TrainSettings(batch_size=4, lr=1e-4, schedule="constant", warmup=0.0, clip=0.0, reduction="sample")
    some = {name: np.arange(0, p.numel(), 3) for name, p in parameters.items()}
    trials = [RealisedTrial(np.arange(4)), RealisedTrial(np.arange(4), some)]
    moments = Moments(mean, square, 7)
    found, _ = realised(lm, Examples.of(encoded), trials, [1], settings, Uniform(), validation, Start(moments=moments))
    g, start = each_gradient(way, POOL)[:4].mean(0), validation.value()
    pieces = np.split(g, np.cumsum([p.numel() for p in parameters.values()])[:-1])
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for i, places in enumerate((None, some)):
        for (name, p), piece in zip(parameters.items(), pieces, strict=True):
            gradient = torch.from_numpy(piece).view_as(p)
            m = (0.9 * mean[name] + 0.1 * gradient) / (1 - 0.9**8)
            v = (0.999 * square[name] + 0.001 * gradient**2) / (1 - 0.999**8)
            step = (1e-4 * m / (v.sqrt() + 1e-8)).flatten()
            kept = torch.ones_like(step) if places is None else torch.zeros_like(step)
            if places is not None:
                kept[places[name]] = 1
            p.data = before[name] - (step * kept).view_as(p)
        wanted = start - validation.value()
        for name, p in parameters.items():
            p.data = before[name]
        assert found.total[i, 0] == pytest.approx(wanted, rel=1e-4) and abs(wanted) > 1e-4
    without, _ = realised(lm, Examples.of(encoded), trials, [1], settings, Uniform(), validation)
    assert abs(without.total - found.total).min() > 1e-5


def test_the_first_moment_can_be_left_behind_and_the_optimizer_be_plain(way: GradientModel) -> None:
    """Two steps on the same samples, against the formulas by hand: SGD, and AdamW with the second moments alone."""
    lm, parameters = way.backward.lm, way.backward.parameters
    encoded = encode(lm.tokenizer, [*POOL, *AIM], 512)
    generator = torch.Generator().manual_seed(5)
    mean, square = (
        {n: scale * torch.rand(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
        for scale in (1e-3, 1e-4)
    )
    validation = Validation(way.backward, encoded[len(POOL) :])
    settings = TrainSettings(batch_size=4, lr=1e-3, schedule="constant", warmup=0.0, clip=0.0, reduction="sample")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for start in (Start("sgd"), Start(moments=Moments(mean, square, 7), keep="second")):
        trial = [RealisedTrial(np.arange(4))]
        found, _ = realised(lm, Examples.of(encoded), trial, [2], settings, Uniform(), validation, start)
        m = {name: torch.zeros_like(p) for name, p in parameters.items()}
        v, begun = {name: value.clone() for name, value in square.items()}, validation.value()
        for taken in (8, 9):
            g = np.split(each_gradient(way, POOL)[:4].mean(0), np.cumsum([p.numel() for p in parameters.values()])[:-1])
            for (name, p), piece in zip(parameters.items(), g, strict=True):
                step = gradient = torch.from_numpy(piece).view_as(p)
                if start.kind == "adamw":
                    m[name] = 0.9 * m[name] + 0.1 * gradient
                    v[name] = 0.999 * v[name] + 0.001 * gradient**2
                    scale = (v[name] / (1 - 0.999**taken)).sqrt() + 1e-8
                    step = m[name] / (1 - 0.9**taken) / scale
                p.data = p.data - 1e-3 * step
        wanted = begun - validation.value()
        for name, p in parameters.items():
            p.data = before[name]
        assert found.total[0, 0] == pytest.approx(wanted, rel=1e-4) and abs(wanted) > 1e-4
