"""The laws: what holds for every method found, whoever wrote it. A new file gets these for nothing."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import importlib
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import curate
from curate.gradients.gradient_model import GradientModel
from curate.kinds.metric import Question
from curate.kinds.registry import KINDS, find, help_text, names, settings_help
from curate.kinds.score import Target, run
from curate.kinds.selector import Budget, Candidates
from curate.kinds.signals import Forward, Products, Step
from curate.kinds.text import Text
from curate.kinds.vectors import Vectors
from curate.models.choice import CheckpointChoice, ModelChoice
from curate.models.forward import score_samples
from curate.models.head import Head
from curate.models.language_model import LanguageModel
from curate.models.sentence_encoder import SentenceEncoder
from curate.tables.score_table import score_table
from tests.conftest import SAMPLE, tree_bytes
from tests.methods.test_less import write_checkpoints

EVERY = [(kind, name) for kind in KINDS for name in names(kind)]
SCORES, SELECTORS = names("score"), names("selector")
TOLERANCE = 2e-5  # of scores through a model, whose sums depend on what stands in a batch; the others are bit-equal

TEXTS = [
    "the red apple and the green apple fell from the tree into the river",
    "a river runs through the town\na river runs through the town\nand the mill turns",
    [{"role": "user", "content": "what is two plus two?"}, {"role": "assistant", "content": "two plus two is four"}],
    "print(x) print(x) print(x) print(x) print(x) print(x) print(x) print(x)",
    "über die brücke ging der müller mit 3 säcken, 4 eseln und 5 kindern",
    [{"role": "system", "content": "be short"}, {"role": "assistant", "content": "yes."}],
    "one",
    "x " * 400 + "the end of a long text about an apple",
]


@functools.cache
def tiny() -> LanguageModel:
    return LanguageModel(ModelChoice("tiny"))


@functools.cache
def encoder() -> SentenceEncoder:
    return SentenceEncoder(ModelChoice("minilm"))


@functools.cache
def checkpoints() -> tuple[CheckpointChoice, ...]:
    """Two of a short training of the tiny model by LoRA."""
    folders = write_checkpoints(Path(tempfile.mkdtemp(prefix="curate-laws-")))
    models = [ModelChoice(str(folder), device="cpu") for folder in folders]
    return tuple(CheckpointChoice(m, 1e-3, f"{m.name}/optimizer.safetensors") for m in models)


@functools.cache
def both_ways() -> GradientModel:
    return GradientModel(checkpoints(), moments=True, others={"origin": tiny()})


def given_to(method: Any) -> dict[str, Any]:
    """The tiny model in every role, but for those that have a usual model; or a training's checkpoints."""
    if method.checkpoints == "each" and not method.warm_up():
        return {"checkpoints": [f"{c.model.name}@{c.lr}" for c in checkpoints()]}
    return {"models": {role: ModelChoice(method.usual_models.get(role, "tiny")) for role in method.models}}


def models_of(method: Any) -> dict[str, Any]:
    if method.checkpoints != "none":
        return {role: both_ways() if role == "base" else tiny() for role in method.models}
    return {role: encoder() if role == "encoder" else tiny() for role in method.models}


def vectors(method: Any, samples: list[dict[str, Any]], subtasks: Any = None) -> Vectors:
    step = method.vectors() if subtasks is None else method.target_vectors()
    found = score_samples(models_of(method), samples, {"x": step})[0]["x"]
    return Vectors.of(found["vector"], found["error"], subtasks or ())


def computed(method: Any, batches: list[Text], target: Target | None) -> list[Any]:
    """The columns of each batch, by a run in memory."""
    if not method.models:
        return run(method, batches, target)
    samples = [batch.frame.select("messages", "text").to_dicts() for batch in batches]
    if method.vectors():
        (step,) = method.passes(target)
        assert target is not None and step.open is not None
        aim = vectors(method, target.text.frame.select("messages", "text").to_dicts(), target.subtasks)
        return [step.map(vectors(method, batch), step.open(aim)) for batch in samples]
    models, (*counting, last), state = models_of(method), method.passes(target), {}
    for step in counting:
        anchors, aim = [{"messages": said("a green apple"), "text": None}], target and target.text.frame
        over = {"pool": samples, "anchors": [anchors]}.get(step.over) or [aim.select("messages", "text").to_dicts()]  # type: ignore[union-attr]
        given = step.open(state) if step.open else state
        partials = [score_samples(models, some, {"x": step}, {"x": given})[0]["x"] for some in over]
        state = {**state, **step.reduce([{k: v for k, v in p.items() if k != "error"} for p in partials])}
    state = last.open(state) if last.open else state
    return [score_samples(models, batch, {"x": last}, {"x": state})[0]["x"] for batch in samples]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]], method: Any) -> bool:
    """Whether rows of a score table agree: bit for bit, or within the tolerance where a model was at work."""
    if not method.models:
        return a == b
    numbers = [[(k, v) for k, v in row.items() if isinstance(v, int | float)] for row in (*a, *b)]
    first, second = numbers[: len(a)], numbers[len(a) :]
    close = all(
        k == m and abs(v - w) <= TOLERANCE * max(1.0, abs(v))
        for x, y in zip(first, second, strict=True)
        for (k, v), (m, w) in zip(x, y, strict=True)
    )
    return close and [row["error"] for row in a] == [row["error"] for row in b]


def said(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say something"}, {"role": "assistant", "content": answer}]


_SHORT = {"dim": 256, "lora_r": 2, "epochs": 1.0, "eta": 10.0}  # of a method that trains a warm-up, or judges a step


def lenient(name: str) -> Any:
    """A score method that scores as much as it can, where that is a setting."""
    cls, wanted = find("score", name), {"min_tokens": 1, "shortest": 1, "above_one": "keep", **_SHORT}
    return cls(**{f.name: wanted[f.name] for f in dataclasses.fields(cls) if f.name in wanted})


def batches(order: list[int], sizes: list[int]) -> list[Text]:
    ends = np.cumsum([0, *sizes])
    return [Text.of([TEXTS[i] for i in order[a:b]]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def scored(name: str, order: list[int], sizes: list[int]) -> list[dict[str, Any]]:
    """Rows of the score table of TEXTS taken in `order`, cut into batches, put back in TEXTS' order."""
    method = lenient(name)
    target = Target.of(["which apple is green?", "two plus three is five"], ["fruit", "sums"])
    cut = batches(order, sizes)
    results = computed(method, cut, target if method.uses_target else None)
    parts = [score_table(b.frame["id"].to_arrow(), columns, method) for b, columns in zip(cut, results, strict=True)]
    rows = pa.concat_tables(parts).drop_columns(["id"]).to_pylist()
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [7, 1], [2, 2, 2, 2]])
def test_a_score_does_not_depend_on_batches_or_order(name: str, sizes: list[int]) -> None:
    whole = scored(name, list(range(8)), [8])
    for text, row in zip(TEXTS, whole, strict=True):
        assert row["score"] is not None or isinstance(text, str) and "raw text" in row["error"]
    assert same(scored(name, list(range(8)), sizes), whole, find("score", name))
    order = random.Random(sum(sizes)).sample(range(8), 8)
    assert same(scored(name, order, sizes), whole, find("score", name))


@pytest.mark.parametrize("name", SCORES)
def test_a_score_does_not_depend_on_shards_and_units(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    tables, by_model = [], bool(find("score", name).models)
    sample = sorted(map(str, (SAMPLE / "pool").iterdir()))[: 1 if by_model else None]
    for shard_bytes, unit in ((20_000 if by_model else 60_000, 10_000), (10_000_000, 10_000_000)):
        ws = curate.open_workspace(tmp_path / str(shard_bytes))
        curate.ingest(ws, sample, shard_bytes=shard_bytes)
        curate.target(ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
        method = lenient(name)
        object.__setattr__(method, "unit_bytes", unit)
        monkeypatch.setattr("curate.tables.spec.unit_size", lambda model, unit=unit: unit)
        target = "t" if method.uses_target else None
        curate.score(ws, method, target=target, names={name: "x"}, **given_to(method))
        tables.append(curate.sql(ws, "SELECT * FROM x"))
    aside = ("it was in the warm-up", "it is one of the anchors") if method.anchors() else ()
    assert same(*tables, method) and all(row["score"] is not None or row["error"] in aside for row in tables[0])


@pytest.mark.parametrize("name", SCORES)
def test_what_cannot_be_scored_is_null_with_a_reason_and_the_others_stand(name: str) -> None:
    method = lenient(name)
    target = Target.of(["which apple is green?"]) if method.uses_target else None
    texts = [said("a green apple " * 60), "", said("an apple a day " * 60)]
    (columns,) = computed(method, [batch := Text.of(texts)], target)
    rows = score_table(batch.frame["id"].to_arrow(), columns, method).to_pylist()
    assert (rows[1]["score"] is None) == bool(rows[1]["error"])
    for row in (rows[0], rows[2]):
        assert row["error"] is None
        assert np.isfinite(row["score"])
    # An empty neighbour changes nothing for a row score; a pool score counts it as a sample.
    if method.scope == "row":
        (alone,) = computed(method, [Text.of([texts[0], texts[2]])], target)
        tolerance = TOLERANCE if method.models else 0.0
        assert np.abs(alone["score"] - np.asarray(columns["score"])[[0, 2]]).max() <= tolerance


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_nothing_is_an_empty_column(name: str) -> None:
    method = find("score", name)()
    target = Target.of(["apple"]) if method.uses_target else None
    (columns,) = computed(method, [Text.of([])], target)
    assert score_table(pa.array([], pa.string()), columns, method).num_rows == 0


@pytest.mark.parametrize("name", SCORES)
def test_the_declared_columns_are_the_ones_written(name: str) -> None:
    method = find("score", name)()
    row = scored(name, list(range(8)), [8])[0]
    assert set(row) == {"score", "error", *method.columns}


# --- weightings ------------------------------------------------------------------------------------------

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


# --- metrics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_judges_what_it_can_whatever_else_is_asked(name: str) -> None:
    metric = find("metric", name)(**({"max_new_tokens": 8} if name in ("exact_match", "token_f1", "pass_at_1") else {}))
    meta = {"test": "def check(f):\n    assert f() == 1", "entry_point": "one"}
    ask = [
        Question(said("number 1"), options=("number 1", "number 2"), meta=meta),
        Question([{"role": "user", "content": "?"}]),  # nothing to judge by
        Question(said("it is 12"), options=("it is 12", "it is 13"), meta=meta, shots=tuple(said("yes"))),
    ]
    whole = metric.evaluate(tiny(), ask)
    assert len(whole.values) == 3 and (np.isfinite(whole.values) == (whole.error == "")).all()
    assert np.isfinite(whole.values[[0, 2]]).all() and whole.error[1]
    alone = metric.evaluate(tiny(), ask[2:])
    assert alone.values[0] == pytest.approx(whole.values[2], rel=1e-4)
    assert whole.usage.tokens > 0 and whole.usage.flops > 0
    assert metric.evaluate(tiny(), []).values.tolist() == []


# --- every method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_docstring_has_a_summary_a_formula_a_cost_and_a_reference(kind: str, name: str) -> None:
    text = help_text(kind, name)
    summary, _, rest = text.partition("\n")
    assert summary.endswith(".") and len(summary) < 110
    wanted = {"export": ("Format:", "Cost:", "Reference:"), "executor": ("Cost:",)}
    for part in wanted.get(kind, ("Formula", "Cost:", "Reference:")):
        assert part in rest, f"{kind} {name} has no {part}"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_example_in_the_docstring_runs(kind: str, name: str) -> None:
    cls = find(kind, name)
    module = importlib.import_module(cls.__module__)
    tests = [t for t in doctest.DocTestFinder().find(cls, cls.__name__, module=module) if t.examples]
    assert tests, f"{kind} {name} has no example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_setting_has_a_default_and_is_documented(kind: str, name: str) -> None:
    find(kind, name)()
    assert all(field["note"] for field in settings_help(kind, name))


# --- selectors -------------------------------------------------------------------------------------------


def candidates(n: int, seed: int, unit: str) -> Candidates:
    rng = np.random.default_rng(seed)
    return Candidates(
        ids=np.sort(rng.choice(2**62, n, replace=False).astype(np.uint64)),
        values=rng.integers(0, max(n // 3, 1), n).astype(float),  # with ties
        sources=rng.integers(0, 3, n),
        source_names=["a", "b", "c"],
        sizes=np.ones(n) if unit == "rows" else rng.uniform(1, 50, n),
        vectors=Vectors.of(np.repeat(rng.normal(size=(n // 2, 8)), 2, axis=0)),  # each of them twice
        target=Vectors.of(rng.normal(size=(5, 8)), subtasks=["a", "b", "a", "b", "a"]),
    )


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("amount", [1, 7, 40, 10_000])
def test_a_selector_keeps_its_budget_and_repeats_nothing(name: str, unit: Any, amount: int) -> None:
    for seed in range(5):
        pool, selector = candidates(60, seed, unit), find("selector", name)()
        chosen = selector.select(pool, Budget(unit, amount), seed)
        assert len(set(chosen.tolist())) == len(chosen)
        assert pool.sizes[chosen].sum() <= amount
        if unit == "rows" and selector.fills:
            assert len(chosen) == min(amount, 60)
        assert chosen.tolist() == selector.select(pool, Budget(unit, amount), seed).tolist()


@pytest.mark.parametrize("name", [n for n in SELECTORS if n in ("top", "quota")])
def test_ties_break_by_id(name: str) -> None:
    pool = candidates(30, 1, "rows")
    tied = Candidates(pool.ids, np.ones(30), np.zeros(30, dtype=int), ["a"], np.ones(30))
    chosen = find("selector", name)().select(tied, Budget("rows", 10), 0)
    assert chosen.tolist() == list(range(10))


def test_the_scores_leave_nothing_half_done_behind(ws: Any) -> None:
    curate.ingest(ws, [str(SAMPLE / "pool/atlas.jsonl")], shard_bytes=20_000)
    curate.target(ws, "t", str(SAMPLE / "targets/facts_val.jsonl"))
    for name in SCORES:
        method = lenient(name)
        target = "t" if method.uses_target else None
        curate.score(ws, method, target=target, **given_to(method))
    left = [p for p in ws.path.rglob("*") if ".tmp" in p.name or p.name == "_units" and any(p.iterdir())]
    assert left == []
    assert tree_bytes(ws.path / "scores")
