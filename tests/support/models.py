"""Chats and raw texts to send through a model, and a model that is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from curate.methods.scores.el2n import El2n
from curate.methods.scores.entropy import Entropy
from curate.methods.scores.nll import Nll
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from tests.conftest import SAMPLE

METHODS = (Nll(), Entropy(), El2n())


def chat(*turns: str) -> dict[str, Any]:
    """A sample of turns, the user's first."""
    roles = ("user", "assistant")
    return {"text": None, "messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


def raw(text: str) -> dict[str, Any]:
    return {"text": text, "messages": None}


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def scored(model: LanguageModel, samples: list[dict[str, Any]]) -> dict[str, Any]:
    columns, _ = score_samples({"base": model}, samples, {m.name: m.passes(None)[0] for m in METHODS})
    return columns


def school_samples() -> list[dict[str, Any]]:
    """64 samples of the corpus, chats and raw texts, short and long."""
    lines = (SAMPLE / "pool/school.jsonl").read_text().splitlines()[:60]
    found = [chat(r["question"], r["answer"]) for r in map(json.loads, lines)]
    found += [raw(r["question"] + " " + r["answer"]) for r in map(json.loads, lines[:3])]
    return [*found, chat("One?", "One.", "And two, three, four?", "Two. " * 60)]
