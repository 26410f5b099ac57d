"""decontaminate: against tuples of words, and on real test questions planted in the real pool."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.score import Target, run
from curate.kinds.text import Text
from curate.methods.scores.decontaminate import Decontaminate
from tests.conftest import write_jsonl
from tests.oracles.decontaminate import overlap


def noise(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice("ab cd ef gh ij kl".split()) for _ in range(n))


@pytest.mark.parametrize(("n", "shortest"), [(1, 1), (3, 2), (4, 4), (5, 2), (13, 8)])
def test_shares_and_stretches_equal_the_slow_reference(n: int, shortest: int) -> None:
    rng = random.Random(n)
    examples = [noise(rng, rng.randint(1, 25)) for _ in range(12)]
    texts = [
        noise(rng, rng.randint(1, 40)) + " " + rng.choice([*examples, ""]) + ", " + noise(rng, 5) for _ in range(60)
    ]
    parts = run(Decontaminate(n, shortest), [Text.of(texts[:23]), Text.of(texts[23:])], Target.of(examples))
    want = [overlap(text, examples, n, shortest) for text in texts]
    assert np.concatenate([p["score"] for p in parts]) == pytest.approx([-share for share, _ in want], abs=1e-12)
    assert np.concatenate([p["longest"] for p in parts]).tolist() == [longest for _, longest in want]


def test_a_match_is_named_and_both_splits_are_looked_for(ws: Any, tmp_path: Path, cli: Any) -> None:
    asked = "How many of the ninety old books did the two brothers carry up to the attic of the house?"
    rows = [{"question": f"Tell me. {asked}", "answer": "Twelve."}, {"question": "Who?", "answer": "Nobody at all."}]
    curate.ingest(ws, [write_jsonl(tmp_path / "pool.jsonl", rows)])
    questions = write_jsonl(tmp_path / "test.jsonl", [{"question": asked, "answer": "Sixty."}])
    curate.target(ws, "books", questions, split="test")
    curate.score(ws, Decontaminate(), target="books")
    first, second = curate.sql(ws, "SELECT * FROM decontaminate_books")
    (example,) = curate.sql(ws, "SELECT id FROM targets WHERE target = 'books'")
    assert first["longest"] == 19 and first["example"] == example["id"] and -1 < first["score"] < -0.8
    assert (second["score"], second["longest"], second["example"]) == (0.0, 0, None)
    val = [{"question": "Who is it that nobody at all has ever seen?", "answer": "Nobody at all."}]
    assert curate.status(ws).scores[0]["state"] == "complete"
    curate.target(ws, "books", write_jsonl(tmp_path / "val.jsonl", val))
    assert "was edited" in curate.status(ws).scores[0]["state"]
    with pytest.raises(CurateError, match="decontaminate needs n and shortest of 1 or more"):
        Decontaminate(n=0)


def test_questions_are_found_under_other_answers_and_in_scripts_without_blanks() -> None:
    ask = "in which of the three towns is the oldest mill"  # ten words
    target = Target.of(
        [
            [
                {"role": "user", "content": ask},
                {"role": "assistant", "content": "in the first of them, by the river, since 1500"},
            ]
        ]
    )
    chinese = Target.of(["从前有一座山山上有一座庙庙里有一个老和尚"])
    (columns,) = run(Decontaminate(), [Text.of([f"{ask}? nobody knows", "in which of the towns?"])], target)
    assert columns["longest"].tolist() == [10, 0]
    (columns,) = run(
        Decontaminate(), [Text.of(["他说从前有一座山山上有一座庙庙里有一个老和尚", "从前有一个人"])], chinese
    )
    assert columns["longest"].tolist() == [20, 0]
    (columns,) = run(Decontaminate(), [Text.of(["a"])], Target.of(["too short", "this one too"]))
    assert "no message of the target has the 8 words" in columns["error"][0]


def test_real_questions_planted_in_the_real_pool_are_found(shared: Path, ws: Any, tmp_path: Path) -> None:
    """GSM8K's test questions: those planted, and which of the pool as it is."""
    questions = [json.loads(line) for line in (shared / "eval/gsm8k_test.jsonl").read_text().splitlines()]
    plain = sorted(map(str, (shared / "pool").iterdir()))
    curate.ingest(ws, plain)
    hidden = [{"question": f"Solve this one: {q['question']} Think!", "answer": "No idea."} for q in questions[:200]]
    curate.ingest(ws, [write_jsonl(tmp_path / "planted.jsonl", hidden)])
    file = write_jsonl(tmp_path / "test.jsonl", [{"question": q["question"], "answer": q["answer"]} for q in questions])
    curate.target(ws, "gsm8k_test", file, split="test")
    curate.score(ws, Decontaminate(), target="gsm8k_test")
    rows = list(
        curate.sql(
            ws, "SELECT source, decontaminate_gsm8k_test AS s, decontaminate_gsm8k_test_longest AS n FROM samples"
        )
    )
    mine = [row for row in rows if row["source"] == "planted"]
    others = [row for row in rows if row["source"] != "planted" and row["s"] < 0]
    print(f"of {len(mine)} planted {sum(r['s'] < 0 for r in mine)}; of the pool as it is {len(others)}")
    for row in sorted(others, key=lambda r: r["s"])[:10]:
        print(f"  {row['source']}: share {-row['s']:.2f}, {row['n']} words")
    assert len(mine) == 200 and all(row["s"] < 0 for row in mine)
    assert max((row["n"] for row in others), default=0) < 40 and len(others) < 0.01 * len(rows)
