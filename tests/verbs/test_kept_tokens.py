"""Tokens kept in the workspace: what trainings make of them is what tokenising each sample gives; whatever becomes of
the files, a training learns the same."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.methods.selectors.random import Random
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.language_model import LanguageModel
from curate.models.load import load_tokenizer
from curate.models.tokenizer_identity import tokenizer_fingerprint
from curate.models.tokens import encode
from curate.runs import tokens as kept
from curate.runs.config import TrainingSpec
from curate.runs.documents import documents_of
from curate.runs.samples import TrainingRows, rows_of
from curate.store.token_files import TokenFiles, all_token_files, kept_tokens
from curate.store.workspace import Workspace
from curate.training.distributed import Alone
from curate.training.examples import pieces
from curate.training.settings import TrainSettings
from curate.verbs.select import SelectionSpec
from tests.conftest import copy_of, qa, tree_bytes, write_jsonl
from tests.support.narrow import NARROW

MODEL = ModelChoice(NARROW, device="cpu")
PLAIN = TrainingSpec(MODEL, Uniform(), TrainSettings(batch_size=4, steps=3, lr=1e-2, warmup=0.0), "picked")


def chat(*turns: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    messages[-1] |= more
    return {"messages": messages}


ROWS = [
    *(chat(f"what is {i}?", f"it is {i}. " * (i % 9 + 1)) for i in range(20)),
    *({"text": f"the number {i} " * (i * 3 + 1)} for i in range(12)),
    chat("half", "counts half", weight=0.5),
    chat("ask", "say " * 40, "ask more", "the end"),
    chat("nothing is answered"),
    {"text": "x"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Chats, texts, turns of their own weight and what cannot be learnt from, in several shards."""
    folder = tmp_path_factory.mktemp("made")
    ws = curate.open_workspace(folder / "ws")
    curate.ingest(ws, [write_jsonl(folder / "a.jsonl", ROWS)], shard_bytes=1500)
    assert len(ws.shards()) >= 3 and ws.n_rows() == len(ROWS)
    curate.select(ws, "picked", Random(), SelectionSpec(top=16))
    curate.select(ws, "more", Random(), SelectionSpec(top=30, seed=1))
    return ws


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    ws = copy_of(Path(str(made.path)), tmp_path / "ws")
    shutil.rmtree(tmp_path / "ws" / "tokens", ignore_errors=True)  # of the tests that need no copy
    return ws


def slow(ws: Workspace, rows: TrainingRows, settings: TrainSettings, lm: LanguageModel) -> list[tuple[list[Any], str]]:
    """Of each sample its documents (ids, supervised, weight, cut, partial) and why it is left out, one by one."""
    pool = list(curate.sql(ws, "SELECT messages, text, template_kwargs FROM pool ORDER BY row"))
    result = []
    for row in rows.row:
        (one,) = encode(lm.tokenizer, [pool[row]], 1 << 40, add_eos_token=settings.add_eos_token)
        parts, long = [one], len(one.ids) > lm.context and not one.error
        if long and settings.split and pool[row]["messages"] is None:
            parts = [part for part in pieces(one, lm.context) if part.supervised.any()]
        elif long:
            part = {name: getattr(one, name) for name in ("ids", "supervised", "weight")}
            parts = [replace(one, **{k: None if v is None else v[: lm.context] for k, v in part.items()}, cut=True)]
            refused = lm.choice.too_long == "refuse"
            parts[0].error = f"is longer than the context of {lm.context} tokens" if refused else ""
        found = []
        for part in parts:
            supervised = np.arange(len(part.ids)) > 0 if settings.loss == "all" else part.supervised
            weight = None if settings.loss == "all" else part.weight
            found.append((part.ids, supervised, weight, part.cut, part.partial))
        why = next((part.error for part in parts if part.error), "")
        if not why and not any(supervised.any() for _, supervised, *_ in found):
            why = "nothing of it is supervised (no assistant's turn, or no text, within the context)"
        result.append((found, why))
    return result


@pytest.mark.parametrize("context", [1, 8, 64, 512])
@pytest.mark.parametrize("too_long", ["cut", "refuse"])
@pytest.mark.parametrize("loss", ["answers", "all"])
@pytest.mark.parametrize("split", [False, True])
def test_documents_are_what_each_sample_gives(
    made: Workspace, context: int, too_long: Any, loss: Any, split: bool
) -> None:
    lm = LanguageModel(replace(MODEL, context=context, too_long=too_long))
    settings = TrainSettings(loss=loss, split=split)
    for manifest in ("picked", None):
        rows = rows_of(made, manifest, None, False)
        found, wanted = documents_of(made, rows, settings, lm), slow(made, rows, settings, lm)
        assert found.left_out(rows).tolist() == [why for _, why in wanted]
        usable = np.flatnonzero(found.left_out(rows) == "")[::-1]  # in another order
        examples, each = found.examples(usable), [(i, part) for i, at in enumerate(usable) for part in wanted[at][0]]
        assert len(examples) == len(each) and examples.sample.tolist() == [i for i, _ in each]
        weighted = any(part[2] is not None for _, part in each)
        for document, (_, (ids, supervised, weight, _, _)) in enumerate(each):
            one = examples.encoded(document)
            assert one.ids.tolist() == ids.tolist() and one.supervised.tolist() == supervised.tolist()
            ones = np.ones(len(ids), np.float32) if weighted else None
            np.testing.assert_array_equal(one.weight, ones if weight is None else weight)  # type: ignore[arg-type]
            assert examples.counts[document] == supervised.sum() and examples.lengths[document] == len(ids)
        cut, partial = sum(part[3] for _, part in each), sum(part[4] for _, part in each)
        assert found.marked(usable) == {"cut": cut, "partial": partial}
        assert examples.checksum() == sum(int(part[0].sum()) for _, part in each)
        first = found.first_of(usable)
        assert [first.tokens_of(i)[0].tolist() for i in range(len(first))] == [
            wanted[at][0][0][0].tolist() for at in usable
        ]


def trained(ws: Workspace, name: str, **changes: Any) -> dict[str, bytes]:
    """The bytes of a run's checkpoint."""
    curate.train(ws, name, replace(PLAIN, **changes))
    return weights(ws, name)


def weights(ws: Workspace, name: str) -> dict[str, bytes]:
    return tree_bytes(Path(str(ws.run_folder(name))), "model.safetensors")


def written(ws: Workspace) -> dict[str, bytes]:
    return tree_bytes(Path(str(ws.path)) / "tokens", "*.safetensors")


def test_a_sample_is_tokenised_once_for_all_trainings(ws: Workspace) -> None:
    trained(ws, "first")
    before = written(ws)
    settings = replace(PLAIN.settings, loss="all", split=True)
    trained(ws, "second", model=replace(MODEL, context=32), settings=settings, seed=5)
    assert written(ws) == before  # another context, seed, loss
    trained(ws, "third", manifest="more")
    assert before.items() < written(ws).items()
    both = {row for name in ("picked", "more") for row in rows_of(ws, name, None, False).row.tolist()}
    (said,) = kept_tokens(ws)
    assert said["samples"] == len(both) and said["bytes"] == sum(map(len, written(ws).values()))
    trained(ws, "fourth", settings=replace(PLAIN.settings, add_eos_token=False))
    assert len(kept_tokens(ws)) == 2  # these are other tokens


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


HARMS = {
    "flipped": lambda folder, file: flipped(folder / f"{file}.safetensors"),
    "cut": lambda folder, file: (folder / f"{file}.safetensors").write_bytes(b"12"),
    "gone": lambda folder, file: (folder / f"{file}.safetensors").unlink(),
    "no record": lambda folder, file: (folder / f"_commit/{file}.json").write_text("{"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_damaged_is_made_again_and_said(ws: Workspace, harm: str) -> None:
    want = trained(ws, "first")
    before, (files,) = written(ws), all_token_files(ws)
    folder = Path(str(files.folder))
    HARMS[harm](folder, "part-00001-0")
    (damage,) = curate.verify(ws).damaged
    assert (damage.kind, damage.part, damage.repaired) == ("tokens", "part-00001-0", False)
    (note,) = curate.train(ws, "again", PLAIN).warnings
    assert "part-00001-0" in note and "tokenised again" in note
    assert weights(ws, "again") == want and written(ws) == before
    HARMS[harm](folder, "part-00001-0")
    assert [d.repaired for d in curate.verify(ws, repair=True).damaged] == [True]
    assert curate.verify(ws).damaged == [] and curate.train(ws, "third", PLAIN).warnings == []
    assert weights(ws, "third") == want


def with_other_tokens(folder: Path) -> str:
    """The narrow model with a tokenizer that has two tokens of the other's exchanged."""
    shutil.copytree(NARROW, folder)
    text = (folder / "tokenizer.json").read_text()
    first, second = '"the":', '"of":'
    if first not in text:  # the words of a byte-level vocabulary
        first, second = '"a":', '"b":'
    assert first in text and second in text
    text = text.replace(first, "\0").replace(second, first).replace("\0", second)
    (folder / "tokenizer.json").write_text(text)
    return str(folder)


def test_a_cache_of_another_tokenizer_is_not_believed(ws: Workspace, tmp_path: Path) -> None:
    other = replace(MODEL, name=with_other_tokens(tmp_path / "other"))
    want = trained(ws, "first")
    (files,) = all_token_files(ws)
    theirs = copy_of(Path(str(ws.path)), tmp_path / "theirs")
    curate.drop(theirs, kept_tokens(theirs)[0]["name"])
    trained(theirs, "other", model=other)
    (foreign,) = all_token_files(theirs)
    assert foreign.fingerprint != files.fingerprint
    shutil.rmtree(Path(str(files.folder)))
    shutil.copytree(Path(str(foreign.folder)), Path(str(files.folder)))  # under the name of ours
    assert {d.what for d in curate.verify(ws).damaged} == {"is of another tokenizer, or of other rules"}
    result = curate.train(ws, "again", PLAIN)
    (note,) = result.warnings
    assert "is of another tokenizer" in note and weights(ws, "again") == want


def test_a_tokenizer_is_known_by_what_it_does(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MODEL)
    was = tokenizer_fingerprint(tokenizer)
    tokenizer(["some words"], truncation=True, max_length=1)  # which changes its state
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(tokenizer) == was
    assert tokenizer_fingerprint(load_tokenizer(ModelChoice(str(tmp_path / "saved")))) == was
    tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tokenizer) != was
    assert tokenizer_fingerprint(load_tokenizer(ModelChoice(with_other_tokens(tmp_path / "other")))) != was


def test_tokens_of_another_pool_are_not_believed(ws: Workspace, tmp_path: Path) -> None:
    trained(ws, "first")
    other = curate.open_workspace(tmp_path / "pool")
    curate.ingest(other, [write_jsonl(tmp_path / "b.jsonl", qa(30))], shard_bytes=400)
    shutil.copytree(Path(str(ws.path)) / "tokens", tmp_path / "pool" / "tokens")
    result = curate.train(other, "first", replace(PLAIN, manifest=None))
    assert "is of another pool" in result.warnings[0] and result.samples == 30


def test_they_can_be_dropped_and_are_made_again(ws: Workspace) -> None:
    want = trained(ws, "first")
    before, (row,) = written(ws), kept_tokens(ws)
    assert curate.status(ws).tokens == [row] and row["tokens"] > row["samples"] == 16
    assert curate.drop(ws, row["name"], dry_run=True).kind == "tokens" and written(ws) == before
    with pytest.raises(CurateError, match="has no tokens/abc"):
        curate.drop(ws, "tokens/abc")
    curate.drop(ws, row["name"])
    assert written(ws) == {} and curate.status(ws).tokens == []
    assert trained(ws, "again") == want and written(ws) == before


@pytest.mark.usefixtures("forked_workers")
def test_several_processes_write_what_one_does(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = LanguageModel(MODEL), rows_of(ws, None, None, False)
    kept.tokens_of(ws, rows, TrainSettings(tokenize_workers=1), lm, Alone())
    one = written(ws)
    for blocks, workers in ((5, 2), (3, 1)):
        curate.drop(ws, kept_tokens(ws)[0]["name"])
        monkeypatch.setattr(kept, "_ROWS", blocks)
        monkeypatch.setattr(kept, "_CHARS", 50 * blocks)
        kept.tokens_of(ws, rows, TrainSettings(tokenize_workers=workers), lm, Alone())
        assert written(ws) == one


def test_two_at_once_do_the_work_once(ws: Workspace) -> None:
    lm, rows = LanguageModel(MODEL), [rows_of(ws, name, None, False) for name in ("picked", "more", None, "more")]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = kept.tokens_of(ws, rows[i], TrainSettings(), lm, Alone())

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (files,) = all_token_files(ws)
    each = [(name.rpartition("-")[0], row) for name in files.parts.names() for row in files.read(name).rows.tolist()]
    assert len(each) == len(set(each)) == ws.n_rows()
    assert all(len(found[i].length) == len(rows[i].row) for i in range(len(rows)))


def test_what_a_killed_training_left_is_no_damage(ws: Workspace) -> None:
    trained(ws, "first")
    (files,) = all_token_files(ws)
    (Path(str(files.folder)) / "_commit/part-00000-0.json").unlink()  # killed between the file and its record
    verified = curate.verify(ws)
    assert verified.damaged == [] and any("part-00000-0" in path for path in verified.leftovers)
    assert curate.train(ws, "again", PLAIN).warnings == [] and weights(ws, "again") == weights(ws, "first")


def test_files_are_mapped_not_read(ws: Workspace) -> None:
    trained(ws, "first")
    (files,) = all_token_files(ws)
    file = TokenFiles(ws, files.fingerprint).read(files.parts.names()[0])
    base: Any = file.ids
    while isinstance(base, np.ndarray) and base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and not file.ids.flags.writeable
