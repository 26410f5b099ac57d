"""Pages that are made when the documents are built: methods, commands, SQL's columns, the API; the table of figures.

They are not kept in the repository, so that adding a method is adding one file.
"""

from __future__ import annotations

from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import curate
import curate.kinds
from curate.cli.main import cli, commands
from curate.kinds.registry import KINDS, help_text, names, settings_help
from curate.store import schema


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    for name, text in {"methods.md": methods_page(), "cli.md": commands_page(), "api.md": api_page()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the columns of every view, and the figures, where a page asks for them."""
    markdown = markdown.replace("<!-- columns -->", columns_table())
    markdown = markdown.replace("<!-- gpu -->", gpu_tables()) if "<!-- gpu -->" in markdown else markdown
    return markdown.replace("<!-- figures -->", figures_table()) if "<!-- figures -->" in markdown else markdown


def methods_page() -> str:
    """Every method of every kind: its docstring, and its settings."""
    parts = [
        "# Methods",
        "As `curate methods KIND NAME` prints them. Settings are given by `--set NAME=VALUE`. Where a score has a "
        "direction, higher is better.",
    ]
    for kind in KINDS:
        parts += [f"## {kind}", *(_method(kind, name) for name in names(kind))]
    return "\n\n".join(parts) + "\n"


def _method(kind: str, name: str) -> str:
    summary, _, rest = help_text(kind, name).partition("\n")
    settings = settings_help(kind, name)
    rows = [f"| `{s['name']}` | `{s['default']}` | {s['note'].replace('|', chr(92) + '|')} |" for s in settings]
    table = "\n".join(["| setting | default | |", "|---|---|---|", *rows]) if rows else ""
    return f"### {name} {{ #{kind}-{name} }}\n\n{summary}\n\n```text\n{rest.strip()}\n```\n\n{table}".rstrip()


def commands_page() -> str:
    """The help of every command."""
    parts = ["# Commands", f"```text\n{_help(cli, 'curate')}\n```"]
    for name, command in commands().items():
        parts += [f"## curate {name}", f"```text\n{_help(command, f'curate {name}')}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(command: click.Command, name: str) -> str:
    return command.get_help(click.Context(command, info_name=name, max_content_width=110, terminal_width=110)).strip()


def columns_table() -> str:
    """The columns of the tables that SQL sees under fixed names, with their types."""
    tables: dict[str, Any] = {
        "pool": schema.POOL,
        "targets": schema.TARGET,
        "rejects": schema.REJECTS,
        "NAME of a manifest": schema.MANIFEST,
        "ledger": schema.LEDGER,
        "runs": schema.RUNS,
        "metrics": schema.METRICS,
        "trained": schema.TRAINED,
        "evaluations": schema.EVALUATIONS,
        "audits": schema.AUDITS,
        "audit_cells": schema.AUDIT_CELLS,
        "trials": schema.TRIALS,
    }
    rows = [f"| `{name}` | {', '.join(f'`{f.name}` {f.type}' for f in table)} |" for name, table in tables.items()]
    return "\n".join(["| view | columns and Arrow types |", "|---|---|", *rows])


def figures_table() -> str:
    """The figures that benchmarks gave, of tests/bench/results/figures.jsonl."""
    from tests.bench import figures  # the other pages need no tests

    return figures.table(figures.read(figures.FILE))


def gpu_tables() -> str:
    """The figures of a GPU and of its rehearsal, of tests/bench/results/gpu.jsonl."""
    from tests.gpu import page  # the other pages need no tests

    return page.tables(page.read(page.KEPT))


def api_page() -> str:
    """The functions of `curate`, and what `curate.kinds` hands on to packages of methods."""
    functions = [f"::: {curate._HOMES[name]}.{name}" for name in curate.__all__ if name != "__version__"]
    classes = [f"::: curate.kinds.{curate.kinds._HOMES[name]}.{name}" for name in curate.kinds.__all__]
    return "\n\n".join(["# Python API", "## Functions of `curate`", *functions, "## `curate.kinds`", *classes]) + "\n"
