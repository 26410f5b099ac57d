"""`curate doctor`: what it says is what is there, and no hint names another project's package."""

from __future__ import annotations

import json
import re
import time
from importlib.metadata import version
from typing import Any

import pytest
import torch

import curate
from curate.verbs import doctor as its


def test_versions_devices_and_rates_are_those_of_this_machine() -> None:
    began = time.perf_counter()
    r = curate.doctor()
    assert r.versions["torch"] == version("torch") and r.versions["duckdb"] == version("duckdb")
    assert r.threads == torch.get_num_threads() and r.cores >= 1 and r.devices[0]["memory"] > 2**28
    for device in r.devices:
        assert all(device[dtype] is None or device[dtype] > 1e7 for dtype in ("float32", "bfloat16"))
    assert time.perf_counter() - began < 60 and len(r.notes) >= 2 and len(repr(r).splitlines()) <= 25
    fields = {"name", "kind", "memory", "dtype", "attention"}
    assert [set(device) for device in curate.doctor(measure=False).devices] == [fields] * len(r.devices)


def test_the_attention_that_is_told_is_the_one_that_runs() -> None:
    """On a GPU it is whichever its build has; a CPU's has its own name in a profile."""
    r = curate.doctor(measure=False)
    assert [d["dtype"] for d in r.devices] == ["bfloat16" if d["kind"] == "cuda" else "float32" for d in r.devices]
    assert r.devices[0]["attention"] == its._attention(torch.device("cpu"), torch.float32)
    q = torch.randn(1, 8, 128, 64)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        told = its._attention(torch.device("cpu"), dtype).removeprefix("sdpa: ").split(",")[0]
        with torch.profiler.profile() as ran:
            torch.nn.functional.scaled_dot_product_attention(*[q.to(dtype)] * 3, is_causal=True)
        assert any(told in event.key for event in ran.key_averages()), told


def test_a_missing_part_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its, "find_spec", lambda name: None)
    monkeypatch.setattr(its.shutil, "which", lambda name: None)
    *parts, sandbox = curate.doctor(measure=False).parts
    assert all(part["version"] == "" and "pip install" in part["how"] for part in parts)
    assert sandbox["version"] == "" and "apt install bubblewrap" in sandbox["how"]
    for part in parts:  # `curate` belongs to another project on the package index
        assert not re.search(r"install.* ['\"]?curate(?!-lm)", part["how"]), part
    assert any(part["how"] == "the extra `ray`: pip install 'curate-lm[ray]'" for part in parts)


def test_which_dtype_is_fast_is_a_sentence() -> None:
    def told(single: float | None, half: float | None, kind: str = "cpu") -> str:
        return its._fast({"name": "it", "kind": kind, "float32": single, "bfloat16": half})

    assert "bfloat16 is 2.0 times as fast" in told(1e9, 2e9) and "float32 is 4.0 times as fast" in told(4e9, 1e9)
    assert "about equally fast" in told(1e9, 1.1e9) and "in float32 only" in told(1e9, None)
    assert "auto is bfloat16 there" in told(1e9, 2e9, "cuda")


def test_threads_are_compared_with_cores() -> None:
    def told(threads: int, **variables: str) -> str:
        return its._of_threads(its.Doctor("1", "3", "x", cores=4, threads=threads, variables=variables))[0]

    assert "1 threads on 4 cores (OMP_NUM_THREADS=1 is set; unset it" in told(1, OMP_NUM_THREADS="1")
    assert told(8).endswith("set OMP_NUM_THREADS=4") and told(4).endswith("4 threads on 4 cores")


def test_the_command_prints_and_makes_json(cli: Any) -> None:
    done = cli("doctor", "--no-measure")
    assert done.returncode == 0 and "optional part" in done.stdout and "GiB" in done.stdout, done.stderr
    assert json.loads(cli("doctor", "--no-measure", "--json").stdout)["curate"] == curate.__version__
    assert "FLOP/s" in cli("doctor").stdout
