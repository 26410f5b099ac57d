"""Models whose files do not hold them, wholly and alone, are refused by name before anything is computed with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curate.errors import CurateError
from curate.gradients.optimizer_state import load_moments
from curate.models.choice import TINY, CheckpointChoice, ModelChoice
from curate.models.load import load, load_encoder
from curate.models.skeleton import skeleton
from tests.support.gguf_file import write_gguf
from tests.support.models import rewritten

Weights = dict[str, Tensor]
MLP = "model.layers.0.mlp.up_proj.weight"


def said(name: Any, read: Callable[[ModelChoice], Any] = load, **settings: Any) -> str:
    with pytest.raises(CurateError) as caught:
        read(ModelChoice(str(name), device="cpu", **settings))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    return str(caught.value)


def configured(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {k: v for k, v in w.items() if k != MLP}, f"lacks 1 of the weights of LlamaForCausalLM ({MLP})"),
        (lambda w: {k: v for k, v in w.items() if ".layers.1." not in k}, "lacks 9 of the weights"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "and 36 more), and has 38 that it has no place for"),
        (lambda w: w | {MLP: w[MLP][:5].clone()}, f"({MLP} is [5, 192] and would be [512, 192])"),
        (lambda w: w | {"v_head.summary.weight": torch.zeros(1, 3)}, "no place for (v_head.summary.weight): what it"),
    ],
)
def test_weights_that_are_missing_or_left_over_are_named(
    copy: Path, change: Callable[[Weights], Weights], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rewritten(copy, change)
    assert words in said(copy)
    assert not capfd.readouterr().err  # nor does transformers' report of it stand beside


def test_what_is_harmless_is_loaded(copy: Path) -> None:
    buffers = {f"model.layers.0.self_attn.{name}": torch.zeros(3) for name in ("rotary_emb.inv_freq", "position_ids")}
    rewritten(copy, lambda w: w | buffers)
    load(ModelChoice(str(copy)))
    rewritten(copy, lambda w: w | {"v_head.weight": torch.zeros(1, 3)})
    unused = ModelChoice(str(copy), allow_unused=True)
    assert unused.loading() == {"allow_unused": True}
    load(unused)


def test_a_class_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertForMaskedLM

    assert "lacks 6 of the weights of BertLMHeadModel" in said("minilm")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config: Any = BertConfig.from_dict({"vocab_size": 1024, **sizes})
    BertForMaskedLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    assert "is no causal language model: as BertLMHeadModel it sees the tokens after" in said(tmp_path)
    load_encoder(ModelChoice(str(tmp_path)))  # without a pooler, and its head left over: neither is used for vectors
    rewritten(tmp_path, lambda w: {k: v for k, v in w.items() if "layer.0.output.dense" not in k})
    assert "lacks 2 of the weights of BertModel" in said(tmp_path, load_encoder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_hidden_layers": 10**6}, "says num_hidden_layers=1,000,000, and the weights have 38 tensors"),
        ({"num_hidden_layers": -1}, "says num_hidden_layers=-1"),
        ({"num_hidden_layers": 40}, "describes 17,906,880 numbers in weights, and the files hold 1,967,808"),
        ({"hidden_size": 192 * 10**6}, "says hidden_size=192,000,000"),
        ({"vocab_size": 10**13}, "says vocab_size=10,000,000,000,000"),
        ({"vocab_size": 10**6}, "describes 193,771,200 numbers"),
        ({"intermediate_size": 10**9}, "says intermediate_size"),
        ({"max_position_embeddings": -5}, "says max_position_embeddings=-5"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"hidden_size": -1}, "-1"),
    ],
)
def test_a_configuration_of_another_size_is_refused_before_memory_is_taken(
    copy: Path, changed: dict[str, Any], words: str
) -> None:
    configured(copy, **changed)
    assert words in said(copy)
    assert words in said(copy, skeleton)


def test_settings_that_are_no_json_are_said(copy: Path) -> None:
    for text in ("{", "[" * 5000, "[]", "\xff"):
        (copy / "config.json").write_bytes(text.encode("latin-1"))
        assert str(copy) in said(copy)
        (copy / "adapter_config.json").write_bytes(text.encode("latin-1"))
        assert "adapter_config.json" in said(copy)
        (copy / "adapter_config.json").unlink()
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    assert "does not name its base model" in said(copy)
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copy)}))
    assert "names itself as its base model" in said(copy)


def test_a_gguf_file_without_some_of_its_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, count = gguf.GGUFWriter.add_tensor, gguf.GGUFWriter.add_block_count
    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", lambda s, n, t: None if "ffn_up" in n else add(s, n, t))
        assert f"lacks 1 of the weights of LlamaForCausalLM ({MLP})" in said(write_gguf(tmp_path / "a.gguf", "gpt-2"))
    monkeypatch.setattr(gguf.GGUFWriter, "add_block_count", lambda self, _: count(self, 10**6))
    assert "says num_hidden_layers=1,000,000" in said(write_gguf(tmp_path / "b.gguf", "gpt-2"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import peft

    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load(ModelChoice("tiny", device="cpu"))[0], config)
    adapted.peft_config["default"].base_model_name_or_path = "tiny"
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def test_an_adapter_s_matrices_are_all_there_and_fit(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    first = min(whole)
    load(ModelChoice(str(folder), device="cpu"))

    def broken(tensors: Weights) -> str:
        save_file(tensors, path)
        return said(folder)

    assert f"lacks 1 of its matrices ({first})" in broken({k: v for k, v in whole.items() if k != first})
    stranger = {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(2, 192)}
    assert "has 1 tensors that its base model has no place for" in broken(whole | stranger)
    assert "cannot be attached to its base model" in broken(whole | {first: torch.zeros(2, 5)})
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read as safetensors" in said(folder)
    path.unlink()
    assert "has no adapter_model.safetensors" in said(folder)


def test_an_optimizer_s_state_is_whole_and_finite(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.safetensors"
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    state = {"exp_avg.a": torch.zeros(2), "exp_avg_sq.a": torch.zeros(2), "step.a": torch.tensor(3.0)}

    def read(tensors: Weights) -> Any:
        save_file(tensors, path)
        return load_moments(CheckpointChoice(ModelChoice("tiny"), optimizer=str(path)), parameters, ["a"])

    assert read(state).step == 3
    for tensors, words in (
        ({k: v for k, v in state.items() if "sq" not in k}, "lacks a"),
        (state | {"exp_avg_sq.a": torch.full((2,), float("nan"))}, "not all finite"),
        (state | {"exp_avg.a": torch.zeros(3)}, "state of another model"),
    ):
        with pytest.raises(CurateError, match=words):
            read(tensors)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(CurateError, match="cannot be read as safetensors"):
        load_moments(CheckpointChoice(ModelChoice("tiny"), optimizer=str(path)), parameters, ["a"])
