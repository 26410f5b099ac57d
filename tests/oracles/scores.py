"""Every score once more: slow, obvious, one sample at a time, and nothing shared with the real thing."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean


def words(text: str) -> list[str]:
    """As re has it, which differs from Rust's dialect on some numerals and marks; oracles see none of these."""
    return re.findall(r"\b\w\w+\b", text.lower())


# --- bm25 ------------------------------------------------------------------------------------------------


def bm25(
    docs: Sequence[str],
    queries: Sequence[str],
    variant: str = "okapi",
    aggregate: str = "mean",
    subtasks: Sequence[str] | None = None,
    k1: float = 1.5,
    b: float = 0.75,
    delta: float | None = None,
) -> list[float]:
    tokens = [words(d) for d in docs]
    n, mean_length = len(docs), fmean(len(t) for t in tokens)
    df = Counter(w for t in tokens for w in set(t))
    idf = {w: _idf(variant, n, df[w]) for w in df}
    if variant == "okapi":
        floor = 0.25 * fmean(idf.values())
        idf = {w: floor if x < 0 else x for w, x in idf.items()}
    if delta is None:
        delta = {"bm25l": 0.5, "bm25plus": 1.0}.get(variant, 0.0)
    out = []
    for t in tokens:
        tf, norm = Counter(t), 1 - b + b * len(t) / mean_length
        one = [sum(idf.get(w, 0.0) * _part(variant, tf[w], norm, k1, delta) for w in words(q)) for q in queries]
        if aggregate == "mean":
            out.append(fmean(one))
        elif aggregate == "max":
            out.append(max(one))
        else:
            assert subtasks is not None
            out.append(max(fmean(x for x, s in zip(one, subtasks, strict=True) if s == g) for g in set(subtasks)))
    return out


def _idf(variant: str, n: int, df: int) -> float:
    match variant:
        case "okapi":
            return math.log(n - df + 0.5) - math.log(df + 0.5)
        case "lucene":
            return math.log(1 + (n - df + 0.5) / (df + 0.5))
        case "robertson":
            return math.log(max(1, (n - df + 0.5) / (df + 0.5)))
        case "atire":
            return math.log(n / df)
        case "bm25l":
            return math.log((n + 1) / (df + 0.5))
    return math.log((n + 1) / df)


def _part(variant: str, tf: int, norm: float, k1: float, delta: float) -> float:
    match variant:
        case "okapi" | "atire":
            return tf * (k1 + 1) / (tf + k1 * norm)
        case "lucene" | "robertson":
            return tf / (tf + k1 * norm)
        case "bm25plus":
            return tf * (k1 + 1) / (tf + k1 * norm) + delta
    c = tf / norm
    return (k1 + 1) * (c + delta) / (k1 + c + delta)


# --- dsir ------------------------------------------------------------------------------------------------


def dsir(
    docs: Sequence[str], target: Sequence[str], ngrams: int = 2, buckets: int = 10_000, eps: float = 1e-8
) -> list[float]:
    raw = sum((_buckets(d, ngrams, buckets) for d in docs), Counter())
    wanted = sum((_buckets(d, ngrams, buckets) for d in target), Counter())
    n_raw, n_wanted = raw.total(), wanted.total()

    def log_ratio(b: int) -> float:
        return math.log(wanted[b] / n_wanted + eps) - math.log(raw[b] / n_raw + eps)

    return [sum(c * log_ratio(b) for b, c in _buckets(d, ngrams, buckets).items()) for d in docs]


def _buckets(text: str, ngrams: int, buckets: int) -> Counter[int]:
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    grams = [" ".join(tokens[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(tokens) - n + 1)]
    return Counter(int(hashlib.sha256(g.encode()).hexdigest(), 16) % buckets for g in grams)


# --- repetition ------------------------------------------------------------------------------------------


def repetition(text: str) -> dict[str, float]:
    shares = {}
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    for kind, pieces in (("line", lines), ("paragraph", paragraphs)):
        again, seen = [], set()
        for piece in pieces:
            again += [piece] if piece in seen else []
            seen.add(piece)
        shares[f"dup_{kind}"] = len(again) / max(len(pieces), 1)
        shares[f"dup_{kind}_chars"] = sum(map(len, again)) / max(sum(map(len, pieces)), 1)
    tokens = text.split()
    total = max(sum(map(len, tokens)), 1)
    for n in range(2, 11):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        if n <= 4:
            counts = Counter(grams)
            most = max(counts.values(), default=0)
            sizes = [most * sum(map(len, g)) for g, c in counts.items() if c == most] if most > 1 else [0]
            shares[f"top_{n}gram"] = min(max(sizes) / total, 1.0)
        else:
            covered, before = set(), set()
            for i, g in enumerate(grams):
                if g in before:
                    covered.update(range(i, i + n))
                before.add(g)
            shares[f"dup_{n}gram"] = sum(len(tokens[i]) for i in covered) / total
    limits = {"dup_line": 0.3, "dup_paragraph": 0.3, "dup_line_chars": 0.2, "dup_paragraph_chars": 0.2}
    limits |= {"top_2gram": 0.2, "top_3gram": 0.18, "top_4gram": 0.16}
    limits |= {f"dup_{n}gram": (20 - n) / 100 for n in range(5, 11)}
    shares["score"] = -max(shares[name] / limit for name, limit in limits.items())
    return shares


# --- length ----------------------------------------------------------------------------------------------


def length(messages: list[dict[str, str]] | None, text: str | None) -> dict[str, float]:
    contents = [text or ""] if messages is None else [m["content"] for m in messages]
    answers = [text or ""] if messages is None else [m["content"] for m in messages if m["role"] == "assistant"]
    whole = "\n".join(contents)
    return {
        "score": len("\n".join(answers).split()),
        "words": len(whole.split()),
        "chars": len(whole),
        "turns": len(messages or []),
    }
