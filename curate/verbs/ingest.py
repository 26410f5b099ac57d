"""`curate ingest`: files, or rows in memory, in; a pool of distinct samples out.

Samples are stored in immutable shards of about `shard_bytes` of text. A shard, the records refused meanwhile, the
copies found of rows stored earlier, and how far each file has been read are committed together by the shard's record;
so a killed ingest, when run again, resumes after the last shard and ends with the same pool.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, require
from curate.hashing import fingerprint
from curate.machine import usable_cores
from curate.methods.executors.local import Local
from curate.progress import Progress
from curate.results import Result
from curate.store.contents import bring_to_format
from curate.store.given_data import Data, find_given
from curate.store.input_blocks import Conversion, Converted, blocks
from curate.store.input_files import Input, first_records
from curate.store.input_formats import Reader, Refused
from curate.store.input_limits import InputLimits
from curate.store.ledger import charged
from curate.store.locks import lock
from curate.store.meta_rules import RULES, MetaRule, meta_notes
from curate.store.pool_writer import PoolWriter
from curate.store.special_tokens import special_notes
from curate.store.workspace import Workspace

SHARD_BYTES = 32 << 20
_LOOK = 1000  # records read before a file of unknown format is refused
_WORTH_WORKERS = 16 << 20  # bytes of files for which starting processes is worth while
_MOST_WORKERS = 8  # that are started unasked: about what one process can write for


@dataclass
class Ingested(Result):
    """The result of an ingest."""

    read: int = 0
    added: int = 0
    copies: int = 0
    special: dict[str, int] = field(default_factory=dict)  # source -> samples added with control tokens in their texts
    special_tokens: dict[str, int] = field(default_factory=dict)  # token -> samples
    other_meta: int = 0  # known samples that were read with other fields in `meta`
    rejected: int = 0
    files_planned: list[str] = field(default_factory=list)  # all files not yet read
    files_read: int = 0
    files_skipped: list[str] = field(default_factory=list)
    formats: dict[str, int] = field(default_factory=dict)
    meta_fields: dict[str, list[str]] = field(default_factory=dict)  # by format
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first sample of each format, as a model sees it
    sources: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pool_rows: int = 0
    shards: int = 0


def ingest(
    ws: AnyWorkspace,
    paths: Data,
    *,
    source: str | None = None,
    fmt: str = "auto",
    mapping: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    split: str | None = None,
    turn_keys: Sequence[str] = (),
    choice_answer: Literal["letter", "text"] = "letter",
    limits: InputLimits | None = None,
    meta: MetaRule = "keep",
    strip_special: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    wait: float | None = None,
) -> Ingested:
    """Add samples to the pool: of files, folders, globs or hub ids, or of rows in memory.

    paths: one of these, or a list of them: a path; '-' (standard input) or an open binary file, of JSON Lines; a
    `datasets.Dataset`, a table of Arrow, polars or pandas; a list or an iterator of dictionaries. What was read is
    skipped when it is given again; of an iterator, a stream or an `IterableDataset`, which are read once, every row
    that is in the pool counts as a copy.
    source: the domain of all rows (default: the name of each path, without endings; memory; stdin). split: of folders
    and datasets with several; None: train.
    fmt: 'auto', or the format every record must have (curate.store.input_formats). mapping: our field -> their field.
    turn_keys: keys of turns that the chat template prints, beside those that are known (curate.store.turns).
    choice_answer: what the answer to a question with options is, the letter or the text of the right one.
    meta: what becomes of the fields of a sample that is in the pool and read again with others: keep the old ones,
    replace them, or merge both (of a field in both the new value holds); scores do not depend on them.
    limits: what a row and a packed file may cost; the default of InputLimits if None.
    strip_special: leave control tokens of models (curate.store.special_tokens) out of texts.
    workers: processes that parse rows and make samples of them; by default one per core, where the files are large. The
    pool has the same bytes whatever their number. Rows in memory are read by this process.
    Reads the input once; memory: one shard, 8 bytes per stored row, and some 20 MiB of rows per worker.

    Raises CurateError, before anything is stored, if a path does not exist, is not a data file, or has only records of
    unknown format; and, after what came before is stored, for an iterator that raises an error.
    wait: seconds to wait for what another process writes, then WorkspaceBusy; default: as `ws` was opened.
    """
    ws = workspace_of(ws, create=True, wait=wait)
    reader = Reader(fmt, mapping or {}, frozenset(turn_keys), choice_answer, strip_special)
    found = find_given(paths, split, limits)
    inputs, result = found.inputs, Ingested(warnings=found.told())
    # A file that is read with another mapping counts as another file.
    reading = fingerprint(
        fmt,
        dict(mapping or {}),
        *([sorted(turn_keys)] if turn_keys else []),
        *([choice_answer] if choice_answer != "letter" else []),
        *([f"meta {meta}"] if meta != "keep" else []),
        *(["strip special"] if strip_special else []),
    )
    require("--meta", meta in RULES, f"one of {', '.join(RULES)}")
    processes = _processes(inputs, workers)
    with lock(ws, "pool"):
        ws.pool.remove_leftovers()
        bring_to_format(ws)
        progress = _progress(ws)
        todo = _unread(inputs, reading, progress, result)
        for item in todo:
            _refuse_unknown_shape(item, reader)
        reader = reader.fresh()
        if inputs and all(item.kind == "empty" for item in inputs):
            raise CurateError(f"{', '.join(i.path for i in inputs)}: nothing to ingest, every file is empty.")
        result.files_planned = [item.path for item in todo]
        if todo and not dry_run:
            with charged(ws.path, "ingest", methods=[], name="pool", phase="read") as meter:
                writer = PoolWriter(ws, shard_bytes, result, meter, meta)
                keys = [_key(item, reading) for item in todo]
                plan = [_Reading(i, k, progress.get(k, {}).get("rows", 0)) for i, k in zip(todo, keys, strict=True)]
                with closing(_converted(plan, Conversion(reader.fresh(), source), processes)) as converted:
                    for one in plan:
                        _read_file(one, converted, reader, writer, progress, result)
                        if one.item.rows and one.item.rows.error:
                            break
                writer.flush()
                ws.pool.certify()
            _refuse_stopped(todo, result)
    result.formats = dict(reader.seen)
    result.meta_fields = {name: sorted(map(str, shape.meta_fields)) for name, shape in reader.shapes.items()}
    result.examples = {name: shape.shown() for name, shape in reader.shapes.items()}
    result.warnings += [*reader.notes(), *meta_notes(result.other_meta, meta)]
    result.warnings += special_notes(result.special, result.special_tokens, result.sources, strip_special)
    result.pool_rows, result.shards = ws.n_rows(), len(ws.shards())
    return result


def _key(item: Input, reading: str) -> str:
    """What an input's progress is recorded by; '' for one that can be read only once. reading: how it is read."""
    return f"{item.key}:{reading}" if item.key else ""


def _refuse_stopped(inputs: Sequence[Input], result: Ingested) -> None:
    """Raises CurateError if rows in memory were ended by an error; what came before it is stored."""
    for item in inputs:
        if item.rows:
            item.rows.refuse_if_stopped(
                f"of the rows before it {result.added:,} were added to the pool and stay there; mend what gives the "
                "rows and ingest them again: those that are there are not added twice"
            )


def _read_otherwise(key: str, progress: Mapping[str, Any]) -> bool:
    """Whether a file with the same content was read before with another --format or --map."""
    content = key.partition(":")[0]
    return any(other_key != key and other_key.partition(":")[0] == content for other_key in progress)


def _progress(ws: Workspace) -> dict[str, dict[str, Any]]:
    """How far each file has been read, by its key: {'rows': n, 'done': bool}."""
    return {key: p for record in ws.pool.records().values() for key, p in record["files"].items()}


def _unread(inputs: list[Input], reading: str, progress: dict[str, Any], result: Ingested) -> list[Input]:
    todo: dict[str, Input] = {}
    for i, item in enumerate(inputs):
        key = _key(item, reading) or f"once {i}"
        if item.kind == "empty":
            result.warnings.append(f"{item.path} is empty")
        elif progress.get(key, {}).get("done") or key in todo:
            result.files_skipped.append(item.path)
        else:
            todo[key] = item
    return list(todo.values())


def _refuse_unknown_shape(item: Input, reader: Reader) -> None:
    """Raises CurateError if none of the first records has a known format: a user error, not a file of rejects."""
    first: str | None = None
    for line, record in first_records(item, _LOOK):
        try:
            reader.sample(record)
            return
        except Refused as refused:
            if not refused.shape:
                return
            first = first or f"{item.path}, line {line}: {refused}"
    if first:
        raise CurateError(first if first.endswith("?") else f"{first}.")


@dataclass(frozen=True)
class _Reading:
    """An input that is read. key: what its progress is recorded by. skip: rows of it that were read earlier."""

    item: Input
    key: str
    skip: int


def _read_file(
    reading: _Reading,
    converted: Iterator[Converted],
    reader: Reader,
    writer: PoolWriter,
    progress: Mapping[str, Any],
    result: Ingested,
) -> None:
    """Store the rows of one input. converted: its blocks, and those of the inputs after it."""
    item, key, number = reading.item, reading.key, reading.skip
    accepted_before = writer.accepted
    writer.counts_copies = not (key and _read_otherwise(key, progress))
    if not writer.counts_copies:
        result.warnings.append(f"{item.path} was read before under another --format or --map: no copies are counted")
    with Progress(f"ingest {item.path}", None, done=number, noun="rows") as shown:
        for block in converted:
            reader.absorb(block.reader)
            writer.add(block, key)
            number = block.numbers[-1] if block.numbers else number
            shown.finished(len(block.numbers))
            if block.ends:
                break
    if not (item.rows and item.rows.error):
        writer.finish(key, number)
    elif key:
        writer.files[key] = {"rows": number, "done": False}
    result.files_read += 1
    if writer.accepted == accepted_before:
        result.warnings.append(f"{item.path} gave no sample; see the table rejects")


# --- by this process, or by several ----------------------------------------------------------------------


def _converted(todo: Sequence[_Reading], convert: Conversion, workers: int) -> Generator[Converted, None, None]:
    """The blocks of all inputs, in order; rows in memory are read by this process."""
    with ExitStack() as stack:
        pool = stack.enter_context(closing(Local(workers=workers).open())) if workers > 1 else None
        for in_memory, group in groupby(todo, key=lambda reading: reading.item.rows is not None):
            found = chain.from_iterable(blocks(reading.item, reading.skip) for reading in group)
            yield from map(convert, found) if pool is None or in_memory else pool.in_order(convert, found)


def _processes(todo: Sequence[Input], wanted: int | None) -> int:
    """How many processes convert rows: as many as wanted; by default one per core where that is worth their start."""
    if wanted is not None:
        require("--workers", wanted >= 1, "at least 1")
        return wanted
    paths = [Path(item.path) for item in todo if item.rows is None]
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    size = sum(f.stat().st_size for f in files if f.is_file())
    return 1 if size < _WORTH_WORKERS else min(usable_cores(), _MOST_WORKERS)
