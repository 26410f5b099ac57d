"""Exports: how the rows of a manifest become the input files of a trainer."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from curate import exact_json
from curate.errors import CurateError
from curate.kinds.method import Method
from curate.preferences import asked_length, prompt_length

if TYPE_CHECKING:  # a machine that only runs models has no Arrow, polars or torch to be imported here
    import pyarrow as pa


_MOST_OPEN = 900  # files that an export keeps open at once; the usual limit of a process is 1,024


@dataclass(frozen=True)
class Row:
    """One selected sample, ready to be exported to a trainer.

    some: what at least one row of the export has (of SOME), so that every row of a file gets the same columns. place:
    of the row in its file, from 0.
    """

    id: str
    source: str
    messages: list[dict[str, Any]] | None
    text: str | None
    meta: str = "{}"
    loss_weight: float = 1.0
    repeats: int = 1
    rank: int = 0
    part: str = ""
    template_kwargs: str | None = None
    rejected: list[dict[str, Any]] | None = None
    wanted: bool | None = None
    some: frozenset[str] = frozenset()
    place: int = 0

    @classmethod
    def of(cls, sample: str | Sequence[Mapping[str, str]]) -> Row:
        """A row from an in-memory sample: a text, or messages with role and content."""
        if isinstance(sample, str):
            return cls("0" * 16, "memory", None, sample)
        return cls("0" * 16, "memory", [{"extra": None, **m} for m in sample], None)

    def chat(self) -> list[dict[str, Any]]:
        """The messages as trainers know them: role, content and the keys kept in `extra`, except their weights; [] for
        raw text."""
        return without_weights(self.weighted_chat())

    def pair(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]] | None:
        """The prompt of a preference pair, and its chosen and its rejected answer, as `weighted_chat`; None if it is no
        pair."""
        if self.messages is None or self.rejected is None:
            return None
        n = prompt_length(self.messages, self.rejected)
        chosen = self.weighted_chat()
        return chosen[:n], chosen[n:], _with_weights(self.rejected)[n:]

    def labelled(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
        """The prompt of a labelled answer, and the answer, as `weighted_chat`; None if it is none."""
        if self.messages is None or self.wanted is None:
            return None
        n = asked_length(self.messages)
        return self.weighted_chat()[:n], self.weighted_chat()[n:]

    @property
    def kind(self) -> str:
        """What it is for a trainer: text, chat, pair, or labelled."""
        if self.messages is None:
            return "text"
        return "pair" if self.rejected is not None else "labelled" if self.wanted is not None else "chat"

    @property
    def ends_with_its_answer(self) -> bool:
        """Whether it is a prompt and an answer: of the assistant's turns only the last message is trained on."""
        chat = self.messages or []
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            return False
        weights = self.weights()
        return weights[-1] == 1 and not any(weights[:-1])

    def weighted_chat(self) -> list[dict[str, Any]]:
        """The messages, each with its `weight` in the loss where that is not 1, as OpenAI's format has it."""
        return _with_weights(self.messages or [])

    def weights(self) -> list[float]:
        """The weights of the assistant's turns in the loss."""
        return [m.get("weight", 1) for m in self.weighted_chat() if m["role"] == "assistant"]

    def kwargs(self) -> dict[str, Any]:
        """What the chat template is given beside the messages: tools, documents, chat_template_kwargs, as they are."""
        if self.template_kwargs:
            return exact_json.loads(self.template_kwargs)
        tools = exact_json.loads(self.meta).get("tools")  # where pools of earlier versions have them
        return {"tools": tools} if tools and isinstance(tools, list) else {}

    def refuse_kwargs(self, held: Sequence[str], trainer: str) -> None:
        """Raises CurateError if the sample has keyword arguments of a template other than those that are held."""
        if others := [name for name in self.kwargs() if name not in held]:
            raise CurateError(
                f"sample {self.id} has {' and '.join(others)}, which {trainer} gives to no chat template."
            )

    def refuse_preferences(self, trainer: str, remedy: str = "export such samples to trl or llamafactory") -> None:
        """Raises CurateError for preference data, whose answers are not all to be trained on."""
        if self.kind in ("pair", "labelled"):
            has = "a rejected answer" if self.kind == "pair" else "a label that says whether its answer is wanted"
            raise CurateError(f"sample {self.id} has {has}, which {trainer} cannot hold; {remedy}.")

    def refuse_weights(self, trainer: str, remedy: str = "") -> None:
        """Raises CurateError if turns have weights of their own."""
        if any(weight != 1 for weight in self.weights()):
            shown = ", ".join(f"{weight:g}" for weight in self.weights())
            told = f"sample {self.id} has assistant's turns of weight {shown}, and {trainer} trains on them all"
            raise CurateError(f"{told}; {remedy}." if remedy else f"{told}.")


def without_weights(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without their weights in the loss."""
    return [{k: v for k, v in message.items() if k != "weight"} for message in chat]


def _with_weights(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"role": m["role"], "content": m["content"], **(exact_json.loads(m["extra"]) if m["extra"] else {})}
        for m in messages
    ]


@dataclass(frozen=True)
class Part:
    """Rows of an export that are sampled at one rate: a domain of a mixture, or rows of similar weight.

    label: the name of the part, '' if it is the only one. rows: how many were written. share: its share of all draws.
    draws: how many draws of an epoch it receives, a whole number.
    """

    label: str
    rows: int
    share: float
    draws: int

    def file(self, name: str) -> str:
        """The name of its file, without extension, in the export of the manifest `name`."""
        return part_file(name, self.label)


# keys: of messages, beside role and content; turns: answers to learn beside the last one, or no last one.
SOME = ("tools", "documents", "chat_template_kwargs", "keys", "turns")
_WHOLE = re.compile(r"-?\d+")
_TIME = re.compile(r"\s*\d{4}-\d\d-\d\d")


def typed(chat: list[dict[str, Any]], row: Row) -> list[dict[str, Any]]:
    """The messages of a row, so that `datasets` reads those of all rows of the file as they are.

    It takes the type of a column from the first 10 MB of a file: rows with other keys behind these are refused, and
    texts become times if all are dates so far. Where messages differ in their keys it takes any JSON (since 4.7). So in
    the first row of a file whose messages have further keys, or begin with a date, one of them has another key than the
    others: the weight that it has without saying so.
    """
    dated = any(_TIME.match(message["content"] or "") for message in chat)
    if row.place or not chat or not ("keys" in row.some or dated):
        return chat
    return [*chat[:-1], {**chat[-1], "weight": 1}]


def typed_tools(row: Row) -> dict[str, Any]:
    """The column `tools`; {} if no row has tools.

    So that `datasets` takes any JSON in it (see `typed`), and gives lists to the trainer, the first row of a file has a
    list and the second a text. So have the others: of a list it would round the fractions to ten decimals.
    """
    if "tools" not in row.some:
        return {}
    tools = row.kwargs().get("tools")
    return {"tools": exact_json.dumps(tools) if row.place == 1 or row.place and tools else tools}


def refuse_unread(example: Any, sample_id: str) -> None:
    """Raises CurateError for a number in a row that `datasets` cannot read, or reads as infinite; text is none."""
    within = [example]
    while within:
        held = within.pop()
        if isinstance(held, dict):
            within.extend(held.values())
        elif isinstance(held, list):
            within.extend(held)
        elif isinstance(held, int | float) and not _is_read(held):
            raise CurateError(
                f"sample {sample_id} has the number {exact_json.dumps(held)[:40]}, which `datasets`, by which the "
                "trainer reads its rows, cannot read."
            )


def _is_read(number: float) -> bool:
    """Whether the part of a number before its point fits into 64 bits, and the number into a float."""
    if isinstance(number, float) and not math.isfinite(number):
        return False
    digits = _WHOLE.match(exact_json.dumps(number))
    return digits is None or -(1 << 63) <= int(digits[0]) < 1 << 64


def part_file(name: str, label: str) -> str:
    """The name of a part's file, without extension: NAME_LABEL, or NAME if the label is empty."""
    return f"{name}_{label}" if label else name


class Export(Method):
    """Writes the rows of a manifest as the files of one trainer.

    weighted: whether its rows can carry a weight. If not, `weights` decides what happens to a manifest with unequal
    weights: it is refused; its rows are repeated; or each source is split into `strata` parts by quantiles of the
    weights. blends: whether the trainer can draw from several parts at different rates, as a mixture requires.
    """

    weighted: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    weights: str = "refuse"
    strata: int = 0
    uniform: ClassVar[bool] = False  # whether all rows of a file have the same columns (`Row.some`)
    leads_with_tools: ClassVar[bool] = False  # whether a file's first row is one with tools, if any has tools

    def check(self) -> None:
        """Raises CurateError if nothing can be written with these settings."""
        return None

    @abstractmethod
    def example(self, row: Row) -> dict[str, Any]:
        """One row as the trainer will see it. Raises CurateError if the format cannot represent it."""

    def holds_tokens(self) -> bool:
        """Whether it writes token ids, so that nothing is left to a trainer's tokenizer."""
        return False

    def describe(self, folder: Path, name: str, parts: Sequence[Part], final: Path) -> list[Path]:
        """Write the configuration that lists the files for the trainer, and the sampling rates of the parts. final: the
        final location of `folder`, for trainers that need absolute paths. Returns the files written."""
        return []

    def assumes(self, folder: Path, name: str) -> str:
        """What the trainer must be told, or does by itself, so that it trains on the tokens that are scored; '' if
        there is nothing to say. folder: with the files written."""
        return ""

    @abstractmethod
    def write(self, rows: Iterator[Row], folder: Path, name: str) -> list[Path]:
        """Write the files into an empty folder, reading one row at a time. Returns their paths."""

    def write_lines(self, path: Path, rows: Iterator[Row]) -> Path:
        """Write the examples as JSON Lines into one file."""
        with path.open("wb") as f:
            for row in rows:
                f.write(f"{exact_json.dumps(self.example(row))}\n".encode())
        return path

    def write_parts(self, rows: Iterator[Row], folder: Path, file: Callable[[Row], str]) -> list[Path]:
        """Write the examples as JSON Lines, each into FILE(row).jsonl. Returns the files."""
        buffers: dict[Path, list[bytes]] = {}
        for row in rows:
            lines = buffers.setdefault(folder / f"{file(row)}.jsonl", [])
            lines.append(f"{exact_json.dumps(self.example(row))}\n".encode())
            if len(lines) == 1024:
                _append(buffers, [folder / f"{file(row)}.jsonl"])
        _append(buffers, list(buffers))
        return list(buffers)

    def write_parquets(self, rows: Iterator[Row], schema: pa.Schema, file: Callable[[str], Path]) -> list[Path]:
        """Write the examples as Parquet, one file per part; file: from the part's label to its path."""
        import pyarrow.parquet as pq

        files: dict[Path, Any] = {}
        with ExitStack() as stack:
            for part, table in self.tables_by_part(rows, schema):
                if (path := file(part)) not in files:
                    if len(files) == _MOST_OPEN:
                        raise CurateError(f"at most {_MOST_OPEN} parts are written at once here; take fewer strata.")
                    path.parent.mkdir(exist_ok=True)
                    files[path] = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                files[path].write_table(table)
        return list(files)

    def tables(self, rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
        """The examples as tables of at most 1,024 rows."""
        for _, table in self.tables_by_part(rows, schema, parted=False):
            yield table

    def tables_by_part(
        self, rows: Iterator[Row], schema: pa.Schema, parted: bool = True
    ) -> Iterator[tuple[str, pa.Table]]:
        """The examples as tables of at most 1,024 rows of one part, with its label."""
        import pyarrow as pa

        buffers: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            buffer = buffers.setdefault(row.part if parted else "", [])
            buffer.append(self.example(row))
            if len(buffer) == 1024:
                yield row.part, pa.Table.from_pylist(buffer, schema=schema)
                buffer.clear()
        for part, remaining in buffers.items():
            if remaining:
                yield part, pa.Table.from_pylist(remaining, schema=schema)


def _append(buffers: Mapping[Path, list[bytes]], paths: Sequence[Path]) -> None:
    """Append the buffered lines to their files, which are closed again: parts may outnumber the open-file limit."""
    for path in paths:
        with path.open("ab") as f:
            f.writelines(buffers[path])
        buffers[path].clear()
