"""The command line as a user meets it: the whole job, and every mistake as one sentence that loses nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.store.workspace import Workspace
from tests.conftest import SAMPLE, qa, tree_bytes, write_jsonl

Cli = Callable[..., subprocess.CompletedProcess[str]]


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def sentence(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """The error a command ended with: one line, no traceback, the right status."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == status, (done.stdout, done.stderr)
    assert len(lines) == 1 and lines[0].startswith("curate: ") and lines[0].endswith((".", "?", ")")), done.stderr
    return lines[0]


def test_the_whole_job(cli: Cli, tmp_path: Path) -> None:
    ws = tmp_path / "ws"
    text = ok(cli("ingest", *sorted((SAMPLE / "pool").iterdir()), process=True, ws=ws))
    assert "3,000 samples added" in text and "sharegpt 595" in text
    ok(cli("target", "maths", SAMPLE / "targets/arithmetic_val.jsonl", "--subtask", "subtask", ws=ws))
    ok(
        cli(
            "score",
            "bm25",
            "length",
            "--target",
            "maths",
            "--set",
            "bm25.k1=1.2",
            "--name",
            "length=words",
            process=True,
            ws=ws,
        )
    )
    shown = ok(cli("status", ws=ws))
    assert "bm25_maths" in shown and "words" in shown and "complete" in shown
    text = ok(cli("select", "best", "--by", "bm25_maths + 0.01 * words", "--frac", "0.1", process=True, ws=ws))
    assert "300 of 3,000 candidates" in text and "school" in text
    preview = ok(cli("export", "best", "--to", "trl", "--preview", "3", "--json", ws=ws)).splitlines()
    assert len(preview) == 3 and all(set(json.loads(row)) == {"prompt", "completion"} for row in preview)
    ok(cli("export", "best", "--to", "trl", "-o", tmp_path / "out", process=True, ws=ws))
    assert len((tmp_path / "out/best.jsonl").read_text().splitlines()) == 300
    counted = ok(cli("sql", "SELECT count(*) AS n FROM best JOIN samples USING (row)", "--format", "json", ws=ws))
    assert json.loads(counted) == [{"n": 300}]
    assert "bm25" in ok(cli("ledger", ws=ws))
    refused = cli("drop", "words", ws=ws)
    assert refused.returncode == 2 and "without the score 'words', the manifest best would be stale" in refused.stderr
    ok(cli("drop", "words", "--force", ws=ws))
    assert [score["name"] for score in json.loads(ok(cli("status", "--json", ws=ws)))["scores"]] == ["bm25_maths"]


def test_json_results_are_machine_readable(cli: Cli, sample_ws: Workspace) -> None:
    for command in (["status"], ["ledger"], ["score", "length"], ["select", "x", "--top", "3"]):
        assert json.loads(ok(cli(*command, "--json", ws=sample_ws)))
    listed = json.loads(ok(cli("methods", "--json")))
    assert {"kind": "score", "name": "bm25"}.items() <= next(m for m in listed if m["name"] == "bm25").items()
    assert set(listed[0]) == {"kind", "name", "summary"}


def test_the_workspace_may_be_named_by_the_environment(cli: Cli, sample_ws: Workspace) -> None:
    environment = {**os.environ, "CURATE_WORKSPACE": str(sample_ws.path)}
    assert "3,000 samples" in ok(cli("status", env=environment))
    environment.pop("CURATE_WORKSPACE")
    assert "CURATE_WORKSPACE" in sentence(cli("status", env=environment))


def test_the_workspace_may_be_named_before_the_command(cli: Cli, sample_ws: Workspace) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CURATE_WORKSPACE"}
    folder = str(sample_ws.path)
    assert "3,000 samples" in ok(cli("-w", folder, "status", env=environment))
    assert "3,000 samples" in ok(cli("-w", folder, "status", env={**environment, "CURATE_WORKSPACE": "elsewhere"}))
    assert "3,000 samples" in ok(cli("-w", "elsewhere", "status", "-w", folder, env=environment))  # the nearer one


def test_help_of_a_method_has_its_formula_and_settings(cli: Cli) -> None:
    for words in (("score", "bm25"), ("bm25",)):
        text = ok(cli("methods", *words))
        assert "Formula" in text and "k1=1.5" in text and "Saturation" in text
    both = ok(cli("methods", "random"))  # a name of two kinds
    assert "selector random" in both and "mask random" in both


def test_a_folder_will_do_for_a_page(cli: Cli, few_ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    ok(cli("report", "-o", tmp_path / "pages", ws=few_ws))
    assert (tmp_path / "pages/report.html").exists()


def test_one_is_singular(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "a question", "completion": "an answer"}\n')
    said = ok(cli("ingest", tmp_path / "one.jsonl", "-w", tmp_path / "one"))
    assert said.startswith("1 row read: 1 sample added, 0 copies of known ones, 0 rejected.")
    assert "1 sample in 1 shard (1 with copies), 0 rejects." in ok(cli("status", "-w", tmp_path / "one"))


def test_names_and_values_are_joined_by_either_sign(cli: Cli, sample_ws: Workspace) -> None:
    for name, sign in (("a", "="), ("b", ":")):
        ok(
            cli(
                "mix",
                name,
                "--mixer",
                "given",
                "--set",
                f"weights=atlas{sign}1,forum{sign}3",
                "--rows",
                "8",
                ws=sample_ws,
            )
        )
        quota = ("--selector", "quota", "--set", f"shares=atlas{sign}1,forum{sign}3")
        ok(cli("select", f"s_{name}", "--by", "n_chars", "--top", "8", *quota, ws=sample_ws))
    ids = [list(curate.sql(sample_ws, f"SELECT id FROM s_{name} ORDER BY rank")) for name in "ab"]
    assert ids[0] == ids[1] and len(ids[0]) == 8
    assert list(curate.sql(sample_ws, "SELECT * FROM a")) == list(curate.sql(sample_ws, "SELECT * FROM b"))


def test_a_model_that_cannot_be_loaded_leaves_no_table(cli: Cli, few_ws: Workspace) -> None:
    assert "is no sentence encoder" in sentence(cli("score", "embed", "--model", "tiny", ws=few_ws))
    assert json.loads(ok(cli("status", "--json", ws=few_ws)))["vectors"] == []


def test_nothing_is_printed_over_results_when_no_terminal_looks_on(cli: Cli, sample_ws: Workspace) -> None:
    assert cli("score", "length", process=True, ws=sample_ws).stderr == ""


# --- mistakes --------------------------------------------------------------------------------------------


TRAIN = ["train", "r", "--model", "tiny", "--dry-run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "bm52", "--target", "arithmetic"], "no score 'bm52': did you mean 'bm25'?"),
        (["score", "bm25", "--target", "arithmetics"], "did you mean 'arithmetic'?"),
        (["score", "bm25"], "--target"),
        (
            ["score", "bm25", "--target", "arithmetic", "--set", "varient=x"],
            "no setting 'varient': did you mean 'variant'?",
        ),
        (["score", "bm25", "--target", "arithmetic", "--set", "k1=high"], "is a float, not 'high'"),
        (["score", "bm25", "--target", "arithmetic", "--set", "variant=okapy"], "is one of okapi"),
        (["score", "bm25", "--target", "arithmetic", "--set", "k1"], "KEY=VALUE"),
        (["score", "bm25", "length", "--target", "arithmetic", "--set", "k1=1"], "say whose"),
        (["score", "length", "--name", "select"], "word of SQL"),
        (["score", "length", "--name", "Total"], "'total' would do"),
        (["sql", "select * from bm25_nope"], "no table 'bm25_nope'"),
        (["sql", "drop view pool"], "give one SELECT"),
        (["select", "Bad-Name", "--by", "n_chars", "--top", "1"], "'bad_name' would do"),
        (["select", "s", "--by", "no_such_column", "--top", "1"], "no column 'no_such_column'"),
        (["select", "s", "--by", "n_chars"], "exactly one budget"),
        (["select", "s", "--top", "1", "--selector", "topp"], "did you mean 'top'?"),
        (["select", "s", "--replay", "missing.json"], "no such file"),
        (["select", "s", "--replay", "x.json", "--top", "3"], "cannot be combined with other options"),
        (["export", "nope", "--to", "trl", "-o", "o"], "no manifest 'nope'"),
        (["drop", "nope"], "no score, vectors, manifest, mask, target, run or trial 'nope'"),
        (["nonsense"], "no command 'nonsense'"),
        (["selct"], "did you mean 'select'?"),
        (["select", "s", "--top", "many"], "--help"),
        (["ingest", "nothere.jsonl"], "no such file"),
        (["ingest", "x.jsonl", "--map", "promt=a"], "did you mean 'prompt'?"),
        (["methods", "scores"], "did you mean 'score'?"),
        (["methods", "bm52"], "no method, 'bm52': did you mean 'bm25'?"),
        (["select", "samples", "--top", "1"], "'samples' is taken: it is a view; choose another."),
        (["select", "s", "--top", "1", "--set", "foo=1"], "no setting 'foo'; it has none at all"),
        ([*TRAIN, "--set", "foo=1"], "no setting 'foo': there is epochs, steps, flops"),
        ([*TRAIN, "--set", "foo=1"], "sum_gradients, count_flops."),  # the list is not cut
        ([*TRAIN, "--set", "lr=1", "--set", "learning_rate=1"], "learning_rate and --set lr are the same setting"),
        ([*TRAIN, "--set", "per_device_train_batch_size=x"], "it is a whole number above 0"),
        ([*TRAIN, "--set", "per_device_train_batch_size=4", "--set", "batch_size=8"], "sets batch_size too"),
        (["sql", "SELECT 1", "-o", "."], ". is a folder; name a file in it, as in rows.parquet."),
        (["select", "s", "--where", "meta->>'n' > 3", "--top", "1"], "by a cast, as in (meta->>'n')::DOUBLE > 3."),
        (["select", "s", "--by", "n_chars", "--frac", "0.1", "--frac-of", "all"], "'candidates', 'valued'"),
        (["drop", "arithmetics"], "did you mean 'arithmetic'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    cli: Cli, sample_ws: Workspace, arguments: list[str], words: str
) -> None:
    before = tree_bytes(sample_ws.path)
    workspace = None if arguments[0] in ("nonsense", "selct", "methods") else sample_ws
    assert words in sentence(cli(*arguments, ws=workspace))
    assert tree_bytes(sample_ws.path) == before


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "binary.jsonl": (bytes(range(128, 256)) * 40, "no JSON, Parquet or Arrow file"),
    "empty.jsonl": (b"", "every file is empty"),
    "blank.jsonl": (b"\n \n", "every file is empty"),
    "half.json": (b"[", "no JSON"),
    "cut.jsonl.gz": (gzip.compress(b'{"prompt":"a","completion":"b"}\n' * 2000)[:20], "cannot be unpacked"),
    "unknown.jsonl": (b'{"body":"x","title":"y"}\n', "fields no format has (body, title)"),
    "number.json": (b"[1, 2]", "JSON int"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_sentence(cli: Cli, tmp_path: Path, name: str) -> None:
    data, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    done = cli("ingest", tmp_path / name, ws=tmp_path / "ws")
    if name == "half.json":
        assert "array cannot be read" in sentence(done)
    else:
        said = sentence(done)
        assert words in said and name in said
    assert curate.open_workspace(tmp_path / "ws").shards() == []


def test_a_folder_that_is_no_workspace_and_one_of_the_future(cli: Cli, tmp_path: Path, sample_ws: Workspace) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    assert "not a workspace's" in sentence(cli("ingest", tmp_path / "a.jsonl", ws=tmp_path / "photos"))
    assert "is no workspace" in sentence(cli("status", ws=tmp_path / "nowhere"))
    marker = sample_ws.path / "workspace.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99, "curate": "9.0"}))
    assert "upgrade curate" in sentence(cli("status", ws=sample_ws))


def test_a_disk_that_cannot_be_written(sample_ws: Workspace) -> None:
    """A real refusal by the kernel: folders without the right to write, for a process without root's exemption."""
    exempt = os.getuid() == 0
    if exempt and not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and there is no setpriv to give that up")
    before = tree_bytes(sample_ws.path)
    folders = [sample_ws.path, *(p for p in sample_ws.path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    bounded = ["setpriv", "--bounding-set=-dac_override", "--"] if exempt else []
    command = [*bounded, sys.executable, "-m", "curate.cli", "score", "-w", str(sample_ws.path), "length"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    for folder in folders:
        folder.chmod(0o755)
    assert "Permission denied; nothing that was stored is lost" in sentence(done, status=1)
    assert tree_bytes(sample_ws.path) == before


def test_a_closed_pipe_is_no_error(sample_ws: Workspace) -> None:
    query = f"{sys.executable} -m curate.cli sql -w {sample_ws.path} 'SELECT * FROM pool' --format json | head -c 100"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", query], capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout) == 100


def test_a_budget_larger_than_the_pool_takes_all_and_says_so(cli: Cli, ws: Workspace, tmp_path: Path) -> None:
    curate.ingest(ws, [write_jsonl(tmp_path / "a.jsonl", qa(5))])
    text = ok(cli("select", "all_of_it", "--top", "99", ws=ws))
    assert "5 of 5 candidates" in text and "more than the 5 candidates" in text


def test_a_newcomers_half_broken_file(cli: Cli, tmp_path: Path) -> None:
    """What can be read is in the pool, what cannot is in rejects, and the summary counts both."""
    rows: list[Any] = [b'{"prompt":"a","completion":"b"}', b'{"prompt":"a","compl', b'{"prompt":null,"completion":"x"}']
    rows += [b'{"prompt":"a\xff\xfe","completion":"b"}', b'{"prompt":"\\ud800","completion":"b"}', b'{"text":"raw"}']
    rows += [json.dumps({"prompt": "big", "completion": "x" * 5_000_000}).encode()]
    (tmp_path / "half.jsonl").write_bytes(b"\n".join(rows))
    text = ok(cli("ingest", tmp_path / "half.jsonl", ws=tmp_path / "ws"))
    assert "7 rows read: 3 samples added" in text and "4 rejected" in text and "rejected 1: prompt is null" in text
    reasons = ok(cli("sql", "SELECT line, reason FROM rejects ORDER BY line", "--format", "csv", ws=tmp_path / "ws"))
    assert [line.split(",")[0] for line in reasons.splitlines()] == ["line", "2", "3", "4", "5"]
