from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from curate import exact_json
from curate.kinds.export import Export, Row


@dataclass(frozen=True)
class Jsonl(Export):
    """One JSON object a line: id, source, messages or text, loss_weight, rank and the original fields.

    Format: `NAME.jsonl`, UTF-8, with `messages` as [{"role", "content"}] (and any other keys of a message) and `tools`,
    `documents` and `chat_template_kwargs` where a sample has them, or `text`; its other input fields are under `meta`.
    Preference pairs have `prompt`, `chosen` and `rejected` instead of `messages`, labelled answers `prompt`,
    `completion` and `label`, as TRL has them.
    Trainers of transformers use the weights through `curate.training.weighted_trainer`.

    Cost: one read of the selected shards.

    Reference: read by anything that reads one line after the other. `datasets.load_dataset("json", data_files=…)`
    refuses rows with other keys than those of the first 10 MB; where samples differ in theirs, export to `parquet`.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> sorted(Jsonl().example(Row.of(said)))
    ['id', 'loss_weight', 'messages', 'meta', 'rank', 'source']
    """

    weighted: ClassVar[bool] = True

    def example(self, row: Row) -> dict[str, Any]:
        content: dict[str, Any] = {"text": row.text} if row.messages is None else {"messages": row.weighted_chat()}
        if pair := row.pair():
            content = dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))
        elif labelled := row.labelled():
            content = {"prompt": labelled[0], "completion": labelled[1], "label": row.wanted}
        labels = {"id": row.id, "source": row.source}
        weights, meta = {"loss_weight": row.loss_weight, "rank": row.rank}, exact_json.loads(row.meta)
        kwargs = row.kwargs() if row.template_kwargs else {}  # else tools are in meta, where they were found
        return {**labels, **content, **kwargs, **weights, "meta": meta}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        return [self.write_lines(folder / f"{name}.jsonl", rows)]
