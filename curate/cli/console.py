"""Output of the command line: results as aligned tables or JSON, and every error as one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click

from curate.errors import CurateError
from curate.text_table import one_line, visible, visible_json

NOT_SHOWN = (
    "the chat template does not show some of the assistant's turns, or their tools, or not where a turn begins and ends"
)


def show(text: str) -> None:
    """Print a text; what a terminal would take for a command is printed as its escape (curate.text_table)."""
    click.echo(visible(text))


def show_json(value: Any, indent: int | None = 1) -> None:
    """Print a value as JSON; control characters are JSON's own escapes."""
    click.echo(visible_json(json.dumps(value, ensure_ascii=False, indent=indent)))


def say(result: Any, as_json: bool, text: str) -> None:
    """Print a result: its fields as JSON, or the text."""
    if as_json:
        data = [asdict(r) for r in result] if isinstance(result, list) else result
        data = asdict(data) if is_dataclass(data) and not isinstance(data, type) else data
        show_json(data)
    else:
        show(text)


def page_path(output: str, name: str) -> Path:
    """The HTML file that -o means: FILE.html, or `name` in a folder. Raises CurateError if its folder is not there."""
    path = Path(output, name) if Path(output).is_dir() else Path(output).with_suffix(".html")
    if not path.parent.is_dir():
        raise CurateError(f"{path.parent}: there is no such folder to write {path.name} into.")
    return path


def notes(warnings: Sequence[str]) -> str:
    """Warnings as lines to print below a result."""
    return "".join(f"\nnote: {one_line(warning)}" for warning in warnings)


def run(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: status 0, 2 for a usage error, 1 for a failure, 130 when interrupted."""
    try:
        status = command.main(arguments, prog_name="curate", standalone_mode=False)
        sys.stdout.flush()
    except CurateError as error:
        status = _fail(str(error), error.exit_status)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        message = " ".join(error.format_message().split())  # click lists choices on lines of their own
        status = _fail(f"{message.rstrip('.')}{hint}.", 2)
    except (click.Abort, KeyboardInterrupt):
        status = _fail("stopped; committed work is kept, and the same command resumes from there.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has closed the pipe: not an error
        status = 0
    except OSError as error:
        prefix = f"{error.filename}: " if error.filename else ""
        status = _fail(
            f"{prefix}{error.strerror or error}; nothing that was stored is lost, fix this and run again.", 1
        )
    except Exception as error:
        if os.environ.get("CURATE_DEBUG"):
            raise
        status = _fail(f"unexpected {type(error).__name__}: {error} (a bug; CURATE_DEBUG=1 shows where).", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(sentence: str, status: int) -> int:
    click.echo(f"curate: {one_line(sentence)}", err=True)
    return status
