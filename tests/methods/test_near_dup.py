"""near_dup: against every pair compared slowly, on what the sample corpus planted, and by what users do with it."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import curate
from curate.errors import CurateError
from curate.kinds.score import run
from curate.kinds.text import Text
from curate.methods.scores import _told, near_dup
from curate.methods.scores.near_dup import NearDup
from tests.conftest import write_jsonl
from tests.docs.test_sample import make_sample as _make_sample
from tests.oracles import near_dup as slow

make_sample = _make_sample  # the fixture


@pytest.fixture
def chats(make_sample: Any) -> Any:
    return lambda seed, n: list(itertools.islice(make_sample.stream(seed), n))


def text(samples: Iterable[Any]) -> Text:
    return Text.of(
        [[{"role": "user", "content": s.question}, {"role": "assistant", "content": s.answer}] for s in samples]
    )


def groups(cluster: Iterable[Any]) -> list[set[int]]:
    found = defaultdict(set)
    for i, c in enumerate(cluster):
        found[c].add(i)
    return list(found.values())


def pairs(clusters: Iterable[set[int]]) -> set[tuple[int, int]]:
    return {pair for c in clusters for pair in itertools.combinations(sorted(c), 2)}


def planted(samples: list[Any]) -> set[tuple[int, int]]:
    """Of samples from the beginning of a stream, so that a sample's number is its position."""
    return pairs(groups(s.n if s.near_duplicate_of is None else s.near_duplicate_of for s in samples))


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.5}, {"replaced": 1.0}, {"replaced": 0.2, "threshold": 0.6}])
def test_clusters_are_those_of_every_pair_compared(settings: dict[str, float], chats: Any) -> None:
    samples = chats(11, 250)
    (columns,) = run(NearDup(band=1, window=250, **settings), [text(samples)])  # any number in common: all candidates
    want = slow.clusters([(s.question, s.answer) for s in samples], **settings)
    assert sorted(map(sorted, groups(columns["cluster"]))) == sorted(map(sorted, want))
    size = {i: len(c) for c in want for i in c}
    assert columns["size"].tolist() == [size[i] for i in range(len(samples))]


@pytest.mark.parametrize("seed", [7, 11])  # not 0, on which the settings were chosen
def test_planted_near_duplicates_are_found_and_little_else(seed: int, chats: Any) -> None:
    samples = chats(seed, 3000)
    (columns,) = run(NearDup(), [text(samples)])
    found, want = pairs(groups(columns["cluster"])), planted(samples)
    precision, recall = len(found & want) / len(found), len(found & want) / len(want)
    print(f"stream {seed}: {len(want)} pairs; precision {precision:.3f}, recall {recall:.3f}")
    assert min(precision, recall) >= 0.95, (precision, recall)


def test_one_of_each_cluster_is_kept_and_named(ws: Any, tmp_path: Any) -> None:
    long = "what is the way from the old mill to the harbour of the town"
    rows = [{"question": q, "answer": "follow the river down"} for q in (long, f"please: {long}", f"{long}, thank you")]
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", [*rows, {"question": "who is it?", "answer": "nobody"}])])
    curate.score(ws, NearDup())
    found = list(
        curate.sql(ws, "SELECT p.messages[1].content AS q, n.* FROM near_dup n JOIN pool p USING (id) ORDER BY row")
    )
    assert [f["keep"] for f in found] == [False, False, True, True]  # `, thank you` has one word more
    assert [f["size"] for f in found] == [3, 3, 3, 1]
    assert {f["cluster"] for f in found[:3]} == {found[2]["id"]} and found[3]["cluster"] == found[3]["id"]
    assert sorted(f["score"] for f in found[:3]) == pytest.approx([1 / 3, 1 / 2, 1])
    kept = curate.sql(ws, "SELECT count(*) AS n FROM samples WHERE near_dup = 1 AND near_dup_keep")
    assert list(kept) == [{"n": 2}]
    for keep, want in (("shortest", 0), ("lowest_id", int(np.argmin([f["id"] for f in found[:3]])))):
        (columns,) = run(NearDup(keep=keep), [Text.of([list(m) for m in _messages(ws)])])  # type: ignore[arg-type]
        assert np.flatnonzero(columns["keep"][:3]).tolist() == [want]


def _messages(ws: Any) -> list[Any]:
    return [row["messages"] for row in curate.sql(ws, "SELECT messages FROM pool ORDER BY row")]


def test_a_tool_s_call_and_the_role_are_part_of_what_is_said() -> None:
    ask = "what is the weather in the old town by the river today"

    def chat(extra: str | None, role: str = "assistant") -> list[dict[str, Any]]:
        return [{"role": "user", "content": ask, "extra": None}, {"role": role, "content": None, "extra": extra}]

    calls = [f'{{"tool_calls": "{name}"}}' for name in ("weather of the old town", "weather of the old town")]
    calls += ['{"tool_calls": "a taxi to the harbour, please"}']
    sizes = run(NearDup(), [Text.of([*map(chat, calls), chat(calls[0], "tool")])])[0]["size"].tolist()
    # The first two are one and the same sample; in a pool they would be one row.
    assert sizes[2:] == [1, 1]


def test_a_sample_that_could_not_be_read_the_second_time_leaves_the_others_alone() -> None:
    texts = ["the cat sat on the mat by the door", "please: the cat sat on the mat by the door", "a dog ran"]
    method, state = NearDup(), {}
    sign, compare, flag = method.passes(None)
    assert sign.reduce and compare.reduce and compare.open
    state |= sign.reduce([method._sign(Text.of(texts), {})])
    assert state["pairs"].shape == (1, 2)
    for left in (texts[1:], texts[:1], []):
        seen = compare.reduce([compare.map(Text.of(left), compare.open(state))])
        assert flag.map(Text.of(texts), seen)["size"].tolist() == [1, 1, 1]


def test_texts_without_words_are_like_nothing_and_settings_are_checked() -> None:
    (columns,) = run(NearDup(), [Text.of(["", " ", "a b c", "a b c d e f g h"])])
    assert columns["size"].tolist() == [1, 1, 1, 1] and columns["keep"].all()
    for settings in ({"threshold": 0.0}, {"replaced": 1.5}, {"band": 0}, {"permutations": 2}, {"seed": -1}):
        with pytest.raises(CurateError, match="near_dup needs threshold"):
            NearDup(**settings)  # type: ignore[arg-type]


# --- many pairs at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(0.7, 0.03), (0.5, 0.4), (0.6, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(("short", "at_once"), [(4_096, 1 << 20), (12, 100), (0, 1)])
def test_pairs_are_alike_that_are_so_one_by_one(
    settings: tuple[float, float], short: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_told, "_SHORT", short)
    monkeypatch.setattr(_told, "_WORDS", at_once)
    monkeypatch.setattr(_told, "_FEW", 8)
    chance = np.random.default_rng(3)
    samples: list[list[list[int]]] = []  # messages of words that are numbers
    for i in range(60):
        if i % 3 and samples:
            like = samples[int(chance.integers(i))]
            samples.append([[w for w in m for _ in range(int(chance.choice([1, 1, 1, 1, 1, 0, 2])))] for m in like])
        else:
            lengths = chance.integers(0, 25, chance.integers(1, 4))
            samples.append([chance.integers(0, 9, n).tolist() for n in lengths])
    flat = [m for sample in samples for m in sample]
    made = _told.Told(
        np.arange(60, dtype=np.uint64),
        np.array([len(sample) for sample in samples]),
        np.zeros(len(flat), np.uint32),
        np.array([len(m) for m in flat]),
        np.array([w for m in flat for w in m], np.uint32),
    )
    compared = np.array(list(itertools.combinations(range(60), 2)))
    chats = [[" ".join(map(str, m)) for m in sample] for sample in samples]
    want = [slow.alike(chats[a], chats[b], *settings) for a, b in compared.tolist()]
    assert made.alike(compared, *settings).tolist() == want
    assert sum(want) >= 2


def test_bands_in_temporary_files_give_the_same_pairs(chats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [text(chats(11, 250)[start : start + 50]) for start in range(0, 250, 50)]
    signed = [NearDup()._sign(batch, {}) for batch in batches]
    in_memory = NearDup()._candidates(signed)["pairs"]
    monkeypatch.setattr(near_dup, "_IN_MEMORY", 0)
    monkeypatch.setattr(near_dup, "_MOST_PARTS", 2)
    assert np.array_equal(NearDup()._candidates(signed)["pairs"], in_memory) and len(in_memory) > 10


def test_a_batch_is_let_go_as_soon_as_it_is_done() -> None:
    batch = Text.of(["some text", "another text"])
    run(NearDup(), [batch])
    gone, frame = weakref.ref(batch), weakref.ref(batch.frame)
    gc.disable()
    try:
        del batch
        assert gone() is None and frame() is None
    finally:
        gc.enable()
