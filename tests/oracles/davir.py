"""What a model has learnt of a sample, slowly."""

from __future__ import annotations

from typing import Any

from tests.oracles.language_model import token_scores


def davir(base: Any, reference: Any, ids: list[int], supervised: list[bool]) -> float:
    before, after = (token_scores(model, ids, supervised)["nll"] for model in (base, reference))
    return 1 - after / before
