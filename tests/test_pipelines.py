"""The pipelines run from start to end, in a folder of their own, and say what they did."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_demo_is_the_whole_job(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/select_with_bm25.py")]
    for _ in range(2):  # again over its own folder
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert "3,000 samples" in done.stdout and "school" in done.stdout
    truth = {n: re.search(rf"{n} +([\d.]+)% teach arithmetic, +([\d.]+)%", done.stdout) for n in ("best", "relevant")}
    (skill, bad), (topic, noise) = ([float(x) for x in m.groups()] for m in truth.values() if m)
    assert min(skill, topic) > 99 and bad < 1 < 9 < noise, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "demo/trl/best.jsonl").read_text().splitlines()]
    assert f"{len(rows)} rows for trl: demo/trl/best.jsonl" in done.stdout
    suggested = shlex.split(done.stdout.strip().splitlines()[-1])  # the last line is a command that works
    assert subprocess.run(suggested, cwd=tmp_path, capture_output=True).returncode == 0
