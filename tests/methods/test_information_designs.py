"""FisherSFT over tokens and SPICE on raw gradients, from the model to the manifest, against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.kinds.text import Text
from curate.kinds.vectors import Vectors
from curate.methods.scores.embed_tokens import EmbedTokens
from curate.methods.scores.less import Less
from curate.methods.selectors.fishersft import Fishersft
from curate.methods.selectors.spice import Spice
from curate.models.choice import ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import Encoded, encode
from curate.numerics.projections import Rademacher
from curate.numerics.triangles import unpacked
from curate.store.commits import Parts
from curate.store.encoding import read_table
from curate.store.workspace import Workspace
from curate.tables.vector_table import vectors_of
from curate.verbs.select import SelectionSpec
from tests.oracles import selectors as slow
from tests.oracles.language_model import gradient, states_before
from tests.support.narrow import NARROW, WIDTH


def said(prompt: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, **more}]


SAMPLES: list[dict[str, Any]] = [
    {"text": None, "messages": said("two plus two?", "four")},
    {"text": "a river runs through the town and the mill turns. " * 12, "messages": None},
    {"text": "one tree", "messages": None},
    {"text": None, "messages": [*said("sing", "la", weight=0.25), *said("more", "la la la")]},
]


@pytest.fixture(scope="module")
def plain() -> Any:
    """The narrow model in float64."""
    return AutoModelForCausalLM.from_pretrained(NARROW, dtype=torch.float64).eval()


def rows_of(plain: Any, one: Encoded) -> np.ndarray:
    """The states of a sample's supervised tokens, each times the root of its weight, float64 [S, D]."""
    states = states_before(plain, one.ids.tolist(), one.supervised.tolist()).numpy()
    return states if one.weight is None else states * np.sqrt(one.weight[one.supervised])[:, None]


def encoded(samples: list[dict[str, Any]]) -> list[Encoded]:
    return encode(LanguageModel(ModelChoice(NARROW)).tokenizer, samples, 512)


@pytest.mark.parametrize("dim", [0, 8, WIDTH, 1000])
@pytest.mark.parametrize("batch_tokens", [1, 5000])
def test_a_sample_s_vector_is_a_root_of_the_sum_of_its_tokens_outer_products(
    plain: Any, dim: int, batch_tokens: int
) -> None:
    model = LanguageModel(ModelChoice(NARROW, batch_tokens=batch_tokens))
    found = score_samples({"base": model}, SAMPLES, {"x": EmbedTokens(dim=dim, seed=4).vectors()})[0]["x"]
    d = 8 if dim == 8 else WIDTH  # where the model is no wider, nothing is projected
    assert found["vector"].shape == (4, d * (d + 1) // 2) and not any(found["error"])
    signs = Rademacher(8, 4).entries("hidden states", 0, WIDTH, torch.device("cpu")).double().numpy()
    for flat, one in zip(found["vector"], encoded(SAMPLES), strict=True):
        rows = rows_of(plain, one)
        moment = sum(np.outer(x, x) for x in (rows @ signs if dim == 8 else rows))
        factor = unpacked(flat.astype(np.float64))
        assert np.abs(factor.T @ factor - moment).max() < 1e-5 * np.abs(moment).max()
        assert (np.diagonal(factor) >= 0).all()


def test_the_nearness_of_tokens_is_the_mean_cosine_of_second_moments_and_what_has_none_is_said() -> None:
    rng = np.random.default_rng(1)
    factors = np.triu(rng.normal(size=(7, 3, 3)))
    moments = [f.T @ f for f in factors]
    flat = factors[:, *np.triu_indices(3)]
    (step,) = EmbedTokens().passes(None)
    assert step.open is not None
    opened = step.open(Vectors.of(flat[4:]))
    scores = step.map(Vectors.of(np.concatenate([flat[:4], np.zeros((1, 6))])), opened)
    for moment, score in zip(moments[:4], scores["score"], strict=False):
        each = [float((moment * v).sum() / np.linalg.norm(moment) / np.linalg.norm(v)) for v in moments[4:]]
        assert score == pytest.approx(np.mean(each), abs=1e-12)
    assert np.isnan(scores["score"][4]) and scores["error"][4]
    with pytest.raises(CurateError, match="no example of the target has a vector"):
        step.open(Vectors.of(np.zeros((2, 6))))
    with pytest.raises(CurateError, match="dim=-1 of embed_tokens"):
        EmbedTokens(dim=-1)
    silent = [{"text": None, "messages": said("two plus two?", "four")[:1]}, SAMPLES[2]]
    found = score_samples({"base": LanguageModel(ModelChoice(NARROW))}, silent, {"x": EmbedTokens().vectors()})[0]["x"]
    assert "nothing of it is supervised" in found["error"][0] and found["error"][1] == ""


def in_the_pool(ws: Workspace) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of the pool's samples, and these, by ascending id."""
    tables = [read_table(shard.path, Text.schema.names) for shard in ws.shards()]
    rows = sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])
    return [row["id"] for row in rows], [{k: v for k, v in row.items() if k != "id"} for row in rows]


def chosen_of(ws: Workspace, name: str) -> list[str]:
    return [row["id"] for row in curate.sql(ws, f"SELECT id FROM {name} ORDER BY rank")]


def stored(ws: Workspace, name: str) -> Vectors:
    """Stored vectors by ascending id."""
    tables = [read_table(Parts(ws.table_folder("vectors", name)).path(shard.name)) for shard in ws.shards()]
    ids = np.concatenate([table["id"].to_numpy(zero_copy_only=False) for table in tables])
    parts = [vectors_of(table) for table in tables]
    joined = [np.concatenate([getattr(part, field) for part in parts]) for field in ("unit", "norm", "error")]
    return Vectors(*joined).take(np.argsort(ids))


def test_fishersft_over_tokens_in_a_workspace_is_brute_force_on_the_model_s_own_states(few_ws: Any, plain: Any) -> None:
    curate.score(few_ws, EmbedTokens(), models=NARROW)
    ids, samples = in_the_pool(few_ws)
    rows = [rows_of(plain, one) for one in encoded(samples)]
    found = stored(few_ws, "embed_tokens").raw(np.arange(len(ids)))
    for flat, own in zip(found, rows, strict=True):  # in float16
        factor, moment = unpacked(flat), own.T @ own
        assert np.abs(factor.T @ factor - moment).max() < 2e-3 * np.abs(moment).max()
    curate.select(few_ws, "wide", Fishersft(of="tokens"), SelectionSpec(top=6, vectors="embed_tokens"))
    roots = [unpacked(flat) for flat in found]
    wanted, gains = slow.design(roots, 6, 1.0)  # the sum of a root's rows' outer products is that of the tokens'
    assert chosen_of(few_ws, "wide") == [ids[i] for i in wanted]
    _, exact = slow.design([rows[i] for i in wanted], 6, 1.0)
    assert sum(gains) == pytest.approx(sum(exact), rel=1e-2)
    spent = [row["flops"] for row in curate.ledger(few_ws) if row["stage"] == "select"]
    assert spent[0] >= 24 * 4 * WIDTH**3
    with pytest.raises(CurateError, match="these vectors are of tokens"):
        curate.select(few_ws, "x", Fishersft(), SelectionSpec(top=6, vectors="embed_tokens"))


def test_spice_on_less_s_raw_gradients_spans_most_of_the_gradients_themselves(few_ws: Any, plain: Any) -> None:
    """variant=sgd stores gradients without Adam's moments; without a projection they are autograd's."""
    curate.score(few_ws, Less(variant="sgd", projector="none"), checkpoints=[f"{NARROW}@1e-3"])
    ids, samples = in_the_pool(few_ws)
    plain.requires_grad_(True)
    g = np.stack([gradient(plain, one.ids.tolist(), one.supervised.tolist()).numpy() for one in encoded(samples)])
    found = stored(few_ws, "less").raw(np.arange(len(ids)))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.linalg.norm(g, axis=1), rel=1e-3)
    cosines = (found @ g.T).diagonal() / np.linalg.norm(found, axis=1) / np.linalg.norm(g, axis=1)
    assert cosines.min() > 0.9999
    alpha, chosen = 1 / float((g**2).sum(1).mean()), list[int]()

    def volume(some: list[int]) -> float:
        return float(np.linalg.slogdet(np.eye(len(some)) + alpha * g[some] @ g[some].T)[1])

    def worth(i: int) -> float:
        against = 0.0
        if chosen:
            mean = g[chosen].mean(0)
            against = max(0.0, -float(g[i] @ mean / np.linalg.norm(g[i]) / np.linalg.norm(mean)))
        return volume([*chosen, i]) - volume(chosen) - 0.1 * against

    while len(chosen) < 6:
        chosen.append(max((i for i in range(len(ids)) if i not in chosen), key=worth))
    curate.select(few_ws, "spread", Spice(alpha=alpha), SelectionSpec(top=6, vectors="less"))
    assert chosen_of(few_ws, "spread") == [ids[i] for i in chosen]
