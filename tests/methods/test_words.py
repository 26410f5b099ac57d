"""What words are where a script has no blanks between them, and the scores that count them there."""

from __future__ import annotations

import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import regex
from rank_bm25 import BM25Okapi

import curate
from curate.errors import CurateError
from curate.kinds.score import Score, Target, run
from curate.kinds.text import Text
from curate.kinds.words import BETWEEN_SPACES, WORDS, WORDS_AND_MARKS, WORDS_AND_RUNS, split_words
from curate.methods.scores.bm25 import Bm25
from curate.methods.scores.dsir import Dsir
from curate.methods.scores.length import Length
from curate.methods.scores.repetition import Repetition
from tests.oracles import scores as oracle

CHINESE = [
    "今天天气很好，我们去公园散步。",
    "北京的公园很多也很大",
    "我喜欢吃苹果和香蕉",
    "这道数学题很难做",
    "𠮷野家 在哪里？",
]
JAPANESE = [
    "私はコーヒーを飲む。",
    "コーヒーとケーキをください！",
    "らーめんは二千円です",
    "ﾊﾟﾝとﾐﾙｸを買う",
    "人々が歩く",
]
THAI = ["ฉันไปสวนสาธารณะ", "น้ำแข็งเย็นมาก", "เขาอ่านหนังสือ ๑๒๓ เล่ม"]
KHMER = ["ខ្ញុំទៅសួនច្បារ", "ភាសាខ្មែរ ពិបាក។"]
LAO, BURMESE = ["ຂ້ອຍໄປສວນ", "ພາສາລາວ"], ["မြန်မာဘာသာစကား။", "ပန်းခြံသို့"]
MIXED = ["用Python写3个函数", "iPhone15手机很贵", "Hello世界 hello world", "「今天」he said：“Hello”他"]
SPACELESS = [*CHINESE, *JAPANESE, *THAI, *KHMER, *LAO, *BURMESE, *MIXED]
HINDI = ["मैं पार्क में घूमने जाता हूँ", "हिन्दी भाषा कठिन है", "पार्क बहुत बड़ा है"]
ARABIC = ["كَتَبَ الوَلَدُ الدَّرْسَ", "ذهب الولد إلى الحديقة"]
DECOMPOSED = [unicodedata.normalize("NFD", t) for t in ("un résumé à Noël", "déjà vu au café", "the café is öde")]
RAISED = ["H₂O is water", "x² + y² = z²", "½ cup of CO₂", "it weighs 5 kg"]


def breaks(text: str) -> list[str]:
    """The words of Unicode's default word breaks (UAX #29), by another library: those of letters or digits."""
    pieces = regex.split(r"\b", text, flags=regex.V1 | regex.WORD)
    return [piece for piece in pieces if piece and regex.match(r"[\p{L}\p{N}]", piece)]


def letter(piece: str) -> bool:
    """Whether a piece is a letter of a script without blanks, with its marks; Katakana apart."""
    scripts = r"[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}--\p{Nd}]|ー$"
    return regex.match(scripts, piece, flags=regex.V1) is not None


def pairs(text: str) -> list[str]:
    """The words of bm25: slow, from left to right."""
    out: list[str] = []
    for run_of_text in re.split(r"[^\w\u0300-\u036f\u0900-\U0003ffff]|[、。，！？：「」។။]", text.lower()):
        row: list[str] = []
        for piece in [*breaks(run_of_text), ""]:
            if piece and letter(piece):
                row.append(piece)
                continue
            out += [a + b for a, b in zip(row, row[1:], strict=False)] or row
            row = []
            if len(piece) > 1 or piece and regex.match(r"\p{Katakana}", piece):
                out.append(piece)
    return out


def in_words(text: str, pattern: str, pairs: bool = False) -> list[str]:
    words = split_words(pl.Series([text]), pattern, pairs=pairs)
    return words.vocabulary.gather(words.codes).to_list()


def scored(method: Score, docs: list[str], queries: list[str] | None = None) -> np.ndarray:
    """The scores of a pool that comes in two batches."""
    parts = run(method, [Text.of(docs[:2]), Text.of(docs[2:])], Target.of(queries) if queries else None)
    return np.concatenate([part["score"] for part in parts])


@pytest.mark.parametrize("text", SPACELESS)
def test_units_are_the_word_breaks_of_unicode(text: str) -> None:
    want = [piece for piece in breaks(text.lower()) if len(piece) > 1 or letter(piece)]
    assert in_words(text, WORDS) == want
    assert [piece for piece in in_words(text, WORDS_AND_MARKS) if breaks(piece)] == breaks(text.lower())
    assert in_words(text, WORDS_AND_RUNS, pairs=True) == pairs(text)


def test_pairs_are_of_neighbours_and_a_letter_alone_is_a_word() -> None:
    assert in_words("水 公园，散步吧 a水b", WORDS_AND_RUNS, pairs=True) == ["水", "公园", "散步", "步吧", "水"]
    assert in_words("コーヒーを飲む", WORDS_AND_RUNS, pairs=True) == ["コーヒー", "を飲", "飲む"]


@pytest.mark.parametrize("text", [*RAISED, "snake_case and x_2", "ﬁve ½ Ⅳ ①②", "한국어 문장", "Ünïcode wörds"])
def test_other_texts_have_the_words_of_pythons_re(text: str) -> None:
    assert in_words(text, WORDS) == in_words(text, WORDS_AND_RUNS, True) == re.findall(r"\b\w\w+\b", text.lower())
    assert in_words(text, WORDS_AND_MARKS) == re.findall(r"\w+|[^\w\s]+", text.lower())


@pytest.mark.parametrize("text", [*HINDI, *ARABIC, *DECOMPOSED])
def test_a_mark_belongs_to_its_word(text: str) -> None:
    assert in_words(text, WORDS) == [word for word in text.lower().split() if len(word) > 1]


def test_real_texts_without_such_characters_have_the_words_that_they_had(real_docs: list[str]) -> None:
    def plain(text: str) -> bool:
        return not any(unicodedata.category(c) == "No" or breaks(c) and letter(c) for c in text if not c.isascii())

    texts = pl.Series([text for text in real_docs if plain(text)])
    old = {WORDS: r"\w\w+", WORDS_AND_RUNS: r"\w\w+", WORDS_AND_MARKS: r"\w+|[^\w\s]+", BETWEEN_SPACES: r"\S+"}
    for new, former in old.items():
        assert texts.str.extract_all(new).equals(texts.str.extract_all(former))
    assert len(texts) > 1900


@pytest.mark.parametrize("spaceless", ["pairs", "letters"])
def test_bm25_equals_rank_bm25_on_these_words(spaceless: Any) -> None:
    docs, queries = (
        [*SPACELESS, *HINDI, *RAISED],
        ["公园 很大", "コーヒー", "สวน", "ច្បារ", "python", "पार्क", "H₂O", "无"],
    )

    def words(text: str) -> list[str]:
        if not any(map(letter, breaks(text))):
            return [word for word in text.lower().split() if len(word) > 1]
        return pairs(text) if spaceless == "pairs" else [p for p in breaks(text.lower()) if len(p) > 1 or letter(p)]

    index = BM25Okapi([words(doc) for doc in docs])
    want = np.mean([index.get_scores(words(query)) for query in queries], axis=0)
    np.testing.assert_allclose(scored(Bm25(spaceless=spaceless), docs, queries), want, rtol=1e-12, atol=1e-12)


def test_bm25_by_the_pattern_that_its_help_names_is_bm25s_in_every_script() -> None:
    import bm25s

    docs, queries = [*HINDI, *ARABIC, *DECOMPOSED, *RAISED, *CHINESE], ["H₂O x²", "मैं घूमने", "Noël au café", "الوَلَدُ"]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(docs, stopwords=None, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(queries, stopwords=None, show_progress=False, return_ids=False)
    want = np.mean([index.get_scores(query) if query else np.zeros(len(docs)) for query in asked], axis=0)
    method = Bm25(variant="lucene", pattern=r"[\p{L}\p{N}_]{2,}")
    assert method.pattern in (Bm25.__doc__ or "")
    np.testing.assert_allclose(scored(method, docs, queries), want, rtol=2e-4, atol=1e-6)


def test_dsir_counts_the_units() -> None:
    docs, target = [*CHINESE, *JAPANESE, *MIXED], ["公园很大", "コーヒーを"]

    def spaced(text: str) -> str:  # with blanks, so that the reference need not know these scripts
        return regex.sub(r"([\p{Han}\p{Hiragana}]|\p{Katakana}[\p{Katakana}ーﾟ]*)", r" \1 ", text.lower())

    want = oracle.dsir([spaced(doc) for doc in docs], [spaced(text) for text in target])
    np.testing.assert_allclose(scored(Dsir(min_tokens=1), docs, target), want, rtol=1e-9)


def with_blanks(text: str) -> str:
    """A blank before every letter of a script without blanks, and after its punctuation; Katakana as one."""
    unit = r"(?:[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}&&\p{L}]\p{M}*|ー|\p{Katakana}[\p{Katakana}ーﾟ]*)"
    pattern = rf"([\p{{P}}\p{{S}}]*(?<!ー(?=ー)){unit}[\p{{P}}\p{{S}}]*)"
    return regex.sub(pattern, r" \1 ", text, flags=regex.V1)


def test_length_and_repetition_count_the_units() -> None:
    texts = [
        *SPACELESS,
        *HINDI,
        "公园很大公园很大公园很大公园很大",
        "コーヒーコーヒー を コーヒー を コーヒー を",
        "。。。 ！",
    ]
    (lengths,), (repeated,) = run(Length(), [Text.of(texts)]), run(Repetition(), [Text.of(texts)])
    for i, text in enumerate(texts):
        assert lengths["score"][i] == lengths["words"][i] == len(with_blanks(text).split()), text
        assert lengths["chars"][i] == len(text)
        assert repeated["score"][i] == pytest.approx(oracle.repetition(with_blanks(text))["score"], abs=1e-6), text
    assert lengths["score"][:4].tolist() == [13, 10, 9, 8] and repeated["score"][-3] < -1


@pytest.mark.parametrize("target", ["2 + 2 = ?", "a b c", "?!"])
def test_bm25_refuses_a_target_without_words(target: str) -> None:
    rule = "no sample of the target 'target' has a word.*two or more letters.*set bm25.pattern"
    with pytest.raises(CurateError, match=rule):
        run(Bm25(), [Text.of(["some words"])], Target.of([target]))
    with pytest.raises(CurateError, match="the pattern xyz matches"):
        run(Bm25(pattern="xyz"), [Text.of(["some words"])], Target.of([target]))
    method = Bm25(pattern=r"\w+|[^\w\s]")  # what the sentence names
    assert scored(method, ["2 + 3 = 5", "a cat?!", "a dog", "no", "on"], [target])[0 if "2" in target else 1] > 0


def test_a_pattern_and_a_rule_for_scripts_without_blanks_contradict_each_other() -> None:
    with pytest.raises(CurateError, match="leave out bm25.spaceless"):
        Bm25(pattern="x", spaceless="letters")


def told(folder: Path, queries: list[str], texts: list[str], **settings: Any) -> str:
    """The remark on bm25 of a workspace."""
    ws = curate.open_workspace(folder)
    pool, target = (folder.with_suffix(f".{name}.jsonl") for name in ("pool", "target"))
    for file, samples in ((pool, texts), (target, queries)):
        file.write_text("".join(f'{{"text": "{text}"}}\n' for text in samples), encoding="utf-8")
    curate.ingest(ws, [str(pool)])
    curate.target(ws, "t", str(target))
    (result,) = curate.score(ws, Bm25(**settings), target="t")
    return result.note


def test_a_pool_or_a_target_with_few_words_is_told(tmp_path: Path) -> None:
    words = [f"some words {n:03d}" for n in range(18)]
    note = told(tmp_path / "a", ["words 003", "1 + 1"], [*words, "1 + 1 = 2", "2 + 2 = 4"])
    assert note.startswith("1 of the 2 samples of the target 't' have no word. A word is two or more letters")
    note = told(tmp_path / "b", ["words 003"], [*words, "1 + 1", "2 + 2", "3 + 3"])
    assert note.startswith("3 of the 21 samples of the pool have no word. A word is two or more letters")
    assert told(tmp_path / "c", ["words 003"], words) == ""


def test_a_target_whose_words_the_pool_lacks_is_told(tmp_path: Path) -> None:
    for i, settings in enumerate(({}, {"variant": "bm25plus"})):
        note = told(tmp_path / str(i), ["公园"], ["some words", "other words", "on and on"], **settings)
        assert note.startswith("Every sample has the same score") and "no word of the target 't' is in the pool" in note


def test_ascii_texts_have_the_words_that_the_expression_finds() -> None:
    chance = random.Random(5)
    letters = [chr(i) for i in range(128)] + [" "] * 40
    texts = ["".join(chance.choices(letters, k=chance.choice([0, 0, 1, 3, 40]))) for _ in range(300)]
    texts += [f"a{chr(i)}b" for i in range(128)] + [
        "",
        " ",
        "a",
        " a",
        "a ",
        "é a",
        "文字 a\x1fb",
        "a\x85b",
        "a\xa0b",
        "",
    ]
    for some in (texts, texts[:300], ["", ""], ["文"]):
        found = run(Length(), [Text.of(some)])[0]["score"].tolist()
        assert found == pl.Series(some, dtype=pl.String).str.count_matches(BETWEEN_SPACES).to_list()
