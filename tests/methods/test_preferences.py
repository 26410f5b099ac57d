"""Scores and exports of preference data: against slow references, and the trainers' own functions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import curate
from curate.errors import CurateError
from curate.kinds.export import Export, Row
from curate.kinds.text import Text
from curate.methods.exports.axolotl import Axolotl
from curate.methods.exports.datasets import Datasets
from curate.methods.exports.jsonl import Jsonl
from curate.methods.exports.llamafactory import Llamafactory
from curate.methods.exports.mds import Mds
from curate.methods.exports.open_instruct import OpenInstruct
from curate.methods.exports.parquet import Parquet
from curate.methods.exports.trl import Trl
from curate.methods.scores.dpo_margin import DpoMargin
from curate.methods.scores.pair_nll import PairNll
from curate.methods.selectors.random import Random
from curate.models.choice import TINY, ModelChoice
from curate.models.forward import score_samples
from curate.models.language_model import LanguageModel
from curate.models.tokens import encode
from curate.store.input_formats import Reader
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec
from tests.conftest import write_jsonl
from tests.oracles import preferences
from tests.support.models import rewritten


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


ASK, GOOD, BAD = user("Name a fruit."), says("an apple, of course"), says("a stone")
RECORDS: list[dict[str, Any]] = [
    {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [{"role": "system", "content": "Be brief."}, ASK, says("a pear"), user("Another one?")],
     "chosen": [says("2024-01-02")], "rejected": [says("no, never in my life")]},
    {"prompt": [user("Two turns?")], "chosen": [says("One."), user("And?"), says("Two.")], "rejected": [says("No.")]},
]  # fmt: skip


def stored(record: Any) -> dict[str, Any]:
    sample = Reader().sample(record)
    return {name: getattr(sample, name) for name in ("messages", "text", "template_kwargs", "rejected", "wanted")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, LanguageModel], Path]:
    copy = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("preferences") / "model"))
    rewritten(copy, lambda w: {k: v * 0.8 if "mlp" in k else v for k, v in w.items()})
    return {"base": LanguageModel(ModelChoice("tiny")), "reference": LanguageModel(ModelChoice(str(copy)))}, copy


def test_both_scores_equal_the_slow_reference(models: tuple[dict[str, LanguageModel], Path]) -> None:
    loaded, copy = models
    samples = [stored(record) for record in RECORDS]
    passes = {"nll": PairNll().passes(None)[0], "dpo": DpoMargin(beta=0.5).passes(None)[0]}
    columns, _ = score_samples(loaded, samples, passes)
    base, reference = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64).eval() for p in (TINY, copy))
    tokenizer = loaded["base"].tokenizer
    for i, record in enumerate(RECORDS[:2]):  # answers of one turn
        prompt = tokenizer.apply_chat_template(record["prompt"], add_generation_prompt=True)["input_ids"]
        chosen, rejected = (
            _without_white_space(tokenizer, tokenizer.apply_chat_template(record["prompt"] + record[half])["input_ids"])
            for half in ("chosen", "rejected")
        )
        assert chosen[: len(prompt)] == rejected[: len(prompt)] == prompt
        answers = chosen[len(prompt) :], rejected[len(prompt) :]
        want = preferences.nll_margin(base, prompt, *answers)
        assert abs(columns["nll"]["score"][i] - want) < 1e-5
        want = preferences.dpo_margin(base, reference, prompt, *answers, beta=0.5)
        assert abs(columns["dpo"]["score"][i] - want) < 1e-4 and abs(want) > 1e-3
    assert np.isfinite(columns["nll"]["score"]).all() and list(columns["dpo"]["error"]) == ["", "", ""]


def _without_white_space(tokenizer: Any, ids: list[int]) -> list[int]:
    """Without the line break that the template prints behind the last turn, which belongs to no turn."""
    while not tokenizer.decode(ids[-1:]).strip():
        ids = ids[:-1]
    return ids


def test_equal_models_have_no_margin_and_what_is_no_pair_has_no_score(models: Any) -> None:
    loaded = {"base": models[0]["base"], "reference": models[0]["base"]}
    others = [{"messages": [ASK, GOOD]}, {"text": "raw"}, {"prompt": [ASK], "completion": [GOOD], "label": True}]
    samples = [stored(record) for record in (RECORDS[0], *others)]
    passes = {"nll": PairNll().passes(None)[0], "dpo": DpoMargin().passes(None)[0]}
    columns, _ = score_samples(loaded, samples, passes)
    assert columns["dpo"]["score"][0] == 0
    for name in passes:
        assert np.isnan(columns[name]["score"][1:].astype(float)).all()
        assert set(columns[name]["error"][1:]) == {"has no rejected answer: it is no preference pair"}
    with pytest.raises(CurateError, match="finite beta above 0"):
        DpoMargin(beta=0)


def test_only_what_comes_behind_the_prompt_is_supervised(models: Any) -> None:
    tokenizer, sample = models[0]["base"].tokenizer, stored(RECORDS[1])
    for view, answer in (("chosen", "2024-01-02"), ("rejected", "no, never in my life")):
        (one,) = encode(tokenizer, [sample], 512, view=view)
        shown = tokenizer.decode(one.ids[one.supervised], skip_special_tokens=True)
        assert shown.strip() == answer and "pear" in tokenizer.decode(one.ids) and not one.partial


def test_a_workspace_scores_them(tmp_path: Path) -> None:
    ws = made(tmp_path, RECORDS)
    curate.score(ws, PairNll(), models={"base": ModelChoice("tiny")}, names={"pair_nll": "m"})
    rows = list(curate.sql(ws, "SELECT m, m_chosen, m_rejected, m_error FROM samples"))
    assert all(abs(row["m"] - (row["m_rejected"] - row["m_chosen"])) < 1e-6 and not row["m_error"] for row in rows)


# --- exports ---------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
KTO: list[dict[str, Any]] = [
    {"prompt": [ASK], "completion": [BAD], "label": False},
    {"prompt": [ASK], "completion": [GOOD], "label": True},
]


def made(folder: Path, records: list[dict[str, Any]]) -> Workspace:
    ws = curate.open_workspace(folder / "ws")
    assert curate.ingest(ws, [write_jsonl(folder / "rows.jsonl", records)]).added == len(records)
    curate.select(ws, "every", Random(), SelectionSpec(frac=1.0))
    return ws


def written(ws: Workspace, exporter: Export, folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = [Path(file) for file in curate.export(ws, "every", exporter, str(folder)).files]
    return {f.name: [json.loads(line) for line in f.read_text().splitlines()] for f in files if f.suffix == ".jsonl"}


def test_what_keeps_all_columns_is_read_back_to_the_same_ids(tmp_path: Path) -> None:
    ws = made(
        tmp_path, [*RECORDS, *KTO, {"messages": [ASK, GOOD]}, {"text": "raw text"}, {**RECORDS[0], "tools": [TOOL]}]
    )
    ids = list(curate.sql(ws, "SELECT id FROM pool ORDER BY row"))
    for exporter in (Jsonl(), Parquet(), Datasets()):
        out = curate.export(ws, "every", exporter, str(tmp_path / exporter.name))
        again = curate.open_workspace(tmp_path / f"again-{exporter.name}")
        curate.ingest(again, [out.folder if exporter.name == "datasets" else out.files[0]])
        assert list(curate.sql(again, "SELECT id FROM pool ORDER BY row")) == ids
    rows = curate.export(ws, "every", Mds(), str(tmp_path / "mds")).rows
    assert rows == len(ids)
    example = Mds().example(row_of(RECORDS[0]))
    assert example["rejected"] == [ASK, BAD] and example["wanted"] is None


def row_of(record: Any) -> Row:
    return Row("0" * 16, "memory", **stored(record))


def test_trl_s_own_functions_find_the_same_prompt_and_tokens(tmp_path: Path, models: Any) -> None:
    from trl.data_utils import extract_prompt, is_conversational, unpair_preference_dataset

    ws = made(tmp_path, [*RECORDS, {**RECORDS[0], "tools": [TOOL]}])
    rows = written(ws, Trl(), tmp_path / "out")["every.jsonl"]
    assert "trl dpo --config dpo_config.yaml" in (tmp_path / "out/dpo_config.yaml").read_text()
    assert [row.keys() for row in rows] == [{"prompt", "chosen", "rejected", "tools"}] * 4
    for row, record in zip(rows, [RECORDS[0], *RECORDS], strict=True):  # the one with tools begins the file
        assert is_conversational(row)
        bare = {k: [{"role": m["role"], "content": m["content"]} for m in row[k]] for k in record}
        assert bare == record
        joined = {half: record["prompt"] + record[half] for half in ("chosen", "rejected")}
        assert extract_prompt(joined) == record
    assert rows[0]["tools"] == [TOOL] and rows[1]["tools"] == "null" and rows[2]["tools"] is None
    import datasets

    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "out/every.jsonl"), split="train",
                                   cache_dir=str(tmp_path / "cache"))  # fmt: skip
    unpaired = unpair_preference_dataset(loaded.select_columns(["prompt", "chosen", "rejected"]))
    assert unpaired["label"] == [True] * 4 + [False] * 4


def test_trl_s_kto_has_prompt_completion_and_label(tmp_path: Path) -> None:
    ws = made(tmp_path, KTO)
    for style in ("auto", "kto"):
        assert written(ws, Trl(style=style), tmp_path / style)["every.jsonl"] == KTO  # type: ignore[arg-type]


def test_llamafactory_has_files_of_pairs_and_of_labelled_answers(tmp_path: Path) -> None:
    ws = made(tmp_path, [*RECORDS[:2], *KTO, {"messages": [ASK, GOOD]}])
    files = written(ws, Llamafactory(), tmp_path / "out")
    pair = {"messages": [ASK], "chosen": GOOD, "rejected": BAD, "tools": ""}
    assert files["every_pairs.jsonl"][0] == pair and len(files["every_pairs.jsonl"]) == 2
    assert [(row["messages"], row["kto_tag"]) for row in files["every_kto.jsonl"]] == [
        ([ASK, BAD], False),
        ([ASK, GOOD], True),
    ]
    assert files["every.jsonl"] == [{"messages": [ASK, GOOD], "tools": ""}]
    told = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert told["every_pairs"]["ranking"] is True and told["every_kto"]["columns"]["kto_tag"] == "kto_tag"
    assert told["every_pairs"]["columns"] == {
        "messages": "messages", "tools": "tools", "chosen": "chosen", "rejected": "rejected",
    }  # fmt: skip
    with pytest.raises(CurateError, match="answers of several turns"):
        Llamafactory().example(row_of(RECORDS[2]))


def test_axolotl_has_pairs_in_a_run_of_their_own(tmp_path: Path) -> None:
    import yaml

    ws = made(tmp_path, RECORDS[:2])
    rows = written(ws, Axolotl(), tmp_path / "out")["every_pairs.jsonl"]
    assert rows[0] == {"messages": [ASK], "chosen": GOOD, "rejected": BAD}
    told = yaml.safe_load((tmp_path / "out/every.axolotl.yaml").read_text())
    assert told["rl"] == "dpo" and told["datasets"][0]["type"] == "chat_template.default"
    (tmp_path / "mixed").mkdir()
    mixed = made(tmp_path / "mixed", [RECORDS[0], {"messages": [ASK, GOOD]}])
    with pytest.raises(CurateError, match="in runs of their own"):
        curate.export(mixed, "every", Axolotl(), str(tmp_path / "mixed/out"))
    assert not (tmp_path / "mixed/out").exists()


@pytest.mark.parametrize("record", [RECORDS[0], KTO[0]])
@pytest.mark.parametrize(
    "exporter",
    [Trl(style="messages"), Trl(style="prompt_completion"), Trl(tokenizer="tiny", style="tokens"), OpenInstruct()],
)
def test_what_learns_answers_refuses_preference_data(exporter: Export, record: Any) -> None:
    with pytest.raises(CurateError, match="has a (rejected answer|label that says)"):
        exporter.example(row_of(record))


def test_a_style_refuses_what_is_of_another_and_weights_are_refused(tmp_path: Path) -> None:
    for style, record in (("dpo", KTO[0]), ("kto", RECORDS[0]), ("dpo", {"text": "raw"}), ("kto", {"text": "raw"})):
        with pytest.raises(CurateError, match=f"has no .* as style={style} needs"):
            Trl(style=style).example(row_of(record))  # type: ignore[arg-type]
    weighted = {**RECORDS[0], "chosen": [says("a", weight=0.5)]}
    for exporter in (Trl(style="dpo"), Llamafactory(), Axolotl()):
        with pytest.raises(CurateError, match="weight"):
            exporter.example(row_of(weighted))
    with pytest.raises(CurateError, match="axolotl's file of chats cannot hold"):
        Axolotl().example(row_of(KTO[0]))
    ws = made(tmp_path, [RECORDS[0], {"messages": [ASK, GOOD]}])
    with pytest.raises(CurateError, match='--where "rejected IS NOT NULL" or --where "text IS NULL AND rejected IS'):
        curate.export(ws, "every", Trl(), str(tmp_path / "out"))
    out = curate.export(ws, "every", Trl(style="messages"), str(tmp_path / "out"), skip_unfit=True)
    assert out.rows == 1 and "export such samples with --set style=dpo" in out.skipped[0]


def test_a_batch_in_memory_may_have_pairs() -> None:
    pair = {"messages": [ASK, GOOD], "rejected": [ASK, BAD]}
    text = Text.of([pair, [ASK, GOOD], "raw"])
    assert text.asked.whole.to_list() == ["Name a fruit.", "Name a fruit.\nan apple, of course", "raw"]
    assert len(set(text.ids.tolist())) == 3 and text.asked.ids.tolist() == text.ids.tolist()
