"""Models that are loaded, and what is wrong with those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curate.errors import CurateError
from curate.models.choice import ModelChoice, resolve
from curate.models.language_model import LanguageModel
from curate.models.load import load
from tests.support.models import rewritten, scored


def test_what_is_wrong_with_a_model_is_said(copy: Path, tmp_path: Path) -> None:
    def said(name: Any, **settings: Any) -> str:
        with pytest.raises(CurateError) as caught:
            load(ModelChoice(str(name), **settings))
        return str(caught.value)

    assert "did you mean 'tiny'" in said("tinny")
    assert "there is no such model" in said(tmp_path / "none.gguf")
    assert "has no config.json" in said(tmp_path)
    rewritten(copy, lambda w: {k: torch.full_like(v, float("nan")) if "norm" in k else v for k, v in w.items()})
    assert "not all finite" in said(copy)
    (copy / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "has no tokenizer" in said(copy)
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    assert "has no weights" in said(copy)
    torch.save(weights, copy / "pytorch_model.bin")
    assert "can run any code" in said(copy) and "model.allow_pickle=true" in said(copy)


def test_a_vocabulary_that_does_not_match_and_a_file_cut_short_are_said(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    rewritten(copy, lambda w: {k: v[:1000].clone() if v.shape[0] == 1024 else v for k, v in w.items()})
    with pytest.raises(CurateError, match="1024 tokens and the model only 1000"):
        load(ModelChoice(str(copy)))
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CurateError, match="cannot be read as safetensors"):
        load(ModelChoice(str(copy)))


def test_a_pickled_checkpoint_is_loaded_where_it_is_allowed(
    copy: Path, samples: list[Any], tiny: LanguageModel
) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    model = LanguageModel(ModelChoice(str(copy), allow_pickle=True))
    assert np.array_equal(scored(model, samples)["nll"]["score"], scored(tiny, samples)["nll"]["score"])


def test_a_hub_id_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CurateError, match="could not be fetched from the hub"):
        resolve("nobody/no-such-model")
