"""The pipelines run from start to end, in a folder of their own, and say what they did."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import curate
from curate.kinds.registry import names
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_the_demo_is_the_whole_job(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/select_with_bm25.py")]
    for _ in range(2):  # again over its own folder
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    assert "3,000 samples" in done.stdout and "school" in done.stdout
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert set(shown.splitlines()) <= set(done.stdout.splitlines()), "the README shows what it does not print"
    truth = {n: re.search(rf"{n} +([\d.]+)% teach arithmetic, +([\d.]+)%", done.stdout) for n in ("best", "relevant")}
    (skill, bad), (topic, noise) = ([float(x) for x in m.groups()] for m in truth.values() if m)
    assert min(skill, topic) > 99 and bad < 1 < 9 < noise, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "demo/trl/best.jsonl").read_text().splitlines()]
    assert f"{len(rows)} rows for trl: demo/trl/best.jsonl" in done.stdout
    suggested = shlex.split(done.stdout.strip().splitlines()[-1])  # the last line is a command that works
    assert subprocess.run(suggested, cwd=tmp_path, capture_output=True).returncode == 0


def test_the_story_of_vectors_finds_what_is_near_and_what_is_alike(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/select_with_vectors.py")]
    for _ in range(2):  # again over its own folder
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    assert "embed_lm_arithmetic: 3,000 samples encoded" in done.stdout
    assert "embed_lm_facts: 0 samples encoded, 3,000 scored" in done.stdout
    near = re.search(r"(\d+)% of them teach arithmetic", done.stdout)
    alike = re.search(r"([\d,]+) of 3,000 stay; of 167 known pairs of near-repeats (\d+) are still whole", done.stdout)
    assert near and int(near[1]) > 95 and alike and int(alike[2]) < 167
    for selector in ("kcenter", "facility", "kmeans_quota"):
        (line,) = [x for x in done.stdout.split("\n") if x.startswith(f"   {selector} ")]
        assert line.count(",") == 6 and "translation" in line  # all six skills, and the chat


def test_offline_against_online_ends_in_pages_pictures_and_tables(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/offline_vs_online.py"), "smoke", str(tmp_path / "side")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "side/facts.html").read_text()
    for arm in (
        "base",
        "full",
        "random_10",
        "bm25_10",
        "embed_lm_10",
        "linupper",
        "adapt_tau1",
        "adapt_centred_tau0_1",
    ):
        assert f"facts_{arm}" in page, arm
    for arm in ("embed_10", "less_10", "dualsft_10"):  # a model so small costs less than what they need before
        assert f"facts_{arm}_unpaid" in page, arm
    assert "facts_adapt_shuffled (control of facts_adapt_centred_tau0_1)" in page
    for picture in ("facts.png", "facts-curves.png"):
        assert (tmp_path / "side" / picture).read_bytes()[:4] == b"\x89PNG"
    ws = curate.open_workspace(tmp_path / "side/ws")
    (budget,) = {float(x) for x in re.findall(r"Every arm may take ([\d.e+]+) FLOPs, what 0.5 epochs", done.stdout)[:1]}
    compared = curate.compare(ws)
    paid = [arm for arm in compared.arms if arm.cost.train and not arm.name.endswith("unpaid")]
    assert len(paid) > 15
    steps = curate.sql(ws, "SELECT run, max(flops) AS most FROM metrics GROUP BY run")
    longest = {row["run"]: row["most"] for row in steps}
    for arm in paid:  # within a step of it, and within what its three shown digits leave open
        assert 0.99 * budget - max(longest[run] for run in arm.runs) < arm.cost.total <= 1.01 * budget, arm.name
    assert done.stdout.count("| state similarity | ") == 1 and "| 50% | adapt_bm25 | " in done.stdout


def test_less_runs_from_its_warm_up_to_an_export(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/less.py"), "smoke", str(tmp_path / "less")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    told = [line.split()[:2] for line in done.stdout.splitlines() if "FLOPs" in line]
    phases = ["forward", "backward", "projection"]
    assert told == [
        *[["less", phase] for phase in ("warm-up", *phases)], ["less_facts", "score"],
        *[["less", phase] for phase in phases], ["less_translation", "score"],
    ]  # fmt: skip
    known = dict(re.findall(r"^   (\w+) +(\d+)%(?: +[\d.]+){2} +\d+%(?: +[\d.]+){2}$", done.stdout, re.MULTILINE))
    pool = {
        "arithmetic": 588,
        "facts": 350,
        "program": 541,
        "strings": 571,
        "table": 540,
        "translation": 264,
    }  # of 3,000
    assert known.keys() == pool.keys(), done.stdout
    for skill, per_cent in known.items():
        assert int(per_cent) / 100 > 2 * pool[skill] / 3000, f"{skill}: no better than twice chance\n{done.stdout}"
    assert "4. Why is this the best for translation?" in done.stdout
    assert (tmp_path / "less/trl/less_best_facts.jsonl").read_text().count("\n") == 150


def test_dualsft_s_arms_and_its_diagnostics(tmp_path: Path) -> None:
    out = {}
    for name in ("dualsft", "dualsft_diagnostics"):
        command = [sys.executable, str(ROOT / f"pipelines/{name}.py"), "smoke", str(tmp_path / "dual")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=2400)
        assert done.returncode == 0, done.stderr
        out[name] = done.stdout
    table = out["dualsft"].partition("3. Results")[2].partition("4. Accuracy")[0]
    told = {line.split()[0]: line for line in table.splitlines() if "e+" in line and " over " not in line}
    assert len(told) == 28 + 2 + 5
    assert {"sft", "lora", "dualsft", "dualsft_null", "both_random", "less_then_s2ft", "dualsft_again3"} <= told.keys()
    assert " 10.0%    5.00%  1.0e-02 " in told["dualsft"] and " 100.0%  100.00% " in told["sft"]
    assert "   dualsft over both_random: plasticity" in table and "dualsft_init over dualsft: plasticity" in table
    by_rate = out["dualsft"].partition("4. Accuracy")[2].partition("5. Where")[0]
    assert len(re.findall(r"\(taken: 0\.01\)", by_rate)) > 20  # four short steps: the largest rate learns most
    assert {"train", "warm-up"} <= {
        line.split()[0] for line in out["dualsft"].partition("5. Where")[2].splitlines() if line
    }
    assert (tmp_path / "dual/facts.html").read_text().count("data_dualsft_null")
    told = out["dualsft_diagnostics"]
    differ = re.search(r"The values here are the score's: they differ by ([\d.e-]+)\.", told)
    assert differ and float(differ[1]) < 1e-4  # both are sums in float32
    fidelity = re.findall(r"^   (data|parameters) +([\w-]+) +\w+.*, ([24]) steps: first", told, re.M)
    per_point = {name: sum(point == name for _, point, _ in fidelity) for name in ("warm-up", "init", "translation")}
    assert per_point == {"warm-up": 2 * 8 * 2, "init": 2 * 2, "translation": 2 * 2}
    assert "SGD, 1e-05, 2 steps: first" in told and "AdamW, 1e-05, modules, 4 steps" in told
    assert len(re.findall(r"^   round [123], (?:data|parameters)", told, re.M)) == 6
    for name in ("fidelity", "sensitivity", "places"):
        assert (tmp_path / f"dual/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_forgetting(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/forgetting.py"), "smoke", str(tmp_path / "forgetting")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = {line.split()[0]: line for line in done.stdout.partition("3. Results")[2].splitlines() if "e+" in line}
    ways = "sft lora data_random davir flow stm nanoadam fapm talr dualsft_param dualsft_data dualsft"
    assert list(told) == ways.split()
    assert " 100.0%   10.00% " in told["fapm"] and " 10.0%    5.00% " in told["dualsft"]
    flops = {name: float(re.findall(r"\d\.\d+e\+\d+", line)[0]) for name, line in told.items()}
    assert flops["fapm"] == flops["sft"] < flops["davir"]  # its reference is a training on everything


def test_every_selector(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/every_selector.py"), "smoke", str(tmp_path / "every")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    told = {line.split()[0]: line for line in done.stdout.partition("3. Accuracy")[2].splitlines() if "e+" in line}
    own = {name for name in names("selector") if name != "top"}
    assert own <= told.keys() and {"less", "dualsft", "davir", "loss", "deita_null", "lhas_null"} <= told.keys()
    skill = {name: float(re.findall(r"(\d+)%", line)[-1]) for name, line in told.items()}
    assert skill["bm25"] > 95 > 40 > skill["random"]


def test_choosing_within_the_step(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/online_selection.py"), "smoke", str(tmp_path / "within")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "The target has 240 questions, among whose answers are 60 of the test's." in done.stdout
    first, _, second = done.stdout.partition("2. filter_then_weight without its parts")
    methods = "filter_then_weight match_span match_norm greats tracin_online less_online grad_match".split()
    blind = "grad_norm max_loss rho_online".split()
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in first.splitlines() if "e+" in row}
    assert list(rows) == ["random", "full", "full_steps", "truth", *methods, *blind]
    against = {arm: row[7] for arm, row in rows.items()}
    assert all(against[arm].endswith("%") for arm in methods) and not any(against[arm] for arm in ("full", *blind))
    assert float(against["filter_then_weight"].strip("%")) <= 12 and rows["truth"][9:11] == ["0.0%", "100.0%"]
    assert [line for line in second.splitlines() if line.startswith("| from a stream | ")]
    assert len([line for line in second.splitlines() if line.startswith("| ")]) == 1 + 1 + 8 + 4 + 3 + 3
    for name in ("ratio.png", "facts.png"):
        assert (tmp_path / "within" / name).read_bytes()[:4] == b"\x89PNG"


def test_what_foretells(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/foretell.py"), "smoke", str(tmp_path / "foretell")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    for target in ("facts", "translation"):
        part = done.stdout.partition(f"\n   {target}\n")[2].partition("to be had at most")[0]
        lines = {line.split()[0]: line for line in part.splitlines() if len(line.split()) > 7}
        rows = {name: line.split() for name, line in lines.items()}
        own = {f"{name}_{target}" for name in ("bm25", "graddot", "influence", "metagradient", "less", "dualsft")}
        assert own | {"nll", "length", "(hash(id)::DOUBLE)"} <= rows.keys()
        assert all(-1 <= float(row[1]) <= 1 for name, row in rows.items() if name != "score")
        flops = {name: re.search(r"\d\.\de[+-]\d+", line) for name, line in lines.items() if name != "score"}
        cost = {name: float(found.group()) if found else 0.0 for name, found in flops.items()}
        assert cost[f"influence_{target}"] > cost[f"graddot_{target}"] > cost["length"] == 0
    assert done.stdout.count("over 4 subsets a correlation below") == 2  # as it is: four tell nothing


def test_the_long_horizon(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/long_horizon.py"), "smoke", str(tmp_path / "long")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    later = done.stdout.partition("Later:")[2]
    assert [line.split()[0] for line in later.splitlines()[2:4]] == ["random", "lhas"]
    assert "2 selectors are too few to tell" in later
    page = (tmp_path / "long/skills.html").read_text()
    assert page.count("<img") >= 4 and "Learning on the next stage" in page


def test_the_mixing_pipeline_compares_mixtures_and_weights_from_scratch(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines/mixing.py"), "smoke", str(tmp_path / "mixing")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    for arm in ("proportional", "uniform", "doremi", "regmix", "linupper", "adapt_bm25", "adapt"):
        assert lines[arm][-1].endswith("%"), arm
    extra = {arm: float(lines[arm][-1].rstrip("%")) for arm in ("uniform", "doremi", "regmix", "adapt")}
    assert extra["doremi"] > 100 and extra["regmix"] > 50 and extra["adapt"] > 0 and abs(extra["uniform"]) < 30
    assert "* kept out of the pool." in done.stdout and (tmp_path / "mixing/mixing.html").exists()
