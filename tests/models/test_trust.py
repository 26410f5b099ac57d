"""What may run code is turned on by the command line or an argument, never by a file; no typing mistake downloads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import curate
from curate.errors import CurateError
from curate.models import choice as choices
from curate.models.choice import TINY, ModelChoice, resolve, weights_fingerprint
from curate.models.load import load, load_tokenizer
from curate.runs.audit_toml import read_plan
from curate.tables.inputs import model_choice, model_recipe

PLAN = """
model = {{ name = "tiny", {trust} }}
[[stage]]
name = "a"
where = "true"
target = "t"
[[stage]]
name = "b"
where = "true"
target = "t"
"""


@pytest.mark.parametrize("setting", ["allow_pickle", "allow_remote_code"])
@pytest.mark.parametrize("value", ["true", '"true"', '"True"', "1"])
def test_a_plan_turns_no_trust_on(tmp_path: Path, setting: str, value: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(trust=f"{setting} = {value}"))
    with pytest.raises(CurateError, match=f"no plan may turn on.*--{setting.replace('_', '-')}"):
        read_plan(plan)
    with pytest.raises(CurateError, match="no plan may turn on"):
        read_plan(plan, trusted=({"allow_pickle", "allow_remote_code"} - {setting}))
    plan.write_text(PLAN.format(trust=f"{setting} = true"))
    assert getattr(read_plan(plan, trusted=(setting,)).model, setting) is True
    plan.write_text(PLAN.format(trust=f"{setting} = false"))
    assert getattr(read_plan(plan).model, setting) is False


def test_a_recorded_model_is_trusted_by_whoever_opens_the_workspace(tmp_path: Path) -> None:
    tiny = ModelChoice("tiny", special_tokens="text")
    recorded = model_recipe(replace(tiny, allow_pickle=True, allow_remote_code=True))
    plain, trusting = (curate.open_workspace(tmp_path / "ws", **leave) for leave in ({}, {"allow_pickle": True}))  # type: ignore[arg-type]
    assert model_choice(recorded, plain.trusted) == model_choice(recorded) == tiny
    assert model_choice(recorded, trusting.trusted) == replace(tiny, allow_pickle=True)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter of the model tiny, as safetensors."""
    import peft

    model, _ = load(ModelChoice("tiny"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    described = tmp_path / "adapter" / "adapter_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "base_model_name_or_path": str(TINY)}))
    return tmp_path / "adapter"


def test_a_pickled_adapter_needs_the_permission_that_weights_need(adapter: Path) -> None:
    safe = adapter / "adapter_model.safetensors"
    load(ModelChoice(str(adapter)))
    torch.save(load_file(safe), adapter / "adapter_model.bin")
    safe.unlink()
    for read in (load, weights_fingerprint):
        with pytest.raises(CurateError, match=r"can run any code.*model\.allow_pickle=true"):
            read(ModelChoice(str(adapter)))
    load(ModelChoice(str(adapter), allow_pickle=True))
    save_file(torch.load(adapter / "adapter_model.bin", weights_only=True), safe)
    load(ModelChoice(str(adapter)))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names that were asked of the hub, in a folder with a folder `models`; nothing is downloaded."""
    asked: list[str] = []

    def snapshot(name: str, **_: Any) -> str:
        asked.append(name)
        return str(TINY)

    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return asked


@pytest.mark.parametrize(
    "name",
    ["models/lama", "./models/lama", "../models/lama", ".models/lama", "~/lama", "/no/such", "other/lama/", "a/b/c"]
    + ["models\\lama", "models//lama", "a b/c", "hf:", "hf:lama", "hf:../x/y", "hf:models/../x", "lama", "x/../y"],
)
def test_what_may_be_a_path_is_never_downloaded(fetched: list[str], name: str) -> None:
    with pytest.raises(CurateError, match="there is no|no name on the hub"):
        resolve(name)
    assert fetched == []


def test_a_hub_id_is_one_that_cannot_be_a_path_or_says_so(fetched: list[str]) -> None:
    assert resolve("other/lama") == resolve("hf:models/lama") == resolve("smollm2-135m") == TINY
    assert fetched == ["other/lama", "models/lama", "HuggingFaceTB/SmolLM2-135M"]
    with pytest.raises(CurateError, match="hf:models/lama would be"):
        resolve("models/lama")
    assert choices.base_name("hf:models/lama") == "models/lama"


def test_code_of_a_tokenizer_and_of_a_model_does_not_run(copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    for file, names in {
        "tokenizer_config.json": {"AutoTokenizer": ["own.Own", "own.Own"]},
        "config.json": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }.items():
        told = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**told, "auto_map": names, "tokenizer_class": "Own", "model_type": "own"}))
        for read in (load_tokenizer, load):
            try:
                read(ModelChoice(str(copy)))
            except CurateError as error:
                assert "\n" not in str(error)
            assert not ran.exists()
