"""Files at random, for as long as one likes: `python -m tests.attack.fuzz --minutes 10 --seed 1`.

Exits with 1 if one ended in anything but right rows, counted rejects or a sentence.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.fuzz import fuzzed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzzed(given.seed, Path(folder), 60 * given.minutes)
    print(tally)
    for line in tally.wrong[:50]:
        print(line)
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
