"""What the long-horizon audit selects by: logits without making them, UDS's memory, LHAS's terms; and histories."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PhiConfig

import curate
from curate.errors import CurateError
from curate.hashing import keyed_uniform
from curate.kinds.selector import Budget, Candidates
from curate.methods.scores.embed_lm import EmbedLm
from curate.methods.scores.embed_logits import EmbedLogits
from curate.methods.scores.nuclear import Nuclear
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.lhas import Lhas
from curate.methods.selectors.random import Random
from curate.methods.selectors.uds import Uds
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.load import load
from curate.models.tokens import encode
from curate.store.encoding import read_json
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.oracles import selectors as slow

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
SAMPLES = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "text": None}
    for q, a in (("what is two and two?", "four"), ("name a long river", "the nile, which runs north " * 4), ("a", "b"))
] + [{"messages": None, "text": "a plain text about apples and trees"}]


def model_of(config: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return LanguageModel(ModelChoice("tiny", device="cpu"), (model, load(ModelChoice("tiny"))[1]))


def logits_of(lm: LanguageModel) -> list[np.ndarray]:
    """All logits of each sample alone, [N, V]."""
    encoded = encode(lm.tokenizer, SAMPLES, 256)
    with torch.no_grad():
        each = [lm.model(torch.from_numpy(one.ids.astype(np.int64))[None]).logits[0] for one in encoded]
    return [logits.double().numpy() for logits in each]


def column(lm: LanguageModel, method: Any) -> np.ndarray:
    (step,) = method.passes(None)
    return score_samples({"base": lm}, SAMPLES, {"x": step})[0]["x"]["score"]


def projected(lm: LanguageModel, method: EmbedLogits) -> np.ndarray:
    return score_samples({"base": lm}, SAMPLES, {"x": method.vectors()})[0]["x"]["vector"].astype(np.float64)


# --- logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES), PhiConfig(**{**SIZES, "hidden_size": 32})], ids=["plain head", "head with a bias"]
)
def test_the_nuclear_norm_is_that_of_the_logits_by_scipy(config: Any) -> None:
    lm = model_of(config)
    lm.model.float()  # as states are given to a score
    logits = logits_of(lm)
    from scipy.linalg import svdvals

    wanted = np.array([svdvals(one).sum() for one in logits])
    found = column(lm, Nuclear())
    assert found == pytest.approx(wanted, rel=1e-4)
    assert column(lm, Nuclear(normalize="tokens")) == pytest.approx(wanted / [len(one) for one in logits], rel=1e-4)
    lengths = np.array([np.linalg.norm(one) for one in logits])
    directions = column(lm, Nuclear(normalize="frobenius"))
    assert directions == pytest.approx(wanted / lengths, rel=1e-4)
    assert (directions >= 1).all() and (directions <= np.sqrt([min(one.shape) for one in logits])).all()


def test_padding_has_no_part_in_it() -> None:
    lm = model_of(LlamaConfig(**SIZES))
    together = column(lm, Nuclear()), projected(lm, EmbedLogits())
    lm.batch_tokens = 1  # every sample alone
    alone = column(lm, Nuclear()), projected(lm, EmbedLogits())
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a, b, rtol=1e-6)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    lm = model_of(Gemma2Config(**SIZES, num_key_value_heads=4, head_dim=6, final_logit_softcapping=2.0))
    with pytest.raises(CurateError, match="tiny scales or caps its logits"):
        column(lm, Nuclear())


def test_projected_distances_are_those_of_the_logits_in_expectation_and_as_released() -> None:
    lm = model_of(LlamaConfig(**SIZES))
    logits = logits_of(lm)
    longest = max(map(len, logits))
    padded = np.stack([np.pad(one, ((0, longest - len(one)), (0, 0))) for one in logits])
    pairs = [(0, 1), (1, 2), (2, 3)]
    wanted = np.array([np.square(padded[i] - padded[j]).sum() for i, j in pairs])
    draws = []
    for seed in range(60):
        z = projected(lm, EmbedLogits(d1=16, d2=8, scale="isometric", seed=seed))
        draws.append([np.square(z[i] - z[j]).sum() for i, j in pairs])
    off = (np.mean(draws, axis=0) - wanted) / (np.std(draws, axis=0) / np.sqrt(len(draws)))
    assert (np.abs(off) < 4).all(), off
    plain, released = (projected(lm, EmbedLogits(scale=scale)) for scale in ("isometric", "released"))  # type: ignore[arg-type]
    assert np.allclose(released, plain * np.sqrt(2048 * 512) / 2, rtol=1e-6)


# --- UDS ---------------------------------------------------------------------------------------------------


def pool(n: int = 60, seed: int = 0, tokens: bool = False) -> Candidates:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 40, n).tolist() if tokens else ()
    return Candidates.of(rng.normal(size=n).tolist(), vectors=3 * rng.normal(size=(n, 5)), sizes=sizes)


@pytest.mark.parametrize("memory", [0, 1, 7, 1024])
@pytest.mark.parametrize(("keep", "amount"), [(1, 15), (4, 20), (3, 60)])
def test_uds_is_its_recursion_with_a_memory_first_in_first_out(memory: int, keep: int, amount: int) -> None:
    given = pool()
    raw = given.vectors.raw(np.arange(60))  # type: ignore[union-attr]
    order = np.argsort(keyed_uniform(given.ids, 5, "uds"), kind="stable")
    batches = [sorted(some.tolist()) for some in np.array_split(order, -(-amount // keep))]
    wanted = slow.utility_and_diversity(given.require_values("uds"), raw, batches, keep, memory, 0.7)[:amount]
    found = Uds(alpha=0.7, memory=memory, keep=keep).select(given, Budget("rows", amount), 5)
    assert found.tolist() == wanted and len(wanted) == amount


def test_uds_begins_with_what_was_learnt_before_and_spends_a_budget_of_tokens() -> None:
    given = pool(tokens=True)
    found = Uds().select(given, Budget("tokens", 400), 0)
    spent = given.sizes[found].sum()
    assert 400 - given.sizes.min() < spent <= 400 and len(set(found.tolist())) == len(found)
    near = Candidates.of([0.0, 0.0], vectors=[[1, 0], [0, 1]], history=[[1, 0]])
    assert Uds(alpha=1.0).select(near, Budget("rows", 1), 0).tolist() == [1]


# --- LHAS --------------------------------------------------------------------------------------------------


def stage(seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(200, 6))
    return Candidates.of(
        rng.normal(size=200).tolist(),
        vectors=vectors,
        target=rng.normal(size=(5, 6)) + 1,
        history=rng.normal(size=(40, 6)) + [2, 0, 0, 0, 0, 0],
    )


def test_lhas_is_its_formula() -> None:
    given = stage()
    unit, target, history = given.vectors, given.target, given.history
    assert unit is not None and target is not None and history is not None
    score = slow.long_horizon(
        given.require_values("lhas"),
        *(v.unit.astype(np.float64) for v in (unit, target, history)),
        (0.5, 2.0, 1.5),
    )
    found = Lhas(lam=0.5, eta=2.0, rho=1.5).select(given, Budget("rows", 50), 0)
    assert found.tolist() == np.argsort(-score, kind="stable")[:50].tolist()


@pytest.mark.parametrize(("memory", "alpha"), [(0, 1.0), (3, 0.5), (45, 1.0), (1024, 0.2)])
def test_lhas_by_the_utility_diversity_score_is_its_recursion(memory: int, alpha: float) -> None:
    """The buffer begins with the history of 40, and what is chosen enters it; without a buffer it is as usual."""
    given = stage()
    unit, target, history = given.vectors, given.target, given.history
    assert unit is not None and target is not None and history is not None
    values = given.require_values("lhas")
    score = slow.long_horizon(values, *(v.unit.astype(np.float64) for v in (unit, target, history)), (0.5, 2.0, 1.5))
    raw, past = unit.raw(np.arange(200)), list(history.raw(np.arange(40)))
    wanted = slow.one_by_one(score, values, raw, past, 20, memory, alpha)
    method = Lhas(lam=0.5, eta=2.0, rho=1.5, utility="uds", memory=memory, alpha=alpha)
    assert method.select(given, Budget("rows", 20), 0).tolist() == wanted
    usual = Lhas(lam=0.5, eta=2.0, rho=1.5).select(given, Budget("rows", 20), 0).tolist()
    assert (wanted == usual) == (memory == 0)


def test_lhas_by_the_utility_diversity_score_leaves_what_it_has_chosen() -> None:
    """Two of the same are the highest; the second counts less once the first is in the buffer, without any history."""
    given = Candidates.of([1.0, 0.99, 0.9], vectors=[[1, 0], [1, 0], [0, 1]], target=[[1, 1]])
    spent = Budget("rows", 2)
    assert Lhas().select(given, spent, 0).tolist() == [0, 1]
    assert Lhas(utility="uds", alpha=1.0).select(given, spent, 0).tolist() == [0, 2]
    assert Lhas(utility="uds", alpha=1.0, memory=0).select(given, spent, 0).tolist() == [0, 1]


@pytest.mark.parametrize(("weight", "term", "sign"), [("lam", "c", 1), ("eta", "p", 1), ("rho", "a", -1)])
@pytest.mark.parametrize("repetition", ["direction", "cluster"])
def test_the_chosen_ones_mean_of_a_term_is_monotone_in_its_own_weight(
    weight: str, term: str, sign: int, repetition: Any
) -> None:
    for seed in range(4):
        given, means = stage(seed), []
        for value in (0.0, 0.3, 1.0, 3.0, 10.0):
            method = Lhas(**{weight: value}, repetition=repetition, clusters=7)
            chosen = method.select(given, Budget("rows", 50), 0)
            means.append(sign * method.terms(given, 0)[term][chosen].mean() if value else None)
        rising = [m for m in means if m is not None]
        assert all(b >= a - 1e-12 for a, b in zip(rising, rising[1:], strict=False)), means
        assert rising[-1] > rising[0]


def test_a_stage_without_a_past_goes_by_utility_and_proxy() -> None:
    given = Candidates.of([1.0, 0.0, 0.5], vectors=[[1, 0], [0, 1], [1, 1]], target=[[0, 1]])
    terms = Lhas().terms(given, 0)
    assert not terms["c"].any() and not terms["a"].any() and terms["p"].argmax() == 1
    assert Lhas(eta=0).select(given, Budget("rows", 3), 0).tolist() == [0, 2, 1]


# --- through `curate select` -------------------------------------------------------------------------------


@pytest.fixture
def with_vectors(small_ws: Workspace) -> Workspace:
    tiny = ModelChoice("tiny", device="cpu")
    for target in ("facts", "words"):
        curate.score(small_ws, EmbedLm(), target=target, models=tiny)
    curate.score(small_ws, Nuclear(), models=tiny)
    return small_ws


def test_a_history_is_manifests_and_targets_the_latest_last(with_vectors: Workspace) -> None:
    ws = with_vectors
    curate.select(ws, "first", Random(), SelectionSpec(top=30, seed=3))
    its = SelectionSpec(by="nuclear", top=20, vectors="embed_lm", target="facts", history="words,first")
    curate.select(ws, "afterwards", Lhas(), its)
    plain = curate.select(
        ws, "without", Lhas(), SelectionSpec(by="nuclear", top=20, vectors="embed_lm", target="facts")
    )
    chosen, other = (curate.sql(ws, f"SELECT row FROM {name} ORDER BY rank") for name in ("afterwards", "without"))
    assert len(chosen) == plain.rows == 20 and chosen != other
    lineage = read_json(ws.manifest_path("afterwards").with_suffix(".json"))
    assert lineage["history"].keys() == {"words", "first"}
    assert "--history words,first" in lineage["command"]
    again = curate.replay(ws, "again", str(ws.manifest_path("afterwards").with_suffix(".json")))
    assert not again.warnings


def test_a_history_that_is_not_there_or_not_used_is_refused(with_vectors: Workspace) -> None:
    ws = with_vectors
    choice = SelectionSpec(by="nuclear", top=5, vectors="embed_lm", target="facts", history="frist")
    with pytest.raises(CurateError, match="--history frist: there is no manifest and no target of that name"):
        curate.select(ws, "s", Lhas(), choice)
    with pytest.raises(CurateError, match="the selector 'kcenter' uses no history"):
        curate.select(ws, "s", Kcenter(), SelectionSpec(top=5, vectors="embed_lm", history="facts"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uds(alpha=-1), "uds needs alpha and memory of 0 or more"),
        (lambda: Lhas(rho=-1), "lhas needs weights and memory of 0 or more"),
        (lambda: EmbedLogits(d1=0), "embed_logits needs d1, d2 and length of 1 or more, not 0, 8, 512"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, said: str) -> None:
    with pytest.raises(CurateError, match=said):
        make()
