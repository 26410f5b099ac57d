"""The final answer in a text: where it stands, and the form in which two answers are compared."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ANSWER_IS = re.compile(r"\banswer[*_]*\s*(?:is|:)[*_:]*\s*(?:option\s+)?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=[*\"']*\s)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_OPTION = re.compile(r"\(?([a-z])\)(?:[\s.:,].*)?|([a-z])")
_WHOLE_NUMBER = re.compile(r"([-+]?)[$£€]?\s?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s?\\?%?")
_FRACTION = re.compile(r"(-?)(?:\\frac\{(-?\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AROUND = "*`"  # what Markdown puts around an answer


def chosen(found: list[str], take: str) -> str:
    """The first or the last of what was found; '' if nothing was."""
    return (found[0] if take == "first" else found[-1]) if found else ""


def number(text: str, take: str = "last") -> str:
    """A number of the text (of what follows `####`, if that occurs), without thousands' commas and a trailing .0."""
    behind = text.partition("####")[2] if take == "first" else text.rpartition("####")[2]
    found = chosen(_NUMBER.findall(behind or text), take)
    return re.sub(r"\.0*$", "", found.replace(",", ""))


def answer_is(text: str, take: str = "last") -> tuple[str, ...]:
    """What follows "the answer is" or "Answer:", to the end of its line, and to the end of its first sentence; empty
    without such words."""
    behind = chosen([text[match.end() :].partition("\n")[0] for match in _ANSWER_IS.finditer(text)], take)
    sentence = _SENTENCE_END.split(behind, maxsplit=1)[0]
    return tuple(dict.fromkeys(filter(None, (short_form(behind), short_form(sentence)))))


def boxed(text: str, take: str = "last") -> str:
    r"""What is in \boxed{…}, with the braces inside it balanced; '' without one."""
    return latex_form(chosen([_argument(text[match.end() :]) for match in _BOX.finditer(text)], take))


def by_pattern(text: str, pattern: str, take: str = "last") -> str:
    """What a regular expression finds: its first group that took part in the match, or all of it without groups."""
    found = [next((g for g in match.groups() if g is not None), match[0]) for match in re.finditer(pattern, text)]
    return short_form(chosen(found, take))


def _argument(behind: str) -> str:
    """The argument of a command of LaTeX: what the braces enclose, or the next word; '' if a brace is not closed."""
    if not behind.startswith("{"):
        return re.split(r"[\s$]", behind, maxsplit=1)[0]
    depth = 0
    for place, sign in enumerate(behind):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return behind[1:place]
    return ""


# --- forms -----------------------------------------------------------------------------------------------


def text_form(text: str) -> str:
    """In lower case, with single spaces, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".")


def words_form(text: str) -> str:
    """In lower case, without punctuation and English articles, with single spaces: SQuAD's."""
    return " ".join(words(text))


def words(text: str) -> list[str]:
    """The words of `words_form`."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def short_form(text: str) -> str:
    """As `text_form`; besides, without Markdown's stars, quotation marks or dollar signs around it; an option's letter,
    in parentheses or before its text, is the letter, and a number has one form (1,200.0 and $1,200 are 1200)."""
    form = text_form(text.replace("−", "-").strip().strip(_AROUND))
    form = form.rstrip(".,;:!").rstrip(_AROUND) or form
    form = form.rstrip(".,;:!") or form
    for mark in ("$", '"', "'"):
        if len(form) > 2 and form[0] == form[-1] == mark:
            form = form[1:-1].strip()
    if match := _OPTION.fullmatch(form):
        return match[1] or match[2]
    return _plain_number(form) or form


def _plain_number(form: str) -> str:
    match = _WHOLE_NUMBER.fullmatch(form)
    if not match:
        return ""
    digits = match[2].replace(",", "")
    value = Decimal(digits)
    shown = f"{value.normalize():f}"
    return f"-{shown}" if match[1] == "-" and value else shown


_SAME_IN_LATEX: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\(?:left|right|!|,|;|:|displaystyle)", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
    (r"\^\{?\\circ\}?|\\%|\\\$|[$%]|\\ ", ""),
    (r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\s+", ""),
)


def latex_form(text: str) -> str:
    """One form of a formula: without spaces, units of degree, per cent and dollar signs; fractions of whole numbers,
    decimal numbers and a/b as a reduced fraction; what is no formula as in `short_form`."""
    form = text.replace("−", "-").strip().removesuffix(".")
    for pattern, instead in _SAME_IN_LATEX:
        form = re.sub(pattern, instead, form)
    if match := _FRACTION.fullmatch(form):
        sign, above, below, left, right = match.groups()
        if int(below or right):
            value = Fraction(int(above or left), int(below or right))
            return str(-value if sign else value)
    if plain := _plain_number(form):
        return str(Fraction(plain))
    return short_form(form)
