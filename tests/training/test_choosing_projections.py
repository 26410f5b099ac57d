"""Projected products, the curvature, Shapley values and single tokens of a step against slow references."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.gradients.per_sample import Outer
from curate.gradients.sketches import Sketcher
from curate.kinds.signals import Products, Step
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.greats import Greats
from curate.methods.weightings.tracin_online import TracinOnline
from curate.methods.weightings.uniform import Uniform
from curate.models.tokens import Encoded
from curate.training.loop import Trainer
from tests.oracles import choosing as slow
from tests.support.choosing import CANDIDATES, STEP, TARGET, Compared, compared, near, told, trainer_of
from tests.support.gradients import tokens
from tests.training.test_choosing import slow_loss

# --- projections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [24, pytest.param(60, marks=pytest.mark.repeated)])
def test_projected_products_are_unbiased(seeds: int) -> None:
    many: list[Products] = []
    for seed in range(seeds):
        watching = Compared(FilterThenWeight(), reference=False)
        trainer = trainer_of(watching, replace(STEP, steps=1, projection=6))
        watching.trainer = trainer
        told(trainer, watching)
        assert trainer.chooser is not None
        trainer.chooser.products.sketcher = Sketcher(trainer.chooser.sketcher.shapes, 6, seed, torch.device("cpu"))
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


@pytest.mark.parametrize("factors", ["target", "candidates"])
@pytest.mark.parametrize("size", [0, 4])
def test_the_curvature_is_the_kronecker_product_of_its_factors(size: int, factors: str) -> None:
    """Against H = E (x) A as a whole matrix of every layer, made of each token's x and e, found by autograd."""
    settings = replace(STEP, reduction="sample", micro_batch_size=size, projection=4)
    hessian: Any = f"kfac_{factors}"
    for weighting, name in ((Greats(hessian=hessian, damping=0.1), "curved"),
                            (TracinOnline(hessian=hessian), "influence")):  # fmt: skip
        steps, trainer = compared(weighting, settings, steps=1)
        its, chooser = steps[0], trainer.chooser
        assert chooser is not None
        rows = trainer_of(weighting, settings)  # the model as it was
        wanted: Any = 0.0
        for layer in chooser.sketcher.shapes:
            of_candidates = projected_tokens(rows, chooser.sketcher, layer, [CANDIDATES[d] for d in its["documents"]])
            s = np.stack([left.T @ right for left, right in of_candidates])
            its_tokens = of_candidates
            if factors == "target":
                its_tokens = projected_tokens(rows, chooser.sketcher, layer, TARGET)
            a, b = kronecker_factors(its_tokens)
            a, b = (f + 0.1 * np.diagonal(f).mean() * np.eye(len(f)) for f in (a, b))
            if name == "curved":
                wanted = wanted + np.einsum("iab,ac,jcd,db->ij", s, a, s, b)
            else:
                q = chooser.products.target[layer].numpy()
                solved = np.linalg.solve(np.kron(a, b), q.flatten()).reshape(q.shape)
                wanted = wanted + np.einsum("iab,ab->i", s, solved)
        assert near(getattr(its["products"], name), wanted, 1e-8)


def test_the_second_order_score_is_the_appendix_s() -> None:
    """B.6: eta <g_i, g_val> - eta^2 / 2  g_i^T H sum over k of g_k, and the highest are taken."""
    steps, _ = compared(Greats(form="shapley", hessian="kfac_target"), replace(STEP, batch_size=4), steps=2)
    for its in steps:
        products, eta = its["products"], its["lr"]
        score = eta * products.aligned - eta**2 / 2 * products.curved.sum(1)
        assert np.flatnonzero(its["given"].values).tolist() == sorted(np.argsort(-score, kind="stable")[:4].tolist())


@pytest.mark.parametrize("every", [1, 3])
def test_the_target_s_curvature_is_kept_with_its_gradient_and_by_a_checkpoint(every: int) -> None:
    settings = replace(STEP, reduction="sample", projection=4, target_every=every, steps=4)
    weighting = Greats(hessian="kfac_target", form="shapley")
    whole = [done.metrics["loss"] for done in trainer_of(weighting, settings).run()]
    first = trainer_of(weighting, settings)
    steps = first.run()
    losses = [next(steps).metrics["loss"] for _ in range(2)]
    state = {n: p.detach().clone() for n, p in first.model.model.state_dict().items()}
    second = trainer_of(weighting, settings, start=first.snapshot(), state=state)
    assert losses + [done.metrics["loss"] for done in second.run()] == pytest.approx(whole, rel=1e-12)


def projected_tokens(
    trainer: Trainer, sketcher: Sketcher, layer: str, samples: list[Encoded]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both sides of every token of each sample, of the rows and of the columns of a layer's matrix, projected."""
    found = []
    p, r = (sketcher._side(layer, axis) for axis in (0, 1))
    turned = type(module_of(trainer, layer)).__name__ == "Conv1D"  # stored as [in, out]
    for one in samples:
        e, x = one_token_at_a_time(trainer, layer, one)
        left, right = (x, e) if turned else (e, x)
        found.append((left if p is None else left @ p.double().numpy(),
                      right if r is None else right @ r.double().numpy()))  # fmt: skip
    return found


def kronecker_factors(each: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    left, right = (np.concatenate([sides[k] for sides in each]) for k in (0, 1))
    some = np.abs(left).sum(1) > 0
    return left.T @ left / len(each), right[some].T @ right[some] / some.sum()


# --- tokens at the same position ---------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("size", [0, 4])
def test_tokens_at_the_same_position_alone_are_compared(size: int, lora: bool) -> None:
    settings = replace(STEP, reduction="sample", micro_batch_size=size, projection=4)
    weighting = FilterThenWeight(positions="same", precondition="none")
    steps, trainer = compared(weighting, settings, steps=1, lora=lora)
    its, chooser, before = steps[0], trainer.chooser, trainer_of(weighting, settings, lora=lora)
    assert chooser is not None
    n = len(its["documents"])
    gram, aligned, square = np.zeros((n, n)), np.zeros(n), 0.0
    for layer in chooser.sketcher.shapes:
        mine = projected_tokens(before, chooser.sketcher, layer, [CANDIDATES[d] for d in its["documents"]])
        theirs = projected_tokens(before, chooser.sketcher, layer, TARGET)
        for t in range(max(len(left) for left, _ in (*mine, *theirs))):
            g = [np.outer(left[t], right[t]) if t < len(left) else 0.0 * np.outer(left[0], right[0])
                 for left, right in (*mine, *theirs)]  # fmt: skip
            q = np.mean(g[n:], axis=0)
            gram += [[float((a * b).sum()) for b in g[:n]] for a in g[:n]]
            aligned += [float((a * q).sum()) for a in g[:n]]
            square += float((q * q).sum())
    assert near(its["products"].gram, gram, 1e-9) and near(its["products"].aligned, aligned, 1e-9)
    assert its["products"].square == pytest.approx(square, rel=1e-9)


def test_what_cannot_be_compared_by_position_is_refused() -> None:
    with pytest.raises(CurateError, match="precondition=projected, or precondition=none"):
        FilterThenWeight(positions="same")
    for more in ({"unit": "token"}, {"side": "candidates"}):
        with pytest.raises(CurateError, match="leave out unit=token and side=candidates"):
            FilterThenWeight(positions="same", precondition="none", **more)  # type: ignore[arg-type]


def test_the_d_of_projected_gradients_is_applied_at_every_position() -> None:
    """Aligned products with the target's sketch at every position times D, which is made of the second moments."""
    settings = replace(STEP, reduction="sample", projection=4)
    plain, scaled = (
        compared(FilterThenWeight(positions="same", precondition=how), settings, steps=2)  # type: ignore[arg-type]
        for how in ("none", "projected")
    )
    assert near(scaled[0][0]["products"].aligned, plain[0][0]["products"].aligned)  # D = 1 before the first step
    chooser = scaled[1].chooser
    assert chooser is not None
    products = chooser.products
    layer, q = next(iter(products.target.items()))
    wanted = products.target[layer] * products._projected_scale(layer)
    assert q.ndim == 3 and torch.equal(products._sought(layer), wanted) and not torch.equal(wanted, q)  # type: ignore[arg-type]


def module_of(trainer: Trainer, layer: str) -> torch.nn.Module:
    named = trainer.model.model.named_modules()
    (module,) = [m for n, m in named if f"{n}.weight".replace(".default.", ".") == layer and hasattr(m, "weight")]
    return module


def one_token_at_a_time(trainer: Trainer, layer: str, one: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of a layer's output at every token, and its input, of one sample's mean loss; of a LoRA matrix."""
    lm, kept = trainer.model.model.eval(), dict[str, torch.Tensor]()
    module = module_of(trainer, layer)

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
