from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from curate.errors import CurateError
from curate.kinds.passes import Arrays, Columns, Pass
from curate.kinds.score import Score, Target
from curate.kinds.text import Text
from curate.kinds.words import WORDS, WORDS_AND_RUNS, Words

_MERGED = 16  # partial counts of similar size that are merged at once
_MANY = 0.1  # share of samples without words from which it is worth a remark
_RULE = "two or more letters, digits or marks in a row, and in Chinese, Japanese, Thai, Lao, Khmer and Burmese a letter"


@dataclass(frozen=True)
class Bm25(Score):
    r"""Lexical relevance to the target: mean BM25 of each sample over the target's examples as queries.

    Formula, for a sample d of L words, K = k1 (1 - b + b L / L_mean), and a query q:

        BM25(q, d) = sum over the words w of q, repeats counted, of idf(w) * part(tf(w, d))

        variant     idf                                              part
        okapi       ln(N - df + .5) - ln(df + .5), where negative    tf (k1 + 1) / (tf + K)
                    0.25 * the mean idf of all words
        lucene      ln(1 + (N - df + .5) / (df + .5))                tf / (tf + K)
        robertson   ln max(1, (N - df + .5) / (df + .5))             tf / (tf + K)
        atire       ln(N / df)                                       tf (k1 + 1) / (tf + K)
        bm25l       ln((N + 1) / (df + .5))                          (k1 + 1)(c + delta) / (k1 + c + delta),
                                                                     c = tf / (1 - b + b L / L_mean)
        bm25plus    ln((N + 1) / df)                                 tf (k1 + 1) / (tf + K) + delta

    df, N and L_mean are taken over the whole pool, across all shards. `okapi` and `bm25plus` equal rank-bm25's classes;
    its BM25L multiplies by tf once more. The other four equal bm25s.

    The mean over the target is linear in the query, so the queries' word counts are summed first, which leaves one
    product per sample, however many examples the target has.

    A word is two or more word characters in a row, lower-cased: letters, digits, sub- and superscripts, combining
    marks, underscores. In scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) it is a
    letter with its marks, or by default two neighbours, which say more than one (the word breaks of Unicode, UAX #29,
    and the bigrams of Lucene's CJKAnalyzer); a run of Katakana is one word. These are the words of bm25s, rank-bm25's
    users and scikit-learn (the matches of `\b\w\w+\b` by Python's re) but in two cases that matter. There a run of
    letters without blanks is one word, however long. And there a combining mark ends a word, so that hardly any of
    Hindi, vocalised Arabic or decomposed accents is left. `pattern=[\p{L}\p{N}_]{2,}` cuts words as they do. A sample
    without words has no score; a target without any is refused.

    Cost: reads and tokenises the pool twice (to count words, then to score), keeps one count per distinct word; no
    FLOPs. Bottleneck: tokenising. A second target reuses the counts. The aggregate `max` is not linear: it costs one
    product per example of the target, and keeps a matrix of (words of the target) x (examples) in memory.

    Departures: in bm25l and bm25plus a query word that d lacks adds part(0), as in bm25s and rank-bm25, whereas Lv and
    Zhai sum only over the words d has; the difference is a constant per query and does not change the ranking by
    `mean`.

    Reference: Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; variants as in
    Trotman, Puurula, Burgess, "Improvements to BM25 and Language Models Examined", ADCS 2014, and the package
    rank-bm25. As a selector of training data: ADAPT (ICLR 2026), Section 2.2. Aggregate `subtask_max`: LESS.

    >>> from curate.kinds.score import run
    >>> batch, target = Text.of(["a red apple", "a green pear"]), Target.of(["which fruit is red?"])
    >>> run(Bm25(variant="lucene"), [batch], target)[0]["score"].round(4).tolist()
    [0.2773, 0.0]
    """

    version: ClassVar[int] = 2  # 1: words were the matches of \w\w+ in every script
    scope: ClassVar[Literal["row", "pool"]] = "pool"
    uses_target: ClassVar[bool] = True

    variant: Literal["okapi", "lucene", "robertson", "atire", "bm25l", "bm25plus"] = "okapi"
    """Which idf and term-frequency part; see the table."""
    aggregate: Literal["mean", "max", "subtask_max"] = "mean"
    """Mean over the target's examples, their maximum, or LESS's maximum over sub-tasks of the sub-task's mean."""
    k1: float = 1.5
    """Saturation of the term frequency."""
    b: float = 0.75
    """Normalisation by length: 0 none, 1 full."""
    delta: float | None = None
    """For bm25l (default 0.5) and bm25plus (default 1, where it shifts every score equally); as in rank-bm25."""
    spaceless: Literal["pairs", "letters"] = "pairs"
    """In scripts without blanks between words, a word is two neighbouring letters (a letter that stands alone is one
    too), or each letter."""
    pattern: str = ""
    """Regular expression that matches a word (Rust syntax) instead of the rule above, in every script."""
    lowercase: bool = True
    """Lower-case the text first."""
    keep_subtasks: bool = False
    """Keep every sub-task's mean in the column `subtasks`; not with the aggregate `max`."""

    def __post_init__(self) -> None:
        if not (0 < self.k1 < np.inf and 0 <= self.b <= 1):
            raise CurateError(f"bm25 needs k1 > 0 and 0 <= b <= 1, not k1={self.k1}, b={self.b}.")
        if self.delta is not None and (self.variant not in ("bm25l", "bm25plus") or not 0 <= self.delta < np.inf):
            raise CurateError(f"bm25's delta={self.delta} goes with variant bm25l or bm25plus, and is 0 or more.")
        if self.keep_subtasks and self.aggregate == "max":
            raise CurateError("bm25 keeps sub-tasks' means, so keep_subtasks=true goes with mean or subtask_max.")
        if self.pattern and self.spaceless != "pairs":
            raise CurateError("bm25's pattern says what a word is in every script: leave out bm25.spaceless.")
        try:
            pl.Series([""]).str.extract_all(self.pattern)
        except pl.exceptions.ComputeError as error:
            raise CurateError(f"bm25's pattern '{self.pattern}' is no regular expression: {error}") from None

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        if len(target.subtasks) and not self._split(target.text).lengths().any():
            raise CurateError(
                f"no sample of the target '{target.name}' has a word, so bm25 would be 0 for all. {self._rule()}: take "
                "another target or method, or set bm25.pattern, as in --set 'bm25.pattern=\\w+|[^\\w\\s]'."
            )
        return (
            Pass("count", self._count, reduce=_total, shaped_by=("spaceless", "pattern", "lowercase")),
            Pass("score", self._score, open=partial(self._query, target)),
        )

    def note(self, columns: Mapping[str, np.ndarray], target: Target | None = None) -> str:
        assert target is not None
        remarks, score = [], columns["score"]
        finite = score[np.isfinite(score)]
        if len(finite) > 1 and finite.min() == finite.max():
            remarks.append(
                f"every sample has the same score, so nothing can be chosen by it: no word of the target "
                f"'{target.name}' is in the pool, or none tells samples apart"
            )
        without = {
            "the pool": (len(score) - len(finite), len(score)),
            f"the target '{target.name}'": (int((self._split(target.text).lengths() == 0).sum()), len(target.subtasks)),
        }
        for where, (n, of) in without.items():
            if n > _MANY * of:
                remarks.append(f"{n:,} of the {of:,} samples of {where} have no word. {self._rule()}")
        return ". ".join(remark[0].upper() + remark[1:] for remark in remarks)

    def _rule(self) -> str:
        return f"A word is what the pattern {self.pattern} matches" if self.pattern else f"A word is {_RULE}"

    def _split(self, text: Text) -> Words:
        pairs = not self.pattern and self.spaceless == "pairs"
        return text.words(self.pattern or (WORDS_AND_RUNS if pairs else WORDS), self.lowercase, pairs)

    # Pass 1: in how many samples each word occurs, and how many words there are.

    def _count(self, batch: Text, _: Arrays) -> Arrays:
        words = self._split(batch)
        code = words.counts()[1]
        df = np.bincount(code, minlength=len(words.vocabulary))
        return {**_packed(words.vocabulary), "df": df, "n": np.array([len(batch), len(words.codes)])}

    # Between: the target as weights of words, one column per query, sub-task or whole target.

    def _query(self, target: Target, state: Arrays) -> _Query:
        n, total = (int(x) for x in state["n"])
        idf = pl.DataFrame({"word": _unpacked(state), "idf": self._idf(state["df"].astype(np.float64), n)})
        query_words = self._split(target.text)
        words = pl.DataFrame({"word": query_words.vocabulary}).join(idf, on="word", how="left", maintain_order="left")
        labels, groups = self._groups(target)
        sizes = np.bincount(groups, minlength=len(labels))
        counts = np.zeros((len(query_words.vocabulary), len(labels)))
        np.add.at(counts, (query_words.codes, groups[query_words.texts()]), 1.0)
        weights = counts * words["idf"].fill_null(0.0).to_numpy()[:, None] / sizes  # a word the pool lacks adds nothing
        return _Query(query_words.vocabulary, weights, labels, sizes / sizes.sum(), total / max(n, 1))

    def _groups(self, target: Target) -> tuple[list[str], np.ndarray]:
        """The columns' labels, and the column each of the target's examples is averaged into, int [T]."""
        if self.aggregate == "max":
            return [str(i) for i in range(len(target.subtasks))], np.arange(len(target.subtasks))
        if self.aggregate == "mean" and not self.keep_subtasks:
            return [""], np.zeros(len(target.subtasks), dtype=np.int64)
        labels = sorted(set(target.subtasks))
        return labels, np.array([labels.index(s) for s in target.subtasks])

    def _idf(self, df: np.ndarray, n: int) -> np.ndarray:
        match self.variant:
            case "okapi":
                idf = np.log(n - df + 0.5) - np.log(df + 0.5)
                return np.where(idf < 0, 0.25 * (idf.mean() if len(idf) else 0.0), idf)
            case "lucene":
                return np.log1p((n - df + 0.5) / (df + 0.5))
            case "robertson":
                return np.log(np.maximum(1.0, (n - df + 0.5) / (df + 0.5)))
            case "atire":
                return np.log(n / df)
            case "bm25l":
                return np.log((n + 1) / (df + 0.5))
            case "bm25plus":
                return np.log((n + 1) / df)

    # Pass 2: one product per sample.

    def _score(self, batch: Text, query: _Query) -> Columns:
        words = self._split(batch)
        lengths = words.lengths()
        place = query.places(words)
        text, code, tf = words.some(place >= 0).counts()
        row = place[code]
        absent = self._part(np.zeros(1), np.ones(1))[0]  # what an absent word adds
        part = self._part(tf.astype(np.float64), lengths[text] / max(query.mean_length, 1e-300)) - absent
        score, subtasks = np.full(len(batch), 0.0 if self.aggregate == "mean" else -np.inf), {}
        for label, weight, share in zip(query.labels, query.weights.T, query.shares, strict=True):
            # bincount adds in the order of the words, so a score does not depend on the rest of its batch
            column = np.bincount(text, part * weight[row], len(batch)) + absent * weight.sum()
            score = score + share * column if self.aggregate == "mean" else np.maximum(score, column)
            subtasks[label] = column if self.keep_subtasks else None
        columns = {"score": score, "error": np.where(lengths == 0, "has no words", "")}
        return {**columns, "subtasks": subtasks} if self.keep_subtasks else columns

    def _part(self, tf: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
        norm = 1 - self.b + self.b * relative_length
        k1, saturated = self.k1, tf / (tf + self.k1 * norm + (tf == 0))
        match self.variant:
            case "okapi" | "atire":
                return saturated * (k1 + 1)
            case "lucene" | "robertson":
                return saturated
            case "bm25plus":
                return saturated * (k1 + 1) + (1.0 if self.delta is None else self.delta)
            case "bm25l":
                c = tf / norm + (0.5 if self.delta is None else self.delta)
                return (k1 + 1) * c / (k1 + c)


@dataclass(frozen=True)
class _Query:
    """A target as weights: words [A], weights [A, C], labels and shares of the target [C], mean length in words."""

    words: pl.Series
    weights: np.ndarray
    labels: list[str]
    shares: np.ndarray
    mean_length: float

    def places(self, words: Words) -> np.ndarray:
        """Index of each word of a batch's vocabulary among the query words, int [V]; -1 where it is none of them."""
        query_words = pl.DataFrame({"word": self.words}).with_row_index("place")
        joined = pl.DataFrame({"word": words.vocabulary}).join(
            query_words, on="word", how="left", maintain_order="left"
        )
        return joined["place"].cast(pl.Int64).fill_null(-1).to_numpy()


def _total(partials: Iterable[Arrays]) -> Arrays:
    n, stack = np.zeros(2, dtype=np.int64), []  # (how often merged, counts): a word is merged log(partials) times
    for partial_ in partials:
        n = n + partial_["n"]
        stack.append((0, pl.DataFrame({"word": _unpacked(partial_), "df": partial_["df"]})))
        while len(stack) >= _MERGED and stack[-_MERGED][0] == stack[-1][0]:
            stack[-_MERGED:] = [(stack[-1][0] + 1, _merged([counts for _, counts in stack[-_MERGED:]]))]
    total = _merged([counts for _, counts in stack]).sort("word")
    return {**_packed(total["word"]), "df": total["df"].to_numpy(), "n": n}


def _merged(counts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by("word").agg(pl.col("df").sum())


def _packed(words: pl.Series) -> Arrays:
    """Words as plain arrays: their UTF-8 bytes concatenated, and where each ends."""
    data = np.frombuffer("".join(words).encode(), dtype=np.uint8)
    return {"words": data, "word_ends": words.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy()}


def _unpacked(arrays: Arrays) -> pl.Series:
    ends = np.concatenate([[0], arrays["word_ends"]])
    strings = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(arrays["words"]))
    return pl.Series(strings, dtype=pl.String)
