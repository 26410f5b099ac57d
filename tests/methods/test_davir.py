"""davir: against losses of one sample at a time, and below the line whichever model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curate.methods.scores.davir import Davir
from curate.models.choice import TINY, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from tests.oracles.davir import davir
from tests.support.models import rewritten, school_samples


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    return school_samples()


@pytest.fixture(scope="module")
def scored(samples: list[Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    copy = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("davir") / "model"))
    rewritten(copy, lambda w: {k: v * 0.9 if "mlp" in k else v for k, v in w.items()})
    models = {"base": LanguageModel(ModelChoice("tiny")), "reference": LanguageModel(ModelChoice(str(copy)))}
    passes = {over: Davir(over).passes(None)[0] for over in ("base", "reference")}  # type: ignore[arg-type]
    return score_samples(models, samples, passes)[0], copy


def test_it_equals_the_slow_reference(samples: list[Any], scored: tuple[Any, Path]) -> None:
    columns, copy = scored
    base, reference = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64).eval() for p in (TINY, copy))
    for i, one in enumerate(encode(LanguageModel(ModelChoice("tiny")).tokenizer, samples, 512)):
        want = davir(base, reference, one.ids.tolist(), one.supervised.tolist())
        assert abs(columns["base"]["score"][i] - want) * columns["base"]["base"][i] < 1e-5


def test_both_denominators_rank_alike(scored: tuple[Any, Path]) -> None:
    columns, _ = scored
    base, reference = (columns[over]["score"] for over in ("base", "reference"))
    assert np.argsort(base, kind="stable").tolist() == np.argsort(reference, kind="stable").tolist()
    assert np.abs(base - reference).max() > 1e-3  # though they are not the same


def test_equal_models_have_nothing_to_teach_and_no_loss_is_no_score() -> None:
    same = {"mean": np.array([1.0, 2.0, 0.0])}
    score = Davir().passes(None)[0].map({"base": same, "reference": same}, None)["score"]
    assert score[:2].tolist() == [0.0, 0.0] and np.isnan(score[2])
