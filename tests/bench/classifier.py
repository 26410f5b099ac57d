"""The score classifier on real texts, against transformers' own pipeline in batches.

    CURATE_SHARED=FOLDER python -m tests.bench.classifier [TEXTS]      default: 256

MiniLM with a regression on top, in float32, on one thread. The pipeline takes batches of 16 in the texts' order, padded
to the longest, as its users do; curate's go by length. Process CPU time, in turn. The limit is the padding of batches
in order. Exits with 1 if the line is missed or the numbers differ by more than 1e-5.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from curate.kinds.text import Text
from curate.methods.scores.classifier import Classifier
from curate.models.choice import ModelChoice, resolve
from curate.models.forward import score_samples
from curate.models.sequence_classifier import SequenceClassifier
from tests.bench.timing import machine, told
from tests.conftest import SHARED

PAIRS = 3


def texts(n: int) -> list[str]:
    """The answers and prompts of real chats, in their order."""
    import json

    found = list[str]()
    for file in sorted((SHARED / "pool").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[: n // 2]:
            row = json.loads(line)
            turns = row.get("messages") or row.get("conversations") or [row]
            said = [str(v) for turn in turns for k, v in turn.items() if k in ("content", "value", "text")]
            found.append("\n".join(said))
    return [text for text in found if text.strip()][:n]


def regression(folder: Path) -> str:
    """MiniLM with a regression on top."""
    torch.manual_seed(0)
    source = resolve("minilm")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, problem_type="regression")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def main(n: int) -> int:
    """Both in turn."""
    torch.set_num_threads(1)
    machine("torch", "transformers")
    given = texts(n)
    with tempfile.TemporaryDirectory() as temporary:
        folder = regression(Path(temporary))
        ask: Any = pipeline("text-classification", model=folder, device="cpu", dtype="float32")
        model = SequenceClassifier(ModelChoice(folder, dtype="float32", device="cpu"))
        (step,) = Classifier().passes(None)
        samples = Text.of(given).samples()

        def theirs() -> np.ndarray:
            return np.array([row["score"] for row in ask(given, truncation=True, batch_size=16)])

        def ours() -> np.ndarray:
            return np.asarray(score_samples({"classifier": model}, samples, {"x": step})[0]["x"]["score"])

        ratios, apart = list[float](), 0.0
        for _ in range(PAIRS):
            seconds, found = [], []
            for way in (theirs, ours):
                start = time.process_time()
                found.append(way())
                seconds.append(time.process_time() - start)
            ratios.append(seconds[0] / seconds[1])
            apart = max(apart, float(np.abs(found[0] - found[1]).max()))
    median = statistics.median(ratios)
    found3 = (median, min(ratios), max(ratios))
    told(f"{len(given)} texts: pipeline / classifier", found3, ">= 1.5", median >= 1.5, limit="padding")
    print(f"largest difference {apart:.1e}")
    return 0 if median >= 1.5 and apart < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 256))
