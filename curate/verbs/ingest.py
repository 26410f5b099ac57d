"""`curate ingest`: files, or rows in memory, in; a pool of distinct samples out.

Samples are stored in immutable shards of about `shard_bytes` of text. A shard, the records refused meanwhile, the
copies found of rows stored earlier, and how far each file has been read are committed together by the shard's record;
so a killed ingest, when run again, resumes after the last shard and ends with the same pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from curate.arguments.workspaces import AnyWorkspace, workspace_of
from curate.errors import CurateError, require
from curate.hashing import fingerprint, ids_as_integers
from curate.progress import Progress
from curate.results import Result
from curate.store.contents import bring_to_format
from curate.store.encoding import ROW_GROUP, read_table, write_table
from curate.store.files import remove_leftovers
from curate.store.given_data import Data, find_given
from curate.store.input_files import Input, first_records, records
from curate.store.input_formats import Reader, Refused, Sample, refusal
from curate.store.input_limits import InputLimits
from curate.store.later_meta import SCHEMA as META
from curate.store.later_meta import meta_path, stored_meta
from curate.store.ledger import Meter, charged
from curate.store.locks import lock
from curate.store.meta_rules import RULES, MetaRule, combined, meta_notes
from curate.store.schema import COPIES, POOL, REJECTS
from curate.store.special_tokens import special_notes
from curate.store.workspace import Workspace

SHARD_BYTES = 32 << 20
_LOOK = 1000  # records read before a file of unknown format is refused
_GROUP_BYTES = 4 << 20  # text per row group; units of work read whole row groups
_BATCH = 4096  # samples looked up among the stored ids at once


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
    Reads the input once; memory: one shard and 8 bytes per stored row.

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
    with lock(ws, "pool"):
        ws.pool.remove_leftovers()
        bring_to_format(ws)
        progress = _progress(ws)
        todo = _unread(inputs, reading, progress, result)
        for item in todo:
            _refuse_unknown_shape(item, reader)
        reader.clear()
        if inputs and all(item.kind == "empty" for item in inputs):
            raise CurateError(f"{', '.join(i.path for i in inputs)}: nothing to ingest, every file is empty.")
        result.files_planned = [item.path for item in todo]
        if todo and not dry_run:
            with charged(ws.path, "ingest", methods=[], name="pool", phase="read") as meter:
                writer = _Writer(ws, shard_bytes, result, meter, meta)
                for item in todo:
                    _read_file(item, _key(item, reading), reader, source, writer, progress, result)
                    if item.rows and item.rows.error:
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


def _read_file(
    item: Input,
    key: str,
    reader: Reader,
    source: str | None,
    writer: _Writer,
    progress: Mapping[str, Any],
    result: Ingested,
) -> None:
    skip = progress.get(key, {}).get("rows", 0)
    accepted_before = writer.accepted
    writer.counts_copies = not (key and _read_otherwise(key, progress))
    if not writer.counts_copies:
        result.warnings.append(f"{item.path} was read before under another --format or --map: no copies are counted")
    number = skip
    with Progress(f"ingest {item.path}", None, done=skip, noun="rows") as shown:
        for batch in _batches(records(item, skip)):
            writer.add(
                [(n, _sample_or_refusal(item, n, record, reader)) for n, record in batch],
                source or item.source,
                key,
            )
            number = batch[-1][0]
            shown.finished(len(batch))
    if not (item.rows and item.rows.error):
        writer.finish(key, number)
    elif key:
        writer.files[key] = {"rows": number, "done": False}
    result.files_read += 1
    if writer.accepted == accepted_before:
        result.warnings.append(f"{item.path} gave no sample; see the table rejects")


def _sample_or_refusal(item: Input, line: int, record: Any, reader: Reader) -> Sample | dict[str, Any]:
    try:
        return reader.sample(record)
    except Refused as refused:
        return refusal(item.path, line, record, refused)


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield batch


class _KnownIds:
    """The ids of all stored rows: sorted runs of uint64, merged when of similar size. 8 bytes per row."""

    def __init__(self, ws: Workspace):
        self.runs: list[np.ndarray] = []
        for shard in ws.shards():
            self.add(read_table(shard.path, columns=["id"])["id"].to_pylist())

    def add(self, ids: list[str]) -> None:
        """Add ids of stored rows."""
        self.runs.append(np.sort(ids_as_integers(ids)))
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]

    def among(self, ids: set[str]) -> set[str]:
        """Those of `ids` that are stored."""
        id_list = list(ids)
        numbers = ids_as_integers(id_list)
        is_known = np.zeros(len(numbers), dtype=bool)
        for run in self.runs:
            if len(run):
                is_known |= run[np.minimum(np.searchsorted(run, numbers), len(run) - 1)] == numbers
        return {id_list[i] for i in np.flatnonzero(is_known)}


class _Writer:
    """Builds one shard at a time and commits it when it holds `shard_bytes` of text."""

    def __init__(self, ws: Workspace, shard_bytes: int, result: Ingested, meter: Meter, rule: MetaRule):
        self.ws, self.shard_bytes, self.result, self.meter = ws, shard_bytes, result, meter
        self.rule: MetaRule = rule
        self.known = _KnownIds(ws)
        self.number = len(ws.pool.names())
        self.files: dict[str, dict[str, Any]] = {}
        self.accepted = 0
        self.counts_copies = True
        remove_leftovers(ws.path / "rejects")
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}  # id -> row, in order
        self.copies: Counter[str] = Counter()  # of rows stored in earlier shards
        self.metas: dict[str, list[str]] = {}  # of samples stored in earlier shards, as they were read again
        self.rejects: list[dict[str, Any]] = []
        self.bytes = 0
        self.files = {}

    def add(self, found: Sequence[tuple[int, Sample | dict[str, Any]]], source: str, key: str) -> None:
        """Add rows in the order of the file, so that a shard's record can state how far the file was read."""
        stored = self.known.among({s.id for _, s in found if isinstance(s, Sample)})
        for number, sample in found:
            self.result.read += 1
            if not isinstance(sample, Sample):
                self._refuse(sample)
                continue
            self.accepted += 1
            self.meter.samples += 1
            if sample.id in self.rows:
                self.rows[sample.id]["copies"] += self.counts_copies
                self.result.copies += 1
                self._read_again(self.rows[sample.id], sample.meta)
            elif sample.id in stored:
                self.copies[sample.id] += self.counts_copies
                self.result.copies += 1
                self.metas.setdefault(sample.id, []).append(sample.meta)
                self.bytes += len(sample.meta)
            else:
                self._new_row(sample, sample.source or source)
            if self.bytes >= self.shard_bytes:
                stored |= self.rows.keys()
                if key:
                    self.files[key] = {"rows": number, "done": False}
                self.flush()

    def _refuse(self, row: dict[str, Any]) -> None:
        self.rejects.append(row)
        self.bytes += len(row["raw"])
        self.result.rejected += 1
        reason = row["reason"].split(" (")[0]
        self.result.reasons[reason] = self.result.reasons.get(reason, 0) + 1

    def _read_again(self, row: dict[str, Any], meta: str) -> bool:
        """Whether a known row came with other fields, which its `meta` then has if the rule says so."""
        if (new := combined(row["meta"], meta, self.rule)) is None:
            return False
        self.result.other_meta += 1
        row["meta"] = row["meta"] if self.rule == "keep" else new
        return self.rule != "keep"

    def _later_meta(self) -> dict[str, str]:
        """The new metadata of samples of earlier shards, by id."""
        later = {}
        for id_, old in stored_meta(self.ws, set(self.metas)).items() if self.metas else ():
            row = {"meta": old}
            if any([self._read_again(row, meta) for meta in self.metas[id_]]):
                later[id_] = row["meta"]
        return later

    def _new_row(self, sample: Sample, source: str) -> None:
        self.rows[sample.id] = {
            "id": sample.id,
            "source": source,
            "messages": sample.messages,
            "text": sample.text,
            "copies": 1,
            "n_chars": sample.n_chars,
            "meta": sample.meta,
            "template_kwargs": sample.template_kwargs,
            "rejected": sample.rejected,
            "wanted": sample.wanted,
        }
        self.bytes += sample.n_chars + len(sample.meta) + len(sample.template_kwargs or "")
        self.result.added += 1
        self.result.sources[source] = self.result.sources.get(source, 0) + 1
        if sample.special:
            self.result.special[source] = self.result.special.get(source, 0) + 1
            for token in sample.special:
                self.result.special_tokens[token] = self.result.special_tokens.get(token, 0) + 1

    def finish(self, key: str, number: int) -> None:
        """Mark a file as read to its end; an input without a key is not recorded."""
        if key:
            self.files[key] = {"rows": number, "done": True}

    def flush(self) -> None:
        """Commit the buffered rows as the next shard: rejects and copies first, then the rows, the record last."""
        if not (self.rows or self.copies or self.rejects or self.files):
            return
        name = f"part-{self.number:05d}"
        digests = {}
        if self.rejects:
            table = pa.Table.from_pylist(self.rejects, schema=REJECTS)
            digests["rejects"] = write_table(self.ws.path / "rejects" / f"{name}.parquet", table)
        if copies := {id_: n for id_, n in self.copies.items() if n}:
            table = pa.table({"id": list(copies), "copies": list(copies.values())}, schema=COPIES)
            digests["copies"] = write_table(self.ws.path / "pool" / "copies" / f"{name}.parquet", table)
        if later := self._later_meta():
            table = pa.table({"id": list(later), "meta": list(later.values())}, schema=META)
            digests["meta"] = write_table(meta_path(self.ws, name), table)
        rows = pa.Table.from_pylist(list(self.rows.values()), schema=POOL)
        n_chars = int(pl.Series(rows["n_chars"]).sum() or 0)
        group = min(ROW_GROUP, max(1, len(self.rows) * _GROUP_BYTES // max(n_chars, 1)))
        self.ws.pool.commit(name, rows, row_group=group, n_chars=n_chars, files=self.files, beside=digests)
        self.known.add(list(self.rows))
        self.number += 1
        self._clear()
