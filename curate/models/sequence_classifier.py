"""A sequence classifier or regression model of transformers: one output per label for a text, long ones in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError, nearest
from curate.kinds.classified import Classified
from curate.kinds.passes import ForwardRequest, View
from curate.kinds.sample_text import NoText, Sample
from curate.kinds.signals import Forward
from curate.models.choice import ModelChoice
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.forward import Key, Model, usable_positions, wide
from curate.models.load import load_classifier
from curate.models.tokens import Encoded
from curate.models.usage import Usage

_PARTS: Key = ("", "parts")


class SequenceClassifier(Model):
    """A model with one output per label."""

    def __init__(self, choice: ModelChoice):
        model, tokenizer = load_classifier(choice)
        super().__init__(choice, model, tokenizer, classifier_context(model, tokenizer, choice))
        self.width = int(model.config.num_labels)
        self.labels = [str(model.config.id2label.get(i, i)) for i in range(self.width)]

    def way(
        self,
        samples: Sequence[Sample | Encoded],
        view: View | Literal[""],
        requests: Mapping[Key, ForwardRequest],
        states: Mapping[str, Any],
    ) -> tuple[dict[Key, dict[str, Any]], Usage]:
        """As for any model, with the outputs of the wanted labels as `pooled`, [B, L]."""
        view = cast(Classified, view)
        wanted = self._wanted(view)
        texts = [
            parts_of(self.tokenizer, cast(Sample, sample), self.context, view, self._as_text) for sample in samples
        ]
        if self.choice.too_long == "refuse":
            texts = [_refused(parts, self.context) for parts in texts]
        parts = [part for text in texts for part in text]
        inner = {_PARTS: ForwardRequest(pooled=True, of=lambda batch: {"outputs": np.asarray(batch.pooled)})}
        kept, usage = super().way(parts, "", inner, states)
        outputs, reasons = kept[_PARTS]["outputs"], kept[_PARTS]["error"]
        counts = np.array([len(text) for text in texts], np.int64)
        pooled = self._of_texts(self._activated(outputs, view), parts, counts, view.long)[:, wanted]
        first = np.cumsum(counts) - counts
        errors = [next((e for e in reasons[a : a + n] if e), "") for a, n in zip(first, counts, strict=True)]
        usage.flops_paper = paper_flops(FORWARD, self.n_params, len(samples))
        lengths = np.add.reduceat([len(part.ids) for part in parts], first) if len(parts) else counts
        whole = Forward(None, np.zeros(len(samples), np.int64), None, lengths, torch.from_numpy(pooled))
        return {
            key: {**request.of(whole), "error": np.array(errors, object)} for key, request in requests.items()
        }, usage

    @property
    def _as_text(self) -> bool:
        return self.choice.special_tokens != "parse"

    def _wanted(self, view: Classified) -> list[int]:
        """The places of the labels. Raises CurateError for one that the model has not."""
        by_name = {**{str(i): i for i in range(self.width)}, **{name: i for i, name in enumerate(self.labels)}}
        for label in view.labels:
            if label not in by_name:
                raise CurateError(f"{self.choice.name} has no label '{label}': {nearest(label, self.labels)}")
        return [by_name[label] for label in view.labels] + list(range(self.width)) * view.every

    def _activated(self, outputs: np.ndarray, view: Classified) -> np.ndarray:
        """The outputs [P, L] as transformers' pipeline gives them: as they are for a regression, else probabilities."""
        config, kind = self.model.config, view.activation
        if kind == "auto":
            several = config.problem_type == "multi_label_classification" or self.width == 1
            kind = "none" if config.problem_type == "regression" else "sigmoid" if several else "softmax"
        outputs = outputs.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if kind == "sigmoid":
                return 1 / (1 + np.exp(-outputs))
            if kind == "softmax":
                powers = np.exp(outputs - outputs.max(1, keepdims=True, initial=-np.inf))
                return powers / powers.sum(1, keepdims=True)
        return outputs

    def _of_texts(self, outputs: np.ndarray, parts: Sequence[Encoded], counts: np.ndarray, long: str) -> np.ndarray:
        """The outputs of texts, [B, L], from those of their parts, [P, L]: the mean by tokens, or the maximum."""
        if not len(parts):
            return np.zeros((len(counts), self.width))
        first = np.cumsum(counts) - counts
        if long == "max":
            return np.maximum.reduceat(outputs, first)
        tokens = np.array([max(1, len(part.ids)) for part in parts], np.float64)
        return np.add.reduceat(outputs * tokens[:, None], first) / np.add.reduceat(tokens, first)[:, None]

    @torch.inference_mode()
    def _batch(
        self, encoded: Sequence[Encoded], requests: Mapping[Key, ForwardRequest]
    ) -> tuple[dict[Key, Forward], Usage]:
        lengths = np.array([len(sample.ids) for sample in encoded])
        ids, valid, _ = self.padded(encoded, int(lengths.max()))
        ids = torch.where(valid, ids, self._padding(encoded))
        usage = self.usage(int(lengths.sum()), ids.numel(), cut=sum(sample.cut for sample in encoded))
        with counted(usage, self.choice.count_flops), self.products():
            outputs = self.model(input_ids=ids, attention_mask=valid.long()).logits
        if outputs.shape != (len(ids), self.width):
            raise CurateError(f"{self.choice.name} gives outputs {list(outputs.shape)}, not one for each label.")
        usage.flops = forward_flops(self.model.base_model, *ids.shape, head_rows=0)
        pooled: Tensor = wide(outputs).cpu()
        return {key: Forward(None, np.zeros(len(ids), np.int64), None, lengths, pooled) for key in requests}, usage

    def _padding(self, encoded: Sequence[Encoded]) -> int:
        """A token to pad with. Models that look at a text's last token find it by the padding token: one that has none
        is told of a token that no text here ends with."""
        config = self.model.config
        own = getattr(self, "_own_padding", config.pad_token_id)
        self._own_padding = own
        if own is None:
            last = {int(sample.ids[-1]) for sample in encoded}
            config.pad_token_id = next(token for token in range(len(last) + 1) if token not in last)
        return int(config.pad_token_id)


def parts_of(tokenizer: Any, sample: Sample, context: int, view: Classified, as_text: bool) -> list[Encoded]:
    """A sample's text in tokens, with those that the tokenizer adds around each part: the first part, or all."""
    try:
        text = view.text(sample)
    except NoText as reason:
        return [Encoded(error=str(reason))]
    options = {"truncation": True, "max_length": context, "split_special_tokens": as_text}
    found = tokenizer(text, return_overflowing_tokens=True, verbose=False, **options)["input_ids"]
    several = len(found) > 1 and view.long == "first"
    kept = found[:1] if view.long == "first" else found
    return [Encoded(np.array(ids, np.int32), np.zeros(len(ids), bool), cut=several) for ids in kept]


def _refused(parts: list[Encoded], context: int) -> list[Encoded]:
    long = len(parts) > 1 or parts[0].cut
    return [Encoded(error=f"has more tokens than the context of {context}")] if long else parts


def classifier_context(model: Any, tokenizer: Any, choice: ModelChoice) -> int:
    """Tokens of a part: what the tokenizer and the model were made for, unless the user sets fewer."""
    limit = min(usable_positions(model), tokenizer.model_max_length)
    if choice.context > limit:
        raise CurateError(
            f"model.context={choice.context} is more than the {limit} tokens that {choice.name} was made for."
        )
    return int(choice.context or limit)
