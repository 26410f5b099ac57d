"""What decides which tokens a sample becomes: the tokenizer as it is in memory, its template, and the rules."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from curate.hashing import fingerprint
from curate.models.choice import ModelChoice

_PACKAGES = ("transformers", "tokenizers", "jinja2")  # whose later versions may render or split otherwise
_RULES = ("tokens.py", "rendering.py", "control_tokens.py", "chat_inputs.py")  # of this folder: likewise
_BY_CALL = ("truncation", "padding")  # of a tokenizer's state: as the latest call wanted


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits over a fast tokenizer's vocabulary, rules and templates, wherever it was loaded from."""
    backend = orjson.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in backend.items() if name not in _BY_CALL}
    own = {name: getattr(tokenizer, name, None) for name in ("chat_template", "split_special_tokens")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint(type(tokenizer).__name__, kept, own, special)


def tokens_made_by(tokenizer: Any, choice: ModelChoice, add_eos_token: bool) -> dict[str, Any]:
    """All that decides a sample's tokens, before it is cut to a context: as JSON, of which a fingerprint is made."""
    return {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "add_eos_token": add_eos_token,
        "special_tokens": "parse" if choice.special_tokens == "parse" else "text",
        "date": choice.date,
        "versions": {name: version(name) for name in _PACKAGES},
        "rules": _digest_of_rules(),
    }


@functools.cache
def _digest_of_rules() -> str:
    """16 hex digits over the code that makes tokens: a version number would have to be thought of."""
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in _RULES)
    return hashlib.sha256(code).hexdigest()[:16]
