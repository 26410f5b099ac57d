"""A GGUF file is unpacked once; what was unpacked gives the same model, and is not believed if it is damaged."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from curate.errors import CurateError
from curate.models.choice import ModelChoice
from curate.models.load import load, load_tokenizer
from tests.support.gguf_file import write_gguf

TEXT = "the cat sat  on 100 mats"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", "llama-bpe")


def state(path: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    model, tokenizer = load(ModelChoice(str(path), dtype=dtype, device="cpu"))
    assert tokenizer(TEXT)["input_ids"] == load_tokenizer(ModelChoice(str(path)))(TEXT)["input_ids"]
    return {"ids": torch.tensor(tokenizer(TEXT)["input_ids"]), **model.state_dict()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_is_the_file_s_model_and_read_without_the_file(
    path: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as elsewhere:  # a folder within a file cannot be made
        elsewhere.setenv("CURATE_CACHE", str(tmp_path / "file"))
        direct = state(path, dtype)
    assert not cache.exists()
    first = state(path, dtype)
    monkeypatch.setattr(gguf, "GGUFReader", None)
    assert same(direct, first) and same(first, state(path, dtype))


def test_a_damaged_file_of_the_cache_is_made_again(path: Path, cache: Path) -> None:
    first = state(path)
    files = sorted(file for file in cache.rglob("*") if file.suffix in (".json", ".safetensors"))
    assert {"model.safetensors", "tokenizer.json", "config.json", "sha256.json"} <= {file.name for file in files}
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        assert same(first, state(path)), file
        assert file.read_bytes() == data


def test_another_file_of_the_same_name_is_another_model(path: Path, cache: Path) -> None:
    first = state(path)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1  # a number of the last tensor
    path.write_bytes(data)
    assert not same(first, state(path))


def test_tensors_that_are_left_out_are_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's files of Llama 3 have factors for the rotary embedding, which transformers does not read."""
    add = gguf.GGUFWriter.add_tensor

    def with_factors(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray) -> None:
        add(writer, name, tensor)
        if name == "output.weight":
            add(writer, "rope_freqs.weight", np.full(8, 8, np.float32))

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", with_factors)
    choice = ModelChoice(str(write_gguf(tmp_path / "m.gguf", "llama-bpe")), device="cpu")
    with pytest.raises(CurateError, match=r"8 numbers that LlamaForCausalLM has no place for.*\(such as rope_freqs"):
        load(choice)
    load(ModelChoice(choice.name, device="cpu", allow_unused=True))
    with pytest.raises(CurateError, match="8 numbers"):  # what was kept without them is not taken for all
        load(choice)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama_3_are_the_frequencies_that_it_was_trained_with(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """By Meta's own piecewise rule: long wavelengths are divided, short ones kept, and those between blended."""
    size, base = 16, 10_000.0  # of a head of the tiny file, and what transformers takes where a file says none
    frequencies = base ** -(np.arange(0, size, 2) / size)
    lengths = 2 * np.pi / frequencies
    blend = (8192 / lengths - 1) / (4 - 1)
    factors = np.where(lengths < 8192 / 4, 1, np.where(lengths > 8192, factor, 1 / ((1 - blend) / factor + blend)))
    add = gguf.GGUFWriter.add_tensor

    def with_factors(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray) -> None:
        add(writer, name, tensor)
        if name == "output.weight":
            add(writer, "rope_freqs.weight", factors.astype(np.float32))

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", with_factors)
    choice = ModelChoice(str(write_gguf(tmp_path / "m.gguf", "llama-bpe")), device="cpu")
    for _ in range(2):  # from the file, and from the cache
        model, _tokenizer = load(choice)
        found = model.model.rotary_emb.inv_freq.double().numpy()
        np.testing.assert_allclose(found, frequencies / factors, rtol=1e-5)
        assert model.config.rope_parameters["factor"] == factor
