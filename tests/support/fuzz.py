"""Files at random: real ones, written here, whose bytes are then changed, cut, zeroed or spliced.

Each is read in a process of its own, for a reader in C++ may end it.

What a file may end in: right rows, counted rejects, or one CurateError's sentence.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from curate.errors import CurateError
from curate.models.tensor_files import header, read_arrays
from curate.store.input_files import find_inputs, records
from curate.store.input_formats import Reader, Refused, Unreadable, refusal
from curate.store.input_limits import InputLimits

LIMITS = InputLimits(row_mib=1, ratio=1000, unpacked_gib=0.25)
SECONDS = 20  # that one file may take
TEXTS = ("plain", 'a "quote"', "line\nend", "tab\t", "日本", "\U0001f600", "x" * 300, "[{,}]", "\\", "")
OUTCOMES = ("held", "rejected", "refused", "unexpected", "crashed", "too slow")


def rows_at_random(dice: Random, n: int) -> list[dict[str, Any]]:
    """Rows of a few formats, each with its number."""
    made = []
    for i in range(n):
        text = dice.choice(TEXTS) + str(i)
        made.append({"question": text, "answer": dice.choice(TEXTS) or "a", "number": i, "score": dice.random()})
    return made


def as_lines(rows: list[dict[str, Any]], dice: Random) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=dice.random() < 0.5) + "\n" for row in rows).encode()


def as_array(rows: list[dict[str, Any]], dice: Random) -> bytes:
    return json.dumps(rows, indent=dice.choice([None, 1]), ensure_ascii=dice.random() < 0.5).encode()


def as_csv(rows: list[dict[str, Any]], dice: Random) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), quoting=dice.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], dice: Random) -> bytes:
    stream = io.BytesIO()
    packing = dice.choice(["NONE", "SNAPPY", "ZSTD", "GZIP"])
    pq.write_table(pa.Table.from_pylist(rows), stream, compression=packing, row_group_size=dice.choice([3, 1000]))
    return stream.getvalue()


def as_arrow(rows: list[dict[str, Any]], dice: Random) -> bytes:
    table, stream = pa.Table.from_pylist(rows), io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=dice.choice([None, "zstd", "lz4"]))
    kind = dice.choice([pa.ipc.new_file, pa.ipc.new_stream])
    with kind(stream, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=dice.choice([2, 1000]))
    return stream.getvalue()


def as_tensors(rows: list[dict[str, Any]], dice: Random) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({f"layer.{row['number']}": np.full((2, 3), row["score"], np.float32) for row in rows})


KINDS: dict[str, tuple[str, Callable[[list[dict[str, Any]], Random], bytes]]] = {
    "lines": (".jsonl", as_lines),
    "array": (".json", as_array),
    "csv": (".csv", as_csv),
    "parquet": (".parquet", as_parquet),
    "arrow": (".arrow", as_arrow),
    "gzip": (".jsonl.gz", lambda rows, dice: gzip.compress(as_lines(rows, dice))),
    "zstd": (".json.zst", lambda rows, dice: zstd.compress(as_array(rows, dice))),
    "tensors": (".safetensors", as_tensors),
}


def damaged(data: bytes, dice: Random) -> bytes:
    """The bytes, changed in one to three places; now and then they stay as they are."""
    changed = bytearray(data)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3])):
        if not changed:
            break
        at, length = dice.randrange(len(changed)), dice.choice([1, 1, 2, 4, 8, 40])
        how = dice.randrange(6)
        if how == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            del changed[at:]
        elif how == 2:
            changed[at : at + length] = bytes(length)
        elif how == 3:
            other = dice.randrange(len(changed))
            changed[at:at] = changed[other : other + length]
        elif how == 4:
            del changed[at : at + length]
        else:
            changed[at : at + length] = b"\xff" * length
    return bytes(changed)


@dataclass(frozen=True)
class Case:
    """One file at random. kind: of KINDS. rows: those that were written."""

    number: int
    kind: str
    data: bytes
    rows: list[dict[str, Any]]
    whole: bool  # whether nothing of it was changed


def cases(seed: int) -> Iterator[Case]:
    """Files at random without end; the same for a seed."""
    for number in range(1 << 60):
        dice = Random(f"{seed} {number}")
        kind = list(KINDS)[number % len(KINDS)]
        rows = rows_at_random(dice, dice.choice([1, 3, 20]))
        whole = KINDS[kind][1](rows, dice)
        data = damaged(whole, dice)
        yield Case(number, kind, data, rows, data == whole)


def outcome_of(case: Case, path: Path) -> tuple[str, str]:
    """How reading a file ends, and what was said."""
    path.write_bytes(case.data)
    try:
        if case.kind == "tensors":
            header(path)
            read_arrays(path)
            return "held", ""
        return _rows_outcome(case, path)
    except CurateError as error:
        told = str(error)
        good = "\n" not in told and told.endswith((".", "?")) and not case.whole
        return ("refused" if good else "unexpected"), told


def _rows_outcome(case: Case, path: Path) -> tuple[str, str]:
    """Reads rows as `ingest` does. A file that is whole must give every row as it was."""
    (found,) = find_inputs(str(path), None, LIMITS).inputs
    reader, kept, rejected = Reader(), [], 0
    for number, record in records(found):
        try:
            kept.append(reader.sample(record).meta)
        except Refused as refused:
            rejected += 1
            row = refusal(str(path), number, record, refused)
            if not row["reason"] or isinstance(record, Unreadable) and "\n" in record.reason:
                return "unexpected", f"a reject without a plain reason: {row}"
    if case.whole:
        numbers = [int(json.loads(meta)["number"]) for meta in kept]
        if rejected or numbers != [row["number"] for row in case.rows]:
            return "unexpected", f"a whole file gave {numbers} and {rejected} rejects"
    return ("rejected" if rejected else "held"), ""


def outcome_in_child(case: Case, folder: Path) -> tuple[str, str]:
    """`outcome_of` in a forked process, whose death is an outcome too."""
    path, result = folder / f"case{KINDS[case.kind][0]}", folder / "outcome.json"
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            outcome = outcome_of(case, path)
        except BaseException as error:  # whatever it is, the parent counts it
            outcome = ("unexpected", f"{type(error).__name__}: {error}")
        result.write_text(json.dumps(outcome))
        os._exit(0)
    return _ended(child) or tuple(json.loads(result.read_text()))


def _ended(child: int) -> tuple[str, str] | None:
    """What became of a child that did not end well."""
    limit = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if status == 0 else ("crashed", f"status {status}")
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "too slow", f"more than {SECONDS} s"
        time.sleep(0.001)


@dataclass
class Tally:
    """How often each outcome was, and what was not to be."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, case: Case, outcome: str, told: str) -> None:
        self.tried += 1
        self.outcomes[outcome] += 1
        if outcome not in ("held", "rejected", "refused"):
            self.wrong.append(f"case {case.number} ({case.kind}): {outcome}: {told[:400]}")

    def __str__(self) -> str:
        return f"tried {self.tried:,}: " + ", ".join(f"{name} {self.outcomes[name]:,}" for name in OUTCOMES)


def fuzzed(seed: int, folder: Path, seconds: float, most: int = 1 << 60) -> Tally:
    """Reads files at random for some seconds, at most so many."""
    tally, end = Tally(), time.monotonic() + seconds
    for case in cases(seed):
        if tally.tried >= most or time.monotonic() > end:
            return tally
        tally.add(case, *outcome_in_child(case, folder))
    return tally
