"""A small real fastText classifier, trained on the sample corpus: the skills of numbers against the others."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from tests.conftest import SAMPLE

_SAID = ("content", "value", "question", "answer")


def texts(split: int) -> list[tuple[str, str]]:
    """Label and text of the samples with an even (0) or odd (1) number: `hq` for a skill of numbers."""
    found = []
    for file in sorted((SAMPLE / "pool").glob("*.jsonl")):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            said = row.get("messages") or row.get("conversations") or [row]
            text = " ".join(str(turn[key]) for turn in said for key in _SAID if key in turn)
            if row["n"] % 2 == split:
                found.append(("hq" if row["skill"] in ("arithmetic", "table") else "cc", " ".join(text.split())))
    return found


@functools.cache
def trained() -> Path:
    """Its file."""
    import fasttext

    folder = Path(tempfile.mkdtemp(prefix="curate-fasttext-"))
    lines = [f"__label__{label} {text}\n" for label, text in texts(0)]
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")
    model = fasttext.train_supervised(
        input=str(folder / "train.txt"), dim=8, epoch=3, wordNgrams=2, bucket=1000, thread=1, seed=1, verbose=0
    )
    model.save_model(str(folder / "small.bin"))
    return folder / "small.bin"
