"""What holds for every weighting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from curate.kinds.registry import find, names
from curate.kinds.signals import Forward, Products, Step
from curate.models.head import Head

WEIGHTINGS = names("weighting")
HEAD = np.random.default_rng(9).normal(size=(30, 7)).astype(np.float32)


def step_of(number: int, samples: np.ndarray) -> Step:
    """Some of 12 samples, as every weighting asks to see them."""
    rng = np.random.default_rng(5)
    loss, column, counts = rng.gamma(2.0, size=12), rng.normal(size=12) ** 2, rng.integers(1, 6, 12)
    states, tokens = (
        torch.from_numpy(rng.normal(size=(12, 7))),
        np.split(rng.gamma(1.0, size=counts.sum()), np.cumsum(counts)[:-1]),
    )
    base = np.concatenate([tokens[i] for i in samples] or [np.zeros(0)])
    g, q = rng.normal(size=(12, 20))[samples], rng.normal(size=20)
    products = Products(g @ g.T, g @ q, float(q @ q))
    shown = (loss[samples], column[samples], counts[samples], base, states[torch.from_numpy(samples)])
    lengths, hidden = np.arange(1, 13)[samples] % 4 + 1, torch.zeros(len(samples), 4, 7)
    for i, length in enumerate(lengths):
        hidden[i, :length] = states[samples[i], None].float() * torch.arange(1, length + 1)[:, None]
    outputs = Forward(None, counts[samples], hidden, lengths, head=Head(torch.from_numpy(HEAD)))
    now = np.concatenate([tokens[i][::-1] for i in samples] or [np.zeros(0)])
    return Step(number, *shown, products, outputs, room=min(3, len(samples)), lr=0.1, token_loss=now)


def begun(weighting: Any) -> Any:
    whole = step_of(1, np.arange(12))
    return weighting.refreshed(whole.states[:4], weighting.init(whole.column))  # type: ignore[index]


def of_each(values: np.ndarray, step: Step) -> list[np.ndarray]:
    """Each sample's weight, or its tokens' weights."""
    assert step.counts is not None
    many = step.counts if len(values) == step.counts.sum() else np.ones(len(step.counts), int)
    return np.split(values, np.cumsum(many)[:-1])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_and_none_is_negative(name: str) -> None:
    weighting = find("weighting", name)()
    for samples in (np.arange(12), np.array([3]), np.array([], np.int64)):
        step = step_of(1, samples)
        if weighting.chooses and not step.room:
            continue  # there is always a candidate
        weights, _ = weighting.update(step, begun(weighting))
        if weighting.chooses:
            assert 1 <= np.count_nonzero(weights.values) <= step.room
        assert np.isfinite(weights.values).all() and (weights.values >= 0).all()
        assert len(weights.values) in (len(samples), step.counts.sum())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_of_single_samples_does_not_depend_on_the_others(name: str) -> None:
    weighting = find("weighting", name)()
    state, order = begun(weighting), np.array([7, 0, 3, 11])
    whole, _ = weighting.update(step_of(1, order), state)
    if weighting.scope == "sample":
        apart = np.concatenate([weighting.update(step_of(1, order[i : i + 1]), state)[0].values for i in range(4)])
        assert apart == pytest.approx(whole.values, rel=1e-12)
    else:  # then it depends on no order
        step, turned = step_of(1, order), step_of(1, order[::-1].copy())
        again, _ = weighting.update(turned, state)
        for mine, its in zip(of_each(whole.values, step), of_each(again.values, turned)[::-1], strict=True):
            assert its == pytest.approx(mine, rel=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_s_state_is_arrays_that_a_checkpoint_holds(name: str, tmp_path: Any) -> None:
    from safetensors.numpy import load_file, save_file

    weighting = find("weighting", name)()
    state = begun(weighting)
    _, state = weighting.update(step_of(1, np.arange(6)), state)
    save_file(state, tmp_path / "state")
    kept = load_file(tmp_path / "state")
    a, b = (weighting.update(step_of(2, np.arange(6, 12)), its)[0].values for its in (state, kept))
    assert a.tolist() == b.tolist()
