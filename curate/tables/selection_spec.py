"""What a selection is made of: its condition, its budget, its groups."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from curate.errors import CurateError

_SIMPLE = {"first": "row", "longest": "n_chars DESC", "shortest": "n_chars"}


def keep_order(keep: str) -> str:
    """The SQL that a group is ordered by, the sample that is kept first.

    keep: first (in the pool's order), longest, shortest, best:SQL (the highest value), or source:A,B,… (of the source
    that is named first; others last). Raises CurateError for anything else.
    """
    kind, colon, text = keep.partition(":")
    if not colon and kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind == "best" and text.strip():
        return f"({text}\n) DESC"
    if kind == "source" and text.strip():
        names = ", ".join("'" + name.strip().replace("'", "''") + "'" for name in text.split(","))
        return f"nullif(list_position([{names}], source), 0)"
    raise CurateError(f"--keep is first, longest, shortest, best:SQL or source:A,B,…, not '{keep}'.")


@dataclass(frozen=True)
class SelectionSpec:
    """The specification of a selection: everything that determines it, except the data.

    by: SQL expression over `samples`, higher is better. where: SQL condition. Exactly one of top (rows), frac and
    tokens is the budget; with `per` it applies to each group. frac_of: frac is a share of all candidates, or of those
    that have a value ('valued'). token_count: SQL for the tokens of a sample; None: a real tokenizer's count, if a
    score has one of every sample (see `lookup.token_count`), else TOKENS. vectors, target: for a selector that uses
    vectors, and those of a target. one_per: SQL for the group of a sample, of which only one is a candidate (samples
    without a group are all); keep: which, see `keep_order`. history: manifests of this pool, or targets, that were
    trained on earlier, comma-separated, the most recent last. null: a control: shuffle the values among the candidates
    first, which shows how much of a result is due to chance.
    """

    by: str | None = None
    where: str | None = None
    top: int | None = None
    frac: float | None = None
    tokens: float | None = None
    per: str | None = None
    token_count: str | None = None
    seed: int = 0
    allow_stale: bool = False
    vectors: str | None = None
    target: str | None = None
    null: bool = False
    history: str | None = None
    frac_of: Literal["candidates", "valued"] = "candidates"
    one_per: str | None = None
    keep: str = "first"

    @property
    def before(self) -> list[str]:
        """The names in `history`."""
        return [name.strip() for name in (self.history or "").split(",") if name.strip()]

    def recorded(self) -> dict[str, Any]:
        """What a manifest's JSON has of it."""
        silent = {"frac_of"} if self.frac is None else set[str]()
        silent |= {"one_per", "keep"} if self.one_per is None else set()
        return {key: value for key, value in asdict(self).items() if key not in silent}

    def expressions(self) -> tuple[str | None, ...]:
        """The SQL expressions over `samples` that it uses."""
        return self.by, self.where, self.token_count, self.one_per, self.keep if self.one_per else None

    def from_samples(self, columns: str) -> str:
        """The SELECT of some columns of the candidates, in no order."""
        one = f"QUALIFY {self._place()} = 1" if self.one_per else ""
        return f"SELECT {columns} FROM samples {self._where()} {one}"

    def value(self) -> str:
        """The SQL for the value of a sample, a DOUBLE; NULL without one."""
        value = self.by if self.by and self.per != "subtask" else "NULL"
        return f"({value}\n)::DOUBLE"

    def size(self) -> str:
        """The SQL for the tokens of a sample, a DOUBLE."""
        return f"({self.token_count}\n)::DOUBLE"

    def left_out(self) -> str:
        """The SELECT of those that are no candidates since another one of their group is: id, and kept, its id."""
        columns = f"id, first_value(id) OVER ({self._window()}) AS kept"
        return f"SELECT {columns} FROM samples {self._where()} QUALIFY {self._place()} > 1 ORDER BY row"

    def _where(self) -> str:
        return f"WHERE ({self.where}\n)" if self.where else ""  # the newline ends an SQL comment in the condition

    def _place(self) -> str:
        return f"row_number() OVER ({self._window()})"

    def _window(self) -> str:
        group = f"coalesce(({self.one_per}\n)::VARCHAR, id)"
        return f"PARTITION BY {group} ORDER BY {keep_order(self.keep)} NULLS LAST, id"

    def __post_init__(self) -> None:
        budgets = [value for value in (self.top, self.frac, self.tokens) if value is not None]
        if len(budgets) != 1:
            raise CurateError("give exactly one budget: --top ROWS, --frac FRACTION or --tokens TOKENS.")
        if not 0 < budgets[0] < 2**62:
            raise CurateError(f"a budget is a number above 0, not {budgets[0]}.")
        if not -(2**62) < self.seed < 2**62:
            raise CurateError(f"--seed {self.seed} has more than 62 bits.")
        if self.frac is not None and self.frac > 1:
            raise CurateError(f"--frac {self.frac} is more than the whole; give a fraction up to 1, as in 0.05.")
        if self.null and (not self.by or self.per == "subtask"):
            raise CurateError("--null shuffles the values of --by; add --by, and leave out --per subtask.")
        if self.per not in (None, "source", "subtask"):
            raise CurateError(f"--per is source or subtask, not '{self.per}'.")
        if self.keep != "first" and not self.one_per:
            raise CurateError(f"--keep {self.keep} says which of a group to keep; add --one-per GROUP.")
        keep_order(self.keep)
