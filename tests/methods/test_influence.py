"""Influence functions: against dense matrices, one sample at a time; and in a workspace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.curvature import Factors, Rotated
from curate.gradients.directions import gauss_newton_products
from curate.gradients.fisher import _drawn, _predicted, _uniform
from curate.gradients.gradient_model import GradientModel
from curate.gradients.per_sample import Outer
from curate.methods.scores.graddot import Graddot
from curate.methods.scores.influence import Influence
from curate.models.tokens import Encoded, encode
from curate.numerics.kronecker import damped_inverse, eigenbasis
from tests.conftest import SAMPLE
from tests.methods.test_gradient_scores import double, scored
from tests.oracles import curvature as slow
from tests.oracles import gradients as plain
from tests.support.checkpoints import AIM, POOL
from tests.support.narrow import NARROW
from tests.support.threads import single_thread

LAYER = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model() -> Backward:
    return double()


@pytest.fixture(scope="module")
def encoded(model: Backward) -> tuple[list[Encoded], list[Encoded]]:
    found = encode(model.lm.tokenizer, [*POOL, *AIM], 512)
    return found[: len(POOL)], found[len(POOL) :]


def tokens(encoded: list[Encoded]) -> list[slow.Tokens]:
    return [(one.ids.tolist(), one.supervised.tolist()) for one in encoded]


def labels_of(encoded: list[Encoded], number: int, logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    one = encoded[number]
    return _drawn(logits, torch.from_numpy(_uniform(one, int(_predicted(one).sum()), seed)))


@pytest.fixture
def open_model(model: Backward) -> Iterator[Any]:
    """The plain torch model, its gradients allowed."""
    model.lm.model.requires_grad_(True)
    yield model.lm.model
    model.lm.model.requires_grad_(False)


@pytest.fixture(scope="module")
def exact(model: Backward, encoded: Any) -> np.ndarray:
    """The dense Gauss-Newton matrix of one layer, of two samples."""
    open_model = model.lm.model.requires_grad_(True)
    f = slow.gauss_newton(open_model, tokens(encoded[0][:2]), dict(open_model.named_parameters())[LAYER])
    open_model.requires_grad_(False)
    return f


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_it_is_the_product_with_the_dense_matrix_s_inverse(
    model: Backward, encoded: Any, open_model: Any, kind: Any, fisher: Any
) -> None:
    pool, aim = encoded

    def labels(number: int, logits: torch.Tensor) -> torch.Tensor:
        if fisher == "true":
            return labels_of(pool, number, logits)
        one = pool[number]
        return torch.from_numpy(one.ids[1:][one.supervised[1:]].astype(np.int64))

    layers = {n: p for n, p in open_model.named_parameters() if "layers.0." in n and "q_proj" in n or "1.mlp.up" in n}
    assert len(layers) == 2
    wanted = np.zeros(len(pool))
    for name, parameter in layers.items():
        own = {name: parameter}
        layer = open_model.get_submodule(name.removesuffix(".weight"))
        inner, outer = slow.factors(open_model, tokens(pool), labels, layer)
        drawn = [labels(i, slow.logits_at(open_model, s).detach()) for i, s in enumerate(tokens(pool))]
        pairs = zip(tokens(pool), drawn, strict=True)
        gradients = [slow.fisher_gradient(open_model, one, some, own)[name] for one, some in pairs]
        f = slow.dense(kind, inner, outer, gradients)
        g, v = (
            np.stack([plain.flat(plain.gradient(open_model, one, own)).numpy() for one in tokens(some)])
            for some in (pool, aim)
        )
        open_model.requires_grad_(True)
        wanted += g @ slow.damped(f, 0.1, v.mean(0))
    open_model.requires_grad_(False)
    method = Influence(curvature=kind, fisher=fisher, modules=r"layers\.0\..*q_proj|layers\.1\.mlp\.up")
    found = scored(GradientModel.of(model), method, POOL, AIM)["score"]
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_conjugate_gradient_is_the_exact_inverse(model: Backward, encoded: Any, open_model: Any, exact: Any) -> None:
    pool, aim = encoded[0][:2], encoded[1]
    parameter = dict(open_model.named_parameters())[LAYER]
    g, v = (
        np.stack([plain.flat(plain.gradient(open_model, one, {LAYER: parameter})).numpy() for one in tokens(some)])
        for some in (pool, aim)
    )
    open_model.requires_grad_(False)
    method = Influence(curvature="cg", iterations=20, damping=100.0, modules=LAYER.replace(".", r"\."))
    found = scored(GradientModel.of(model), method, POOL[:2], AIM)["score"]
    level = eigen_mean(model, pool) * method.damping
    wanted = g @ np.linalg.solve(exact + level * np.eye(len(exact)), v.mean(0))
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()
    few = scored(GradientModel.of(model), dataclasses.replace(method, iterations=2), POOL[:2], AIM)
    assert 1e-3 * np.abs(wanted).max() < np.abs(few["score"] - wanted).max()  # so it is the steps that bring it there


def eigen_mean(model: Backward, pool: list[Encoded]) -> float:
    """The mean eigenvalue that EK-FAC has for the layer: the mean square of its gradients of drawn labels."""
    open_model = model.lm.model.requires_grad_(True)
    own = {LAYER: dict(open_model.named_parameters())[LAYER]}
    squares = []
    for number, one in enumerate(tokens(pool)):
        drawn = labels_of(pool, number, slow.logits_at(open_model, one).detach())
        squares.append(float(slow.fisher_gradient(open_model, one, drawn, own)[LAYER].square().mean()))
    open_model.requires_grad_(False)
    return float(np.mean(squares))


def test_gauss_newton_products_are_those_of_the_dense_matrix(model: Backward, encoded: Any, exact: Any) -> None:
    pool = encoded[0][:2]
    q = torch.randn(1, *model.parameters[LAYER].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids, supervised = model.padded(pool, max(len(one.ids) for one in pool))
    products = gauss_newton_products(model, ids, supervised, {LAYER: q})
    assert set(products) == {LAYER} and products[LAYER].shape == q.shape
    wanted = exact @ q.numpy().ravel() * len(pool)
    assert (
        np.abs(products[LAYER].numpy().ravel() - wanted).max() < 1e-6 * np.abs(wanted).max()
    )  # its norms compute in float32


def test_drawn_labels_make_the_gauss_newton_matrix(model: Backward, encoded: Any, open_model: Any, exact: Any) -> None:
    """Over many seeds, the mean of the squared gradients of drawn labels is the matrix's diagonal."""
    pool = encoded[0][:2]
    parameter = dict(open_model.named_parameters())[LAYER]
    mean, seeds = 0.0, 150
    for number, one in enumerate(tokens(pool)):
        logits = slow.logits_at(open_model, one)
        of_each: dict[tuple[int, ...], float] = {}
        for seed in range(seeds):
            drawn = labels_of(pool, number, logits.detach(), seed)
            key = tuple(drawn.tolist())
            if key not in of_each:
                loss = torch.nn.functional.cross_entropy(logits, drawn) * len(drawn) ** 0.5
                gradient = torch.autograd.grad(loss, parameter, retain_graph=True)[0]
                of_each[key] = float(gradient.square().sum())
            mean += of_each[key] / seeds / len(pool)
    assert mean == pytest.approx(np.trace(exact), rel=0.15)


def test_labels_are_drawn_as_predicted_and_not_by_the_batch(model: Backward, encoded: Any) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(30_000, 1).double()
    one = Encoded(np.arange(30_001, dtype=np.int32), np.ones(30_001, bool))
    drawn = _drawn(logits, torch.from_numpy(_uniform(one, 30_000, 3)))
    assert np.bincount(drawn.numpy()) / 30_000 == pytest.approx(logits[0].softmax(0).numpy(), abs=0.01)
    assert (_uniform(one, 9, 3) == _uniform(one, 10, 3)[:9]).all() and (
        _uniform(one, 9, 3) != _uniform(one, 9, 4)
    ).any()
    found = []
    for size in (1, 2, 6):
        method = Influence(curvature="diagonal")
        found.append(scored(GradientModel.of(model), method, POOL[:size] + POOL[size:], AIM)["score"])
    assert np.allclose(found[0], found[1], rtol=1e-12) and np.allclose(found[0], found[2], rtol=1e-12)


def test_it_is_exact_where_inputs_and_errors_are_independent() -> None:
    """A linear network of two layers, y = B A x, with every input beside every residual r: of both layers' gradients,
    B^T r x^T and r (A x)^T, the second moments are Kronecker products."""
    rng = np.random.default_rng(0)
    a, b, x, r = (rng.normal(size=shape) for shape in ((4, 3), (2, 4), (5, 3), (6, 2)))
    pairs = [(one, other) for one in x for other in r]
    for errors, inputs in (
        ([b.T @ other for _, other in pairs], [one for one, _ in pairs]),
        ([other for _, other in pairs], [a @ one for one, _ in pairs]),
    ):
        gradients = np.stack([np.outer(e, u).ravel() for e, u in zip(errors, inputs, strict=True)])
        f, v = gradients.T @ gradients / len(pairs), rng.normal(size=gradients.shape[1])
        shape = (len(errors[0]), len(inputs[0]))
        given = [torch.from_numpy(np.stack(side))[:, None] for side in (inputs, errors)]
        for flipped in (False, True):  # as torch stores a matrix, and as GPT-2 does
            of = Outer("w", shape[::-1] if flipped else shape, *given, flipped)
            bases, kfac, ekfac = _approximated(of, len(pairs))
            wanted = slow.damped(f, 0.3, v).reshape(shape)
            wanted, given_v = (wanted.T, v.reshape(shape).T) if flipped else (wanted, v.reshape(shape))
            for eigenvalues in (kfac, ekfac):
                found = damped_inverse(given_v, eigenvalues, 0.3, bases)
                assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()


def _approximated(of: Outer, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    factors = Factors(["w"], n, "k/")
    factors.begin(np.ones(n, np.int64))
    factors.take(of)
    sums = {key: value.double().numpy() for key, value in factors.sums().items()}
    rows, columns = sums["k/rows/w"], sums["k/columns/w"]
    rows, columns = (rows / n, columns / sums["k/tokens/w"][0])
    (left, p), (right, q) = eigenbasis(rows), eigenbasis(columns)
    rotated = Rotated(["w"], lambda _: (torch.from_numpy(p), torch.from_numpy(q)), n, "e/")
    rotated.take(of)
    return (p, q), np.outer(left, right), rotated.sums()["e/w"].double().numpy() / n


def test_without_curvature_it_is_graddot_and_groups_of_layers_change_nothing(model: Backward) -> None:
    way = GradientModel.of(model)
    linear = r"layers\."
    found = {}
    for name, method in {
        "identity": Influence(curvature="identity"),
        "much": Influence(curvature="ekfac", damping=1e9),
        "one": Influence(modules=linear),
        "three": Influence(modules=linear, layer_groups=3),
    }.items():
        found[name] = scored(way, method, POOL, AIM)["score"]
    assert np.abs(found["one"] - found["three"]).max() < 1e-6 * np.abs(found["one"]).max()
    names = [n for n in model.linear]
    tapes = {n: p for n, p in model.parameters.items() if n in names}
    whole = scored(way, Graddot(), POOL, AIM)["score"]
    assert np.corrcoef(found["identity"], whole)[0, 1] > 0.3 and set(tapes) == set(names)
    with pytest.raises(CurateError, match=r"modules=nowhere of influence matches no linear layer .*q_proj"):
        scored(way, Influence(modules="nowhere"), POOL, AIM)


def test_settings_out_of_range_are_refused_in_a_sentence() -> None:
    for settings, words in (
        ({"damping": 0.0}, "damping=0 of influence is a share of the mean eigenvalue"),
        ({"factors_share": 0.0}, "factors_share=0 of influence is a share of the pool"),
        ({"layer_groups": 0}, "layer_groups=0 of influence is a number of 1 or more"),
        ({"modules": "("}, r"modules=\( of influence is no regular expression"),
        ({"curvature": "cg", "aggregate": "subtask_max"}, "curvature=cg of influence solves for one direction"),
    ):
        with pytest.raises(CurateError, match=words):
            Influence(**settings)


def test_in_a_workspace_a_second_target_uses_the_factors_again(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    lines = [line for path in sorted((SAMPLE / "pool").glob("*.jsonl")) for line in path.read_text().splitlines()[:20]]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines), encoding="utf-8")
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    for target in ("facts", "arithmetic"):
        curate.target(ws, target, str(SAMPLE / f"targets/{target}_val.jsonl"))
    cg = Influence(curvature="cg", iterations=2, factors_share=0.5)
    with single_thread():
        for target in ("facts", "arithmetic"):
            curate.score(ws, Influence(factors_share=0.5), target=target, models=NARROW)
    rows = curate.sql(ws, "SELECT name, samples FROM ledger WHERE phase = 'forward' ORDER BY ledger.at")
    facts, arithmetic = ([r["samples"] for r in rows if r["name"] == f"influence_{t}"] for t in ("facts", "arithmetic"))
    assert 15 < facts[0] < 45  # of a half of the pool the factors, and its eigenvalues; the target; the pool
    assert facts[1] == facts[0] and facts[3] == 60 and len(facts) == 4
    assert len(arithmetic) == 2 and arithmetic[1] == 60
    (result,) = curate.score(ws, cg, target="facts", models=NARROW, names={"influence": "cg"})
    assert "2 steps of conjugate gradient leave a residual of" in result.note
