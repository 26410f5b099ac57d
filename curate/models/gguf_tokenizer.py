"""The tokenizer of a GGUF file: what the file names, and how its text is cut before the merges.

A GGUF file has a vocabulary and merges but no tokenizer.json. How text is cut before the merges it only names, by a
name of llama.cpp's (`tokenizer.ggml.pre`). Where transformers does not know the name it cuts by GPT-2's rule, silently.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from curate.errors import CurateError, nearest
from curate.models.gguf_header import CutShort, names_in

_NAMES = ("tokenizer.ggml.model", "tokenizer.ggml.pre")

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDINGS"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDINGS"
)
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_MARKS}[\r\n]*|{_SPACES}"
_QWEN35 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_CASED.replace('ENDINGS', '')}|\p{{N}}|{_MARKS}[\r\n/]*|{_SPACES}"
_GPT4O = rf"{_CASED.replace('ENDINGS', f'{_ENDINGS}?')}|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_SPACES}"
_GPT2, _DIGITS = "", r"\p{N}"  # GPT-2's rule, and the same after every digit is set apart

# llama.cpp's name -> the rule of the original tokenizer.
_RULES = {
    **dict.fromkeys(
        "gpt-2 phi-2 mpt olmo jais trillion exaone4 mellum granite-docling a.x-4.0 gigachat".split(), _GPT2
    ),
    **dict.fromkeys(
        "roberta-bpe modern-bert jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code".split(), _GPT2
    ),
    **dict.fromkeys("smollm starcoder refact command-r codeshell exaone minerva-7b".split(), _DIGITS),
    **dict.fromkeys(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe".split(), _LLAMA3
    ),
    **dict.fromkeys("glm4 chatglm-bpe".split(), _LLAMA3),
    **dict.fromkeys("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan".split(), _QWEN2),
    **dict.fromkeys("gpt-4o llama4 kanana2 talkie minimax-m2".split(), _GPT4O),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
}
# Names that transformers does not know and whose rule is not GPT-2's: their files were cut otherwise before.
_CHANGED = {name for name in _RULES if _RULES[name] == _DIGITS} | {"glm4", "chatglm-bpe", "stablelm2", "hunyuan"}


def set_pre_tokenizer(tokenizer: Any, path: Path) -> None:
    """Cut text as the tokenizer that the file at `path` was made from. Raises CurateError if its rule is not known."""
    kind, name = _named(path)
    if kind != "gpt2":  # the others know no such rule
        return
    if name not in _RULES:
        hint = (
            f"names its rule '{name}' (tokenizer.ggml.pre)" if name else "does not name its rule (tokenizer.ggml.pre)"
        )
        raise CurateError(
            f"{path} {hint} for cutting text into tokens, and curate knows {len(_RULES)} of these names: "
            f"{nearest(name, _RULES)} Any other rule would give other tokens than the model was trained on; name the "
            "folder or hub id of the original model, whose tokenizer to use, by --set model.tokenizer=FOLDER."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer(_RULES[name])


def pre_tokenizer(rule: str) -> Any:
    """A rule of the table as the pre-tokenizer of the library `tokenizers`."""
    from tokenizers import Regex, pre_tokenizers

    if rule in (_GPT2, _DIGITS):
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level]) if rule == _DIGITS else byte_level
    split = pre_tokenizers.Split(Regex(rule), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def changed_rule(path: Path) -> str:
    """The name of the file's rule if tokens differ from those of versions that left it to transformers; else ''."""
    kind, name = _named(path)
    return name if kind == "gpt2" and name in _CHANGED else ""


def _named(path: Path) -> tuple[str, str]:
    """The kind of the file's tokenizer, and the name of its rule; '' for what the file does not say."""
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _read(path: Path, size: int, changed: int) -> tuple[str, str]:
    """As above; cached until the file's size or modification time changes."""
    try:
        found = names_in(path, _NAMES)
    except CutShort:  # loading says so
        return "", ""
    return found[_NAMES[0]], found[_NAMES[1]]
