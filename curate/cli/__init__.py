"""The command line: commands, and the one place where names become objects."""

from curate.cli.main import main as main
