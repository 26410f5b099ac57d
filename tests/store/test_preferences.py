"""Preference pairs and labelled answers: their layouts, ids and refusals; the trainer does not learn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate import preferences
from curate.errors import CurateError, CurateFailure
from curate.hashing import content_id
from curate.kinds.text import Text
from curate.methods.scores.near_dup import NearDup
from curate.methods.selectors.random import Random
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import TINY, ModelChoice
from curate.runs.config import TrainingSpec
from curate.runs.tokenize import encoded_one_by_one
from curate.store.input_formats import Reader, Refused
from curate.store.workspace import Workspace
from curate.tables.lookup import shown
from curate.training.settings import TrainSettings
from curate.training.stream import Stream
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl

ASK = {"role": "user", "content": "Name a fruit."}
GOOD, BAD = {"role": "assistant", "content": "an apple"}, {"role": "assistant", "content": "a stone"}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


def read(record: Any, **kwargs: Any) -> Any:
    return Reader(**kwargs).sample(record)


def plain(messages: Any) -> Any:
    return [(m["role"], m["content"]) for m in messages]


PAIR = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
SHAREGPT = {"from": "human", "value": "Name a fruit."}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Name a fruit.", "chosen": "an apple", "rejected": "a stone"},
        {"prompt": "Name a fruit.", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Name a fruit.", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [SHAREGPT],
            "chosen": {"from": "gpt", "value": "an apple"},
            "rejected": {"from": "gpt", "value": "a stone"},
        },
        {"instruction": "Name a fruit.", "input": "", "chosen": "an apple", "rejected": "a stone"},
        {"question": "Name a fruit.", "chosen": "an apple", "rejected": "a stone"},
        {"messages": [ASK, GOOD], "rejected": [{**ASK, "extra": None}, {**BAD, "extra": None}], "text": None},
        {"messages": [ASK, GOOD], "rejected": [ASK, BAD], "chosen": None, "wanted": None},
    ],
)
def test_a_pair_is_one_sample_in_every_layout(record: Any) -> None:
    sample = read(record)
    assert plain(sample.messages) == plain([ASK, GOOD]) and plain(sample.rejected) == plain([ASK, BAD])
    assert sample.id == read(PAIR).id == content_id([ASK, GOOD], None, rejected=[ASK, BAD]) and sample.wanted is None
    assert sample.id != content_id([ASK, GOOD], None) and sample.n_chars == 2 * 13 + 8 + 7


def test_what_stands_beside_a_pair_is_kept() -> None:
    more = {"score_chosen": 9.5, "margin": 2, "label": True}
    sample = read({**PAIR, "system": "Be brief.", "tools": [TOOL], **more})
    assert json.loads(sample.meta) == more and json.loads(sample.template_kwargs) == {"tools": [TOOL]}
    assert plain(sample.messages[:1]) == plain(sample.rejected[:1]) == [("system", "Be brief.")]
    implicit = {"system": "Be brief.", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "tools": [TOOL]}
    assert read(implicit).id == sample.id
    assert read({"ask": "Name a fruit.", "good": "an apple", "bad": "a stone"},
                mapping={"prompt": "ask", "chosen": "good", "rejected": "bad"}).id == read(PAIR).id  # fmt: skip


def test_the_prompt_is_what_both_have_before_the_assistant_s_turn() -> None:
    again = {"role": "user", "content": "Another."}
    cases = [([ASK, GOOD], [ASK, BAD], 1), ([ASK, GOOD, again, GOOD], [ASK, GOOD, again, BAD], 3),
             ([ASK, GOOD], [ASK, GOOD, again, BAD], 1), ([ASK, GOOD, ASK, BAD], [ASK, GOOD, again, BAD], 1),
             ([ASK, CALL, {"role": "tool", "content": "1"}, GOOD], [ASK, BAD], 1), ([GOOD], [BAD], 0)]  # fmt: skip
    for chosen, rejected, length in cases:
        assert preferences.prompt_length(chosen, rejected) == length
    assert preferences.asked_length([ASK, CALL, {"role": "tool", "content": "1"}, GOOD]) == 1
    assert preferences.asked_length([ASK]) == 1 and preferences.asked_length([GOOD]) == 0


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**PAIR, "rejected": [GOOD]}, "are equal"),
        ({**PAIR, "chosen": " "}, "has an empty chosen answer"),
        ({**PAIR, "rejected": [{"role": "assistant", "content": ""}]}, "has an empty rejected answer"),
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "q"}, BAD]}, "without a common prompt"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "no prompt; name its"),
        ({"prompt": "q", "completion": "", "label": True}, "a label and an empty answer"),
        ({"messages": [GOOD], "label": False}, "no prompt with an answer at its end"),
        ({"messages": [ASK], "kto_tag": False}, "no prompt with an answer at its end"),
        ({"prompt": "q", "answers": ["a", "b"], "ranks": [1, 0]}, "make a row of each pair"),
        ({"instruction": "q", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]}, "a ranked list"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_reason(record: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read(record)


def test_a_label_makes_a_sample_of_its_own_kind() -> None:
    wanted = read({"prompt": "q", "completion": "a", "label": True})
    unwanted = read({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                     "kto_tag": False, "by": "me"})  # fmt: skip
    bare = read({"prompt": "q", "completion": "a"})
    assert (wanted.wanted, unwanted.wanted, bare.wanted) == (True, False, None) and len(
        {wanted.id, unwanted.id, bare.id}
    ) == 3
    assert wanted.meta == "{}" and json.loads(unwanted.meta) == {"by": "me"} and wanted.rejected is None
    assert unwanted.id == content_id(unwanted.messages, None, wanted=False)


def rows() -> list[dict[str, Any]]:
    return [{"prompt": f"Say {i}.", "chosen": f"{i}, as you wish", "rejected": f"no {i}"} for i in range(4)] + [
        {"prompt": "Say 9.", "completion": "nine it is", "label": False},
        {"prompt": "Say 8.", "completion": "eight"},
    ]


@pytest.fixture
def pool(tmp_path: Path) -> Workspace:
    ws = curate.open_workspace(tmp_path / "ws")
    result = curate.ingest(ws, [write_jsonl(tmp_path / "rows.jsonl", rows())])
    assert result.added == 6 and "rejected: no 0" in result.examples["preference"]
    curate.target(ws, "t", write_jsonl(tmp_path / "t.jsonl", rows()[:1]))
    curate.select(ws, "every", Random(), SelectionSpec(frac=1.0))
    return ws


def test_the_pool_and_targets_have_them_as_columns(pool: Workspace) -> None:
    (row,) = curate.sql(pool, "SELECT rejected[2].content AS no, wanted FROM pool WHERE row = 0")
    assert row == {"no": "no 0", "wanted": None}
    (row,) = curate.sql(pool, "SELECT count(*) AS n FROM samples WHERE wanted = false")
    assert row["n"] == 1
    (row,) = curate.sql(pool, "SELECT rejected[2].content AS no FROM targets")
    assert row["no"] == "no 0"
    assert shown(pool, [0])[0]["text"] == "Say 0.\n0, as you wish\nrejected: no 0"


def test_the_trainer_refuses_them_in_a_sentence(pool: Workspace) -> None:
    config = TrainingSpec(ModelChoice(str(TINY)), Uniform(), TrainSettings(), "every")
    with pytest.raises(
        CurateError, match="5 of the 6 samples to train on are preference data .*rejected IS NULL AND wanted IS NULL"
    ):
        curate.train(pool, "run", config)
    curate.select(pool, "plain", Random(), SelectionSpec(frac=1.0, where=preferences.PLAIN))
    (row,) = curate.sql(pool, "SELECT count(*) AS n FROM plain")
    assert row["n"] == 1


def test_a_stream_leaves_them_out_with_the_reason() -> None:
    (pair, labelled) = encoded_one_by_one([rows()[0], rows()[4]], TrainSettings(), None)  # type: ignore[arg-type]
    assert "is preference data" in pair.error and pair.error == labelled.error
    with pytest.raises(
        CurateFailure, match="2 could not be trained on; the most frequent reason: one is preference data"
    ):
        Stream(iter([pair, labelled])).candidates(1, 1)


def test_pairs_on_one_prompt_are_near_duplicates() -> None:
    from curate.kinds.score import run

    ask = "the cat sat on the mat by the door of the old house"
    of = [{"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}],
           "rejected": [{"role": "user", "content": ask}, {"role": "assistant", "content": "no"}]}
          for answer in ("a story of a dog that ran away", "nothing to say of that")]  # fmt: skip
    assert sorted(run(NearDup(), [Text.of(of)])[0]["score"].tolist()) == [0.5, 1.0]
    assert run(NearDup(), [Text.of([one["messages"] for one in of])])[0]["score"].tolist() == [1.0, 1.0]
