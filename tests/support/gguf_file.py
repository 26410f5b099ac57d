"""A GGUF file of a tiny Llama with random weights, whose tokenizer names a given rule."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

_TEXTS = [
    "the cat sat on the mat in 1990",
    "12 + 34 = 46\n\n 5",
    "it's  x² and\t\tthey'll go 100 200 300",
    "Where IS it?",
]
_SIZE, _HIDDEN = 32, 64


def write_gguf(path: Path, rule: str | None, kind: str = "gpt2") -> Path:
    """rule: tokenizer.ggml.pre; None: the file has none. Merges cross blanks and digits, so that each rule cuts
    otherwise."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(_TEXTS * 3, trainer)
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    merges = [" ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(_SIZE)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(kind)
    if rule is not None:
        writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    _add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer: gguf.GGUFWriter, n_tokens: int) -> None:
    dice = np.random.default_rng(0)
    shapes = {"token_embd": (n_tokens, _SIZE), "output": (n_tokens, _SIZE), "blk.0.ffn_down": (_SIZE, _HIDDEN)}
    shapes |= {f"blk.0.{name}": (_SIZE, _SIZE) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{name}": (_HIDDEN, _SIZE) for name in ("ffn_gate", "ffn_up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (dice.normal(size=shape) * 0.02).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_SIZE, np.float32))
