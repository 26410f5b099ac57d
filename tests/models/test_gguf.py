"""GGUF files: text is cut into tokens as the file names it, or the file is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import regex
import torch

import curate
from curate.errors import CurateError
from curate.kinds.registry import find
from curate.models import choice as choosing
from curate.models.choice import ModelChoice, prints_date, weights_fingerprint
from curate.models.gguf_tokenizer import _CHANGED, _RULES, pre_tokenizer
from curate.models.load import load, load_tokenizer, save_plain
from tests.support.gguf_file import write_gguf

# What llama.cpp itself gives (the package xllamacpp 2026.10.11549, /tokenize without special tokens, 2026-11-29).
BY_LLAMA_CPP = {
    "in 1990,  12 + 34\n\n 5": [254, 216, 33, 41, 41, 32, 28, 256, 33, 34, 1232, 216, 35, 36, 8866, 37],
    "  7": [256, 39],
    "a\t\t8\n 9": [81, 1656, 40, 3805, 41],
    "x² + ½ ٣٤": [104, 19133, 1232, 216, 16738, 216, 164, 113, 164, 114],
    "It's\n\n    10 apples,   200 pears.": [1589, 506, 35988, 33, 32, 13855, 28, 333, 34, 32, 32, 41684, 30],
}
TEXTS = [
    *BY_LLAMA_CPP,
    "I'm sure they'LL say it'S 5'9\"",
    "公园 1990年 has\r\n\r\n  lines",
    "HTTPServer/2.0 eTag://x\n/y",
    "naïve cafe\u0301 हिन्दी ١٢٣ 1234567",
]
GPT2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as in OpenAI's encoder.py


def pieces(rule: str, text: str) -> list[str]:
    """Where the rule cuts a text."""
    return [text[start:end] for _, (start, end) in pre_tokenizer(rule).pre_tokenize_str(text)]


def test_a_real_file_has_the_tokens_that_llama_cpp_gives(smollm2: Path) -> None:
    tokenizer = load_tokenizer(ModelChoice(str(smollm2)))
    for text, want in BY_LLAMA_CPP.items():
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == want
        assert tokenizer.decode(want) == text


@pytest.mark.parametrize("text", TEXTS)
def test_digits_stand_alone_and_the_rest_is_cut_by_gpt_2s_rule(text: str) -> None:
    stretches = regex.split(r"(\p{N})", text)
    assert pieces(_RULES["smollm"], text) == [p for s in stretches for p in regex.findall(GPT2, s)]
    assert pieces(_RULES["gpt-2"], text) == regex.findall(GPT2, text)


@pytest.mark.parametrize("name", sorted(_RULES))
def test_a_rule_that_transformers_knows_is_the_same_there(name: str) -> None:
    """Another's table of the originals; what it lacks was compared with llama.cpp by hand (see the commit)."""
    theirs = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping").GGUF_PRE_TOKENIZER_SPLITS
    if name not in theirs:
        assert name in _CHANGED or not _RULES[name]
        return
    assert name not in _CHANGED
    for text in TEXTS:
        assert pieces(_RULES[name], text) == pieces(theirs[name], text)


@pytest.mark.parametrize(("name", "said"), [("smolm", "did you mean 'smollm'"), ("poro-chat", "there is"), (None, "")])
def test_a_rule_that_is_not_known_is_refused_with_the_remedy(tmp_path: Path, name: str | None, said: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", name)
    what = f"names its rule '{name}'" if name else "does not name its rule"
    for opened in (load, load_tokenizer):
        with pytest.raises(
            CurateError, match=rf"m\.gguf {what} \(tokenizer\.ggml\.pre\).*{said}.*model\.tokenizer=FOLDER"
        ):
            opened(ModelChoice(str(path)))


def test_the_tokenizer_of_a_folder_is_used_instead(tmp_path: Path) -> None:
    known = ModelChoice(str(write_gguf(tmp_path / "known.gguf", "smollm")))
    save_plain(known, folder := tmp_path / "original")  # what is saved has the rule, too
    unknown = write_gguf(tmp_path / "unknown.gguf", "nobody's")
    model, tokenizer = load(ModelChoice(str(unknown), tokenizer=str(folder), device="cpu"))
    assert tokenizer(TEXTS)["input_ids"] == load_tokenizer(known)(TEXTS)["input_ids"]
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    with pytest.raises(CurateError, match="there is no model 'nowhere'"):
        load_tokenizer(ModelChoice(str(unknown), tokenizer="nowhere"))


def test_the_tokenizer_is_part_of_the_fingerprint_and_of_the_recipe(tmp_path: Path, copy: Path) -> None:
    plain = ModelChoice("tiny")
    other = ModelChoice("tiny", tokenizer=str(copy))
    before = weights_fingerprint(other)
    assert before != weights_fingerprint(plain) and not prints_date(other)
    (copy / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    assert weights_fingerprint(other) != before and prints_date(other)
    assert other.loading() == {"tokenizer": str(copy)}


def test_a_score_of_a_file_that_was_cut_otherwise_is_not_taken_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """smollm files were cut by GPT-2's rule before; of the others the fingerprint is the old one."""
    smollm, gpt2 = (ModelChoice(str(write_gguf(tmp_path / f"{name}.gguf", name))) for name in ("smollm", "gpt-2"))
    ws = curate.open_workspace(tmp_path / "ws")
    (tmp_path / "pool.jsonl").write_text('{"text": "12 + 34 = 46"}\n{"text": "the cat  100"}\n')
    curate.ingest(ws, [str(tmp_path / "pool.jsonl")])
    nll = find("score", "nll")
    with monkeypatch.context() as earlier:
        earlier.setattr(choosing, "changed_rule", lambda path: "")
        curate.score(ws, nll(), models=smollm, names={"nll": "a"})
        curate.score(ws, nll(), models=gpt2, names={"nll": "b"})
    with pytest.raises(CurateError, match="made with another base model or another weights of it.*--fresh"):
        curate.score(ws, nll(), models=smollm, names={"nll": "a"})
    (again,) = curate.score(ws, nll(), models=gpt2, names={"nll": "b"})
    assert again.computed == 0


@pytest.mark.parametrize("end", [4, 20, 60, 300])
def test_a_file_cut_short_within_its_names_is_said(tmp_path: Path, end: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", "smollm")
    path.write_bytes(path.read_bytes()[:end])
    weights_fingerprint(ModelChoice(str(path)))
    with pytest.raises(CurateError, match="m.gguf"):
        load(ModelChoice(str(path)))


def test_a_damaged_length_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 1, 1 << 60, 1 << 60) + b"tokenizer")
    assert weights_fingerprint(ModelChoice(str(path)))


def test_a_tiny_file_scores_its_samples(tmp_path: Path) -> None:
    from curate.models.language_model import LanguageModel
    from tests.support.models import scored

    model = LanguageModel(ModelChoice(str(write_gguf(tmp_path / "m.gguf", "llama-bpe")), device="cpu", context=64))
    texts: list[Any] = [{"messages": None, "text": "the cat sat on 12"}]
    with torch.no_grad():
        assert scored(model, texts)["nll"]["score"][0] < 0
