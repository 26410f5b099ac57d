"""`python -m curate.cli`, as the command `curate`."""

from curate.cli.main import main

main()
