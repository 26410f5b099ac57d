"""Identity and keyed randomness: content ids of samples, fingerprints of settings, random numbers keyed by id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from curate import exact_json

_U64 = np.uint64
_HASHED = ("content", "extra", "role")  # of a message


def content_id(
    messages: Sequence[Mapping[str, Any]] | None,
    text: str | None,
    template_kwargs: str | None = None,
    rejected: Sequence[Mapping[str, Any]] | None = None,
    wanted: bool | None = None,
) -> str:
    """The id of a sample: 16 hex digits, the same on every machine, from any file, in any order.

    The first 64 bits of the SHA-256 of the sample's canonical JSON (RFC 8785: sorted keys, no white space,
    UTF-8), which is

        {"text":"…"}                                            for raw text
        {"messages":[{"content":"…","role":"…"}, …]}            for chat
        {"messages":[…],"template_kwargs":"…"}                  for chat with tools, documents or other template_kwargs

    where a message with `extra` has it as a third key, a string: the canonical JSON of its further keys, whatever order
    they are stored in; integers of more than 64 bits are written out. template_kwargs (JSON text) is hashed likewise;
    this third form is what version 2 of the rule has beyond version 1. Version 3 adds two keys to samples that have
    them: "rejected", the messages of a preference pair's other conversation, and "label", true or false, whether the
    last answer is wanted. Contents are hashed as they are: no trimming, no Unicode normalisation. Roles are the
    normalised ones (system, user, assistant, tool).
    Source, meta and copies are not hashed. Test vectors: tests/golden/content_ids.json.

    Raises TypeError if a string cannot be encoded as UTF-8 (a lone surrogate).
    """
    if messages is None:
        canonical: dict[str, Any] = {"text": text}
    else:
        canonical = {"messages": [_canonical(message) for message in messages]}
        if template_kwargs is not None:
            canonical["template_kwargs"] = exact_json.canonical(template_kwargs)
    if rejected is not None:
        canonical["rejected"] = [_canonical(message) for message in rejected]
    if wanted is not None:
        canonical["label"] = wanted
    return hashlib.sha256(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _canonical(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None and key in _HASHED}
    if "extra" in kept:
        kept["extra"] = exact_json.canonical(kept["extra"])
    return kept


def fingerprint(*parts: Any) -> str:
    """A hash of JSON-like values as 16 hex digits; equal values in the same order give equal fingerprints."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def ids_as_integers(ids: Sequence[str]) -> np.ndarray:
    """N ids of 16 hex digits as integers, uint64 [N]."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").astype(_U64)


def keyed_uniform(ids: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Random numbers in (0, 1), float64 [N], each a pure function of (seed, purpose, id); ids are uint64 [N].

    They are therefore independent of order, sharding and batching, and each purpose has its own stream. The mixing
    function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied twice.
    """
    stream = _U64(int(fingerprint(seed, purpose), 16))
    with np.errstate(over="ignore"):
        x = _mix(_mix(ids ^ stream) + stream)
    return ((x >> _U64(12)).astype(np.float64) + 0.5) / 2.0**52  # never 0 and never 1


def pair_number(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A hash of each pair of uint64 values, uint64 [N]; two different pairs collide with probability 2^-64."""
    with np.errstate(over="ignore"):
        x = (a * _U64(0x9E3779B97F4A7C15)) ^ (b + _U64(0xD6E8FEB86659FD93))
        x = (x ^ (x >> _U64(32))) * _U64(0xD6E8FEB86659FD93)
        return x ^ (x >> _U64(32))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))
