"""Attacks on a workspace: `python -m tests.attack --minutes 10 --seed 1 --part damages` (`make attack MINUTES=10`).

Exits with 1 if something was lost, silent or unexpected. Without --part the minutes are shared by all parts.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack import children, cycles, damages, disk, kills, pairs, s3, scene
from tests.support.fuzz import fuzzed


def _on_a_scene(attack: Callable[..., Any]) -> Callable[[int, Path, float], Any]:
    def run(seed: int, folder: Path, seconds: float) -> Any:
        place = folder / "scene"
        made = children.in_child(lambda: scene.make(place))
        if made.error or made.status:
            raise RuntimeError(f"the workspace to attack was not made: {made}")
        return attack(place, folder, seed, seconds)

    return run


PARTS: dict[str, Callable[[int, Path, float], Any]] = {
    "kills": lambda seed, folder, seconds: kills.attack(folder, seed, seconds),
    "damages": _on_a_scene(damages.attack),
    "pairs": _on_a_scene(pairs.attack),
    "disk": lambda seed, folder, seconds: disk.attack(folder, seed, seconds),
    "s3": lambda seed, folder, seconds: s3.attack(folder, seed, seconds),
    "fuzz": fuzzed,
    "cycles": lambda seed, folder, seconds: cycles.attack(folder, seed, seconds),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--part", choices=[*PARTS], action="append")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    children.load()
    wrong = 0
    for part in given.part or PARTS:
        seconds = 60 * given.minutes / len(given.part or PARTS)
        with tempfile.TemporaryDirectory(prefix="curate-attack-") as folder:
            tally = PARTS[part](given.seed, Path(folder), seconds)
        print(f"\n--- {part}: python -m tests.attack --minutes {given.minutes:g} --seed {given.seed} --part {part}")
        print(tally, *tally.wrong[:200], sep="\n", flush=True)
        wrong += len(tally.wrong)
    gc.unfreeze()  # the libraries look at the end for what is left
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
