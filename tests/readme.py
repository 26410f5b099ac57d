"""Writes into the README what is made from the code: `make readme`."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from curate.cli.main import cli

README = Path(__file__).parent.parent / "README.md"
MADE = re.compile(r"(<!-- made by: curate (.*?) -->\n).*?(\n<!-- end -->)", re.S)


def rewritten(text: str) -> str:
    """The README with every `made by` block as the command in it prints it now."""

    def printed(match: re.Match[str]) -> str:
        result = CliRunner().invoke(cli, match[2].split(), catch_exceptions=False)
        return f"{match[1]}{result.output.strip()}{match[3]}"

    return MADE.sub(printed, text)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
