"""Per-sample gradients, directions and projections against one sample at a time by autograd, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.gradients.backward import Backward
from curate.gradients.directions import forward_mode, ghost
from curate.gradients.per_sample import Outer, PerSample, Thin
from curate.gradients.sketches import gram
from curate.hashing import fingerprint
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import Encoded, encode
from curate.models.usage import Usage
from curate.numerics.projections import Sjlt, projector
from tests.oracles import gradients as slow
from tests.support.gradients import CONFIGS, LORA, backward_of, model_of, samples, tokens


def usage() -> dict[str, Usage]:
    return {phase: Usage("cpu", 0) for phase in ("forward", "backward", "projection")}


def per_sample(model: Backward, encoded: list[Encoded]) -> list[PerSample]:
    return model.gradients(encoded, usage()).parameters


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_a_batch_are_those_of_each_sample_alone(name: str, lora: bool) -> None:
    model, encoded = backward_of(CONFIGS[name], lora), samples()
    alone = [slow.gradient(model.lm.model, tokens(one), model.parameters) for one in encoded]
    torch.manual_seed(1)
    for order in ([0, 1, 2, 3, 4, 5, 6], [4, 2], [3], [6, 5, 4, 3, 2, 1, 0]):
        found = per_sample(model, [encoded[i] for i in order])
        assert [g.name for g in found] == list(model.parameters)
        for g in found:
            wanted = torch.stack([alone[i][g.name] for i in order])
            assert g.full().shape == wanted.shape and close(g.full(), wanted), g.name
            assert close(g.total(), wanted.sum(0)), g.name
            assert close(g.squares(), wanted.flatten(1).square().sum(1)), g.name
            for k in (1, 3):
                q = torch.randn(k, *g.shape, dtype=torch.float64)
                assert close(g.dot(q), wanted.flatten(1) @ q.flatten(1).T), g.name


@pytest.mark.parametrize(("name", "lora"), [(name, lora) for name in CONFIGS for lora in (False, True)])
def test_ghost_products_and_forward_mode_and_the_dot_product_agree(name: str, lora: bool) -> None:
    model, encoded = backward_of(CONFIGS[name], lora), samples()
    torch.manual_seed(2)
    q = {name: torch.randn(2, *p.shape, dtype=torch.float64) for name, p in model.parameters.items()}
    ids, _, supervised = model.lm.padded(encoded, 30)
    by_ghost = ghost(per_sample(model, encoded), q)
    by_jvp = forward_mode(model, ids, supervised, q)
    alone = [slow.flat(slow.gradient(model.lm.model, tokens(one), model.parameters)) for one in encoded]
    by_hand = slow.dots(alone, [slow.flat({n: v[k] for n, v in q.items()}) for k in range(2)])
    assert close(by_ghost, by_hand)
    # Llama's and Qwen's norms compute in float32 whatever the model's numbers are.
    assert close(by_jvp, by_hand, 1e-10 if "gpt2" in name else 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2, with places and layer norms"])
def test_thin_gradients_kept_whole_are_those_of_their_factors(name: str) -> None:
    """All that is asked of them, of either side that is thin, and what making them costs."""
    lm = backward_of(CONFIGS[name], True)
    usage = {phase: Usage("cpu", 0) for phase in ("forward", "backward")}
    plain = lm.gradients(samples(), usage).parameters
    before, lm.thin = usage["backward"].flops, True
    kept = lm.gradients(samples(), usage).parameters
    made = 0.0
    lot, some = torch.Generator().manual_seed(0), torch.tensor([5, 0, 2])
    for one, other in zip(plain, kept, strict=True):
        assert isinstance(one, Outer) and isinstance(other, Thin) and one.name == other.name
        made += one.flops()
        weights, directions = torch.randn(7, generator=lot), torch.randn(2, *one.shape, generator=lot)
        for a, b in (
            (one.full(), other.full()),
            (one.total(), other.total()),
            (one.total(weights), other.total(weights)),
            (one.squares(), other.squares()),
            (one.dot(directions.double()), other.dot(directions.double())),
            (one.of(some).full(), other.of(some).full()),
        ):
            assert torch.allclose(a.double(), b.double(), rtol=1e-10, atol=1e-12), one.name
        assert other.total(weights).is_contiguous() and bool(other.finite().all()) and not other.flops()
    assert usage["backward"].flops - 2 * before == pytest.approx(made)


def test_a_layer_that_is_not_known_is_refused_by_the_parameter_s_name() -> None:
    lm = model_of(CONFIGS["llama"], lora=False)
    layer = lm.model.model.layers[0]

    class Scaled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2

    layer.mlp.up_proj = Scaled(24, 40, bias=False, dtype=torch.float64)
    with pytest.raises(CurateError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is of a Scaled, whose per-sample"):
        Backward.of(lm)

    class Squared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((24,), 0.5, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight**2

    layer.mlp.up_proj = torch.nn.Linear(24, 40, bias=False, dtype=torch.float64)
    layer.input_layernorm = Squared()
    with pytest.raises(CurateError, match=r"input_layernorm\.weight of a Squared does not scale or shift its output"):
        per_sample(Backward.of(lm), samples())


def test_a_sample_without_a_finite_gradient_is_zero_and_said_and_the_others_stand() -> None:
    model, encoded = backward_of(CONFIGS["llama"], dtype=torch.float32), samples()
    with torch.no_grad():  # of a token that only the third sample has
        model.parameters["model.embed_tokens.weight"][60] = float("inf")
    for one in encoded:
        one.ids[one.ids == 60] = 1
    encoded[2].ids[3] = 60
    encoded[5].supervised[:] = False
    found = model.gradients(encoded, usage())
    assert found.error.tolist()[2] == "its gradient is not finite"
    assert found.error.tolist()[5].startswith("nothing of it is supervised")
    assert (found.error[[0, 1, 3, 4, 6]] == "").all()
    assert found.good.tolist() == [0, 1, 3, 4, 6]
    others = per_sample(model, [encoded[i] for i in (0, 1, 3, 4, 6)])
    for whole, alone in zip(found.parameters, others, strict=True):
        assert close(whole.full(), alone.full(), 1e-4)
        assert close(whole.total(), alone.total(), 1e-4)


def test_of_a_model_with_lora_nothing_else_is_given_a_gradient() -> None:
    model = backward_of(CONFIGS["llama"], lora=True)
    per_sample(model, samples())
    assert all(p.grad is None and not p.requires_grad for p in model.lm.model.parameters())
    assert set(model.parameters) == {n for n in model.parameters if "lora_" in n}


# --- projections -----------------------------------------------------------------------------------------


def matrix(kind: Any, dim: int, seed: int, n: int, nonzeros: int = 1, name: str = "w") -> torch.Tensor:
    """The projection of one parameter of n numbers, written out [n, dim]."""
    into = torch.zeros(n, dim, dtype=torch.float64)
    projector(kind, dim, seed, nonzeros, {name: n}).add(into, name, torch.eye(n, dtype=torch.float64))
    return into


@pytest.mark.parametrize(("kind", "nonzeros"), [("sjlt", 1), ("sjlt", 3), ("rademacher", 1)])
def test_inner_products_are_unbiased_with_the_variance_of_theory(kind: str, nonzeros: int) -> None:
    rng, n, dim = np.random.default_rng(0), 200, 64
    x = rng.normal(size=n) * (1 + 9 * (rng.random(n) < 0.05))  # some entries stand out, as gradients' do
    y = 0.5 * x + rng.normal(size=n)
    found = []
    for seed in range(1500):
        p = matrix(kind, dim, seed, n, nonzeros).numpy()
        found.append(float((x @ p) @ (y @ p)))
    deviation = float(np.sqrt(((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x * x * y * y).sum()) / dim))
    assert abs(np.mean(found) - x @ y) < 4 * deviation / 1500**0.5
    assert 0.75 * deviation < np.std(found) < 1.3 * deviation


def test_a_projection_s_entries_are_those_of_their_definition() -> None:
    """SplitMix64 over Python's integers, one entry at a time."""
    mask = 2**64 - 1

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    def hashed(purpose: str, index: int) -> int:
        key = (int(fingerprint(7, purpose, "w"), 16) - 2**63) & mask
        return mixed((mixed(index ^ key) + key) & mask)

    def sign(word: int, bit: int) -> int:
        return 1 if word >> bit & 1 else -1

    n, dim = 150, 70
    dense, sparse = matrix("rademacher", dim, 7, n), matrix("sjlt", dim, 7, n)
    for i in (0, 1, 63, 64, 69, 70, 149):
        row = [sign(hashed("rademacher", i * 2 + j // 64), j % 64) / dim**0.5 for j in range(dim)]
        assert dense[i].tolist() == pytest.approx(row)
        turn = hashed("sjlt 0 turns", i // dim)
        turn -= 2**64 if turn >= 2**63 else 0  # as torch has it, with a sign
        wanted = [0] * dim
        wanted[(i % dim + turn) % dim] = sign(hashed("sjlt 0", i // 64), i % 64)
        assert sparse[i].tolist() == wanted


def test_a_projection_is_of_its_seed_and_the_parameter_s_name_and_nothing_else() -> None:
    for kind in ("sjlt", "rademacher"):
        assert torch.equal(matrix(kind, 32, 1, 100), matrix(kind, 32, 1, 100))
        assert not torch.equal(matrix(kind, 32, 1, 100), matrix(kind, 32, 2, 100))
        assert not torch.equal(matrix(kind, 32, 1, 100), matrix(kind, 32, 1, 100, name="v"))
        assert torch.equal(matrix(kind, 32, 1, 100)[:70], matrix(kind, 32, 1, 70))  # and so in any block


def test_the_sparse_projection_in_few_kernels_is_the_one_in_pieces() -> None:
    sjlt = Sjlt(64, 3)
    g = torch.randn(5, 200, dtype=torch.float64)
    signs, turns = sjlt._layout("w", 200, 0, g.device)
    a, b = torch.zeros(5, 64, dtype=torch.float64), torch.zeros(5, 64, dtype=torch.float64)
    sjlt.add(a, "w", g)
    sjlt._gathered(b, g * signs, turns)
    assert close(a, b)


def test_more_dimensions_than_numbers_are_refused() -> None:
    with pytest.raises(CurateError, match="dim=101, and the parameters only 100 elements; use a smaller dim"):
        projector("sjlt", 101, 0, 1, {"a": 60, "b": 40})
    assert projector("none", 101, 0, 1, {"a": 60, "b": 40}).dim == 100
    with pytest.raises(CurateError, match="nonzeros=0: each element goes to at least one of the dim=10"):
        projector("sjlt", 10, 0, 0, {"a": 60})


# --- a real model ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_model_s_gradients_in_float32(smollm2: Path) -> None:
    """SmolLM2-135M with LoRA, batches of three against one at a time."""
    model, tokenizer = load(ModelChoice(str(smollm2), device="cpu"))
    import peft  # takes seconds

    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], **LORA))
    lm = LanguageModel(ModelChoice("tiny", device="cpu"), (adapted.get_base_model(), tokenizer))
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    backward = Backward.of(lm)
    turns = [("user", "What is 6 times 7?"), ("assistant", "It is 42."), ("user", "And 8 times 8?")]
    said = [[*turns[: 2 * i], ("user", f"Say {i} words."), ("assistant", "word " * (3 * i + 1))] for i in (0, 1, 1)]
    samples = [{"messages": [{"role": r, "content": c, "extra": None} for r, c in one], "text": None} for one in said]
    encoded = encode(tokenizer, samples, 256)
    found = {g.name: g.full() for g in per_sample(backward, encoded)}
    for i, one in enumerate(encoded):
        alone = slow.gradient(lm.model, tokens(one), backward.parameters)
        whole = torch.cat([found[name][i].flatten() for name in alone])
        assert float((whole - slow.flat(alone)).norm() / slow.flat(alone).norm()) < 1e-3


# --- concentration -----------------------------------------------------------------------------------------


def test_the_gram_matrix_is_that_of_whole_gradients_and_projected_in_expectation() -> None:
    model, encoded = backward_of(CONFIGS["llama"]), samples()
    named = {n: p for n, p in model.parameters.items() if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
    alone = [slow.flat(slow.gradient(model.lm.model, tokens(one), named)) for one in encoded]
    wanted = slow.dots(alone, alone).numpy()
    model.lm.batch_tokens = 40  # several batches
    found, usage = gram(model, encoded, 0)
    assert np.abs(found - wanted).max() <= 1e-10 * np.abs(wanted).max() and usage.flops > 0
    draws = np.array([gram(model, encoded, 8, seed)[0] for seed in range(60)])
    off = (draws.mean(0) - wanted) / (draws.std(0) / np.sqrt(60))
    assert np.abs(off).max() < 5
