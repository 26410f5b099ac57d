"""What of a sample is put to a classifier, and what is taken of its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.kinds.sample_text import NoText, Sample, answer_of, as_chat, contents, prompt_of

_PARTS = {"contents": contents, "chat": as_chat, "prompt": prompt_of, "answer": answer_of}


@dataclass(frozen=True)
class Classified:
    """A view of a sample: a text of it, put to a classifier.

    of: which text. long: of one that is longer than the context its first part alone, or the mean (by tokens) or the
    maximum of the outputs for all parts. activation: of the outputs; auto: as the model's configuration has it. labels:
    which outputs are wanted, in this order; every: and then all of them.
    """

    of: Literal["contents", "chat", "prompt", "answer"] = "contents"
    long: Literal["first", "mean", "max"] = "first"
    activation: Literal["auto", "none", "sigmoid", "softmax"] = "auto"
    labels: tuple[str, ...] = ()
    every: bool = True

    def text(self, sample: Sample) -> str:
        """The sample's text. Raises NoText if it has none."""
        text = _PARTS[self.of](sample)
        if not text.strip():
            raise NoText("has no text")
        return text
