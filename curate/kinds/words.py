"""Words: what they are in scripts with blanks between them and without, and texts as words in integer codes.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no blanks between words. Here each of their letters, with its
marks, is a unit of its own, but a run of Katakana is one: the word breaks of Unicode (UAX #29), which use no
dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import polars as pl

# The scripts without blanks as near_dup and decontaminate have them, where each character is a word, marks and digits
# too; for use in a character class, [{ALONE}].
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

_KATAKANA = r"[[\p{Katakana}&&\p{L}]\x{FF9E}\x{FF9F}]"  # with the voice marks of the half-width forms
_LONG = r"\x{30FC}\x{FF70}"  # the sign of a long vowel, which belongs to no script
_LETTER = rf"[[\p{{Han}}\p{{Hiragana}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}&&[\p{{L}}\p{{Nl}}]]{_LONG}]"
_MARK = r"\p{M}\x{200C}\x{200D}"  # combining marks, and the joiners, which join what stands around them
_LETTERS = rf"(?:{_LETTER}[{_MARK}]*)"
_LOANWORD = rf"{_KATAKANA}[{_KATAKANA}{_LONG}{_MARK}]*"
_UNIT = rf"(?:{_LOANWORD}|{_LETTERS})"
_SPACELESS = f"{_LETTER}{_KATAKANA}"
# Python's \w has superscripts, subscripts and fractions; Rust's has not, but combining marks, joiners and other
# connectors than the underscore.
_WORD = rf"[\w\p{{No}}--[{_SPACELESS}]]"

# Runs of two or more word characters, and the units of scripts without blanks. Where a text has neither these scripts
# nor characters as in x², these are the matches of \w\w+, the usual words of rank-bm25, scikit-learn and bm25s.
WORDS = rf"{_WORD}{_WORD}+|{_UNIT}"
# The same, but units in a row are one match: split_words makes pairs of them.
WORDS_AND_RUNS = rf"{_WORD}{_WORD}+|{_LOANWORD}|{_LETTERS}+"
# NLTK's WordPunct, and the units of scripts without blanks.
WORDS_AND_MARKS = rf"{_WORD}+|{_UNIT}|[^\w\s\p{{No}}]+"
# What stands between white space; in scripts without blanks, each unit with the punctuation around it.
BETWEEN_SPACES = rf"[\p{{P}}\p{{S}}]*{_UNIT}[\p{{P}}\p{{S}}]*|[^\s{_SPACELESS}]+"


@dataclass(frozen=True)
class Words:
    """The N words of B texts as integer codes.

    vocabulary: the V distinct words, sorted. codes: int32 [N], positions in the vocabulary, text after text. ends:
    int64 [B + 1], text i is codes[ends[i]:ends[i + 1]].
    """

    vocabulary: pl.Series
    codes: np.ndarray
    ends: np.ndarray

    def numbers(self, width: int) -> np.ndarray:
        """A hash of every word, the same on all machines, uint64 [N]: `width` bytes of its BLAKE2b digest."""
        digests = b"".join(blake2b(word.encode(), digest_size=width).digest() for word in self.vocabulary)
        return np.frombuffer(digests, f"<u{width}").astype(np.uint64)[self.codes]

    def lengths(self) -> np.ndarray:
        """Words per text, int64 [B]."""
        return np.diff(self.ends)

    def texts(self) -> np.ndarray:
        """The index of the text that each word belongs to, int64 [N]."""
        return np.repeat(np.arange(len(self.ends) - 1), self.lengths())

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, code, count) of every distinct word of every text, sorted by text and then by code."""
        keys = self.texts() * len(self.vocabulary) + self.codes
        keys.sort()  # in place; numpy sorts 64-bit integers with vector instructions
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        count = np.diff(first, append=len(keys))
        text, code = np.divmod(keys[first], max(len(self.vocabulary), 1))
        return text, code, count

    def some(self, keep: np.ndarray) -> Words:
        """Only the words whose code is true in `keep`, bool [V]; the vocabulary is unchanged."""
        kept = keep[self.codes]
        ends = np.concatenate([[0], np.cumsum(kept)])[self.ends]
        return Words(self.vocabulary, self.codes[kept], ends)


def split_words(texts: pl.Series, pattern: str = WORDS, lowercase: bool = True, pairs: bool = False) -> Words:
    """All matches of a regular expression (Rust syntax) in each text, as integer codes.

    pairs: of a match with several letters of scripts without blanks, every two neighbours are a word instead.
    """
    lists = (texts.str.to_lowercase() if lowercase else texts).str.extract_all(pattern)
    ends = np.concatenate([[0], lists.list.len().fill_null(0).to_numpy().astype(np.int64)]).cumsum()
    flat = lists.explode().drop_nulls()  # exploding an empty list gives a null
    vocabulary = flat.unique().sort()
    codes = flat.cast(pl.Enum(vocabulary)).to_physical().to_numpy().astype(np.int32)
    words = Words(vocabulary, codes, ends)
    return _in_pairs(words) if pairs else words


def _in_pairs(words: Words) -> Words:
    """Every match with several letters of scripts without blanks as pairs of neighbours."""
    # Looked for among the distinct words, which are few: texts without such scripts are not read again.
    runs = words.vocabulary.str.contains(rf"^{_LETTERS}{{2,}}$")
    if not runs.any():
        return words
    frame = pl.DataFrame({"run": words.vocabulary}).with_row_index("code")
    letters = frame.filter(runs).with_columns(pl.col("run").str.extract_all(_LETTERS)).explode("run")
    pair = pl.col("run") + pl.col("run").shift(-1).over("code")
    split = letters.with_columns(pair.alias("run")).drop_nulls("run")
    units = pl.concat([frame.filter(~runs), split]).sort("code", maintain_order=True)
    vocabulary = units["run"].unique().sort()
    codes = units["run"].cast(pl.Enum(vocabulary)).to_physical().to_numpy().astype(np.int32)
    sizes = np.bincount(units["code"].to_numpy(), minlength=len(words.vocabulary))  # words that each match becomes
    before = np.concatenate([[0], np.cumsum(sizes)])
    many = sizes[words.codes]
    ends = np.concatenate([[0], np.cumsum(many)])
    places = np.arange(ends[-1]) - np.repeat(ends[:-1] - before[words.codes], many)
    return Words(vocabulary, codes[places], ends[words.ends])
