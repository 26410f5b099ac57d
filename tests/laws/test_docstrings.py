"""What holds for every method's docstring: its parts, its example, its settings."""

from __future__ import annotations

import doctest
import importlib

import pytest

from curate.kinds.registry import KINDS, find, help_text, names, settings_help

EVERY = [(kind, name) for kind in KINDS for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_docstring_has_a_summary_a_formula_a_cost_and_a_reference(kind: str, name: str) -> None:
    text = help_text(kind, name)
    summary, _, rest = text.partition("\n")
    assert summary.endswith(".") and len(summary) < 110
    wanted = {"export": ("Format:", "Cost:", "Reference:"), "executor": ("Cost:",)}
    for part in wanted.get(kind, ("Formula", "Cost:", "Reference:")):
        assert part in rest, f"{kind} {name} has no {part}"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_example_in_the_docstring_runs(kind: str, name: str) -> None:
    cls = find(kind, name)
    module = importlib.import_module(cls.__module__)
    tests = [t for t in doctest.DocTestFinder().find(cls, cls.__name__, module=module) if t.examples]
    assert tests, f"{kind} {name} has no example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_setting_has_a_default_and_is_documented(kind: str, name: str) -> None:
    find(kind, name)()
    assert all(field["note"] for field in settings_help(kind, name))
