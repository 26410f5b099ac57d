"""The smallest part of the standing attack (`make attack MINUTES=…`): each part a few times, with a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import forks

SMALL = ["ingest", "ingest --meta replace", "target", "score of text", "select", "weigh"]
PARTS = {
    "kills": "kills.attack(folder, 1, 60, ['ingest', 'ingest --meta replace'], most=8)",
    "damages": "damages.attack(made(), folder, 3, 60, damages.QUICK, most=6)",
    "pairs": "pairs.attack(made(), folder, 1, 60, most=2, names=('ingest', 'select', 'drop of a score'))",
    "cycles": "cycles.attack(folder, 1, 60, most=2)",
}
CODE = """
    import sys
    from pathlib import Path
    from tests.attack import children, cycles, damages, kills, pairs, scene

    folder, SMALL = Path(sys.argv[1]), {small!r}

    def made():
        ended = children.in_child(lambda: scene.make(folder / "scene", SMALL))
        assert not ended.status and not ended.error, ended
        return folder / "scene"

    tally = {part}
    print(tally)
    print(*tally.wrong, sep="\\n", file=sys.stderr)
    sys.exit(bool(tally.wrong) or not tally.tried)
"""


@pytest.mark.parametrize("part", PARTS)
def test_a_small_attack_loses_nothing_and_is_never_silent(tmp_path: Path, part: str) -> None:
    done = forks.run(CODE.format(small=SMALL, part=PARTS[part]), str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
