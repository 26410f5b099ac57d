"""A sentence encoder in sentence-transformers' layout: a transformer whose hidden states are pooled to one vector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError
from curate.kinds.passes import ForwardRequest
from curate.kinds.signals import Forward
from curate.models.choice import ModelChoice, read_settings, resolve
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.forward import Key, Model, usable_positions, wide
from curate.models.load import load_encoder
from curate.models.tokens import Encoded
from curate.models.usage import Usage

_KNOWN = ("Transformer", "Pooling", "Normalize")  # supported modules; vectors are normalised later in any case


class SentenceEncoder(Model):
    """A sentence encoder: its transformer, and how it pools ('mean', 'cls' or 'lasttoken')."""

    def __init__(self, choice: ModelChoice):
        folder = resolve(choice.name)
        self.pooling = _pooling(folder)
        model, tokenizer = load_encoder(choice)
        model.pooler = None  # BERT's pooler, which is not used here
        super().__init__(choice, model, tokenizer, encoder_context(folder, model, tokenizer, choice))

    @torch.inference_mode()
    def _batch(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        lengths = np.array([len(sample.ids) for sample in encoded])
        ids, valid, _ = self.padded(encoded, int(lengths.max()))
        usage = self.usage(int(lengths.sum()), ids.numel(), cut=sum(sample.cut for sample in encoded))
        with counted(usage, self.choice.count_flops), self.products():
            states = self.model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        pooled = self._pooled(wide(states), valid)
        results = {key: Forward(None, np.zeros(len(ids), np.int64), None, lengths, pooled) for key in requests}
        usage.flops = forward_flops(self.model, len(ids), ids.shape[1], head_rows=0)
        usage.flops_paper = paper_flops(FORWARD, self.n_params, len(encoded))
        return results, usage

    def _pooled(self, states: Tensor, valid: Tensor) -> Tensor:
        """One vector per text, [B, D], from the hidden states [B, T, D] of its valid tokens, bool [B, T]."""
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "lasttoken":
            return states[torch.arange(len(states), device=states.device), valid.sum(1) - 1]
        return states.masked_fill(~valid[:, :, None], 0.0).sum(1) / valid.sum(1, keepdim=True)


def _pooling(folder: Path) -> str:
    """The encoder's pooling mode, from its folder. Raises CurateError if it is not supported."""
    layout = folder / "modules.json"
    if not folder.is_dir() or not layout.exists():
        raise CurateError(
            f"{folder} is no sentence encoder (it has no modules.json, as sentence-transformers writes); name one by "
            "--model encoder=MODEL, such as minilm; embed_lm uses the hidden states of a language model."
        )
    kinds = _modules(layout)
    if unknown := sorted(set(kinds) - set(_KNOWN)):
        raise CurateError(f"{folder} has the module {unknown[0]}, which is not supported; name another encoder.")
    if "Pooling" not in kinds:
        raise CurateError(f"{folder} has no module Pooling in its modules.json; name another encoder.")
    if _said(folder, "sentence_bert_config.json").get("do_lower_case"):
        raise CurateError(f"{folder} lower-cases its texts itself, which is not supported; name another encoder.")
    if _said(folder, "config_sentence_transformers.json").get("default_prompt_name"):
        raise CurateError(f"{folder} puts a prompt before every text, which is not supported; name another encoder.")
    config = read_settings(folder / kinds["Pooling"] / "config.json")
    names = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "lasttoken"}
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode") or (
        names.get(modes[0].removeprefix("pooling_mode_")) if len(modes) == 1 else None
    )
    if mode not in names.values():
        raise CurateError(f"{folder} pools by {mode or ' and '.join(modes)}, which is not supported.")
    return str(mode)


def _modules(layout: Path) -> dict[str, str]:
    """The kinds of an encoder's modules, and the folders that they are in."""
    try:
        modules = json.loads(layout.read_text(encoding="utf-8"))
        return {module["type"].rpartition(".")[2]: str(module["path"]) for module in modules}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CurateError(
            f"{layout} does not list an encoder's modules, each with type and path ({type(error).__name__}); fetch or "
            "save the encoder again."
        ) from None


def _said(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the encoder's folder; {} if it is absent."""
    return read_settings(folder / name) if (folder / name).exists() else {}


def encoder_context(folder: Path, model: Any, tokenizer: Any, choice: ModelChoice) -> int:
    """Tokens a text is cut to: the encoder's max_seq_length unless the user sets another."""
    limit = min(usable_positions(model), tokenizer.model_max_length)
    own_limit = _said(folder, "sentence_bert_config.json").get("max_seq_length")
    if choice.context > limit:
        raise CurateError(
            f"model.context={choice.context} is more than the {limit} tokens that {choice.name} was made for."
        )
    return choice.context or min(own_limit or limit, limit)
