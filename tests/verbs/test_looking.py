"""`curate show`, `head`, `diff`: samples as a reader sees them, objects in words, selections side by side."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.cli.chat_text import chat, visible
from curate.errors import CurateError
from curate.methods.masks.random import Random as RandomMask
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.selectors.top import Top
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.numerics.statistics import effective_size
from curate.store.marks import read_marks, set_marks
from curate.store.workspace import Workspace
from curate.tables.chats import contents_at, cut
from curate.tables.lookup import find_sample
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from curate.verbs.show import Described, Sample
from tests.conftest import copy_of, small_in, write_jsonl
from tests.support.narrow import NARROW

CALLS = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the weather in Rome?\x1b[31m\u202e"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I must look it up",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
        },
        {"role": "tool", "content": "sunny", "name": "weather"},
        {"role": "assistant", "content": "It is sunny.", "weight": 0.5},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}],
    "level": {"deep": [1, 2]},
}
PAIR = {"prompt": "two and two?", "chosen": "four", "rejected": "five"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("mixed")
    ws = small_in(folder / "ws")
    for name, row in {"calls": CALLS, "pair": PAIR, "raw": {"text": "once upon a time"}}.items():
        curate.ingest(ws, [write_jsonl(folder / f"{name}.jsonl", [row])])
    curate.score(ws, Bm25(), Length(), target="facts")
    curate.select(ws, "best", Top(), SelectionSpec(by="bm25_facts", frac=0.1, where="n_chars > 20"))
    curate.select(ws, "lot", Random(), SelectionSpec(top=120, seed=3))
    curate.weigh(ws, "heavy", AdaptStatic(), "bm25_facts", manifest="lot")
    curate.mix(ws, "even", Uniform(), MixtureSpec(rows=40, most_epochs=None, exact=False))
    return ws


@pytest.fixture
def mixed(made: Workspace, tmp_path: Path) -> Workspace:
    """300 samples, and a chat with calls, a preference pair and a raw text."""
    return copy_of(Path(str(made.path)), tmp_path / "ws")


def of_source(ws: Workspace, source: str) -> Sample:
    (row,) = curate.sql(ws, f"SELECT id FROM pool WHERE source = '{source}'")
    found = curate.show(ws, row["id"])
    assert isinstance(found, Sample)
    return found


def test_a_chat_has_its_calls_reasoning_tools_and_the_fields_beside(mixed: Workspace) -> None:
    r = of_source(mixed, "calls")
    call, answer = r.turns[2], r.turns[4]
    assert call["calls"] == [{"name": "weather", "arguments": '{"city": "Rome"}'}]
    assert call["reasoning"] == "I must look it up" and r.turns[3]["more"] == {"name": "weather"}
    assert answer["weight"] == 0.5 and answer["content"] == "It is sunny." and r.meta == {"level": {"deep": [1, 2]}}
    assert r.tools[0]["function"]["name"] == "weather"
    text = chat(vars(r))
    for line in ("assistant, reasoning:", "assistant, calls weather:", "assistant (weight 0.5):", "weather: of a city"):
        assert line in text, text
    assert "\\x1b[31m\\u202e" in text and "\x1b" not in text and "\u202e" not in text


def test_copies_that_came_later_are_counted(mixed: Workspace, tmp_path: Path) -> None:
    for name, count in (("again", 2), ("once_more", 3)):
        curate.ingest(mixed, [write_jsonl(tmp_path / f"{name}.jsonl", [CALLS] * count)])
    assert of_source(mixed, "calls").copies == 6 and of_source(mixed, "pair").copies == 1
    assert [sample["copies"] for sample in contents_at(mixed, [300, 301])] == [6, 1]


def test_a_pair_shows_the_other_answer_and_a_raw_text_is_one(mixed: Workspace) -> None:
    pair = of_source(mixed, "pair")
    assert [turn["content"] for turn in pair.turns] == ["two and two?", "four"]
    assert [turn["content"] for turn in pair.rejected] == ["five"] and "rejected assistant:\n  five" in chat(vars(pair))
    assert (of_source(mixed, "raw").text, of_source(mixed, "raw").turns) == ("once upon a time", [])


def test_a_sample_has_every_score_and_manifest_that_sql_says(mixed: Workspace) -> None:
    top = next(iter(curate.sql(mixed, "SELECT id, row, rank FROM best ORDER BY rank LIMIT 1")))
    r = curate.show(mixed, top["id"])
    assert isinstance(r, Sample) and r.row == top["row"] and r.mark == ""
    (values,) = curate.sql(mixed, f"SELECT bm25_facts, length, length_words FROM samples WHERE row = {r.row}")
    assert {one["score"]: one["value"] for one in r.scores} == {key: values[key] for key in ("bm25_facts", "length")}
    assert r.scores[1]["words"] == values["length_words"] and r.manifests[0] == {
        **{"name": "best", "rank": 0, "weight": 1.0, "repeats": 1},
    }
    assert len(repr(r).splitlines()) <= 25


def test_the_first_digits_of_an_id_are_enough_if_no_other_begins_so(mixed: Workspace) -> None:
    ids = sorted(row["id"] for row in curate.sql(mixed, "SELECT id FROM pool"))
    shared = max(range(1, 16), key=lambda n: n if len({i[:n] for i in ids}) < len(ids) else 0)
    for sample_id in ids[:20]:
        assert find_sample(mixed, sample_id[: shared + 1]) == find_sample(mixed, sample_id.upper())
        assert curate.show(mixed, sample_id[: shared + 1]).id == sample_id  # type: ignore[union-attr]
    twice = next(a for a, b in zip(ids, ids[1:], strict=False) if a[:shared] == b[:shared])
    with pytest.raises(
        CurateError, match=f"'{twice[:shared]}' begins the ids of . samples of .*; give more of its dig"
    ):
        curate.show(mixed, twice[:shared])
    for wrong in ("", "x1", "0" * 17, "0' OR '1'='1", "f" * 16):
        with pytest.raises(CurateError, match="has no sample whose id begins with"):
            curate.show(mixed, wrong)


def test_contents_come_in_the_order_of_the_rows_and_are_cut(mixed: Workspace) -> None:
    rows = [302, 5, 300, 5, 9_999]
    found = contents_at(mixed, rows)
    assert [sample["row"] for sample in found] == [302, 5, 300, 5] and contents_at(mixed, []) == []
    short = cut(found[0], 4)
    assert short["text"] == "once…" and short["cut"] == len("once upon a time") - 4
    calls = cut(of_source(mixed, "calls").__dict__, 5)
    assert calls["turns"][2]["calls"][0]["arguments"] == '{"cit…' and calls["turns"][0]["content"] == "be br…"


@pytest.mark.parametrize(
    ("name", "kind", "about", "command"),
    [
        ("bm25_facts", "score", "made by bm25 (version 2) for the target facts", "curate score bm25 --target facts"),
        ("best", "manifest", "30 samples, chosen from 303 by top, ranked by bm25_facts", "curate select best"),
        ("heavy", "manifest", "120 samples: the samples of lot, weighted by bm25_facts", "curate weigh heavy"),
        ("even", "manifest", "40 draws an epoch: a mixture of the pool by source", "curate mix even"),
        ("facts", "target", "24 val samples", None),
    ],
)
def test_an_object_is_told_in_words_with_its_command(
    mixed: Workspace, name: str, kind: str, about: str, command: str | None
) -> None:
    r = curate.show(mixed, name, n=3)
    assert isinstance(r, Described)
    assert (r.kind, r.state) == (kind, "complete") and r.about.startswith(about) and r.rows
    assert (r.command or "").startswith(command or "") and bool(r.command) == bool(command)
    json.dumps(r.recipe, default=str)


def test_the_commands_make_the_same_again(mixed: Workspace, cli: Any) -> None:
    curate.mask(mixed, "few", RandomMask(), 0.1, model=NARROW)
    tables = [mixed.manifest_path(name) for name in ("best", "lot", "heavy", "even")] + [mixed.mask_path("few")]
    before = [path.read_bytes() for path in tables]
    for name in ("best", "lot", "heavy", "even", "few"):
        command = curate.show(mixed, name).command  # type: ignore[union-attr]
        done = cli(*shlex.split(command)[1:], ws=mixed)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert [path.read_bytes() for path in tables] == before


def test_what_is_stale_or_damaged_says_so(mixed: Workspace, tmp_path: Path) -> None:
    curate.ingest(mixed, [write_jsonl(tmp_path / "more.jsonl", [{"text": "another"}])])
    r = curate.show(mixed, "bm25_facts")
    assert isinstance(r, Described) and r.state == "is stale (the pool has grown)"
    late = curate.show(mixed, next(iter(curate.sql(mixed, "SELECT id FROM pool WHERE source = 'more'")))["id"])
    assert isinstance(late, Sample) and late.scores[0]["value"] is None
    mixed.manifest_path("best").write_bytes(b"")
    best = curate.show(mixed, "best")
    assert isinstance(best, Described) and "is not what its JSON vouches for" in best.state and best.rows == []


def test_head_is_of_the_pool_a_manifest_a_target_or_a_score(mixed: Workspace) -> None:
    assert [s["row"] for s in curate.head(mixed, n=3).samples] == [0, 1, 2]
    best = curate.head(mixed, "best", n=2)
    ids = [row["id"] for row in curate.sql(mixed, "SELECT id FROM best ORDER BY rank LIMIT 2")]
    assert [s["id"] for s in best.samples] == ids and best.total == 30 and best.samples[1]["rank"] == 1
    longest = curate.head(mixed, "length", where="source = 'few' OR source = 'pool' -- a comment", n=2)
    values = [s["value"] for s in longest.samples]
    assert values == sorted(values, reverse=True) and longest.total <= 303
    few = curate.head(mixed, where="meta->>'level' IS NOT NULL")
    assert few.total == 1 and few.samples[0]["source"] == "calls" and len(repr(few).splitlines()) <= 25
    assert curate.head(mixed, "facts", n=1).total == 24 and curate.head(mixed, where="false").samples == []
    for name, where, said in (("bset", None, "did you mean 'best'"), ("facts", "true", "is a target; leave one out"),
                              ("even", None, "is a mixture"), (None, "nope > 1", "no column 'nope'")):  # fmt: skip
        with pytest.raises(CurateError, match=said):
            curate.head(mixed, name, where=where)
    with pytest.raises(CurateError, match="is 1 or more"):
        curate.head(mixed, n=0)


def test_two_manifests_side_by_side(mixed: Workspace) -> None:
    r = curate.diff(mixed, "best", "heavy")
    rows = {name: {row["row"] for row in curate.sql(mixed, f"SELECT row FROM {name}")} for name in ("best", "heavy")}
    both = rows["best"] & rows["heavy"]
    assert (r.both, r.only_a, r.only_b) == (len(both), 30 - len(both), 120 - len(both))
    assert r.jaccard == pytest.approx(len(both) / (150 - len(both)))
    (score,) = [one for one in r.scores if one["score"] == "bm25_facts"]
    query = "SELECT h.weight, s.bm25_facts AS v FROM heavy h JOIN samples s USING (row)"
    weight, value = (np.array([row[key] for row in curate.sql(mixed, query)]) for key in ("weight", "v"))
    assert score["b"] == pytest.approx(np.average(value, weights=weight))
    assert score["difference"] == pytest.approx(score["b"] - score["a"])
    assert r.manifests[1]["effective"] == pytest.approx(effective_size(weight.astype(np.float64)))
    assert sum(one["a"] for one in r.by_source) == 30 and sum(one["both"] for one in r.by_source) == len(both)
    same = curate.diff(mixed, "best", "best")
    assert (same.jaccard, same.only_a) == (1.0, 0) and len(repr(r).splitlines()) <= 25
    with pytest.raises(CurateError, match="is a mixture"):
        curate.diff(mixed, "best", "even")
    with pytest.raises(CurateError, match="did you mean 'best'"):
        curate.diff(mixed, "best", "bets")


def test_the_commands_print_and_make_json(mixed: Workspace, cli: Any) -> None:
    top = next(iter(curate.sql(mixed, "SELECT id FROM best ORDER BY rank LIMIT 1")))["id"]
    said_by = {
        f"show {top[:8]}": "in the manifest",
        "show heavy": "made by: curate weigh",
        "head best -n 1": "1 of 30 samples of the manifest best",
        "head --where false": "has no samples",
        "diff best lot": "Jaccard",
    }
    for command, said in said_by.items():
        words = command.split()
        done = cli(*words, ws=mixed)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
        assert isinstance(json.loads(cli(*words, "--json", ws=mixed).stdout), dict)


def test_marks_are_kept_in_order_and_a_wrong_file_is_named(mixed: Workspace) -> None:
    assert read_marks(mixed) == {}
    set_marks(mixed, ["b", "a"], "good")
    set_marks(mixed, ["b"], "bad")
    assert list(set_marks(mixed, ["c"], "good").items()) == [("a", "good"), ("b", "bad"), ("c", "good")]
    assert set_marks(mixed, ["a", "c"], None) == {"b": "bad"} == read_marks(mixed)
    with pytest.raises(CurateError, match="good or bad, not 'fine'"):
        set_marks(mixed, ["a"], "fine")  # type: ignore[arg-type]
    for wrong, said in (("{", "is not JSON"), ('{"format": 9}', "marks of format 1")):
        (Path(str(mixed.path)) / "marks.json").write_text(wrong)
        with pytest.raises(CurateError, match=said):
            read_marks(mixed)


def test_control_characters_are_seen() -> None:
    assert visible("a\x1b]0;title\x07\r\nb\tc\x9b\ud800") == "a\\x1b]0;title\\x07\nb\tc\\x9b\\ud800"


def test_compare_takes_manifests_too(mixed: Workspace, cli: Any) -> None:
    assert cli("compare", "best", "lot", ws=mixed).stdout.startswith("best and lot: ")
    both = cli("compare", "best", "lot", "heavy", "--against", "lot", ws=mixed).stdout
    assert "lot and best: " in both and "lot and heavy: " in both and "effective samples" in both
    assert [row["b"] for row in json.loads(cli("compare", "best", "lot", "--json", ws=mixed).stdout)] == ["lot"]
    assert "name another manifest to compare best with" in cli("compare", "best", ws=mixed).stderr
    assert "no run 'bst'" in cli("compare", "bst", ws=mixed).stderr
