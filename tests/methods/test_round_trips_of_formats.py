"""Every container and layout of input gives one pool, to the letter; and what the exports with other files hold of it.

The samples are those of test_round_trips, which reads what the other exports write.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

import curate
from curate.exact_json import dumps, loads
from curate.methods.exports.interleave import Interleave
from curate.methods.exports.litdata import Litdata
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.megatron import Megatron
from curate.methods.exports.trl import Trl
from curate.methods.selectors.random import Random
from curate.store.input_formats import Reader
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.methods.test_round_trips import content, generated, load_json, pool, stored

Rows = list[dict[str, Any]]
ROWS = generated(1000, exact=True, seed=1)
QUERY = "SELECT id, messages, template_kwargs FROM pool ORDER BY row"  # meta has the columns that are null in a table


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return pool(tmp_path_factory.mktemp("exact"), ROWS)


# --- containers ------------------------------------------------------------------------------------------


def lines(rows: Rows) -> bytes:
    return "".join(f"{dumps(row)}\n" for row in rows).encode()


def array(rows: Rows) -> bytes:
    return ("[" + ",\n ".join(map(dumps, rows)) + "]").encode()


def columns(rows: Rows) -> dict[str, list[str | None]]:
    """Each row's values as JSON text, null where it has none."""
    names = ("messages", "tools", "documents")
    return {name: [dumps(row[name]) if name in row else None for row in rows] for name in names}


def separated(rows: Rows, delimiter: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    table = columns(rows)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return stream.getvalue().encode()


def parquet(rows: Rows, kind: Any = None) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(texts, kind) for name, texts in columns(rows).items()}), stream)
    return stream.getvalue()


def arrow(rows: Rows, opened: Callable[..., Any]) -> bytes:
    table, stream = pa.table(columns(rows)), io.BytesIO()
    with opened(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return stream.getvalue()


CONTAINERS: dict[str, Callable[[Rows], bytes]] = {
    "a.json": array,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.json.zst": lambda rows: zstd.compress(array(rows)),
    "a.csv": lambda rows: separated(rows, ","),
    "a.tsv": lambda rows: separated(rows, "\t"),
    "texts.parquet": parquet,
    "json.parquet": lambda rows: parquet(rows, pa.json_()),
    "file.arrow": lambda rows: arrow(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: arrow(rows, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_pool_is_the_same_to_the_letter_from_every_container(exact: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTAINERS[name](ROWS))
    other = curate.open_workspace(tmp_path / "ws")
    assert curate.ingest(other, [str(tmp_path / name)]).added == len(ROWS)
    assert list(curate.sql(other, QUERY)) == list(curate.sql(exact, QUERY))


def test_so_it_is_from_memory_and_a_saved_dataset(exact: Workspace, tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(columns(ROWS)).save_to_disk(str(saved))
    for i, given in enumerate((iter(ROWS), io.BytesIO(lines(ROWS)), pa.table(columns(ROWS)), [str(saved)])):
        other = curate.open_workspace(tmp_path / f"ws{i}")
        assert curate.ingest(other, given).added == len(ROWS)
        assert list(curate.sql(other, QUERY)) == list(curate.sql(exact, QUERY))


# --- layouts ---------------------------------------------------------------------------------------------


def sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    """The same chat as ShareGPT's format has it."""
    turns = []
    for m in row["messages"]:
        if "tool_calls" in m:
            turns.append({"from": "function_call", "value": dumps(m["tool_calls"][0]["function"])})
            turns[-1] |= {"weight": m["weight"]} if "weight" in m else {}
            continue
        name = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(m["role"], m["role"])
        turns.append({"from": name, "value": m["content"], **{k: m[k] for k in m if k not in ("role", "content")}})
    return {**row, "conversations": turns, "messages": None}


def split(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prompt": row["messages"][:-1], "completion": row["messages"][-1:], "messages": None}


def in_texts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: dumps(value) for name, value in row.items()}


def pair(row: dict[str, Any], implicit: bool) -> dict[str, Any]:
    asked, (chosen,), rejected = row["messages"][:-1], row["messages"][-1:], {"role": "assistant", "content": "no"}
    rest = {k: v for k, v in row.items() if k != "messages"}
    if implicit:
        return {**rest, "chosen": [*asked, chosen], "rejected": [*asked, rejected]}
    return {**rest, "prompt": asked, "chosen": [chosen], "rejected": [rejected]}


def bare_calls(row: dict[str, Any]) -> dict[str, Any]:
    """Calls and tools have a type or not: ShareGPT's and the older format's do."""
    return loads(dumps(row).replace('{"function":{"name"', '{"type":"function","function":{"name"'))


LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "sharegpt": sharegpt,
    "prompt and completion": split,
    "JSON text": in_texts,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chat_is_the_same_sample_in_every_layout(layout: str) -> None:
    for row in map(bare_calls, ROWS):
        sample, other = Reader().sample(row), Reader().sample(LAYOUTS[layout](row))
        assert (other.id, other.template_kwargs) == (sample.id, sample.template_kwargs)
        assert [m["extra"] and loads(m["extra"]) for m in other.messages] == [
            m["extra"] and loads(m["extra"]) for m in sample.messages
        ]


def test_pairs_and_labels_keep_what_their_chat_has_in_every_layout() -> None:
    for row in (row for row in ROWS[::4] if row["messages"][-1]["content"].strip()):
        sample, explicit, implicit = (Reader().sample(r) for r in (row, pair(row, False), pair(row, True)))
        assert explicit.id == implicit.id and explicit.rejected == implicit.rejected
        assert (explicit.messages, explicit.template_kwargs) == (sample.messages, sample.template_kwargs)
        labelled = [Reader().sample({**form(row), "label": False}) for form in (dict, sharegpt, split)][::2]
        assert labelled[0].id == labelled[1].id and labelled[0].messages == sample.messages


# --- exports ---------------------------------------------------------------------------------------------


def mds_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard, by the layout that MosaicML Streaming documents."""
    data = path.read_bytes()
    n = int(np.frombuffer(data, np.uint32, 1)[0])
    places = np.frombuffer(data, np.uint32, n + 1, 4)
    told = json.loads(data[4 * (n + 2) : int(places[0])])
    for start, stop in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
        sizes, held = list(told["column_sizes"]), {}
        varying = [i for i, size in enumerate(sizes) if size is None]
        for i, size in zip(varying, np.frombuffer(data, np.uint32, len(varying), start).tolist(), strict=True):
            sizes[i] = size
        place = start + 4 * len(varying)
        for name, kind, size in zip(told["column_names"], told["column_encodings"], sizes, strict=True):
            value, place = data[place : place + size], place + size
            held[name] = loads(value) if kind == "json" else value.decode() if kind == "str" else value
        assert place == stop
        yield held


def test_a_shard_of_streaming_s_has_every_sample_to_the_letter(exact: Workspace, tmp_path: Path) -> None:
    curate.export(exact, "every", Mds(), tmp_path / "out")
    got = list(mds_rows(tmp_path / "out/all/shard.00000.mds"))
    assert [content({**row, **row["template_kwargs"]}) for row in got] == list(map(content, ROWS))
    assert not (tmp_path / "out/all/shard.00001.mds").exists()


@pytest.mark.parametrize("exporter", [Interleave(), Litdata()], ids=lambda e: e.name)
def test_parquet_for_interleaving_and_streaming_has_too(exact: Workspace, tmp_path: Path, exporter: Any) -> None:
    import datasets

    curate.export(exact, "every", exporter, tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.parquet")
    got = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert [stored(row) for row in got] == list(map(content, ROWS))


def test_llamafactory_s_rows_have_calls_and_tools_to_the_letter(exact: Workspace, tmp_path: Path) -> None:
    """Of the samples that it holds: without reasoning, names, documents and weights."""
    held = [row for row in ROWS if "documents" not in row and not any(
        {"reasoning_content", "weight"} & m.keys() or (m["role"] == "user" and "name" in m) for m in row["messages"]
    )]  # fmt: skip
    done = curate.export(exact, "every", Llamafactory(), tmp_path / "out", skip_unfit=True)
    assert done.rows == len(held) > 200 and len(done.skipped) == len(ROWS) - len(held)
    for got, row in zip(load_json([str(tmp_path / "out/every.jsonl")], tmp_path), held, strict=True):
        want = []
        for m in row["messages"]:
            function = m["tool_calls"][0]["function"] if "tool_calls" in m else None
            want.append({"role": "function_call" if function else m["role"],
                         "content": dumps(function) if function else m["content"]})  # fmt: skip
        assert got["messages"] == want and got["tools"] == (dumps(row["tools"]) if "tools" in row else "")


def test_files_of_tokens_have_every_text(exact: Workspace, tmp_path: Path) -> None:
    """Of Megatron's documents and TRL's rows of tokens, which its loaders take as they are."""
    tokenizer = Megatron(tokenizer="tiny")._tokenizer
    curate.select(exact, "part", Random(), SelectionSpec(frac=1.0, where="row < 100"))
    curate.export(exact, "part", Megatron(tokenizer="tiny"), tmp_path / "megatron")
    head = (tmp_path / "megatron/part.idx").read_bytes()
    lengths = np.frombuffer(head, np.int32, 100, 34)
    documents = np.split(np.fromfile(tmp_path / "megatron/part.bin", np.uint16), np.cumsum(lengths)[:-1])
    for ids, row in zip(documents, ROWS, strict=False):
        text, place = tokenizer.decode(ids), 0
        for message in row["messages"]:
            place = text.index(message["content"].strip(), place)
    done = curate.export(exact, "part", Trl(tokenizer="tiny"), tmp_path / "trl", skip_unfit=True)
    held = [i for i, row in enumerate(ROWS[:100]) if learnt(row)]
    rows = load_json([str(tmp_path / "trl/part.jsonl")], tmp_path)
    assert {tuple(ids) for ids in rows["input_ids"]} == {tuple(documents[i].tolist()) for i in held}
    assert 50 < done.rows == len(rows) == len(held)
    assert all(len(row["labels"]) == len(row["input_ids"]) and set(row["labels"]) > {-100} for row in rows)


def learnt(row: dict[str, Any]) -> bool:
    """Whether some turn is, and none in part."""
    weights = {m.get("weight", 1) for m in row["messages"] if m["role"] == "assistant"}
    return 1 in weights and weights <= {0, 1}
