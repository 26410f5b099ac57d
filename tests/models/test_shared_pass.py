"""Samples behind common prefixes: what is computed of them is what the model makes of each sample alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BloomConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from curate.kinds.metric import Question
from curate.methods.metrics.choice import Choice
from curate.methods.scores.embed_lm import EmbedLm
from curate.models import forward
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.mixed_precision import MixedBody, MixedHead
from curate.models.prefix_states import CachedBody, Past, continues
from curate.models.shared_pass import SharedPass
from curate.models.tokens import Encoded
from tests.oracles.language_model import position_weighted, token_scores
from tests.support.models import METHODS
from tests.support.narrow import NARROW

CONTEXT = 128
SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
}  # fmt: skip
STRETCHED = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
WHOLE = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
}
OTHER = {
    "a window": MistralConfig(**SIZES, sliding_window=16),
    "a window in some layers": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "positions from the mask": BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4),
    "angles that depend on the length": LlamaConfig(**SIZES, rope_parameters=STRETCHED),
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.2) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return LanguageModel(ModelChoice(NARROW)).tokenizer


@pytest.fixture
def load(tokenizer: Any) -> Callable[..., LanguageModel]:
    def load(config: Any, **settings: Any) -> LanguageModel:
        choice = ModelChoice(NARROW, context=CONTEXT, device="cpu", **settings)
        return LanguageModel(choice, (made(config), tokenizer))

    return load


def samples() -> list[Encoded]:
    """Questions with options behind the same examples, whose answers are supervised, too; identical samples; rests of
    one token; nothing supervised; the whole context; and samples that share nothing."""
    chance = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [chance.randrange(300) for _ in range(n)]

    found, examples = list[Encoded](), tokens(60)
    for question in (tokens(20), tokens(33)):
        for length in (1, 2, 5):
            found.append(_encoded([*examples, *question, *tokens(length)], [(10, 20), (40, 50), (-length, 0)]))
    found += [copy(found[2]), copy(found[5])]  # identical
    found.append(_encoded([*examples, 7], [(-1, 0)]))  # a rest of one token behind the examples
    found.append(_encoded([*examples, *tokens(20)], []))  # nothing supervised
    found.append(_encoded([*examples, *tokens(CONTEXT - 60)], [(70, 0)]))
    found.append(_encoded([*examples, *tokens(CONTEXT - 60)], [(30, 0)], cut=True))
    found += [_encoded(found[-1].ids[:-1].tolist(), [(30, 0)])]  # the beginning of another
    found += [_encoded(tokens(n), [(1, 0)]) for n in (1, 2, 40, 90)]
    found[3].weight = np.where(np.arange(len(found[3].ids)) < 30, 0.5, 2.0).astype(np.float32)
    chance.shuffle(found)
    return found


def _encoded(ids: list[int], turns: list[tuple[int, int]], cut: bool = False) -> Encoded:
    supervised = np.zeros(len(ids), bool)
    for start, stop in turns:
        supervised[start : stop or None] = True
    supervised[0] = False
    return Encoded(np.array(ids, np.int32), supervised, cut)


def scores(model: LanguageModel, given: list[Encoded], vectors: bool = True) -> tuple[dict[str, Any], Any]:
    passes = {m.name: m.passes(None)[0] for m in METHODS} | ({"embed_lm": EmbedLm().vectors()} if vectors else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "encode", lambda _, samples, *__: list(samples))
        return score_samples({"base": model}, given, passes)  # type: ignore[arg-type]


def alone(model: LanguageModel) -> LanguageModel:
    """The same model, every sample as a whole."""
    other: Any = copy(model)
    other._sharing = lambda _: None
    return other


def agree(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 2e-6) -> None:
    for name, columns in wanted.items():
        assert found[name]["error"].tolist() == columns["error"].tolist()
        for column in set(columns) - {"error"}:
            np.testing.assert_allclose(found[name][column], columns[column], tolerance, tolerance, err_msg=name)


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_the_scores_are_those_of_each_sample_alone(name: str, load: Callable[..., LanguageModel]) -> None:
    model, given = load(WHOLE[name]), samples()
    columns, usage = scores(model, given)
    assert usage.tokens < 0.8 * sum(len(one.ids) for one in given) and usage.cut == 1
    slow = made(WHOLE[name]).double()
    for i, one in enumerate(given):
        if not one.supervised.any():
            assert "supervised" in columns["nll"]["error"][i]
            continue
        want = token_scores(slow, one.ids.tolist(), one.supervised.tolist())
        if one.weight is None:
            for score, column in (("nll", "nll"), ("entropy", "score"), ("el2n", "score")):
                assert columns[score][column][i] == pytest.approx(want[score], rel=1e-5, abs=1e-5)
        assert columns["nll"]["tokens"][i] == want["tokens"]
        vector = columns["embed_lm"]["vector"][i]
        assert np.abs(vector / np.linalg.norm(vector) - position_weighted(slow, one.ids.tolist())).max() < 1e-5
    agree(columns, scores(alone(model), given)[0])


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 90, 400])
def test_the_size_of_a_batch_does_not_matter(
    batch_tokens: int, vectors: bool, load: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given, sizes = load(WHOLE["llama"], batch_tokens=batch_tokens), samples(), list[tuple[int, int]]()
    after = CachedBody.after

    def noted(self: Any, ids: Any, valid: Any, places: Any, past: Past, keep: bool) -> Any:
        sizes.append((len(ids), ids.numel() + past.kept))
        return after(self, ids, valid, places, past, keep)

    assert model.continuing
    monkeypatch.setattr(CachedBody, "after", noted)
    columns, _ = scores(model, given, vectors)
    assert all(rows == 1 or size <= batch_tokens for rows, size in sizes) and len(sizes) > 3
    agree(columns, scores(alone(model), given, vectors)[0])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_products_in_bfloat16_go_on_behind_a_prefix(name: str, load: Callable[..., LanguageModel]) -> None:
    model, given = load(WHOLE[name], dtype="mixed_bfloat16"), samples()
    columns, usage = scores(model, given)
    assert usage.tokens < 0.8 * sum(len(one.ids) for one in given)
    agree(columns, scores(alone(model), given)[0], 0.01)
    if not model._mixed_body:  # under autocast
        return
    exact: Any = copy(model)  # the same code with products in float32
    exact.__dict__["continuing"] = exact.__dict__["_mixed_body"] = MixedBody(model.model, torch.float32)
    exact.__dict__["_mixed_head"] = MixedHead(model.head, torch.float32)
    agree(scores(exact, given)[0], scores(load(WHOLE[name]), given)[0], 1e-4)


def test_options_of_a_question_are_chosen_as_before(load: Callable[..., LanguageModel]) -> None:
    model = LanguageModel(ModelChoice(NARROW, device="cpu"))
    words, chance = "the cat sat on a mat and saw two big red dogs run far".split(), random.Random(0)
    asked = []
    for _ in range(6):
        text = " ".join(chance.choices(words, k=40))
        options = tuple(" ".join(chance.choices(words, k=n)) for n in (1, 2, 3, 1))
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": options[0]}]
        asked.append(Question(turns, options=options))
    found, wanted = Choice().evaluate(model, asked), Choice().evaluate(alone(model), asked)
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found.error.tolist() == wanted.error.tolist() and np.isfinite(found.values).sum() > 3
    assert found.usage.tokens < 0.4 * wanted.usage.tokens and found.usage.flops < 0.5 * wanted.usage.flops


# --- when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHER)
def test_another_layout_goes_the_ordinary_way(name: str, load: Callable[..., LanguageModel]) -> None:
    model, given = load(OTHER[name]), samples()
    assert not continues(model.model)
    (found, usage), (wanted, ordinary) = scores(model, given), scores(alone(model), given)
    assert usage == ordinary and usage.tokens == sum(len(one.ids) for one in given)
    for name, columns in wanted.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(found[name][column], values)


def test_a_model_whose_logits_are_no_plain_product_goes_the_ordinary_way(load: Callable[..., LanguageModel]) -> None:
    model, given = load(WHOLE["llama"]), samples()
    model.plain_head = False
    _, usage = scores(model, given, vectors=False)
    assert usage.tokens == sum(len(one.ids) for one in given)


def test_batches_in_which_nothing_is_shared_are_as_they_were(load: Callable[..., LanguageModel]) -> None:
    """Bit for bit: a short beginning that all have, as of a chat template, is no reason."""
    chance, model = random.Random(1), load(WHOLE["llama"], batch_tokens=300)
    stem = [chance.randrange(300) for _ in range(12)]
    lengths = [chance.randint(20, 90) for _ in range(40)]
    given = [_encoded([*stem, *(chance.randrange(300) for _ in range(n))], [(15, 0)]) for n in lengths]
    (found, usage), (wanted, ordinary) = scores(model, given), scores(alone(model), given)
    assert usage == ordinary
    assert all(np.array_equal(found[m][c], wanted[m][c], equal_nan=c != "error") for m in wanted for c in wanted[m])


# --- what it takes ---------------------------------------------------------------------------------------


def test_the_flops_are_those_that_torch_counts(load: Callable[..., LanguageModel]) -> None:
    model, given = load(WHOLE["llama"], batch_tokens=400), samples()
    model.model.set_attn_implementation("eager")
    assert model.continuing
    with FlopCounterMode(display=False) as counter:
        _, usage = scores(model, given, vectors=False)
    assert usage.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    _, ordinary = scores(alone(model), given, vectors=False)
    assert usage.flops < 0.8 * ordinary.flops and usage.tokens < usage.padded_tokens
    assert usage.flops_paper == ordinary.flops_paper


@pytest.mark.parametrize("most", [200, 150, 70, 20])
def test_where_memory_runs_out_the_batches_get_smaller(
    most: int, load: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """most: the tokens, with those that are kept, that there is memory for behind prefixes."""
    model, given, after = load(WHOLE["llama"], batch_tokens=1000), samples(), CachedBody.after
    wanted, whole = scores(alone(model), given)
    fits = []

    def small(self: Any, ids: Any, valid: Any, places: Any, past: Past, keep: bool) -> Any:
        fits.append(ids.numel() + past.kept <= most)
        if not fits[-1]:
            raise torch.OutOfMemoryError("out of memory")
        return after(self, ids, valid, places, past, keep)

    assert model.continuing
    monkeypatch.setattr(CachedBody, "after", small)
    columns, usage = scores(model, given)
    agree(columns, wanted)
    assert not all(fits) and model.batch_tokens < 1000
    assert (usage.tokens < whole.tokens) == (most > 100)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    load: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("another")

    model = load(WHOLE["llama"])
    monkeypatch.setattr(SharedPass, "_after", broken)
    with pytest.raises(RuntimeError, match="another"):
        scores(model, samples())
