"""Ratings from pairs that a model compares: against one question at a time, kills, shares, files, and what is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.kinds.asking import Question, ready
from curate.kinds.registry import make
from curate.kinds.sample_text import as_chat
from curate.methods.scores.pairwise import Pairwise
from curate.models.choice import TINY, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.runs import compared as runs
from curate.store.workspace import Workspace
from tests.conftest import write_jsonl
from tests.methods.test_judge import CHATML, chat
from tests.numerics.test_bradley_terry import slow
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW)
TEXTS = [f"Text {i} " + " ".join(f"word{j}" for j in range(i % 5)) for i in range(14)]


@pytest.fixture
def texts_ws(tmp_path: Path) -> Workspace:
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS]))
    return ws


def tokens_of(lm: LanguageModel, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=not lm.tokenizer.chat_template)["input_ids"])


def first_preferred(lm: LanguageModel, asks: Question, first: str, second: str) -> tuple[float, float]:
    """P(answer for the first) among both, and what is on neither, of one question in float64, by transformers alone."""
    text = asks.question.replace("{first}", first).replace("{second}", second)
    if lm.tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    ids = tokens_of(lm, text)
    with torch.inference_mode():
        p = lm.model.double()(torch.tensor([ids])).logits[0, -1].softmax(0)
    own = []
    for (answer,) in asks.answers:
        more = [tokens_of(lm, text + space + answer) for space in ("", " ")]
        tokens = {ids_[len(ids)] for ids_ in more if ids_[: len(ids)] == ids}
        own.append(sum(float(p[t]) for t in tokens if lm.tokenizer.decode([t]).strip()))
    return own[0] / sum(own), 1 - sum(own)


@pytest.mark.parametrize("template", [None, CHATML])
def test_preferences_are_what_one_question_at_a_time_gives(template: str | None) -> None:
    lm = LanguageModel(ModelChoice(str(TINY), dtype="float32"))
    lm.tokenizer.chat_template = template
    samples = [chat(f"What is {i} + {i}?", f"It is {2 * i}. " * (1 + i % 4)) for i in range(12)]
    pairs = [(i, j) for i in range(12) for j in (0, 5, 7) if i != j]
    method = Pairwise()
    step, _ = method.passes(None)
    found = score_samples({"base": lm}, [{"first": samples[i], "second": samples[j]} for i, j in pairs], {"x": step})
    alone = np.array([first_preferred(lm, method.asks, as_chat(samples[i]), as_chat(samples[j])) for i, j in pairs])
    np.testing.assert_allclose(found[0]["x"]["first"], alone[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[0]["x"]["unanswered"], alone[:, 1], atol=1e-5)
    np.testing.assert_allclose(found[0]["x"]["first"] + found[0]["x"]["second"], 1.0)


def test_a_table_has_the_ratings_of_all_pairs_in_both_orders(texts_ws: Workspace) -> None:
    (result,) = curate.score(texts_ws, Pairwise(comparisons=14), models=MODEL)  # more than there are: all pairs
    columns = "pairwise s, pairwise_compared c, pairwise_unanswered u"
    rows = curate.sql(texts_ws, f"SELECT {columns} FROM samples ORDER BY row")
    lm, asks, n = LanguageModel(MODEL), Pairwise().asks, len(TEXTS)
    first = np.array([[first_preferred(lm, asks, a, b) if a != b else (0, 0) for b in TEXTS] for a in TEXTS])
    one, other = np.triu_indices(n, 1)
    p = (first[one, other, 0] + 1 - first[other, one, 0]) / 2
    np.testing.assert_allclose([row["s"] for row in rows], slow(n, one, other, np.stack([p, 1 - p], 1)), atol=1e-4)
    assert {row["c"] for row in rows} == {n - 1}
    missed = (first[:, :, 1].sum(0) + first[:, :, 1].sum(1)) / (2 * (n - 1))
    np.testing.assert_allclose([row["u"] for row in rows], missed, atol=1e-4)
    stands_first = first[:, :, 0].sum() / (n * (n - 1))
    assert f"{n * (n - 1) // 2} pairs in both orders: the text that stands first has {stands_first:.0%}" in result.note
    assert curate.score(texts_ws, Pairwise(comparisons=14), models=MODEL)[0].computed == 0


def test_what_was_asked_before_a_kill_is_not_asked_again(texts_ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "QUESTIONS", 10)
    asked, ask = [], score_samples

    def killed(models: Any, samples: Any, *more: Any) -> Any:
        asked.append(len(samples))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(models, samples, *more)

    monkeypatch.setattr("curate.models.forward.score_samples", killed)
    with pytest.raises(KeyboardInterrupt):
        curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    pairs = runs.pairs_of(texts_ws.shards(), Pairwise(comparisons=4).compared())
    assert sum(asked) - asked[2] == len(pairs.first)  # the third chunk was asked about twice, the others once
    interrupted = curate.sql(texts_ws, "SELECT pairwise FROM samples ORDER BY row")
    ledger = curate.sql(texts_ws, "SELECT sum(samples)::int AS n FROM ledger WHERE phase = 'comparisons'")
    assert ledger == [{"n": len(pairs.first)}]
    curate.drop(texts_ws, "pairwise")
    again = curate.open_workspace(texts_ws.path)
    curate.score(again, Pairwise(comparisons=4, seed=0), models=MODEL, fresh=True)
    assert curate.sql(again, "SELECT pairwise FROM samples ORDER BY row") == interrupted
    assert not list(texts_ws.path.glob("prepared/*/pairs-*"))


def test_a_share_is_compared_and_the_others_have_no_score(texts_ws: Workspace, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": f"another {i}"} for i in range(50)] + [{"text": "   "}])
    curate.ingest(texts_ws, more)
    (result,) = curate.score(texts_ws, Pairwise(share=0.5, comparisons=4), models=MODEL)
    rows = curate.sql(texts_ws, "SELECT text, pairwise s, pairwise_compared c FROM samples")
    there = [row for row in rows if row["s"] is not None]
    assert 20 < len(there) < 45 and {row["c"] for row in there} <= {3, 4}
    assert {row["c"] for row in rows if row["s"] is None} == {0}
    assert result.nulls == len(rows) - len(there) and "was not compared" in next(iter(result.reasons))


def test_what_its_answers_do_not_connect_with_most_has_a_reason_of_its_own() -> None:
    method, nan = Pairwise(), np.nan
    one, other = np.array([1, 2, 2, 3, 8, 9, 3, 7]), np.array([2, 1, 3, 2, 9, 8, 7, 3])
    first = np.array([0.6, 0.5, 0.7, 0.4, 0.5, 0.5, nan, nan])
    state = method._ratings([{"one": one.astype(np.uint64), "other": other.astype(np.uint64), "first": first,
                              "second": 1 - first, "unanswered": np.where(np.isnan(first), nan, 0.1)}])  # fmt: skip
    assert state["ids"].tolist() == [1, 2, 3, 7, 8, 9] and state["compared"].tolist() == [1, 2, 1, 0, 1, 1]
    assert np.isfinite(state["rating"]).tolist() == [True] * 3 + [False] * 3
    assert np.isnan(state["unanswered"]).tolist() == [False] * 3 + [True] + [False] * 2
    assert "2 samples are not connected with the others" in method.state_note(state)


def test_a_finished_table_is_not_asked_about_again_and_nothing_is_left_behind(
    texts_ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    shutil.rmtree(texts_ws.path / "prepared")  # what may be computed again
    with monkeypatch.context() as patched:
        patched.setattr("curate.models.forward.score_samples", killed)
        assert curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)[0].computed == 0
        curate.ingest(texts_ws, write_jsonl(tmp_path / "more.jsonl", [{"text": "one more"}]))
        with pytest.raises(KeyboardInterrupt):
            curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    curate.ingest(texts_ws, write_jsonl(tmp_path / "last.jsonl", [{"text": "and another"}]))
    (last,) = curate.score(texts_ws, Pairwise(comparisons=4), models=MODEL)
    assert last.nulls == 0 and len(list(texts_ws.path.glob("prepared/*/*.safetensors"))) == 1


def test_the_order_of_the_pool_does_not_matter(texts_ws: Workspace, tmp_path: Path) -> None:
    other = curate.open_workspace(tmp_path / "other")
    curate.ingest(other, write_jsonl(tmp_path / "other.jsonl", [{"text": text} for text in TEXTS[::-1]]))
    found = []
    for ws in (texts_ws, other):
        curate.score(ws, Pairwise(comparisons=4), models=MODEL)
        found.append({row["text"]: row["pairwise"] for row in curate.sql(ws, "SELECT text, pairwise FROM samples")})
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_grown_pool_makes_it_stale_and_a_dry_run_says_what_it_takes(texts_ws: Workspace, tmp_path: Path) -> None:
    method = Pairwise(comparisons=4)
    planned, after = curate.score(texts_ws, method, models=MODEL, dry_run=True)[0].planned
    curate.score(texts_ws, method, models=MODEL)
    (spent,) = curate.sql(texts_ws, "SELECT samples, flops FROM ledger WHERE phase = 'comparisons'")
    assert planned["rows"] == spent["samples"] and spent["flops"] <= planned["flops"] <= 3 * spent["flops"]
    assert after["flops"] == 0
    assert not curate.score(texts_ws, method, models=MODEL, dry_run=True)[0].planned[0]["rows"]
    curate.ingest(texts_ws, write_jsonl(tmp_path / "more.jsonl", [{"text": "one more"}]))
    with pytest.raises(CurateError, match="stale|is of another pool"):
        curate.select(texts_ws, "s", by="pairwise", top=3)
    assert curate.score(texts_ws, method, models=MODEL)[0].computed == len(TEXTS) + 1


def test_texts_that_are_too_long_are_cut_alike(tmp_path: Path) -> None:
    lm, step = LanguageModel(ModelChoice(NARROW, context=260)), Pairwise().passes(None)[0]
    long, longer, short = ({"text": word * n, "messages": None} for word, n in (("x ", 900), ("y ", 950), ("z ", 3)))
    view = step.requests["asked"].view

    def asked(first: Any, second: Any) -> str:
        (found,) = lm.encoded([{"first": first, "second": second}], view)
        assert len(found.ids) <= 260 and found.cut
        return str(lm.tokenizer.decode(found.ids))

    both, beside = asked(long, longer), asked(short, longer)
    assert abs(both.count("x ") - both.count("y ")) <= 4 and both.count("x ") > 5
    assert beside.count("z ") == 3 and beside.count("y ") > 10


def test_ready_questions_are_about_both_texts() -> None:
    assert ready(pair=True) == ["educational", "expertise", "facts", "quality", "style"]
    for name in ready(pair=True):
        asks = Pairwise(question=name).asks
        assert asks.question.index("{first}") < asks.question.index("{second}") and len(asks.answers) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('question = "{first}?"\nanswers = ["A", "B"]', "needs `question`, a text with {first} and {second} in it"),
        ('question = "{sample}?"\nanswers = ["A", "B"]', "needs `question`, a text with {first} and {second} in it"),
        ('question = "{first} {second}"\nanswers = ["A", "B", "C"]', "has two `answers`: for the first, and for the"),
        (
            'question = "{first} {second}"\nanswers = ["A", "B"]\nvalues = [1, 0]',
            "has the key 'values', which a question about",
        ),  # fmt: skip
        ('question = "{first} {second}"\nanswers = ["A", "A"]', "has the answer 'A' twice"),
    ],
)
def test_a_file_that_is_no_question_about_a_pair_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(CurateError, match=said.replace("{", "\\{")):
        Pairwise(question=str(tmp_path / "own.toml"))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text('question = "{first} {second}"\nanswers = ["A", "B"]\nvalues = [1, 0]')
    for settings, said in (
        ({"comparisons": 2}, "at least 4: with fewer, a pair"),
        ({"share": 0.0}, "above 0 and at most 1"),
        ({"question": "qualty"}, "there is no question about a pair 'qualty': did you mean 'quality'"),
    ):
        with pytest.raises(CurateError, match=said):
            make("score", "pairwise", settings)
    with pytest.raises(CurateError, match="compare pairs by `curate score pairwise`"):
        make("score", "judge", {"question": str(tmp_path / "pair.toml")})


def test_one_sample_alone_cannot_be_compared(tmp_path: Path) -> None:
    ws = curate.open_workspace(tmp_path / "ws")
    curate.ingest(ws, write_jsonl(tmp_path / "rows.jsonl", [{"text": "alone"}, {"text": "  "}]))
    with pytest.raises(CurateError, match="1 samples of the pool have a text"):
        curate.score(ws, Pairwise(), models=MODEL)
