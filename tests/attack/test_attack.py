"""The smallest part of the standing attack (`make attack MINUTES=…`): a few of each part, with a fixed seed."""

from __future__ import annotations

from pathlib import Path

from tests.attack import damages
from tests.attack.tally import Tally
from tests.support import forks

CODE = """
    import os
    import sys
    from pathlib import Path
    from tests.attack import children, cycles, damages, kills, pairs, scene

    os.fsync = lambda _: None
    for module in ("pyarrow.compute", "curate.verbs.ingest", "curate.verbs.target", "curate.verbs.score",
                   "curate.verbs.select", "curate.verbs.weigh", "curate.verbs.sql", "curate.verbs.status",
                   "curate.verbs.export", "curate.verbs.drop", "curate.verbs.verify", "curate.pages.report"):
        __import__(module)
    folder = Path(sys.argv[1])
    names = ["ingest", "ingest --meta replace", "target", "score of text", "select", "weigh"]
    ended = children.in_child(lambda: scene.make(folder / "scene", names))
    assert not ended.status and not ended.error, ended
    tallies = [
        damages.attack(folder / "scene", folder, 5, 60, ("status", "sql of samples", "export", "score"), most=4),
        pairs.attack(folder / "scene", folder, 1, 60, 1, ("ingest", "select", "drop of a score")),
        kills.attack(folder, 1, 60, ["ingest"], most=4),
    ]
    for tally in tallies:
        print(tally)
        print(*tally.wrong, sep="\\n", file=sys.stderr)
    sys.exit(any(tally.wrong or not tally.tried for tally in tallies))
"""


def test_a_small_attack_loses_nothing_and_is_never_silent(tmp_path: Path) -> None:
    done = forks.run(CODE, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_the_same_and_said_by_nothing_is_silent() -> None:
    right = {"status": damages.Told("a", shown="{'damaged': [], 'rows': 3}")}
    other = damages.Told("b", shown="{'damaged': [], 'rows': 2}")
    clean, found = damages.Told("c", shown="[]"), damages.Told("d", shown="['pool']")
    assert damages.outcome(clean, {"status": other}, right)[0] == "SILENT"
    assert damages.outcome(found, {"status": other}, right)[0] == "wrong"
    assert damages.outcome(found, right, right)[0] == "verified"
    assert damages.outcome(clean, right, right)[0] == "held"
    assert damages.outcome(clean, {"status": damages.Told(error="It is damaged.")}, right)[0] == "said"
    assert damages.outcome(clean, {"status": damages.Told(error="KeyError", unexpected=True)}, right)[0] == "UNEXPECTED"
    tally = Tally("damages", damages.OUTCOMES, damages.BAD)
    tally.add("pool", "SILENT", "a shard")
    assert tally.wrong == ["SILENT: a shard"] and "SILENT" in str(tally)
