"""What the parts of `prove` stand on: sizes, models with random weights, texts of real lengths, the clock."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate.models.choice import TINY, ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.quiet import quiet
from curate.models.tokens import Encoded, encode
from tests.gpu.lines import Lines

# Tokens of 4,000 samples of a real pool (gsm8k, code, role play, P3) by SmolLM2's tokenizer: every twentieth quantile.
LENGTHS = (52, 72, 83, 93, 102, 111, 120, 131, 143, 157, 171, 188, 204, 222, 243, 268, 309, 388, 523, 575, 1584)


@dataclass(frozen=True)
class Size:
    """How much is tried. model: of transformers' LlamaConfig. agreeing: samples whose scores are compared. forward,
    gradients: samples of the throughputs; alone: of those that go one by one. rows, tokens: of a training step, and its
    candidates; pairs: of runs that are compared. r, dim: of LESS. products: the side of a square matrix."""

    model: dict[str, int]
    agreeing: int
    forward: int
    gradients: int
    alone: int
    rows: int
    tokens: int
    pairs: int
    r: int
    dim: int
    products: int
    longest: int


def _model(vocabulary: int, width: int, inner: int, layers: int, heads: int, keys: int, head: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": head,
    }  # fmt: skip


SIZES = {
    "1b": Size(_model(128_256, 2048, 8192, 16, 32, 8, 64), 24, 8192, 768, 16, 16, 512, 3, 128, 8192, 8192, 2048),
    "small": Size(_model(2048, 256, 1024, 4, 8, 4, 32), 24, 96, 32, 4, 4, 64, 2, 16, 1024, 1024, 512),
    "smallest": Size(_model(1024, 32, 64, 2, 2, 2, 16), 4, 8, 6, 2, 2, 24, 1, 4, 64, 128, 64),
}


@dataclass
class Ground:
    """device: cpu or cuda. real: a folder with SmolLM2-135M as safetensors, '' if there is none; rows: a file of real
    samples for it."""

    device: str
    size: Size
    lines: Lines
    real: str = ""
    rows: str = ""
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @cached_property
    def folder(self) -> Path:
        """A folder that is gone when the process ends."""
        self._temporary = tempfile.TemporaryDirectory(prefix="prove-")
        return Path(self._temporary.name)

    @cached_property
    def big(self) -> str:
        """A folder with a model of the size, random weights in bfloat16, and the tiny model's tokenizer."""
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(**self.size.model, max_position_embeddings=4096, tie_word_embeddings=True)  # type: ignore[arg-type]
        with torch.device(self.device):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        with quiet():
            model.save_pretrained(self.folder / "big")
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        tokenizer.model_max_length = 4096
        tokenizer.save_pretrained(self.folder / "big")
        return str(self.folder / "big")

    def choice(self, **more: Any) -> ModelChoice:
        return ModelChoice(self.big, device=self.device, **{"context": self.size.longest, **more})

    def rate(self, dtype: str = "bfloat16") -> float:
        """FLOPs a second of large matrix products, measured once."""
        if dtype not in self.rates:
            n = self.size.products
            a = torch.randn(n, n, device=self.device).to(getattr(torch, dtype))
            timed(lambda: a @ a)
            self.rates[dtype] = 2.0 * n**3 / statistics.median(timed(lambda: a @ a) for _ in range(5))
        return self.rates[dtype]

    def shapes(self, **more: Any) -> dict[str, Any]:
        """The model's shape, with what else a figure depends on."""
        return {"model": self.size.model, **more}


def timed(f: Callable[[], Any]) -> float:
    """Seconds, a GPU's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    f()
    wait()
    return time.perf_counter() - began


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], pairs: int) -> float:
    """The median of slow/fast over interleaved pairs, after one pair that is not counted."""
    return statistics.median([timed(slow) / timed(fast) for _ in range(pairs + 1)][1:])


# --- texts -------------------------------------------------------------------------------------------------


def texts(n: int, longest: int, seed: int = 0) -> list[dict[str, Any]]:
    """Raw texts of words that are a token each, as long as real samples are, or all equally long if `longest` is less
    than their shortest."""
    chance, words = np.random.default_rng(seed), _words()
    lengths = np.interp(chance.random(n), np.linspace(0, 1, len(LENGTHS)), LENGTHS).astype(int)
    return [text(" ".join(chance.choice(words, min(length, longest) - 1))) for length in lengths]


def short_texts(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Raw texts of 4 to 40 words, for the tiny model."""
    chance, words = np.random.default_rng(seed), _words()
    return [text(" ".join(chance.choice(words, chance.integers(4, 40)))) for _ in range(n)]


def text(content: str) -> dict[str, Any]:
    return {"text": content, "messages": None}


def _words() -> list[str]:
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(TINY).get_vocab()
    return sorted(word[1:] for word in vocabulary if word[:1] == "Ġ" and word[1:].isalpha() and len(word) > 2)


def tokens_of(lm: LanguageModel, samples: Sequence[dict[str, Any]]) -> list[Encoded]:
    return encode(lm.tokenizer, samples, lm.context)


def plain(encoded: Sequence[Encoded]) -> list[tuple[list[int], list[bool]]]:
    """Samples in tokens, as the slow references take them."""
    return [(one.ids.tolist(), one.supervised.tolist()) for one in encoded]
