from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curate.kinds.export import Export, Row
from curate.store.schema import EXPORTED


@dataclass(frozen=True)
class Datasets(Export):
    """A folder of the `datasets` library: `load_from_disk(DIR)` gives messages or text, loss_weight and more.

    Format: Arrow files with columns id, source, messages (list of role and content), text, loss_weight, rank, meta,
    template_kwargs (JSON text of tools, documents and chat_template_kwargs), rejected (of a preference pair the
    conversation with the other answer) and wanted (whether the last answer is wanted). A message's other keys (tool
    calls and the like) differ from row to row, which Arrow's columns may not: they are stored as JSON text in `extra`,
    NULL where there are none.

    Cost: one read of the selected shards; 1,024 rows in memory.

    Reference: https://huggingface.co/docs/datasets, `Dataset.save_to_disk`.

    >>> said = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "an apple"}]
    >>> Datasets().example(Row.of(said))["messages"][1]["content"]
    'an apple'
    """

    weighted: ClassVar[bool] = True

    def example(self, row: Row) -> dict[str, Any]:
        return {name: getattr(row, name) for name in EXPORTED.names}

    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        import datasets

        with tempfile.TemporaryDirectory(dir=folder, prefix=".rows.") as temporary:
            stream = f"{temporary}/rows.arrow"
            with pa.OSFile(stream, "wb") as f, pa.ipc.new_stream(f, EXPORTED) as writer:
                for table in self.tables(rows, EXPORTED):
                    writer.write_table(table)
            datasets.disable_progress_bars()
            datasets.Dataset.from_file(stream).save_to_disk(str(folder))
        return sorted(path for path in folder.iterdir() if path.is_file())
