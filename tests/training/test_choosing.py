"""Choosing within a step against slow references: products, choices, weights, and the gradient that is learnt."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import svdvals
from scipy.optimize import nnls
from transformers import LlamaConfig

from curate.errors import CurateError, CurateFailure
from curate.gradients.per_sample import Outer
from curate.gradients.sketches import Sketcher
from curate.kinds.passes import Arrays
from curate.kinds.signals import Matching, Products, Step, Weights
from curate.kinds.weighting import Weighting
from curate.methods.weightings._nnls import nonnegative
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.grad_match import GradMatch
from curate.methods.weightings.grad_norm import GradNorm
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.less_online import LessOnline
from curate.methods.weightings.max_loss import MaxLoss
from curate.methods.weightings.rho_online import RhoOnline
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uds_online import UdsOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.numerics.projections import Rademacher
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Snapshot, Trainer
from curate.training.settings import TrainSettings
from tests.gradients.test_gradients import CONFIGS, model_of, samples, tokens
from tests.oracles import choosing as slow

GPT2 = CONFIGS["gpt2, with places and layer norms"]  # whose norms are in float64, as Llama's are not
STEP = TrainSettings(
    batch_size=2, oversample=3, lr=1e-2, warmup=0.0, schedule="constant", clip=0.0, projection=0, target_batch=3
)
CANDIDATES, TARGET = [*samples(0), *samples(1)][:12], samples(2)[:3]


def trainer_of(
    weighting: Weighting,
    settings: TrainSettings = STEP,
    lora: bool = True,
    config: Any = GPT2,
    target: list[Encoded] | None = TARGET,
    encoded: list[Encoded] = CANDIDATES,
    start: Snapshot | None = None,
    state: dict[str, torch.Tensor] | None = None,
    dropout: float = 0.0,
    dtype: Any = torch.float64,
    **more: Any,
) -> Trainer:
    lm = model_of(config, lora, dtype)
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad_(not lora or "lora_" in name)
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if state:
        lm.model.load_state_dict(state, strict=False)
    anchors = Examples.of(target) if target is not None else None
    data = replace(Data.of(Examples.of(encoded), anchors=anchors), **more)
    return Trainer(lm, data, settings, weighting, Alone(), start=start)


class Compared(Weighting):
    """Gives what another weighting does, and keeps what a slow reference says of the same step."""

    scope, needs, chooses, uses_target = "batch", ("loss",), True, True  # type: ignore[assignment]

    def __init__(self, inner: Any):
        self.inner, self.steps, self.trainer = inner, list[dict[str, Any]](), None

    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def signed(self) -> bool:
        return self.inner.signed

    def matching(self) -> Matching | None:
        return self.inner.matching()

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        trainer: Any = self.trainer
        given, state = self.inner.update(step, state)
        chooser = trainer.chooser
        those = {name: trainer.chooser.parameters[name] for name in chooser.sketcher.shapes}
        was = trainer.model.model.training
        trainer.model.model.eval()
        documents = self.documents
        counts = trainer.data.examples.counts[documents]
        each = counts / counts.mean() if trainer.settings.reduction == "token" else np.ones(len(counts))
        g = slow.vectors(trainer.model.model, [tokens(CANDIDATES[d]) for d in documents], those) * each[:, None]
        wanted = slow.vectors(trainer.model.model, [tokens(one) for one in TARGET], those).mean(0)
        d = slow.adams_d(trainer.optimizer, those)
        trainer.model.model.train(was)
        for parameter in trainer.parameters.values():
            parameter.requires_grad_(True)
        self.steps.append(
            {
                "given": given,
                "products": step.products,
                "g": g,
                "target": wanted,
                "d": d,
                "lr": step.lr,
                "documents": documents,
            }
        )
        return given, state

    documents: np.ndarray


def compared(
    weighting: Weighting, settings: TrainSettings = STEP, steps: int = 2, **more: Any
) -> tuple[list[dict[str, Any]], Trainer]:
    """Two steps: at the first Adam has no state yet."""
    watching = Compared(weighting)
    trainer = trainer_of(watching, replace(settings, steps=steps), **more)
    watching.trainer = trainer
    told(trainer, watching)
    list(trainer.run())
    return watching.steps, trainer


def told(trainer: Trainer, weighting: Any) -> None:
    """Have a weighting know which documents it is shown."""
    shown = trainer.weigher.shown

    def keep(number: int, documents: np.ndarray, *rest: Any) -> Step:
        weighting.documents = documents
        return shown(number, documents, *rest)

    trainer.weigher.shown = keep  # type: ignore[method-assign]


def near(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-10) -> bool:
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("lora", [True, False])
def test_products_are_those_of_whole_gradients(lora: bool, reduction: Any) -> None:
    steps, _ = compared(FilterThenWeight(), replace(STEP, reduction=reduction), lora=lora)
    assert np.ptp(steps[0]["d"]) == 0 and steps[1]["d"].max() > 10 * steps[1]["d"].min()
    for its in steps:  # D = 1, and Adam's
        products, q = its["products"], its["d"] * its["target"]
        assert near(products.gram, its["g"] @ its["g"].T)
        assert near(products.aligned, its["g"] @ q)
        assert products.square == pytest.approx(q @ q, rel=1e-10)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_filter_s_order_and_the_weights_are_the_formula_s(ridge: float) -> None:
    steps, _ = compared(FilterThenWeight(rescale="none", ridge=ridge), replace(STEP, batch_size=4))
    for its in steps:
        g, q, weights = its["g"], its["d"] * its["target"], its["given"].values
        chosen = slow.filtered(g, q, 4)
        assert set(np.flatnonzero(weights)) <= set(chosen)
        assert near(weights[chosen], slow.weighed(g[chosen], g[chosen] @ q, ridge), 1e-8)


def test_what_is_sought_is_as_long_as_a_mean_batch_of_candidates() -> None:
    its = compared(FilterThenWeight(ridge=0.1), replace(STEP, batch_size=4))[0][1]
    g, q = its["g"], its["d"] * its["target"]
    q = q / np.linalg.norm(q) * np.linalg.norm(g.mean(0)) * 4
    chosen = slow.filtered(g, q, 4)
    assert near(its["given"].values[chosen], slow.weighed(g[chosen], g[chosen] @ q, 0.1), 1e-8)


def test_d_on_the_candidates_side_changes_their_products_with_each_other() -> None:
    for its in compared(FilterThenWeight(side="candidates", rescale="none"))[0]:
        products, scaled = its["products"], its["g"] * its["d"]
        assert near(products.gram, scaled @ scaled.T) and near(products.aligned, scaled @ its["target"])
        assert products.square == pytest.approx(its["target"] @ its["target"], rel=1e-10)


def test_one_sample_s_weight_is_d_on_one_side_and_1_over_d_on_the_other() -> None:
    d, one = 8.0, np.ones((1, 1))
    for side, gram, wanted in (("target", one, d), ("candidates", d * d * one, 1 / d)):
        step = Step(1, products=Products(gram, np.array([d]), 1.0), room=1)
        given, _ = FilterThenWeight(side=side, rescale="none", ridge=0.0).update(step, {})  # type: ignore[arg-type]
        assert given.values == pytest.approx([wanted])


@pytest.mark.parametrize("name", ["greats", "tracin_online", "less_online", "grad_norm"])
def test_the_other_choices_are_their_formulas(name: str) -> None:
    made: dict[str, Any] = {"greats": Greats(), "tracin_online": TracinOnline(), "less_online": LessOnline()}
    for its in compared(made.get(name, GradNorm()), replace(STEP, batch_size=4))[0]:
        g, target = its["g"], its["target"]
        if name == "greats":
            chosen = slow.greats(g, target, its["lr"], 4)
        else:
            value = {"tracin_online": g @ target, "less_online": g @ (its["d"] * target)}
            chosen = np.argsort(-value.get(name, np.linalg.norm(g, axis=1)))[:4].tolist()
        assert sorted(chosen) == np.flatnonzero(its["given"].values).tolist()
        assert set(its["given"].values) == {0.0, 1.0}


def test_alignment_is_what_one_step_of_adam_with_its_scale_frozen_takes_off_the_target_s_loss() -> None:
    steps, trainer = compared(FilterThenWeight(), replace(STEP, reduction="sample"))
    g, target, d = (steps[1][key] for key in ("g", "target", "d"))
    aligned, small = steps[1]["products"].aligned, 1e-8
    again = compared(FilterThenWeight(), replace(STEP, reduction="sample"), steps=1)[1]  # as before the second step
    those = {name: again.chooser.parameters[name] for name in again.chooser.sketcher.shapes}  # type: ignore[union-attr]
    lm, start = again.model.model.eval(), {name: p.detach().clone() for name, p in those.items()}

    def loss_after(i: int, size: float) -> float:
        at = 0
        for name, p in those.items():
            n = p.numel()
            p.data = start[name] - size * torch.from_numpy((d * g[i])[at : at + n]).view_as(p)
            at += n
        with torch.no_grad():
            return float(np.mean([float(slow_loss(lm, one)) for one in TARGET]))

    for i in range(len(g)):
        slope = (loss_after(i, -small) - loss_after(i, small)) / (2 * small)
        assert slope == pytest.approx(aligned[i], rel=1e-5, abs=1e-7 * float(np.abs(aligned).max()))


def slow_loss(lm: Any, one: Encoded) -> torch.Tensor:
    from tests.oracles.training import token_losses

    return token_losses(lm, *tokens(one)).mean()


# --- what is learnt ----------------------------------------------------------------------------------------


class Given(Weighting):
    """Weights that a test has thought of, of the candidates by their documents."""

    scope, needs, chooses, uses_target = "batch", ("loss",), True, True  # type: ignore[assignment]

    def __init__(self, by_document: dict[int, float]):
        self.by_document, self.documents = by_document, np.zeros(0)

    def settings(self) -> dict[str, Any]:
        return {}

    def matching(self) -> Matching:
        return Matching()

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        return Weights(np.array([self.by_document.get(int(d), 0.0) for d in self.documents])), state


def gradient_learnt(weighting: Given, settings: TrainSettings, **more: Any) -> dict[str, torch.Tensor]:
    trainer, kept = trainer_of(weighting, replace(settings, steps=1), **more), dict[str, torch.Tensor]()
    told(trainer, weighting)
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None})
    )
    list(trainer.run())
    return kept


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("lora", [True, False])
def test_the_update_is_the_gradient_of_the_weighted_loss(lora: bool, reduction: Any, size: int) -> None:
    """Of factors that one pass leaves (size 0), and by a second pass; embeddings, norms, biases and the head too."""
    settings = replace(STEP, batch_size=4, reduction=reduction, micro_batch_size=size)
    given, data = {1: 0.5, 4: 2.0, 7: 1.25}, np.linspace(0.5, 2.0, 12)
    found = gradient_learnt(Given(given), settings, lora=lora, weights=data)
    wanted: dict[str, torch.Tensor] = {}
    reference = trainer_of(Uniform(), settings, lora=lora)
    lm, those = reference.model.model.eval(), reference.parameters
    counts = reference.data.examples.counts
    divisor = 4 * float(counts.mean()) if reduction == "token" else 4.0  # of as many candidates as there is room for
    for document, weight in given.items():
        gradient = slow.gradient(lm, tokens(CANDIDATES[document]), those)
        each = weight * data[document] * (counts[document] if reduction == "token" else 1) / divisor
        wanted = {n: wanted.get(n, torch.zeros_like(g)) + each * g for n, g in gradient.items()}
    assert found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name in wanted:
        assert float((found[name] - wanted[name]).abs().max()) <= 1e-10 * scale, name


def test_the_update_does_not_depend_on_how_many_have_a_weight() -> None:
    """What was compared is a sum of w g, so a weight that is all but 0 changes it as little."""
    settings = replace(STEP, batch_size=4)
    one, more = (gradient_learnt(Given({1: 4.0, **others}), settings) for others in ({}, {2: 1e-9, 3: 1e-9, 4: 1e-9}))
    assert all(torch.allclose(one[name], more[name], rtol=1e-6, atol=1e-9) for name in one)


def test_chance_is_the_seed_s_where_there_is_dropout() -> None:
    found = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        for size in (0, 3):
            trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=3, micro_batch_size=size), dropout=0.1)
            torch.manual_seed(noise)
            found.append([d.metrics["grad_norm"] for d in trainer.run()])
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1]


def test_what_weighs_nothing_in_the_data_is_no_candidate() -> None:
    weights = (np.arange(12) % 2).astype(float)
    for weighting in (MaxLoss(), TracinOnline()):
        for done in trainer_of(weighting, replace(STEP, steps=3), weights=weights).run():
            assert (done.documents % 2 == 1).all() and done.metrics["chosen"] == 2 and done.metrics["grad_norm"] > 0


@pytest.mark.parametrize("projection", [0, 4])
@pytest.mark.parametrize("lora", [True, False])
def test_products_in_bfloat16_are_near_those_in_float32(lora: bool, projection: int) -> None:
    made = [FilterThenWeight(), TracinOnline(hessian="kfac"), Greats(hessian="kfac")]
    for weighting in [*made, FilterThenWeight(unit="token")] if lora else made:
        losses = []
        for precision in ("bfloat16", "float32"):
            settings = replace(STEP, steps=2, projection=projection, precision=precision)
            (*_, done) = trainer_of(weighting, settings, lora=lora, dtype=torch.float32).run()
            losses.append(done.metrics["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_sample_that_stands_twice_among_the_candidates_is_two_of_them() -> None:
    found = []
    for size in (0, 3):
        trainer = trainer_of(MaxLoss() if size else FilterThenWeight(), replace(STEP, steps=2, micro_batch_size=size),
                             documents=np.array([3, 3, 5, 5, 5, 1]))  # fmt: skip
        found += [(sorted(d.documents.tolist()), np.count_nonzero(d.weight), d.metrics["loss"]) for d in trainer.run()]
    assert all(documents == [1, 3, 3, 5, 5, 5] and 1 <= n <= 2 and np.isfinite(loss) for documents, n, loss in found)
    again = Twice()
    trainer = trainer_of(again, replace(STEP, steps=1, micro_batch_size=3), documents=np.array([3, 3, 5, 5, 5, 1]))
    told(trainer, again)
    again.counts = trainer.data.examples.counts
    kept: dict[str, torch.Tensor] = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None})
    )
    list(trainer.run())
    reference, counts = trainer_of(Uniform()), again.counts
    wanted = slow.gradient(reference.model.model.eval(), tokens(CANDIDATES[5]), reference.parameters)
    each = (1 + 3) * counts[5] / (2 * counts[[3, 3, 5, 5, 5, 1]].mean())
    for name, gradient in wanted.items():
        assert torch.allclose(kept[name], each * gradient, rtol=1e-9, atol=1e-14), name


class Twice(Given):
    """Document 5 where it stands first and second, with weights of 1 and 3."""

    counts: np.ndarray

    def __init__(self) -> None:
        super().__init__({})

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        values = np.zeros(len(self.documents))
        values[np.flatnonzero(self.documents == 5)[:2]] = 1.0, 3.0
        return Weights(values), state


def test_choosing_all_with_weights_of_1_is_plain_training() -> None:
    settings = replace(STEP, batch_size=6, steps=4, clip=1.0)
    for size in (0, 2):
        plain = trainer_of(Uniform(), replace(settings, micro_batch_size=size), lora=False)
        chosen = trainer_of(
            FilterThenWeight(weigh="none"), replace(settings, oversample=1, micro_batch_size=size), lora=False
        )
        a, b = ([d.metrics["weighted_loss"] for d in t.run()] for t in (plain, chosen))
        assert a == pytest.approx(b, rel=1e-10)
        for name, p in plain.parameters.items():
            assert torch.allclose(p, chosen.parameters[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("precondition", ["before", "projected"])
def test_a_step_does_not_depend_on_its_micro_batches(precondition: Any) -> None:
    settings = replace(STEP, steps=3, projection=4, target_every=2)
    found = []
    for size in (0, 1, 4):
        trainer = trainer_of(FilterThenWeight(precondition=precondition), replace(settings, micro_batch_size=size))
        found.append([(d.documents.tolist(), d.weight, d.measure) for d in trainer.run()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a[0] == b[0] and a[1] == pytest.approx(b[1], rel=1e-6) and a[2] == pytest.approx(b[2], rel=1e-6)


@pytest.mark.parametrize("precondition", ["before", "projected"])
@pytest.mark.parametrize("size", [0, 4])
def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(precondition: Any, size: int) -> None:
    weighting = FilterThenWeight(precondition=precondition)
    settings = replace(STEP, steps=5, projection=4, target_every=3, micro_batch_size=size)
    whole = trainer_of(weighting, settings)
    wanted = [d.metrics for d in whole.run()]
    cut = trainer_of(weighting, settings)
    steps = cut.run()
    first = [next(steps).metrics for _ in range(2)]
    snapshot, model = cut.snapshot(), {n: p.detach().clone() for n, p in cut.model.model.named_parameters()}
    rest = trainer_of(weighting, settings, start=snapshot, state=model)
    assert [*first, *(d.metrics for d in rest.run())] == wanted


# --- projections -------------------------------------------------------------------------------------------


def test_projected_products_are_unbiased() -> None:
    many: list[Products] = []
    for seed in range(60):
        watching = Compared(FilterThenWeight())
        trainer = trainer_of(watching, replace(STEP, steps=1, projection=6))
        watching.trainer = trainer
        told(trainer, watching)
        assert trainer.chooser is not None
        trainer.chooser.sketcher = Sketcher(trainer.chooser.sketcher.shapes, 6, seed, torch.device("cpu"))
        list(trainer.run())
        many.append(watching.steps[0]["products"])
    exact = compared(FilterThenWeight())[0][0]["products"]
    for name in ("gram", "aligned"):
        found = np.stack([getattr(products, name) for products in many])
        error = found.std(0, ddof=1) / np.sqrt(len(found))
        assert (np.abs(found.mean(0) - getattr(exact, name)) < 4.5 * error + 1e-12).all()
        assert (error > 0).all()


def test_d_of_projected_gradients_is_adam_s_of_them() -> None:
    steps, trainer = compared(FilterThenWeight(precondition="projected"), replace(STEP, projection=5), steps=3)
    chooser, settings = trainer.chooser, trainer.settings
    assert chooser is not None
    sketcher, sizes = chooser.sketcher, {n: int(np.prod(s)) for n, s in chooser.sketcher.shapes.items()}

    def sketched(vector: np.ndarray) -> np.ndarray:
        parts = np.split(vector, np.cumsum(list(sizes.values()))[:-1])
        made = [
            sketcher.whole(n, torch.from_numpy(p).view(sketcher.shapes[n])) for n, p in zip(sizes, parts, strict=True)
        ]
        return np.concatenate([m.flatten().numpy() for m in made])

    second = np.zeros_like(sketched(steps[0]["target"]))
    for t, its in enumerate(steps, 1):
        s, q = np.stack([sketched(g) for g in its["g"]]), sketched(its["target"])
        if t > 1:
            hat = second / (1 - settings.beta2 ** (t - 1))
            q = q * (1 - settings.beta1) / ((1 - settings.beta1**t) * (np.sqrt(hat) + settings.eps))
        assert near(its["products"].aligned, s @ q, 1e-8)
        weights = its["given"].values
        update = weights @ its["g"] / settings.batch_size
        second = settings.beta2 * second + (1 - settings.beta2) * sketched(update) ** 2


def test_every_order_of_a_sketch_s_product_gives_the_same() -> None:
    rng, seen = np.random.default_rng(0), set()
    for m, n, length in ((8, 100, 50), (100, 8, 50), (60, 80, 3), (60, 80, 300), (80, 60, 300), (6, 6, 4), (200, 6, 9)):
        e, x = (torch.from_numpy(rng.normal(size=(3, length, size))) for size in (m, n))
        for flipped in (False, True):
            shape = (n, m) if flipped else (m, n)
            gradient, sketcher = Outer("a", shape, x, e, flipped), Sketcher({"a": shape}, 16, 0, e.device)
            rows, columns = sketcher.tokens(gradient)
            wanted = sketcher.whole("a", gradient.full())
            assert torch.allclose(sketcher.of(gradient), wanted) and torch.allclose(
                rows.transpose(1, 2) @ columns, wanted
            )
            seen.add(sketcher._order(gradient)[0])
    assert seen == {"tokens", "gradient", "rows", "columns"}


# --- the curvature, and Shapley values ---------------------------------------------------------------------


def test_shapley_values_are_those_of_all_orders() -> None:
    rng = np.random.default_rng(3)
    g, target, eta = rng.normal(size=(5, 4)), rng.normal(size=4), 0.3

    def gain(some: list[int]) -> float:
        total = g[some].sum(0)
        return float(eta * target @ total - eta**2 / 2 * total @ total)

    value, orders = np.zeros(5), list(permutations(range(5)))
    for order in orders:
        for place, i in enumerate(order):
            value[i] += (gain(list(order[: place + 1])) - gain(list(order[:place]))) / len(orders)
    step = Step(1, products=Products(g @ g.T, g @ target, target @ target), room=2, lr=eta)
    found = Greats(form="shapley").update(step, {})[0].values
    assert np.flatnonzero(found).tolist() == sorted(np.argsort(-value)[:2].tolist())
    assert eta * g @ target - eta**2 / 2 * (g @ g.T).sum(1) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("size", [0, 4])
def test_the_curvature_is_the_kronecker_product_of_its_factors(size: int) -> None:
    """Against H = E (x) A as a whole matrix of every layer, made of each token's x and e, found by autograd."""
    settings = replace(STEP, reduction="sample", micro_batch_size=size, projection=4)
    for weighting, name in ((Greats(hessian="kfac"), "curved"), (TracinOnline(hessian="kfac"), "influence")):
        steps, trainer = compared(weighting, settings, steps=1)
        its, chooser = steps[0], trainer.chooser
        assert chooser is not None
        rows = trainer_of(weighting, settings)  # the model as it was
        wanted: Any = 0.0
        for layer, shape in chooser.sketcher.shapes.items():
            lefts, rights, sketches = [], [], []
            for document in its["documents"]:
                e, x = one_token_at_a_time(rows, layer, CANDIDATES[document])
                p, r = (chooser.sketcher._side(layer, axis) for axis in (0, 1))
                left, right = (x, e) if shape != (e.shape[1], x.shape[1]) else (e, x)
                lefts.append(left if p is None else left @ p.double().numpy())
                rights.append(right if r is None else right @ r.double().numpy())
                sketches.append(lefts[-1].T @ rights[-1])
            every_left, every_right = np.concatenate(lefts), np.concatenate(rights)
            some = np.abs(np.concatenate([e for e in lefts])).sum(1) > 0
            a = every_left.T @ every_left / len(lefts)
            b = every_right[some].T @ every_right[some] / some.sum()
            a, b = (f + 0.1 * np.diagonal(f).mean() * np.eye(len(f)) for f in (a, b))
            s = np.stack(sketches)
            if name == "curved":
                wanted = wanted + np.einsum("iab,ac,jcd,db->ij", s, a, s, b)
            else:
                q = chooser.target[layer].numpy()
                solved = np.linalg.solve(np.kron(a, b), q.flatten()).reshape(q.shape)
                wanted = wanted + np.einsum("iab,ab->i", s, solved)
        assert near(getattr(its["products"], name), wanted, 1e-8)


def one_token_at_a_time(trainer: Trainer, layer: str, one: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of a layer's output at every token, and its input, of one sample's mean loss; of a LoRA matrix."""
    lm, kept = trainer.model.model.eval(), dict[str, torch.Tensor]()
    (module,) = [
        m for n, m in lm.named_modules() if f"{n}.weight".replace(".default.", ".") == layer and hasattr(m, "weight")
    ]

    def keep(_: Any, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.update(x=inputs[0].detach(), y=output)

    handle = module.register_forward_hook(keep)
    try:
        slow_loss(lm, one).backward()
    finally:
        handle.remove()
    lm.zero_grad()
    assert kept["y"].grad is not None
    return kept["y"].grad[0].numpy(), kept["x"][0].numpy()


def test_single_tokens_are_chosen_by_what_they_add() -> None:
    steps, trainer = compared(FilterThenWeight(unit="token"), replace(STEP, reduction="sample", batch_size=4))
    reference, kept = trainer_of(Uniform()), steps[0]
    q: Any = trainer_of(FilterThenWeight(unit="token"), STEP)  # D = 1 at the first step: the target's own gradient
    those = {n: q.chooser.parameters[n] for n in q.chooser.sketcher.shapes}
    target = {n: np.zeros(p.shape) for n, p in those.items()}
    for one in TARGET:
        for n, g in slow.gradient(reference.model.model.eval(), tokens(one), reference.parameters).items():
            name = n.replace(".default.", ".")
            target[name] = target[name] + g.numpy() / len(TARGET)
    for parameter in reference.parameters.values():
        parameter.requires_grad_(True)
    found = kept["products"].tokens
    for row, document in enumerate(kept["documents"]):
        aligned = np.zeros(len(CANDIDATES[document].ids))
        for layer in those:
            e, x = one_token_at_a_time(reference, layer, CANDIDATES[document])
            aligned += np.einsum("to,oi,ti->t", e, target[layer], x)
        assert near(found[row, : len(aligned)], aligned, 1e-9) and not found[row, len(aligned) :].any()
    assert near(found.sum(1), kept["products"].aligned, 1e-9)
    each = kept["given"].tokens
    assert each.sum() == (found >= np.sort(found[found > 0])[-int(each.sum())]).sum()  # the best, all above 0


# --- coefficients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_coefficients_are_scipy_s_and_satisfy_the_conditions(ridge: float) -> None:
    rng = np.random.default_rng(1)
    for trial in range(300):
        n, d = int(rng.integers(1, 12)), int(rng.integers(1, 14))
        a, y = rng.normal(size=(d, n)) * 10.0 ** rng.integers(-3, 5), rng.normal(size=d) * 10.0 ** rng.integers(-3, 5)
        if trial % 3 == 0 and n > 2:
            a[:, 1] = a[:, 0]  # singular
        more = ridge * np.trace(a.T @ a) / n
        gram, b = a.T @ a + more * np.eye(n), a.T @ y
        w = nonnegative(gram, b)
        slope, size = gram @ w - b, np.abs(b).max() + np.abs(gram).max() * w.sum()
        assert (
            (w >= 0).all()
            and (slope >= -1e-9 * size).all()
            and np.abs(w * slope).sum() <= 1e-9 * size * w.sum() + 1e-300
        )
        other, _ = nnls(np.vstack([a, np.sqrt(more) * np.eye(n)]), np.concatenate([y, np.zeros(n)]))
        least, his = (float(v @ gram @ v - 2 * b @ v) for v in (w, other))
        assert least <= his + 1e-9 * abs(his)
        if ridge:
            assert w == pytest.approx(other, rel=1e-6, abs=1e-9 * max(float(other.max()), 1e-300))


@pytest.mark.parametrize("search", ["residual", "exhaustive"])
def test_three_planted_samples_are_found_with_their_weights(search: Any) -> None:
    rng = np.random.default_rng(2)
    atoms = np.linalg.qr(rng.normal(size=(30, 12)))[0].T
    planted = {2: 3.0, 5: 0.5, 11: 1.25}
    c = sum(weight * atoms[i] for i, weight in planted.items())
    step = Step(1, products=Products(atoms @ atoms.T, atoms @ c, float(c @ c)), room=8)  # type: ignore[operator]
    found = GradMatch(ridge=0.0, scale="none", search=search).update(step, {})[0].values
    assert {i: found[i] for i in np.flatnonzero(found)} == pytest.approx(planted, rel=1e-10)


def test_trying_all_adds_what_leaves_the_least() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        g, c = np.abs(rng.normal(size=(9, 30))) * (rng.random((9, 30)) < 0.3), np.abs(rng.normal(size=30))
        step = Step(1, products=Products(g @ g.T, g @ c, float(c @ c)), room=3)
        ridge = 0.05 * float(np.diagonal(g @ g.T).mean())
        found = GradMatch(search="exhaustive", ridge=0.05, scale="none").update(step, {})[0].values
        assert sorted(slow.pursued_by_trial(g, c, ridge, 3)) == np.flatnonzero(found).tolist()


def test_what_all_candidates_teach_is_matched_without_a_target() -> None:
    trainer = trainer_of(GradMatch(match="candidates"), replace(STEP, steps=2, batch_size=4), target=None)
    for done in trainer.run():
        assert 1 <= done.metrics["chosen"] <= 4 and "target" not in done.usage and not done.metrics["fallback"]


def test_pursuit_refits_and_drops_what_turns_negative() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        a, c = rng.normal(size=(6, 10)) + 0.5, rng.normal(size=6)
        step = Step(1, products=Products(a.T @ a, a.T @ c, float(c @ c)), room=4)
        given, _ = GradMatch(ridge=0.0, scale="none").update(step, {})
        w, some = given.values, np.flatnonzero(given.values)
        if given.fallback:
            continue
        assert len(some) <= 4 and (w >= 0).all()
        assert w[some] == pytest.approx(np.linalg.lstsq(a[:, some], c, rcond=None)[0], rel=1e-8)
        assert np.linalg.norm(a @ w - c) >= nnls(a, c)[1] - 1e-12


def test_near_duplicates_are_not_all_chosen_whatever_the_scale_of_d() -> None:
    rng = np.random.default_rng(4)
    base, others = rng.normal(size=50), rng.normal(size=(8, 50))
    g = np.concatenate([base + 1e-3 * rng.normal(size=(8, 50)), others])
    for scale in (1.0, 1e4, 1e-4):
        q = scale * (3 * base + others.sum(0) / 2)
        step = Step(1, products=Products(g @ g.T, g @ q, float(q @ q)), room=6)
        given, _ = FilterThenWeight().update(step, {})
        assert np.isfinite(given.values).all() and 0 < np.count_nonzero(given.values[:8]) < 6
        assert given.values[8:].any() and given.values.max() < 100
        plain, _ = FilterThenWeight(filter="top").update(step, {})
        assert not plain.values[8:].any()  # where hard top-k takes duplicates alone


def test_where_nothing_goes_the_target_s_way_the_filter_s_choice_is_learnt_and_counted() -> None:
    products = Products(np.eye(4) + 0.1, -np.arange(1.0, 5.0), 30.0)
    given, _ = FilterThenWeight().update(Step(1, products=products, room=2), {})
    assert given.fallback and given.values.tolist() == [1, 1, 0, 0]
    for weighting in (Greats(eta=0.1), TracinOnline(), LessOnline(), FilterThenWeight(weigh="signed")):
        assert weighting.update(Step(1, products=products, room=2), {})[0].fallback
    with pytest.raises(CurateError, match="weights of both signs may sum to 0"):
        FilterThenWeight(weigh="signed", rescale="sum_to_batch")
    given, _ = GradMatch().update(Step(1, products=products, room=2), {})
    assert given.fallback and given.values.tolist() == [1, 1, 0, 0]


def test_a_singular_gram_gives_finite_weights() -> None:
    products = Products(np.ones((4, 4)), np.ones(4), 1.0)
    for weighting in (FilterThenWeight(ridge=0.0), FilterThenWeight(ridge=0.0, weigh="signed"), GradMatch(ridge=0.0)):
        given, _ = weighting.update(Step(1, products=products, room=3), {})
        assert np.isfinite(given.values).all() and given.values.any()


# --- faults ------------------------------------------------------------------------------------------------


def test_a_target_of_which_nothing_is_supervised_is_refused() -> None:
    none = [Encoded(one.ids, np.zeros(len(one.ids), bool)) for one in TARGET]
    with pytest.raises(CurateError, match="no sample of the target has a supervised token within the context"):
        trainer_of(FilterThenWeight(), target=none)
    trainer = trainer_of(FilterThenWeight(), target=[*none, TARGET[0]])
    assert len(trainer.chooser._target) == 1  # type: ignore[union-attr]


def test_fewer_candidates_than_a_batch_are_refused() -> None:
    with pytest.raises(CurateError, match="'max_loss' chooses 20 samples a step .batch_size. among .* there are 12"):
        trainer_of(MaxLoss(), replace(STEP, batch_size=20))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"packing": True}, "chooses single samples of a step, which packing does not leave"),
        ({"shuffle_weights": True}, "chooses single samples of a step, which shuffle_weights does not leave"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing forgets"),
    ],
)
def test_what_choosing_cannot_be_done_with_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        trainer_of(
            FilterThenWeight(), replace(STEP, **settings), config=LlamaConfig(**dict(CONFIGS["llama"].to_dict()))
        )


def test_a_candidate_whose_gradient_overflows_is_not_chosen_and_is_counted() -> None:
    trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=2, batch_size=4))
    take, bad = trainer.chooser.backward.gradients, []  # type: ignore[union-attr]

    def overflowing(encoded: Any, *rest: Any) -> Any:
        found = take(encoded, *rest)
        if len(encoded) > len(TARGET):  # of the candidates the first
            bad.append(tuple(encoded[0].ids))
            found = replace(found, parameters=[g.of(torch.arange(1, len(encoded))) for g in found.parameters],
                            good=found.good[1:])  # fmt: skip
        return found

    trainer.chooser.backward.gradients = overflowing  # type: ignore[union-attr, method-assign]
    for done, its in zip(trainer.run(), bad, strict=False):
        assert done.metrics["unfit"] == 1 and done.metrics["samples"] == 12
        (place,) = [i for i, d in enumerate(done.documents) if tuple(CANDIDATES[d].ids) == its]
        assert done.weight[place] == 0 and np.isnan(done.measure[place])


def test_a_real_overflow_of_half_precision_is_one_of_them() -> None:
    with pytest.raises(CurateError, match="in float16 small gradients vanish"):
        lm = model_of(GPT2, True, torch.float16)
        Trainer(lm, Data.of(Examples.of(CANDIDATES), anchors=Examples.of(TARGET)), STEP, FilterThenWeight(), Alone())


def test_a_choice_of_none_or_too_many_is_a_failure() -> None:
    for by_document in ({}, {d: 1.0 for d in range(12)}):
        weighting = Given(by_document)
        trainer = trainer_of(weighting, replace(STEP, steps=1))
        told(trainer, weighting)
        with pytest.raises(CurateFailure, match="it is to choose at least 1 and at most 2"):
            list(trainer.run())


def test_losses_alone_choose_too() -> None:
    for weighting, column in ((MaxLoss(), None), (RhoOnline(), np.arange(12.0)[::-1].copy())):
        trainer = trainer_of(weighting, replace(STEP, steps=2, batch_size=4), target=None, column=column)
        for done in trainer.run():
            value = done.loss - (0 if column is None else column[done.documents])
            assert set(np.flatnonzero(done.weight)) == set(np.argsort(-value, kind="stable")[:4])
            assert done.metrics["chosen"] == 4 and done.metrics["samples"] == 12 and "losses" in done.usage


def test_a_step_that_memory_ran_out_on_is_tried_again_as_it_was() -> None:
    """First at the target, then at the candidates: both times with fewer rows at once, and the model still training."""
    trainer = trainer_of(FilterThenWeight(), replace(STEP, steps=2, batch_size=4), dropout=0.1)
    chooser, calls = trainer.chooser, []
    assert chooser is not None
    take = chooser.backward.gradients

    def scarce(encoded: Any, *rest: Any) -> Any:
        calls.append((len(encoded), trainer.model.model.training))
        if len(calls) in (1, 3):
            raise torch.OutOfMemoryError
        return take(encoded, *rest)

    chooser.backward.gradients = scarce  # type: ignore[method-assign]
    done = list(trainer.run())
    assert trainer.micro_batch_size == 3 and len(done) == 2 and all(d.metrics["chosen"] for d in done)
    step = [(3, False), *[(3, True)] * 4]  # the target without dropout, then twelve candidates
    assert calls == [(3, False), (3, False), (6, True), *step, *step]


# --- by logits ---------------------------------------------------------------------------------------------


class Watched(UdsOnline):
    """UDS, with each step's candidates, and their logits by the model itself, one at a time, kept beside."""

    def update(self, step: Step, state: Arrays) -> tuple[Weights, Arrays]:
        trainer: Any = self.__dict__["trainer"]
        logits = []
        with torch.no_grad():
            for d in self.__dict__["documents"]:
                ids = torch.from_numpy(CANDIDATES[d].ids.astype(np.int64))[None]
                logits.append(trainer.model.model(ids).logits[0].double().numpy())
        given, state = super().update(step, state)
        self.__dict__["steps"].append((logits, given, step.room))
        return given, state


@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("lora", [True, False])
def test_uds_is_its_formula_of_the_logits_at_every_step(size: int, lora: bool) -> None:
    """The head learns where all parameters do: what was made of it once is made again."""
    weighting = Watched(alpha=0.01, memory=3, d1=5, d2=4, length=9)
    weighting.__dict__["steps"] = []
    trainer = trainer_of(weighting, replace(STEP, steps=4, micro_batch_size=size), lora=lora, target=None)
    weighting.__dict__["trainer"] = trainer
    shown = trainer.weigher.shown

    def keep(number: int, documents: np.ndarray, *rest: Any) -> Step:
        weighting.__dict__["documents"] = documents
        return shown(number, documents, *rest)

    trainer.weigher.shown = keep  # type: ignore[method-assign]
    list(trainer.run())
    vocabulary = weighting.__dict__["steps"][0][0][0].shape[1]
    c = Rademacher(5, 0).entries("vocabulary", 0, vocabulary, torch.device("cpu")).double().numpy()
    d = Rademacher(4, 0).entries("places", 0, 64, torch.device("cpu")).double().numpy()
    memory: list[np.ndarray] = []
    for logits, given, room in weighting.__dict__["steps"]:
        z = [(d[: len(one)].T @ one @ c).ravel() * np.sqrt(vocabulary * 9) / 2 for one in logits]
        apart = [np.mean([np.linalg.norm(one - m) for m in memory]) if memory else 0.0 for one in z]
        score = np.array([svdvals(one).sum() for one in logits]) + 0.01 * np.array(apart)
        assert given.measure == pytest.approx(score, rel=1e-5)
        chosen = np.argsort(-score, kind="stable")[:room]
        assert set(np.flatnonzero(given.values)) == set(chosen)
        memory = [*memory, *(z[i] for i in chosen)][-3:]


def test_uds_goes_on_with_its_memory() -> None:
    settings = replace(STEP, steps=4)
    whole = trainer_of(UdsOnline(), settings, target=None)
    wanted = [(d.documents.tolist(), d.weight.tolist()) for d in whole.run()]
    first = trainer_of(UdsOnline(), settings, target=None)
    found, run = [], first.run()
    for _ in range(2):
        d = next(run)
        found.append((d.documents.tolist(), d.weight.tolist()))
    state = {n: p.detach().clone() for n, p in first.model.model.state_dict().items()}
    second = trainer_of(UdsOnline(), settings, target=None, start=first.snapshot(), state=state)
    found += [(d.documents.tolist(), d.weight.tolist()) for d in second.run()]
    assert found == wanted
