"""What holds for every metric."""

from __future__ import annotations

import numpy as np
import pytest

from curate.kinds.metric import Question
from curate.kinds.registry import find, names
from tests.support.laws import narrow, said


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_judges_what_it_can_whatever_else_is_asked(name: str) -> None:
    metric = find("metric", name)(**({"max_new_tokens": 8} if name in ("exact_match", "token_f1", "pass_at_1") else {}))
    meta = {"test": "def check(f):\n    assert f() == 1", "entry_point": "one"}
    ask = [
        Question(said("number 1"), options=("number 1", "number 2"), meta=meta),
        Question([{"role": "user", "content": "?"}]),  # nothing to judge by
        Question(said("it is 12"), options=("it is 12", "it is 13"), meta=meta, shots=tuple(said("yes"))),
    ]
    whole = metric.evaluate(narrow(), ask)
    assert len(whole.values) == 3 and (np.isfinite(whole.values) == (whole.error == "")).all()
    assert np.isfinite(whole.values[[0, 2]]).all() and whole.error[1]
    alone = metric.evaluate(narrow(), ask[2:])
    assert alone.values[0] == pytest.approx(whole.values[2], rel=1e-4)
    assert whole.usage.tokens > 0 and whole.usage.flops > 0
    assert metric.evaluate(narrow(), []).values.tolist() == []
