from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, typed, typed_tools, without_weights

_IGNORED = -100  # the label of a token that is not trained on, as PyTorch's cross entropy has it
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Trl(Export):
    """JSONL for TRL's trainers (SFT, DPO, KTO), and the settings by which they train on what is scored.

    Format: `NAME.jsonl`, one object a line, of one shape throughout, by `style`; with the default, auto: {"text"} for
    raw text; {"prompt": [...], "completion": [the last answer]} if every chat is a prompt and its answer, for which TRL
    computes the loss on the answer; {"messages": [{"role", "content"}]} if some chat has more answers to learn, for
    which `assistant_only_loss` is to be set; {"prompt", "chosen", "rejected"} for preference pairs (DPO); {"prompt",
    "completion", "label"} for labelled answers (KTO). With `tokenizer`: {"input_ids", "labels"}, made by it and
    its chat template, where exactly the tokens are labels that are scored. `sft_config.yaml` (or `dpo_config.yaml`,
    `kto_config.yaml`) has the settings that this assumes: run `trl sft --config sft_config.yaml
    --model_name_or_path MODEL` in the export's folder, or copy them into your SFTConfig.

    There is no other column, so that TRL detects the shape, except `tools` and `chat_template_kwargs` if a sample of
    the export has some. The first row then is one with tools, as a list; the others have them as JSON text, which
    `datasets` decodes. Where messages have other keys than role and content, one of the first row has `weight` 1.
    Without both `datasets` would refuse rows with other tools or keys behind the first 10 MB.

    Cost: two reads of the selected shards; tokens are made of one row at a time.

    Departures: with `assistant_only_loss` TRL renders messages by the template's own {% generation %} marks, or by a
    template of its own for some model families, and refuses other templates; tokens have no such limit. Beside
    the tokens of the answers TRL trains on the white space that a template prints behind a final answer. It gives
    documents to no template, and knows no weights of turns: samples with these are refused; so are other weights of
    turns than 1, except 0 for all but the last answer, and 0 in tokens. Without the settings its `max_length`
    (1,024 tokens) cuts the rest of a sample off; packing cuts samples at the ends of blocks.

    Reference: https://huggingface.co/docs/trl/dataset_formats. TRL's SFT takes no weight per row (issue 5761), so a
    weighted manifest is refused, or its rows repeat (weights=repeats); or give `curate export --to jsonl` to
    curate.training.weighted_trainer.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Trl().example(Row.of(said))["completion"]
    [{'role': 'assistant', 'content': 'an apple'}]
    """

    uniform: ClassVar[bool] = True
    leads_with_tools: ClassVar[bool] = True

    style: Literal["auto", "messages", "prompt_completion", "tokens", "dpo", "kto"] = "auto"
    """Shape of samples: by what they are (tokens, where a tokenizer is given); whole conversations; the last answer
    separate from what comes before it; tokens and labels; pairs of answers; or answers with a label."""
    tokenizer: str = ""
    """For tokens and labels: whose tokenizer and chat template: a folder, a hub id, or tiny, smollm2-135m."""
    special_tokens: Literal["text", "parse"] = "text"
    """For tokens and labels: control tokens in a sample's texts are text, or parsed, as in a model's setting."""
    weights: Literal["refuse", "repeats"] = "refuse"
    """If weights differ: refuse them; or repeat rows in proportion, keeping the total number of rows."""

    def check(self) -> None:
        if self.style == "tokens" and not self.tokenizer:
            raise CurateError("TRL's style=tokens: say whose, by --set tokenizer=MODEL (a folder or hub id).")
        if self.tokenizer and self.style not in ("auto", "tokens"):
            raise CurateError(f"TRL's style={self.style} has no tokens; leave out --set tokenizer={self.tokenizer}.")

    def example(self, row: Row) -> dict[str, Any]:
        shape = self._shape(row)
        if shape == "tokens":
            return self._labels(row)
        if shape == "text":
            return {"text": row.text}
        for message in [*(row.messages or ()), *(row.rejected or ())]:
            if message["role"] not in _ROLES:
                raise CurateError(f"sample {row.id} has the role '{message['role']}', none of {', '.join(_ROLES)}.")
        row.refuse_kwargs(("tools", "chat_template_kwargs"), "TRL")
        kwargs = row.kwargs()
        columns = typed_tools(row)
        if "chat_template_kwargs" in row.some:
            columns["chat_template_kwargs"] = kwargs.get("chat_template_kwargs", {})
        said = self._preference(row, shape) if shape in ("dpo", "kto") else self._answers(row, shape)
        return {**said, **columns}

    def _shape(self, row: Row) -> str:
        """The style that a row is written in."""
        if self.style in ("dpo", "kto", "tokens"):
            return self.style
        if self.style == "auto" and row.kind in _BY_KIND:
            return _BY_KIND[row.kind]
        if self.tokenizer or row.messages is None:
            return "tokens" if self.tokenizer else "text"
        if self.style != "auto":
            return self.style
        return "messages" if "turns" in row.some or not row.ends_with_its_answer else "prompt_completion"

    def _answers(self, row: Row, style: str) -> dict[str, Any]:
        """The columns of a sample whose answers are trained on."""
        row.refuse_preferences(f"style={style}", f"export such samples with --set style={_BY_KIND.get(row.kind)}")
        chat = row.chat()
        if style == "messages":
            row.refuse_weights("TRL", "export with --set tokenizer=MODEL, which can leave turns out")
            return {"messages": typed(chat, row)}
        if chat[-1]["role"] != "assistant" or len(chat) < 2:
            raise CurateError(f"sample {row.id} has no prompt and answer at its end, as style=prompt_completion needs.")
        if row.weights()[-1] != 1:
            row.refuse_weights("TRL")
        return {"prompt": typed(chat[:-1], row), "completion": typed(chat[-1:], row)}

    def _preference(self, row: Row, style: str) -> dict[str, Any]:
        """The columns of a preference pair, or of a labelled answer, which the style is for."""
        parts = row.pair() if style == "dpo" else row.labelled()
        if parts is None:
            lacks = "rejected answer" if style == "dpo" else "label that says whether its answer is wanted"
            raise CurateError(f"sample {row.id} has no {lacks}, as style={style} needs.")
        if any(message.get("weight", 1) != 1 for answer in parts[1:] for message in answer):
            raise CurateError(f"sample {row.id} has an answer with turns of other weights than 1, and TRL knows none.")
        names = ("prompt", "chosen", "rejected") if style == "dpo" else ("prompt", "completion")
        columns = {name: typed(without_weights(part), row) for name, part in zip(names, parts, strict=True)}
        return columns if style == "dpo" else {**columns, "label": row.wanted}

    @cached_property
    def _tokenizer(self) -> Any:
        from curate.models.choice import ModelChoice
        from curate.models.load import load_tokenizer

        return load_tokenizer(ModelChoice(self.tokenizer))

    def _labels(self, row: Row) -> dict[str, Any]:
        """A sample as tokens; labels: the token where it is supervised, else -100."""
        from curate.models.tokens import encode

        row.refuse_preferences("a file of tokens", f"export such samples with --set style={_BY_KIND.get(row.kind)}")
        if not {0, 1}.issuperset(row.weights()):
            row.refuse_weights("TRL")
        sample = {"messages": row.messages, "text": row.text, "template_kwargs": row.template_kwargs}
        (encoded,) = encode(self._tokenizer, [sample], 1 << 40, add_eos_token=True, special_tokens=self.special_tokens)
        if encoded.error or not encoded.supervised.any():
            raise CurateError(f"sample {row.id} {encoded.error or 'has no token to learn'}, so it is no row of tokens.")
        labels = np.where(encoded.supervised, encoded.ids, _IGNORED)
        return {"input_ids": encoded.ids.tolist(), "labels": labels.tolist()}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return [self.write_lines(folder / f"{name}.jsonl", self._of_one_shape(rows))]

    def _of_one_shape(self, rows: Iterator[Row]) -> Iterator[Row]:
        first: Row | None = None
        for row in rows:
            first = first or row
            if self._shape(row) != self._shape(first):
                raise CurateError(
                    f"sample {first.id} is {_A[first.kind]} and sample {row.id} is {_A[row.kind]}, and TRL's file has "
                    f'one shape; select one of them with --where "{_CONDITION[first.kind]}" or --where '
                    f'"{_CONDITION[row.kind]}".'
                )
            yield row

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        shape = _shape_of(folder / f"{name}.jsonl")
        trainer = {"dpo": "dpo", "kto": "kto"}.get(shape, "sft")
        lines = [
            f"# TRL's settings for {name}.jsonl. In this folder:",
            f"# trl {trainer} --config {trainer}_config.yaml --model_name_or_path MODEL --output_dir RUN",
            "datasets:",
            "  - path: json",
            f"    data_files: {name}.jsonl",
            "    split: train",
            *_SETTINGS[shape],
            "# Samples are not cut, as they are not when they are scored (TRL's default: at 1,024 tokens); set it if",
            "# memory does not suffice.",
            "max_length: null",
        ]
        path = folder / f"{trainer}_config.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [path]

    def holds_tokens(self) -> bool:
        return bool(self.tokenizer)

    def assumes(self, folder: Path, name: str) -> str:
        return _ASSUMED[_shape_of(folder / f"{name}.jsonl")]


def _shape_of(path: Path) -> str:
    """The style of a file that was written, by the columns of its first row."""
    with path.open("rb") as f:
        line = f.readline()
    if not line:
        raise CurateError(f"{path.name}: the manifest has no row to export.")
    columns = exact_json.loads(line.decode()).keys()
    marks = {"text": "text", "messages": "messages", "labels": "tokens", "chosen": "dpo", "label": "kto"}
    return next((style for column, style in marks.items() if column in columns), "prompt_completion")


_BY_KIND = {"pair": "dpo", "labelled": "kto"}
_A = {"text": "raw text", "chat": "a chat", "pair": "a preference pair", "labelled": "a labelled answer"}
_CONDITION = {
    "text": "text IS NOT NULL",
    "chat": "text IS NULL AND rejected IS NULL AND wanted IS NULL",
    "pair": "rejected IS NOT NULL",
    "labelled": "wanted IS NOT NULL",
}
_SETTINGS = {
    "text": ("# All tokens are trained on; TRL adds the end-of-text token.",),
    "prompt_completion": ("# The loss is on the completion: the last answer.", "completion_only_loss: true"),
    "messages": (
        "# The loss is on the assistant's turns. It needs a chat template that marks them, or one that TRL knows; for",
        "# others TRL stops: export with --set tokenizer=MODEL then.",
        "assistant_only_loss: true",
    ),
    "tokens": ("# The loss is on the labels; the rows are tokens already.",),
    "dpo": ("# The loss is on both answers.",),
    "kto": ("# The loss is on the answer.",),
}
_ASSUMED = {
    "text": "TRL trains on all tokens of a text, as they are scored; sft_config.yaml: max_length is null.",
    "prompt_completion": "TRL trains on the completions, the answers that are scored; sft_config.yaml: "
    "completion_only_loss is true, max_length null.",
    "messages": "TRL trains on the assistant's turns, as they are scored, only with sft_config.yaml: "
    "assistant_only_loss is true, max_length null. It needs a chat template with {% generation %} marks, or one that "
    "TRL knows; --set tokenizer=MODEL needs neither.",
    "tokens": "TRL trains on the labels, the tokens that are scored; sft_config.yaml: max_length is null.",
    "dpo": "TRL compares the chosen and the rejected answers; dpo_config.yaml: max_length is null.",
    "kto": "TRL learns the answers by their label; kto_config.yaml: max_length is null.",
}
