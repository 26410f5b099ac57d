"""Which metadata holds of a known sample that is read again with other fields (curate.store.later_meta)."""

from __future__ import annotations

from typing import Literal, TypeAlias

from curate import exact_json

MetaRule: TypeAlias = Literal["keep", "replace", "merge"]
RULES: tuple[MetaRule, ...] = ("keep", "replace", "merge")


def combined(old: str, new: str, rule: MetaRule) -> str | None:
    """The metadata of a sample that had `old` and was read again with `new`; None if that changes nothing.

    keep: the old one; replace: the new one; merge: the fields of both, of a field in both the new value.
    """
    if old == new:
        return None
    before, after = exact_json.loads(old), exact_json.loads(new)
    result = after if rule == "replace" else {**before, **after}
    return None if result == before else exact_json.dumps(result)


def meta_notes(n: int, rule: MetaRule) -> list[str]:
    """What to say of n known samples that came with other fields."""
    if not n:
        return []
    done = {"keep": "kept", "replace": "replaced", "merge": "merged with the new ones"}[rule]
    hint = "; --meta replace or merge takes the new ones" if rule == "keep" else ""
    return [f"{n:,} known samples came with other fields; those in the pool were {done}{hint}"]
