"""Small classifiers with random weights, of several architectures, saved as transformers saves them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from curate.models.choice import ModelChoice, resolve
from tests.support.narrow import NARROW

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@functools.cache
def classifier(kind: str = "bert", labels: int = 3, problem: str | None = None, context: int = 64) -> str:
    """Its folder. kind: bert, roberta or llama (which looks at the last token, and here has no padding token)."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source = resolve("minilm") if kind == "bert" else Path(NARROW)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = context
    if kind == "roberta":
        tokenizer.pad_token = tokenizer.eos_token
    more = {"max_position_embeddings": context + 8, "pad_token_id": tokenizer.pad_token_id}
    if kind == "llama":
        tokenizer.pad_token = None
        more = {"max_position_embeddings": context, "num_key_value_heads": 2, "pad_token_id": None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), num_labels=labels, problem_type=problem, **SHAPE, **more
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that outputs differ clearly
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    folder = tempfile.mkdtemp(prefix="curate-classifier-")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def choice(*arguments: Any, **more: Any) -> ModelChoice:
    """The same as a choice of a model, in float32."""
    return ModelChoice(classifier(*arguments, **more), dtype="float32")
