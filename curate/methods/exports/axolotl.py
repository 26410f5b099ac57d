from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from curate.errors import CurateError
from curate.kinds.export import Export, Part, Row, typed, typed_tools, without_weights


@dataclass(frozen=True)
class Axolotl(Export):
    """axolotl: a JSONL per shape, and the `datasets` of its configuration that name them.

    Format: `NAME.jsonl` (chat, {"messages", "tools"}, read as `type: chat_template`) and `NAME_text.jsonl` (raw text,
    `type: completion`), each only if there is such a sample; or `NAME_pairs.jsonl` (preference pairs, {"messages",
    "chosen", "rejected"}: the prompt, and one turn each, read as `type: chat_template.default` under `rl: dpo`).
    `NAME.axolotl.yaml` has the key `datasets` with these files, relative to the folder, and the settings with which
    axolotl trains on what is scored: copy it into your configuration, and run axolotl in the export's folder (or write
    the folder before the names). `tools` is there if a sample of the export has some; the first row of the
    file then is one with tools, as a list; the others have them as JSON text, which `datasets` decodes, and without
    which it would refuse rows with other tools behind the first 10 MB. A turn of weight 0 has `train` false, as has
    every other turn of the assistant's `train` true, if there is one in the sample.

    Cost: two reads of the selected shards.

    Departures: axolotl has no weights, neither of rows nor of datasets, so a weighted manifest is refused, or its rows
    repeat (weights=repeats); for a mixture, one epoch of its draws is written. Turns have weight 0 or 1; samples with
    other weights are refused, as are those with documents or chat_template_kwargs. Its DPO is a run of its own, so
    pairs beside other samples are refused; it gives the chat template roles and contents only, and takes one turn as an
    answer, so pairs with tools, calls, reasoning or more turns are refused. Labelled answers (KTO) are refused, since
    its formats for them print the question by a template of their own, not the model's. Samples longer than
    `sequence_len` stop axolotl by the setting `excess_length_strategy: raise`; without it they are dropped.

    Reference: axolotl, docs/dataset-formats/conversation.qmd, docs/rlhf.qmd, src/axolotl/utils/schemas/datasets.py and
    src/axolotl/prompt_strategies/dpo/chat_template.py.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Axolotl().example(Row.of(said))["messages"][0]["role"]
    'user'
    """

    uniform: ClassVar[bool] = True
    leads_with_tools: ClassVar[bool] = True

    weights: Literal["refuse", "repeats"] = "refuse"
    """If weights differ: refuse them; or repeat rows in proportion, keeping the total number of rows."""

    def example(self, row: Row) -> dict[str, Any]:
        if row.messages is None:
            return {"text": row.text}
        if pair := row.pair():
            return self._pair(row, pair)
        row.refuse_preferences("axolotl's file of chats")
        row.refuse_kwargs(("tools",), "axolotl")
        weights = row.weights()
        if not {0, 1}.issuperset(weights):
            row.refuse_weights("axolotl")
        chat = row.chat()
        if 0 in weights:
            answers = [message for message in chat if message["role"] == "assistant"]
            for message, weight in zip(answers, weights, strict=True):
                message["train"] = bool(weight)
        return {"messages": typed(chat, row), **typed_tools(row)}

    def _pair(self, row: Row, pair: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
        row.refuse_kwargs((), "axolotl's DPO")
        if keys := sorted({key for part in pair for message in without_weights(part) for key in message} - _SHOWN):
            raise CurateError(f"sample {row.id} has messages with {', '.join(keys)}, which axolotl's DPO hides.")
        if any(len(answer) != 1 for answer in pair[1:]):
            raise CurateError(f"sample {row.id} has answers of several turns, and axolotl's DPO takes one each.")
        if any(message.get("weight", 1) != 1 for answer in pair[1:] for message in answer):
            raise CurateError(f"sample {row.id} has an answer of another weight than 1, and axolotl's DPO knows none.")
        prompt, (chosen,), (rejected,) = map(without_weights, pair)
        return {"messages": typed(prompt, row), "chosen": chosen, "rejected": rejected}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return self.write_parts(rows, folder, lambda row: name + _ENDING[row.kind])

    def assumes(self, folder: Path, name: str) -> str:
        told = f"{name}.axolotl.yaml: roles_to_train is [assistant], train_on_eos turn, excess_length_strategy raise."
        if (folder / f"{name}_pairs.jsonl").exists():
            return f"axolotl compares the answers; {name}.axolotl.yaml: rl is dpo."
        return f"axolotl trains on the assistant's turns and on all tokens of raw text, as they are scored; {told}"

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        shapes = {name: _CHAT, f"{name}_text": _TEXT, f"{name}_pairs": _PAIR}
        present = {file: shape for file, shape in shapes.items() if (folder / f"{file}.jsonl").exists()}
        pairs = f"{name}_pairs" in present
        if pairs and len(present) > 1:
            raise CurateError(
                f"the manifest '{name}' has preference pairs and samples without, which axolotl trains on in runs of "
                'their own; select one of them, by --where "rejected IS NULL" or --where "rejected IS NOT NULL".'
            )
        if not present:
            raise CurateError(f"the manifest '{name}' has no row to export.")
        lines = [*_HEAD, *(("rl: dpo",) if pairs else _SFT), "datasets:"]
        for file, shape in present.items():
            lines += [f"  - path: {file}.jsonl", *(f"    {line}" for line in shape)]
        path = folder / f"{name}.axolotl.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [path]


_HEAD = (
    "# Copy this into your configuration, and run axolotl in this folder (or write it before the files' names).",
    "# Samples longer than your sequence_len stop axolotl, instead of being dropped without a word.",
    "excess_length_strategy: raise",
    "chat_template: tokenizer_default",
)
_SFT = (
    "# The loss is on the assistant's turns and their ends, as they are scored. Where a chat template ends turns with",
    "# another token than EOS (Llama 3's <|eot_id|>), name it: eot_tokens: ['<|eot_id|>'].",
    "train_on_inputs: false",
)
_CHAT = (
    "ds_type: json",
    "type: chat_template",
    "field_messages: messages",
    "field_tools: tools",
    "message_property_mappings: {role: role, content: content}",
    "message_field_training: train",
    "roles_to_train: [assistant]",
    "train_on_eos: turn",
)
_PAIR = (
    "ds_type: json",
    "split: train",
    "type: chat_template.default",
    "field_messages: messages",
    "field_chosen: chosen",
    "field_rejected: rejected",
    "message_property_mappings: {role: role, content: content}",
)
_ENDING = {"chat": "", "text": "_text", "pair": "_pairs"}
_SHOWN = {"role", "content"}
_TEXT = ("ds_type: json", "type: completion", "field: text")
