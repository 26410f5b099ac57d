"""Exports whose trainers draw from parts: mixtures and strata of weights, read back by the trainers' own code."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import curate
from curate.errors import CurateError
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.interleave import Interleave
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.litdata import Litdata
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.megatron import Megatron
from curate.methods.exports.open_instruct import OpenInstruct
from curate.methods.exports.trl import Trl
from curate.methods.mixers.given import Given
from curate.methods.mixers.uniform import Uniform
from curate.methods.scores.length import Length
from curate.methods.selectors.random import Random
from curate.methods.weightings.adapt_static import AdaptStatic
from curate.numerics.resampling import strata_of
from curate.store.manifests import read_manifest
from curate.store.workspace import Workspace
from curate.training.weighted_sampler import WeightedSampler
from curate.verbs.export import Exported
from curate.verbs.mix import MixtureSpec
from curate.verbs.select import SelectionSpec
from tests.conftest import sample_in, write_jsonl
from tests.support.exports import CALL, LONG, TOOLS

BLENDS: list[Any] = [Interleave(), Litdata(), Mds(), Megatron("tiny"), OpenInstruct(), Llamafactory()]
UNICODE = [{"role": "user", "content": "grüße, 世界 🌍?\n"}, {"role": "assistant", "content": '<b>naïve</b>\t"ok" \\ '}]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three domains with weights, the fourth without."""
    ws = sample_in(tmp_path_factory.mktemp("mixed") / "ws")
    curate.mix(ws, "blend", Given("atlas=2,forum=1,school=1"), MixtureSpec(rows=1000))
    return ws


@pytest.fixture(scope="module")
def blended(mixed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], tuple[Exported, Path]]:
    """The mixture as an exporter writes it, once, and where."""

    @functools.cache
    def export(exporter: Any) -> tuple[Exported, Path]:
        folder = tmp_path_factory.mktemp(exporter.name) / "out"
        return curate.export(mixed, "blend", exporter, str(folder)), folder

    return export


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = sample_in(tmp_path_factory.mktemp("weighted") / "ws")
    curate.score(ws, Length())
    curate.weigh(ws, "heavy", AdaptStatic(tau=0.2), "length")
    return ws


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "weights.json").read_text())


@pytest.mark.parametrize("exporter", BLENDS, ids=lambda e: e.name)
def test_the_domains_of_a_mixture_are_parts(blended: Any, exporter: Any) -> None:
    done, folder = blended(exporter)
    parts = told(folder)["parts"]
    assert {p["label"]: (p["share"], p["draws"]) for p in parts} == {
        "atlas": (0.5, 500),
        "forum": (0.25, 250),
        "school": (0.25, 250),
    }
    assert done.rows == sum(p["rows"] for p in parts) == 539 + 595 + 926
    assert told(folder)["undrawn"] == 940 and "940 samples that weigh nothing" in done.lowered


@pytest.mark.parametrize("exporter", [Jsonl(), Trl(), Axolotl()], ids=lambda e: e.name)
def test_where_a_trainer_has_no_parts_an_epoch_is_drawn(mixed: Workspace, tmp_path: Path, exporter: Any) -> None:
    done = curate.export(mixed, "blend", exporter, str(tmp_path / "out"))
    lines = (tmp_path / "out/blend.jsonl").read_text().splitlines()
    assert done.rows == len(lines) == 1000 and told(tmp_path / "out")["how"] == "draws"
    if exporter.name == "jsonl":
        assert Counter(json.loads(line)["source"] for line in lines) == {"atlas": 500, "forum": 250, "school": 250}
        again = curate.export(mixed, "blend", exporter, str(tmp_path / "other"), seed=1)
        assert again.rows == 1000 and (tmp_path / "other/blend.jsonl").read_text().splitlines() != lines


@pytest.mark.parametrize("exporter", BLENDS[:-1], ids=lambda e: e.name)
def test_strata_keep_the_mean_weight_of_every_source(weighted: Workspace, tmp_path: Path, exporter: Any) -> None:
    """What is drawn of a source, by the shares of its parts, is what its rows weigh, within 1 %."""
    curate.export(weighted, "heavy", exporter, str(tmp_path / "out"))
    found = told(tmp_path / "out")
    table, _ = read_manifest(weighted, "heavy")
    source, weight = np.array(table["source"].to_pylist()), table["weight"].to_numpy().astype(float)
    for name in np.unique(source):
        mine = [p for p in found["parts"] if p["label"].startswith(name)]
        assert len(mine) >= 2 and sum(p["rows"] for p in mine) == (source == name).sum()
        achieved = sum(p["share"] for p in mine) * weight.sum() / (source == name).sum()
        assert achieved == pytest.approx(weight[source == name].mean(), rel=0.01)
    assert found["largest_error"] > 0 and found["effective_rows"] == pytest.approx(
        weight.sum() ** 2 / (weight**2).sum(), rel=1e-4
    )


def test_megatron_s_blend_is_in_tokens(mixed: Workspace, blended: Any, tmp_path: Path) -> None:
    _, folder = blended(Megatron("tiny"))
    words = shlex.split((folder / "blend.args").read_text())
    assert words[0] == "--data-path"
    weights = {Path(p).name: float(w) for w, p in zip(words[1::2], words[2::2], strict=True)}
    mean = {
        name: (folder / f"{name}.bin").stat().st_size / 2 / rows
        for name, rows in (("blend_atlas", 539), ("blend_forum", 595), ("blend_school", 926))
    }
    share = {name: s * mean[name] for name, s in zip(mean, (0.5, 0.25, 0.25), strict=True)}
    assert weights == pytest.approx({n: 100 * s / sum(share.values()) for n, s in share.items()}, rel=1e-6)
    assert json.loads((folder / "blend.nemo.json").read_text())["data_prefix"] == words[1:]
    with pytest.raises(CurateError, match="say whose, by --set tokenizer"):
        curate.export(mixed, "blend", Megatron(), str(tmp_path / "none"))


def test_datasets_interleaves_its_files_by_the_mixture(mixed: Workspace, tmp_path: Path) -> None:
    import datasets

    curate.export(mixed, "blend", Interleave(stopping_strategy="first_exhausted"), str(tmp_path / "out"))
    how = json.loads((tmp_path / "out/blend.interleave.json").read_text())
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    parts = [datasets.load_dataset("parquet", data_files=f, **options) for f in how.pop("files")]
    found = Counter(datasets.interleave_datasets(parts, **how)["source"])
    assert found["atlas"] / sum(found.values()) == pytest.approx(0.5, abs=0.05)
    (table,) = [pq.read_table(tmp_path / "out/blend_forum.parquet")]
    want = list(curate.sql(mixed, "SELECT id FROM pool WHERE source = 'forum' ORDER BY row"))
    assert table["id"].to_pylist() == [row["id"] for row in want]


def test_open_instruct_s_list_says_rows(mixed: Workspace, tmp_path: Path) -> None:
    curate.export(mixed, "blend", OpenInstruct(), str(tmp_path / "out"))
    words = shlex.split((tmp_path / "out/blend.args").read_text())
    end = words.index("--dataset_mixer_list_splits")
    assert words[0] == "--dataset_mixer_list" and words[end + 1 : end + 3] == ["train", "--dataset_transform_fn"]
    pairs = dict(zip(words[1:end:2], map(int, words[2:end:2]), strict=True))
    drawn = {Path(path).name: n for path, n in pairs.items() if Path(path).exists()}
    assert drawn == {"blend_atlas.jsonl": 500, "blend_forum.jsonl": 250, "blend_school.jsonl": 250}
    rows = [json.loads(line) for line in Path(next(iter(pairs))).read_text().splitlines()]
    assert all(set(row) == {"messages"} and row["messages"][-1]["role"] == "assistant" for row in rows)


def test_what_a_blend_cannot_hold_is_said(ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "t.jsonl", [{"text": "raw"}])])
    curate.select(ws, "best", Random(), SelectionSpec(top=1))
    with pytest.raises(CurateError, match="is raw text, and open-instruct's SFT reads chats"):
        curate.export(ws, "best", OpenInstruct(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_parts_are_what_was_written_of_them(sample_ws: Workspace, tmp_path: Path) -> None:
    """Samples that are left out change no part's share; a part of which nothing is left is an error."""
    lines = [
        {"text": "raw one"},
        *({"messages": UNICODE[:1] + [{"role": "assistant", "content": str(i)}]} for i in range(9)),
    ]
    curate.ingest(sample_ws, [write_jsonl(tmp_path / "half.jsonl", lines)])
    curate.ingest(sample_ws, [write_jsonl(tmp_path / "raw.jsonl", [{"text": f"raw {i}"} for i in range(9)])])
    curate.mix(sample_ws, "blend", Given("atlas=1,half=1"), MixtureSpec(rows=40, most_epochs=None))
    with pytest.raises(CurateError, match="raw text"):
        curate.export(sample_ws, "blend", OpenInstruct(), str(tmp_path / "out"))
    curate.export(sample_ws, "blend", OpenInstruct(), str(tmp_path / "out"), skip_unfit=True)
    assert {p["label"]: (p["rows"], p["draws"]) for p in told(tmp_path / "out")["parts"]} == {
        "atlas": (539, 20),
        "half": (9, 20),
    }
    curate.mix(sample_ws, "none_left", Given("atlas=1,raw=1"), MixtureSpec(rows=40, most_epochs=None))
    with pytest.raises(CurateError, match=r"the part 'raw', 50.0% of all draws can be written"):
        curate.export(sample_ws, "none_left", OpenInstruct(), str(tmp_path / "no"), skip_unfit=True)
    assert not (tmp_path / "no").exists()


def test_what_weighs_nothing_is_never_drawn() -> None:
    stratum, means, _ = strata_of(np.array([0.0] * 10 + [1.0] * 90), 8)
    assert means.tolist() == [0.0, 1.0] and stratum.tolist() == [0] * 10 + [1] * 90


def test_parts_have_names_of_their_own(ws: Workspace, tmp_path: Path) -> None:
    """Domains whose names become one, or that of a part's raw text."""
    names = ["A_2", "a", "a!", "web", "web_text"]
    for i, name in enumerate(names):
        said = [{"role": "user", "content": name}, {"role": "assistant", "content": str(i)}]
        rows = [{"messages": said}, {"text": f"raw {i}"}]
        curate.ingest(ws, [write_jsonl(tmp_path / f"{i}.jsonl", rows)], source=name)
    curate.mix(ws, "blend", Uniform(), MixtureSpec(rows=10, most_epochs=None))
    curate.export(ws, "blend", Llamafactory(), str(tmp_path / "out"))
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert len(info) == 10 and sum("messages" in one["columns"] for one in info.values()) == 5
    mix = json.loads((tmp_path / "out/blend.mix.json").read_text())
    assert [float(p) for p in mix["interleave_probs"].split(",")] == pytest.approx([0.1] * 10)
    assert all(len((tmp_path / f"out/{name}.jsonl").read_text().splitlines()) == 1 for name in info)


# --- a sampler -------------------------------------------------------------------------------------------


def test_the_sampler_draws_by_weight_and_has_no_limit() -> None:
    weights = np.array([0.0, 1.0, 3.0, 4.0])
    drawn = np.bincount(list(WeightedSampler(weights, draws=80_000)), minlength=4) / 80_000
    assert drawn == pytest.approx(weights / 8, abs=0.006)
    once = WeightedSampler(weights, replacement=False)
    assert sorted(once) == [1, 2, 3] and len(once) == 3
    firsts = []
    for epoch in range(4000):
        once.set_epoch(epoch)
        firsts.append(next(iter(once)))
    assert np.bincount(firsts, minlength=4) / 4000 == pytest.approx(weights / 8, abs=0.03)
    many = np.ones((1 << 24) + 2, np.float32)
    many[: 1 << 24] = 0
    assert set(WeightedSampler(many, draws=64)) == {1 << 24, (1 << 24) + 1}
    with pytest.raises(RuntimeError):  # torch's own
        list(torch.utils.data.WeightedRandomSampler(torch.from_numpy(many), 64, replacement=True))
    for wrong in ([0.0], [-1.0, 2.0], [float("nan")]):
        with pytest.raises(CurateError, match="not all of them 0"):
            WeightedSampler(wrong)
    with pytest.raises(CurateError, match="1 have one"):
        WeightedSampler([0.0, 1.0], draws=2, replacement=False)


# --- read by their own code, in environments of their own ------------------------------------------------

MEGATRON = ["megatron-core==0.16.1"]
LITDATA = ["litdata==0.2.76", "lightning-utilities", "tifffile", "obstore"]
MDS = ["mosaicml-streaming==0.13.0", "zstd", "python-snappy", "cramjam", "Brotli", "xxhash", "paramiko", "catalogue"]
AXOLOTL = ["axolotl==0.19.0"]

READ_MEGATRON = """
import json, shlex, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
words = shlex.split(open(sys.argv[1] + "/best.args").read())
data = IndexedDataset(words[2])
print(json.dumps([data[i].tolist() for i in range(len(data))]))
"""
READ_LITDATA = """
import json, sys
from litdata import CombinedStreamingDataset, StreamingDataset
from litdata.streaming.item_loader import ParquetLoader
told = json.load(open(sys.argv[1] + "/best.litdata.json"))
parts = [StreamingDataset(f, item_loader=ParquetLoader()) for f in told["folders"]]
mixed = iter(CombinedStreamingDataset(parts, weights=told["weights"], iterate_over_all=False))
next(mixed)
print(json.dumps([[row["id"], row["messages"]] for part in parts for row in part]))
"""
READ_MDS = """
import json, sys
from streaming import Stream, StreamingDataset
streams = [Stream(**one) for one in json.load(open(sys.argv[1] + "/best.streams.json"))]
data = StreamingDataset(streams=streams, batch_size=1, shuffle=False)
print(json.dumps([[row["id"], row["messages"]] for row in data]))
"""
READ_AXOLOTL = """
import json, sys, yaml
from axolotl.utils.schemas.datasets import SFTDataset
told = yaml.safe_load(open(sys.argv[1] + "/best.axolotl.yaml"))["datasets"]
print(json.dumps([SFTDataset(**one).model_dump(exclude_none=True, mode="json") for one in told]))
"""


def read(tmp_path: Path, packages: list[str], code: str, stubs: bool = False) -> Any:
    """What a consumer's own code reads; installed without the dependencies it does not need here."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, *packages], check=True, timeout=600)
    if stubs:  # imported for pictures, not used for text
        (site / "torchvision/transforms").mkdir(parents=True)
        (site / "torchvision/__init__.py").write_text("")
        (site / "torchvision/datasets.py").write_text("class VisionDataset: pass\n")
        (site / "torchvision/transforms/__init__.py").write_text("")
        (site / "torchvision/transforms/functional.py").write_text("to_tensor = None\n")
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def hard(ws: Workspace, tmp_path: Path) -> Workspace:
    """A long conversation with a system turn, one that calls a tool, and unicode."""
    rows = [{"messages": LONG}, {"messages": CALL, "tools": TOOLS}, {"messages": UNICODE}]
    curate.ingest(ws, [write_jsonl(tmp_path / "v.jsonl", rows)])
    curate.select(ws, "best", Random(), SelectionSpec(top=3))
    return ws


@pytest.mark.consumers
def test_megatron_reads_its_export(hard: Workspace, tmp_path: Path) -> None:
    from curate.models.choice import ModelChoice
    from curate.models.load import load_tokenizer
    from curate.models.tokens import encode

    curate.export(hard, "best", Megatron("tiny"), str(tmp_path / "out"))
    tokenizer = load_tokenizer(ModelChoice("tiny"))
    samples = [
        {"messages": row["messages"], "text": None} for row in curate.sql(hard, "SELECT * FROM pool ORDER BY row")
    ]
    want = [one.ids.tolist() for one in encode(tokenizer, samples, 1 << 40)]
    assert {ids[-1] for ids in want} == {tokenizer.eos_token_id}  # by the template, so none is added
    found = read(tmp_path, MEGATRON, READ_MEGATRON)
    assert found == want and "世界 🌍" in tokenizer.decode(found[2])


@pytest.mark.consumers
def test_litdata_reads_its_export(hard: Workspace, tmp_path: Path) -> None:
    curate.export(hard, "best", Litdata(), str(tmp_path / "out"))
    want = [[row["id"], row["messages"]] for row in curate.sql(hard, "SELECT * FROM pool ORDER BY row")]
    assert read(tmp_path, LITDATA, READ_LITDATA) == want


@pytest.mark.consumers
def test_mosaicml_streaming_reads_its_export(hard: Workspace, tmp_path: Path) -> None:
    curate.export(hard, "best", Mds(), str(tmp_path / "out"))
    assert [messages for _, messages in read(tmp_path, MDS, READ_MDS, stubs=True)] == [LONG, CALL, UNICODE]


@pytest.mark.consumers
def test_axolotl_s_own_schema_takes_its_export(hard: Workspace, tmp_path: Path) -> None:
    curate.export(hard, "best", Axolotl(), str(tmp_path / "out"))
    (found,) = read(tmp_path, AXOLOTL, READ_AXOLOTL)
    assert found["type"] == "chat_template" and found["field_messages"] == "messages"
    lines = [json.loads(line) for line in (tmp_path / "out" / found["path"]).read_text().splitlines()]
    bare = [[{k: v for k, v in message.items() if k != "weight"} for message in line["messages"]] for line in lines]
    assert bare == [CALL, LONG, UNICODE] and lines[0]["tools"] == TOOLS  # the one with tools begins the file
